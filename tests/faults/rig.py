"""A project with real workers, Redis and store, whose parts a test breaks; and what must hold
afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from rq.job import Job

from ml_backend.durable import sweep
from ml_backend.embedded.processes import ProcessGroup
from ml_backend.embedded.redis_server import start_redis
from ml_backend.embedded.stack import settings_from
from ml_backend.rounds import reconcile
from ml_backend.rounds.artefacts import (
    DATASET,
    METRICS,
    PROJECT,
    PUBLISHED,
    QUEUE,
    SELECTION,
    of_a_round,
)
from ml_backend.rounds.claim import Holder, last_holder
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.queue import pending
from ml_backend.rounds.records import ProjectRecord
from ml_backend.rounds.schedule import GPU
from ml_backend.rounds.service import Service
from ml_backend.rounds.status import State, project_status
from ml_backend.studio.annotations import regions
from ml_backend.studio.label_config import parse_label_config
from tests.faults import cells
from tests.faults.studio import BACKEND_URL, FaultyStudio
from tests.faults.worker import Stop, WorkerProcess
from tests.http_studio import CONFIG
from tests.segmentation_phantom import Phantom

__all__ = ["Cell", "K", "Rig", "closing"]

K = 3
_RESERVE = 7
"""A queue of K + 2 R: more than are stored in one request."""
_LONG_AGO = "2020-01-01T00:00:00.000000Z"
_YEAR_S = 3e7
WITHIN_S = 400.0


class Rig:
    """Round 0 of the project is published, the first ``labelled`` slices have labels, and nobody
    works yet. ``early``: after how many labels early rounds begin.

    ``hurried``: pauses of minutes are skipped by ageing what they are counted from, and looks are
    half a second apart; else everything is as by default.
    """

    def __init__(
        self,
        folder: Path,
        studio: FaultyStudio,
        *,
        redis_url: str | None = None,
        backend_url: str = BACKEND_URL,
        store: Path | None = None,
        seen_store: Path | None = None,
        inside: int | None = None,
        labelled: int = K,
        early: str = "off",
    ) -> None:
        self.folder, self.studio = folder, studio
        self.hurried = not cells.real_time()
        self.group = ProcessGroup(folder / "logs")
        self.redis = ProcessGroup(folder / "logs")
        self.workers: list[WorkerProcess] = []
        self.inside = inside
        self.clock = folder / "clock"
        self.clock.write_text("0")
        store = store or folder / "store"
        self.env = {
            "REDIS_URL": redis_url or self.start_redis(),
            "LABEL_STUDIO_URL": studio.url,
            "LABEL_STUDIO_API_KEY": studio.key,
            "NEXTSLICE_STORE": str(store),
            "NEXTSLICE_CACHE_DIR": str(folder / "cache"),
            "NEXTSLICE_BACKEND_URL": backend_url,
            "NEXTSLICE_QUEUE_PREFIX": f"faults-{uuid.uuid4().hex[:8]}",
            "NEXTSLICE_K": str(K),
            "NEXTSLICE_EARLY_ROUNDS": early,
            "NEXTSLICE_OPEN_MINUTES": "0",
            "NEXTSLICE_RESERVE": str(_RESERVE),
            "NEXTSLICE_TRAIN_STEPS": "4",
            "NEXTSLICE_CROP": "32",
            "NEXTSLICE_PRETRAINED": "false",
            "NEXTSLICE_TRAIN_DEVICE": "cpu",
            "NEXTSLICE_PREDICT_DEVICE": "cpu",
            "NEXTSLICE_ARCHITECTURE": "hrnet_w18_small",
            "OMP_NUM_THREADS": "1",
        }
        if self.hurried:
            self.env |= {"NEXTSLICE_RECONCILE_S": "2", "NEXTSLICE_CLAIM_TTL_S": "4"}
        settings = settings_from({**self.env, "NEXTSLICE_STORE": str(seen_store or store)})
        self.service = Service(settings)
        self.project = ConnectedProject(self.service, studio.memory.project(7).key)
        self.project.update(lambda record: None, adopting=True)
        reconcile.count(self.project)
        self.label(range(labelled))

    def start_redis(self, *, empty: bool = False) -> str:
        """Start a Redis of its own, with what it held before or ``empty``; its URL."""
        self.redis.stop()
        if empty:
            shutil.rmtree(self.folder / "redis")
        return start_redis(self.redis, self.folder / "redis", self.folder / "redis.sock")

    def kill_redis(self) -> None:
        """SIGKILL to its own Redis."""
        os.kill(self.service.schedule.connection.info()["process_id"], signal.SIGKILL)

    def label(self, tasks: range) -> None:
        """Somebody submits the true mask of each."""
        phantom, config = Phantom(tasks.stop), parse_label_config(CONFIG)
        for task in tasks:
            self.studio.memory.submit(task, regions(phantom.mask(phantom.ids[task]), config))

    # -- who works

    def gpu(self, stop: Stop | None = None) -> WorkerProcess:
        """Start a gpu worker."""
        return self._worker("gpu", stop, self.env)

    def gpu_stopped(self, stop: Stop) -> WorkerProcess:
        """A gpu worker that was asked for a round, and has come to ``stop`` in it."""
        worker = self.gpu(stop)
        self.control()
        self.hint()
        worker.wait_for_stop()
        return worker

    def control(self, stop: Stop | None = None, **env: str) -> WorkerProcess:
        """Start a control worker; ``env``: of another deployment."""
        return self._worker("control", stop, {**self.env, **env})

    def _worker(self, kind: str, stop: Stop | None, env: dict[str, str]) -> WorkerProcess:
        worker = WorkerProcess(self.folder, kind, env, stop, self.clock, self.inside)
        self.workers.append(worker)
        return worker

    def hint(self) -> None:
        """What a webhook does."""
        self.project.schedule.count()

    def close(self) -> None:
        """Kill everything."""
        for worker in self.workers:
            worker.kill()
        self.group.stop(grace_s=1)
        self.redis.stop(grace_s=1)

    # -- time

    def time_passes(self) -> None:
        """Where the test is in a hurry: as if the pauses after a killed or failed attempt, the
        locks of a silenced worker and its jobs' last signs of life were over."""
        if not self.hurried:
            return
        self._age_jobs()
        self.project.update(_age)

    def _age_jobs(self) -> None:
        redis: Redis = self.service.schedule.connection
        prefix = self.env["NEXTSLICE_QUEUE_PREFIX"]
        for key in redis.scan_iter(f"{Job.redis_job_namespace_prefix}{prefix}*"):
            if b":" not in key.removeprefix(Job.redis_job_namespace_prefix.encode()):
                redis.hset(key, "last_heartbeat", _LONG_AGO)
        if any(worker.silenced for worker in self.workers):  # else whoever holds one is at work
            for lock in redis.scan_iter(f"{prefix}:*:{self.project.key}"):
                redis.delete(lock)

    def holder_token(self) -> int:
        """The last claim of round 1; 0 before the first."""
        holder = last_holder(self.project.folder.round(1))
        return 0 if holder is None else holder.token

    # -- what holds

    def wait_for_round(self, number: int, within_s: float = WITHIN_S) -> None:
        """Until the round is published."""

        def published() -> bool:
            found = self.project.published
            return found is not None and found.round >= number

        cells.wait_until(published, f"round {number} of {self.folder}", within_s, 0.05)

    def wait_for_masks(self) -> None:
        """Until no mask of the published queue is still to come."""

        def drawn() -> bool:
            found = self.project.published
            return found is not None and not pending(self.project, found)

        cells.wait_until(drawn, f"the masks of {self.folder}", WITHIN_S, 0.05)

    def wait_for_quiet(self) -> None:
        """Until nothing is asked for any more, and nobody is at a round."""
        schedule = self.service.schedule
        looks = [self.project.schedule.job_id("count"), self.project.schedule.job_id("tidy")]
        self.hint()
        cells.wait_until(
            lambda: schedule.length(GPU) == (0, 0) and all(map(schedule.ended, looks))
            # a job that has left the queue is not at once among those that have started
            and all(holder.released for holder in self._holders()),
            "an end of the jobs", 180, 0.05,
        )  # fmt: skip

    def _holders(self) -> list[Holder]:
        """Who had each round last."""
        project = self.project.folder
        found = (last_holder(project.round(number)) for number in project.rounds())
        return [holder for holder in found if holder is not None]

    def check(self, number: int) -> tuple[int, int]:
        """Hold round ``number``, the last, against what must be; labels lost, and trained twice."""
        self._check_switch(number)
        self._check_queue(number)
        self._check_files()
        return self._labels(number)

    def _check_switch(self, number: int) -> None:
        published = self.project.published
        assert published is not None
        assert published.round == number, "a round more than was asked for"
        seen = self.project.in_studio()
        backend = self.studio.memory.backend
        assert backend is not None
        assert seen.model_version == backend.title == published.model_version

    def _check_queue(self, number: int) -> None:
        """It stands as it was selected: places ascending, each slice once."""
        published, folder = self.project.published, self.project.folder.round(number)
        assert published is not None
        rows = [row for row in self.studio.memory.imported
                if row["model_version"] == published.model_version]  # fmt: skip
        queue, selection = folder.need(QUEUE), folder.need(SELECTION)
        stored = [row["task"] for row in sorted(rows, key=lambda row: row["score"])]
        assert len(stored) == len(set(stored)), "a slice stands twice in the queue"
        assert stored == [entry.task for entry in queue.entries]
        ranked = [*selection.chosen, *selection.reserve, *selection.backlog]
        done = {row.id for row in self.project.studio.tasks(7) if row.total_annotations}
        expected = [task for task in ranked if task not in done]
        selected = [entry.task for entry in queue.entries if entry.kind != "top-up"]
        assert [task for task in selected if task not in done] == expected[: len(selected)]
        if published.weights is not None:
            first = [row for row in rows if row["task"] in selection.chosen]
            assert all(row["result"] is not None for row in first)

    def _check_files(self) -> None:
        """Nothing stands half-written."""
        project = self.project.folder
        root = Path(self.project.settings.store, project.path)
        for part in root.rglob("*.part"):  # what the next worker that begins after a minute does
            os.utime(part, (time.time() - 120,) * 2)
        sweep(root)
        assert [str(part) for part in root.rglob("*.part")] == []
        assert project.load(PROJECT) is not None
        assert project.load(PUBLISHED) is not None
        for number in project.rounds():
            folder = project.round(number)
            for artefact in of_a_round():
                folder.load(artefact)  # type: ignore[arg-type]  # each is an artefact
        assert all(holder.released for holder in self._holders())

    def _labels(self, number: int) -> tuple[int, int]:
        """Of what people submitted: how many the round lacks, and how many count more than once."""
        folder = self.project.folder.round(number)
        dataset, metrics = folder.need(DATASET), folder.need(METRICS)
        submitted = {annotation["id"] for task in self.studio.memory.full_tasks(7)
                     for annotation in task["annotations"]}  # fmt: skip
        learned = [label.annotation for label in dataset.labels]
        used = [*metrics.trained, *metrics.validation]
        assert sorted(used) == sorted({label.task for label in dataset.labels})
        return len(submitted - {*learned}), len(learned) - len({*learned})


class Cell:
    """A fault of the matrix, from its cause to the recovery."""

    def __init__(self, rig: Rig, fault: str, test: str) -> None:
        self.rig, self.fault, self.test = rig, fault, test
        self.says = ""
        self._gone = 0.0

    def see(self, state: State, within_s: float = 30.0) -> str:
        """Wait until ``rounds list`` tells of ``state``, and keep the sentence."""

        def told() -> bool:
            conditions = project_status(self.rig.project).conditions
            self.says = next((c.says for c in conditions if c.state == state), "")
            return bool(self.says)

        cells.wait_until(told, f"the state {state}", within_s, 0.05)
        return self.says

    def over(self, *, skip_pauses: bool = True) -> None:
        """The cause is gone; from here on the time counts."""
        self._gone = time.monotonic()
        if skip_pauses:
            self.rig.time_passes()

    def recovers(self, number: int = 1, within_s: float = WITHIN_S) -> None:
        """Wait for the round, hold everything against what must be, and note what was measured."""
        assert self._gone, "the cause still stands"
        self.rig.wait_for_round(number, within_s)
        seconds = time.monotonic() - self._gone
        self.rig.wait_for_quiet()
        lost, twice = self.rig.check(number)
        cells.note(
            cells.Measured(fault=self.fault, sees=self.says, seconds=round(seconds, 1), lost=lost,
                           twice=twice, test=self.test, load=round(os.getloadavg()[0], 1),
                           cores=os.cpu_count() or 0)
        )  # fmt: skip
        assert (lost, twice) == (0, 0)


def _age(record: ProjectRecord) -> None:
    record.began_at -= _YEAR_S
    record.failed_at -= _YEAR_S


@contextmanager
def closing(rig: Rig) -> Iterator[Rig]:
    """The rig, whose processes end with the block; its disk space is given back."""
    try:
        yield rig
    finally:
        rig.close()
        shutil.rmtree(rig.folder / "cache", ignore_errors=True)
