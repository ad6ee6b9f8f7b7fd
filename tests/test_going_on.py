"""The training that goes on after a round: what it publishes, what it leaves, whom it gives way to.

Store and Redis are real, Label Studio is HTTP in front of memory; in place of the network is one
whose trainings take and give what the test says.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from al_strategies.evidence import Evidence, SliceId
from al_strategies.learner import (
    FitReport,
    Maps,
    Metrics,
    Prediction,
    Progress,
    Unreadable,
    UnreadableSlice,
)
from ml_backend.embedded.processes import wait_until
from ml_backend.rounds import coverage, jobs, learners, reconcile, switching
from ml_backend.rounds import round as round_module
from ml_backend.rounds.artefacts import FURTHER, FURTHER_WEIGHTS, METRICS, QUEUE, ROUND, WEIGHTS
from ml_backend.rounds.attempt import attempt
from ml_backend.rounds.claim import claimed, last_holder
from ml_backend.rounds.further import FAILURES, JUDGES, TRIES, known_further, may_go_on
from ml_backend.rounds.going_on import go_on
from ml_backend.rounds.pauses import next_job_at
from ml_backend.rounds.pending import draw_pending
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import FurtherRecord, ProjectRecord, Published, QueueEntry
from ml_backend.rounds.round import run_round
from ml_backend.rounds.schedule import SPARE, ProjectSchedule
from ml_backend.rounds.service import Service
from ml_backend.rounds.status import project_status
from ml_backend.rounds.unreadable import UnreadableSlices
from ml_backend.segmentation.checkpoints import CheckpointError
from ml_backend.settings import Settings
from ml_backend.studio import download, task_order
from ml_backend.studio.annotations import regions
from ml_backend.studio.failures import ImageUnavailable, StudioError
from ml_backend.studio.label_config import parse_label_config
from tests.http_server import serving
from tests.http_studio import CONFIG, PHANTOM, HttpStudio
from tests.memory_studio import MemoryStudio

K = 3
SLICES = 60
LABELLED = 40
QUEUE_LENGTH = K + 2 * 2
ORDER = [int(i) for i in np.random.default_rng(0).permutation(SLICES)]


def unreadable_slice(slice_id: SliceId, why: Exception) -> UnreadableSlice:
    """What the network tells of a slice that cannot be read."""
    error = UnreadableSlice(slice_id, str(why))
    error.__cause__ = why
    return error


class Told:
    """Stands where the network does. ``further``: the IoU that trainings after the round's own
    give, whose is .5. ``steps`` of ``pause_s`` each; ``begun``: how many, of all trainings."""

    further = 0.6
    steps = 3
    pause_s = 0.0
    begun = 0

    def __init__(self, classes: tuple[str, ...], *_: Any) -> None:
        self.classes = classes
        self.grade = 0.0
        self.neighbours = 0

    def fit(
        self,
        source: Any,
        labelled: Sequence[SliceId],
        *,
        seed: int = 0,
        progress: Any = None,
        **_: Any,
    ) -> FitReport:
        for step in range(self.steps):
            source.image(labelled[step % len(labelled)])
            Told.begun += 1
            time.sleep(self.pause_s)
            if progress is not None:
                progress("train", step, self.steps)
        self.grade = 0.5 if seed < 1000 else self.further
        return FitReport(1, len(labelled), 0.0, settings={"warm_started": False})

    def usable(self, source: Any, ids: Sequence[SliceId], _: Any) -> list[SliceId]:
        return list(ids)

    def evaluate(self, source: Any, ids: Sequence[SliceId], **_: Any) -> Metrics:
        return Metrics(self.grade, {"bone": self.grade}, self.grade, len(ids))

    def evidence(self, source: Any, ids: Sequence[SliceId], *_: Any, **__: Any) -> Evidence:
        return Evidence(tuple(ids), tuple(source.position(i) for i in ids))

    def predict(
        self, source: Any, ids: Sequence[SliceId], *, unreadable: Unreadable | None = None, **_: Any
    ) -> Iterator[tuple[SliceId, Prediction]]:
        for slice_id in ids:
            side = round(10 * self.grade)
            try:
                image = source.image(slice_id)
            except ImageUnavailable as error:
                if unreadable is None:
                    raise
                unreadable(unreadable_slice(slice_id, error))
                continue
            mask = np.zeros(image.shape, np.uint8)
            mask[:side, :side] = 1
            yield slice_id, Prediction(mask, 1.0)

    def maps(self, source: Any, ids: Sequence[SliceId], **_: Any) -> Iterator[tuple[SliceId, Maps]]:
        for slice_id, found in self.predict(source, ids):
            yield slice_id, Maps(found.mask, np.full((1, *found.mask.shape), 255, np.uint8), None)

    def to_bytes(self) -> bytes:
        return json.dumps(self.grade).encode()

    @classmethod
    def from_bytes(cls, data: bytes, *_: Any) -> Told:
        found = cls(("background", "bone", "implant"))
        found.grade = json.loads(data)
        return found


@pytest.fixture
def studio() -> Iterator[HttpStudio]:
    memory = MemoryStudio(CONFIG, SLICES, lambda i: PHANTOM.image(PHANTOM.ids[i % 12]))
    with serving(HttpStudio(memory)) as server:
        yield server


def label(studio: HttpStudio, tasks: Sequence[int]) -> None:
    config = parse_label_config(CONFIG)
    for task in tasks:
        studio.memory.submit(task, regions(PHANTOM.mask(PHANTOM.ids[task % 12]), config))


Make = Callable[..., ConnectedProject]


@pytest.fixture
def make_project(
    studio: HttpStudio,
    make_settings: Callable[..., Settings],
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Make]:
    monkeypatch.setitem(learners.KINDS, "network", Told)
    made: list[ConnectedProject] = []

    def make(labels: int = LABELLED, **variables: Any) -> ConnectedProject:
        settings = make_settings(
            **{
                "REDIS_URL": redis_url,
                "NEXTSLICE_QUEUE_PREFIX": "going-on",
                "NEXTSLICE_K": K,
                "NEXTSLICE_RESERVE": 2,
                "NEXTSLICE_STRATEGY": "random",
                "NEXTSLICE_FURTHER_MINUTES": 5,
                "NEXTSLICE_TRAIN_DEVICE": "cpu",
                "LABEL_STUDIO_URL": studio.url,
                "LABEL_STUDIO_API_KEY": studio.key,
                **variables,
            }
        )
        project = ConnectedProject(Service(settings), studio.memory.project(7).key)
        made.append(project)
        project.update(lambda record: None, adopting=True)
        reconcile.count(project)
        label(studio, ORDER[:labels])
        run_round(project, "test")
        return project

    yield make
    for project in made:
        for kind in ("gpu", "spare", "control"):
            project.service.schedule.queue(kind).empty()


def nothing(step: str, done: int, total: int) -> None:
    """Nobody watches."""


def served(project: ConnectedProject) -> Published:
    found = project.published
    assert found is not None
    return found


def stored(studio: HttpStudio, version: str) -> dict[int, tuple[float, int]]:
    """Task → score of its prediction of ``version``, and how many regions that has."""
    return {
        row["task"]: (round(row["score"], 6), len(row["result"]))
        for row in studio.memory.imported
        if row["model_version"] == version
    }


def test_better_weights_are_served_as_a_version_of_their_own_in_the_same_order(
    make_project: Make, studio: HttpStudio
) -> None:
    project = make_project()
    before, folder = served(project), project.folder.round(1)
    queue = folder.need(QUEUE)
    assert len(folder.need(METRICS).validation) >= JUDGES

    assert go_on(project, nothing)

    after = served(project)
    assert after.round == 1
    assert after.model_version != before.model_version
    assert after.model_version.startswith("nextslice-r001-")
    assert after.weights == folder.relative(FURTHER_WEIGHTS)
    assert project.in_studio().model_version == after.model_version
    assert folder.need(QUEUE).entries == queue.entries
    assert folder.need(QUEUE).model_version == after.model_version
    masks = stored(studio, after.model_version)
    assert masks == {e.task: (round(e.score, 6), 1) for e in queue.entries}
    further = folder.need(FURTHER)
    assert further.metrics is not None
    assert (further.metrics.miou, further.metrics.published_miou) == (0.6, 0.5)
    held = set(folder.need(METRICS).validation)
    assert further.metrics.pseudo
    assert not held & further.metrics.learned, "nothing that judges was trained on"
    assert not may_go_on(project, after), "once is enough"
    assert not go_on(project, nothing)

    label(studio, ORDER[LABELLED : LABELLED + K])
    run_round(project, "test")
    assert project.folder.round(2).need(METRICS).published_miou == 0.6


def test_better_weights_are_not_served_in_another_project_of_the_number(
    make_project: Make, studio: HttpStudio
) -> None:
    project = make_project()
    before = list(studio.memory.imported)
    studio.memory.set_up_afresh()

    with pytest.raises(StudioError, match="is gone"):
        go_on(project, nothing)

    assert studio.memory.imported == before


@pytest.mark.parametrize("grade", [0.5, 0.4, float("nan")])
def test_what_is_no_better_is_never_served(
    make_project: Make, monkeypatch: pytest.MonkeyPatch, grade: float
) -> None:
    monkeypatch.setattr(Told, "further", grade)
    project = make_project()
    before = served(project)
    assert may_go_on(project, before)

    assert not go_on(project, nothing)

    assert served(project) == before
    further = project.folder.round(1).need(FURTHER)
    assert (further.tries, further.model_version) == (TRIES, None)
    assert not project.folder.round(1).has(FURTHER_WEIGHTS)
    assert not may_go_on(project, before)


def test_few_labels_that_judge_publish_nothing(make_project: Make) -> None:
    project = make_project(12)

    assert 0 < len(project.folder.round(1).need(METRICS).validation) < JUDGES
    assert not may_go_on(project, served(project))
    assert not go_on(project, nothing)


def test_it_is_asked_for_only_where_it_is_wanted_and_nothing_else_is_due(
    make_project: Make, studio: HttpStudio
) -> None:
    project = make_project()
    spare = project.service.schedule.queue(SPARE)
    reconcile.count(project)
    assert len(spare.job_ids) == 1
    spare.empty()

    label(studio, ORDER[LABELLED : LABELLED + K])
    reconcile.count(project)
    assert spare.job_ids == []

    off = make_project(NEXTSLICE_FURTHER_MINUTES=0)
    reconcile.count(off)
    assert spare.job_ids == []


@pytest.mark.parametrize("who", ["own labels", "another project", "an experiment"])
def test_whoever_needs_the_worker_has_it_within_five_seconds(
    make_project: Make, studio: HttpStudio, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    project = make_project()
    before = served(project)
    monkeypatch.setattr(Told, "steps", 1_000_000)
    monkeypatch.setattr(Told, "pause_s", 0.05)
    monkeypatch.setattr(Told, "begun", 0)
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(go_on, project, nothing)
        wait_until(lambda: Told.begun > 30, "steps of more than a second", 120)
        assert not going.done()
        if who == "own labels":
            label(studio, ORDER[LABELLED : LABELLED + K])
            reconcile.count(project)
        elif who == "another project":
            project.service.schedule.of("8.1763865028").round("test")
        else:
            project.service.schedule.run("ml_backend.experiment.runner.run_one", "folder")
        asked = Told.begun
        try:
            assert going.result(timeout=240) is False
        finally:
            monkeypatch.setattr(Told, "steps", 1)
            project.service.schedule.queue("simulate").empty()

    assert (Told.begun - asked) * 0.05 < 5, "in steps: whoever else delays it delays them"
    assert served(project) == before
    further = project.folder.round(1).need(FURTHER)
    assert further.tries == 0, "it goes on where the worker is free again"
    assert further.seconds > 1


def test_when_the_time_is_up_it_ends(make_project: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make_project(NEXTSLICE_FURTHER_MINUTES=2 / 60)
    monkeypatch.setattr(Told, "steps", 1_000_000)
    monkeypatch.setattr(Told, "pause_s", 0.05)

    assert not go_on(project, nothing)

    assert not may_go_on(project, served(project))


def _in_a_process_of_its_own(settings: Settings, key: str) -> None:
    go_on(ConnectedProject(Service(settings), key), nothing)


def test_killed_at_any_moment_it_leaves_what_is_served(
    make_project: Make, studio: HttpStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Told, "pause_s", 0.01)
    project = make_project()
    before, folder = served(project), project.folder.round(1)
    entries = folder.need(QUEUE).entries
    redis = project.service.schedule.connection
    rng = random.Random(0)
    seen = {before.model_version}
    for turn in range(14):
        folder.save(FURTHER, _with_a_try_left(folder.load(FURTHER)))
        child = get_context("fork").Process(
            target=_in_a_process_of_its_own, args=(project.settings, project.key)
        )
        child.start()
        child.join(rng.uniform(0.7, 1.3) * (0.05 + 0.08 * turn))
        child.kill()
        child.join()
        for lock in redis.scan_iter("going-on:*:*"):
            redis.delete(lock)  # as if 30 s had passed
        project.update(_without_a_fight)  # so many switches back look like one
        time.sleep(0.3)  # a request of the one that was killed may be under way

        now = served(project)
        seen.add(now.model_version)
        _loads(project, now)
        switching.repair(project, project.in_studio())
        reconcile.count(project)
        assert project.in_studio().model_version == now.model_version
        assert folder.need(QUEUE).model_version == now.model_version
        assert [e.task for e in folder.need(QUEUE).entries] == [e.task for e in entries]
        assert stored(studio, now.model_version).keys() == {e.task for e in entries}
    project.service.schedule.queue(SPARE).empty()

    if served(project) == before:
        folder.save(FURTHER, _with_a_try_left(folder.load(FURTHER)))
        assert go_on(project, nothing)
    after = served(project)
    seen.add(after.model_version)
    assert after.weights == folder.relative(FURTHER_WEIGHTS)
    assert len(seen) == 2, "what was served, and what came out"
    assert stored(studio, after.model_version) == {e.task: (round(e.score, 6), 1) for e in entries}


def _without_a_fight(record: ProjectRecord) -> None:
    record.switched_back = []


def _with_a_try_left(found: FurtherRecord | None) -> FurtherRecord:
    further = found or FurtherRecord()
    further.tries = further.failures = 0
    return further


def _loads(project: ConnectedProject, published: Published) -> None:
    assert published.weights is not None
    try:
        learners.load_learner(project.settings, project.folder.read_at(published.weights), "cpu")
    except (CheckpointError, ValueError) as error:
        pytest.fail(f"{published.weights} is damaged: {error}")


def test_a_queue_of_a_version_that_is_not_served_is_made_again(make_project: Make) -> None:
    """As a worker leaves it that is killed between the queue's file and the switch."""
    project = make_project()
    folder = project.folder.round(1)
    queue = folder.need(QUEUE)
    folder.save(QUEUE, queue.model_copy(update={"model_version": "nextslice-r001-000000"}))

    reconcile.count(project)

    assert folder.need(QUEUE).model_version == served(project).model_version
    assert folder.need(QUEUE).entries == queue.entries


# -- beside the next round


def _committed_but_not_published(project: ConnectedProject, studio: HttpStudio) -> None:
    """Round 2, as Label Studio fails while it is published."""
    label(studio, ORDER[LABELLED : LABELLED + K])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(round_module, "publish", _down)
        with pytest.raises(StudioError):
            attempt(project, "test")
    assert project.folder.round(2).has(ROUND)


def test_weights_that_the_next_round_was_compared_with_stay_until_it_is_published(
    make_project: Make, studio: HttpStudio
) -> None:
    project = make_project()
    before = served(project)
    _committed_but_not_published(project, studio)

    reconcile.count(project)
    assert project.service.schedule.queue(SPARE).job_ids == []
    assert not go_on(project, nothing)
    assert served(project) == before

    attempt(project, "test")
    assert served(project).weights == project.folder.round(2).relative(WEIGHTS)


@pytest.mark.parametrize("step", ["train", "publish"])
def test_it_gives_way_to_the_next_round_that_another_worker_has_begun(
    make_project: Make, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    project = make_project()
    if step == "train":
        monkeypatch.setattr(Told, "steps", 200)
        monkeypatch.setattr(Told, "pause_s", 0.05)
    before, folder = served(project), project.folder.round(2)
    with ExitStack() as other:

        def progress(at: str, done: int, total: int) -> None:
            if at == step and last_holder(folder) is None:
                other.enter_context(claimed(folder, 60))

        assert not go_on(project, progress)
        assert last_holder(folder) is not None
        assert (known_further(project.folder.round(1)).model_version is None) == (step == "train")
        assert served(project) == before
        assert not may_go_on(project, before)

    assert may_go_on(project, before), "the worker has left nothing that was compared"


def test_a_round_that_was_compared_with_other_weights_begins_again(
    make_project: Make, studio: HttpStudio
) -> None:
    """Better ones were published in the moment in which it began."""
    project = make_project()
    _committed_but_not_published(project, studio)
    folder = project.folder.round(2)
    judged = folder.need(METRICS)
    assert judged.published_miou == 0.5
    folder.remove(METRICS)
    assert go_on(project, nothing)
    folder.save(METRICS, judged)

    attempt(project, "test")

    assert served(project).round == 2
    metrics = folder.need(METRICS)
    assert metrics.published_miou == 0.6
    assert metrics.published_weights == project.folder.round(1).relative(FURTHER_WEIGHTS)


# -- a project that is taken off


@pytest.mark.parametrize("asked", [jobs.further, jobs.masks])
@pytest.mark.parametrize("looked", [True, False])
def test_a_project_that_is_taken_off_beside_the_rounds_stays_off(
    make_project: Make, studio: HttpStudio, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    caplog: pytest.LogCaptureFixture, asked: Callable[[str], None], looked: bool,
) -> None:  # fmt: skip
    """As docs/setup.md says it. ``looked``: whether the job looks up before its next step."""
    project = make_project()
    round_, folder = project.folder.round(1), Path(project.settings.store, project.folder.path)
    queue = round_.need(QUEUE)
    queue.pending = [entry.task for entry in queue.entries]
    round_.save(QUEUE, queue)
    away = tmp_path / "taken-off"
    there, fields = list(studio.memory.imported), dict(studio.memory.fields)

    def progress(step: str, done: int, total: int) -> None:
        if step in ("train", "masks") and folder.exists():
            folder.rename(away)
            time.sleep(1.1 * looked)

    monkeypatch.setattr(jobs, "_project", lambda key: project)
    monkeypatch.setattr(jobs, "_job_progress", lambda settings: progress)
    caplog.set_level("INFO")

    asked(project.key)

    assert away.exists()
    assert not folder.exists(), "it can be moved back"
    assert "was the project taken off" in caplog.text
    assert (studio.memory.imported, studio.memory.fields) == (there, fields)


# -- images out of reach while better weights are published


@pytest.fixture
def out_of_reach(
    studio: HttpStudio, monkeypatch: pytest.MonkeyPatch
) -> Callable[[ConnectedProject, Callable[[str], bool]], Progress]:
    """Makes a progress with whose first mask the images of the paths that are asked for go out of
    reach, those that were there before included."""
    monkeypatch.setattr(coverage, "_PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr(download, "_QUIET_S", 0.0)

    def make(project: ConnectedProject, which: Callable[[str], bool]) -> Progress:
        def progress(step: str, done: int, total: int) -> None:
            if step == "publish" and done == 1:
                shutil.rmtree(project.settings.cache_dir)
                studio.fault = lambda path: 503 if which(path) else None

        return progress

    return make


OutOfReach = Callable[[ConnectedProject, Callable[[str], bool]], Progress]


def test_an_outage_takes_no_mask_away_and_better_weights_are_served_after_it(
    make_project: Make, studio: HttpStudio, out_of_reach: OutOfReach,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    project = make_project()
    before, folder = served(project), project.folder.round(1)
    queue = folder.need(QUEUE)
    with pytest.raises(UnreadableSlices, match=r"6 of the queue's 7 slices.*would lose the masks"):
        go_on(project, out_of_reach(project, lambda path: True))

    assert served(project) == before
    assert folder.need(QUEUE) == queue
    better = folder.need(FURTHER).model_version
    assert better is not None
    assert stored(studio, better) == {}
    monkeypatch.setattr(jobs, "_project", lambda key: project)
    jobs.further(project.key)
    assert not may_go_on(project, before), "a pause"
    _pause_is_over(project)
    jobs.further(project.key)
    assert "The next attempt goes on from here" in caplog.text
    _pause_is_over(project)
    assert may_go_on(project, before)

    studio.fault = lambda path: None
    assert go_on(project, nothing)
    assert served(project).model_version == better
    assert {count for _, count in stored(studio, better).values()} == {1}
    assert folder.need(QUEUE).bare == set()


def _pause_is_over(project: ConnectedProject) -> None:
    folder = project.folder.round(1)
    folder.save(FURTHER, folder.need(FURTHER).model_copy(update={"failed_at": 1.0}))


@pytest.mark.parametrize("fails", ["images", "Label Studio", "weights"])
def test_what_fails_again_and_again_pauses_is_told_and_is_given_up(
    make_project: Make, studio: HttpStudio, out_of_reach: OutOfReach,
    monkeypatch: pytest.MonkeyPatch, fails: str,
) -> None:  # fmt: skip
    project = make_project()
    before, folder = served(project), project.folder.round(1)
    progress: Progress = nothing
    if fails == "images":
        gone = {f"/{entry.task}.png" for entry in folder.need(QUEUE).entries[:3]}
        progress = out_of_reach(project, gone.__contains__)
    elif fails == "weights":
        project.folder.store.write(f"{project.folder.path}/{before.weights}", b"{")
    else:
        monkeypatch.setattr(task_order, "store_predictions", _down)

    def tried() -> int:
        with suppress(UnreadableSlices, StudioError, ValueError):
            assert not go_on(project, progress)
        return folder.need(FURTHER).failures

    assert tried() == 1
    assert tried() == 1, "a pause"
    reconcile.count(project)
    assert project.service.schedule.queue(SPARE).job_ids == []
    begin = folder.need(FURTHER).failed_at
    assert next_job_at(folder.need(FURTHER)) - begin == 60
    (condition,) = project_status(project).conditions
    assert f"(1×): {folder.need(FURTHER).last_error}".rstrip(".") in condition.says
    assert "It is tried again from" in condition.says

    for count in range(2, FAILURES + 1):
        _pause_is_over(project)
        assert tried() == count
    _pause_is_over(project)
    assert not may_go_on(project, before)
    assert folder.need(FURTHER).ended == f"it failed {FAILURES} times"
    assert "not tried again before the next round" in project_status(project).conditions[0].says
    assert served(project) == before


def _down(*_: Any, **__: Any) -> None:
    raise StudioError("Label Studio does not answer")


def test_a_single_slice_that_stays_out_of_reach_holds_nothing_up(
    make_project: Make, out_of_reach: OutOfReach
) -> None:
    project = make_project()
    lost = project.folder.round(1).need(QUEUE).entries[-1].task

    assert go_on(project, out_of_reach(project, lambda path: path == f"/{lost}.png"))

    assert project.folder.round(1).need(QUEUE).unmasked == [lost]


def test_an_outage_is_left_to_whoever_needs_the_worker(
    make_project: Make, studio: HttpStudio, out_of_reach: OutOfReach,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    project = make_project()
    monkeypatch.setattr(coverage, "_PAUSES_S", (60.0,))
    progress = out_of_reach(project, lambda path: True)
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(go_on, project, progress)
        time.sleep(2)
        assert not going.done()
        label(studio, ORDER[LABELLED : LABELLED + K])
        reconcile.count(project)
        asked = time.monotonic()
        assert going.result(timeout=240) is False
    assert time.monotonic() - asked < 40, "it would wait for 60 s"


@pytest.mark.parametrize("takes_s", [0.0, 3.0], ids=["pauses", "slow to fail"])
def test_masks_that_wait_out_an_outage_leave_the_worker_to_a_round(
    make_project: Make, studio: HttpStudio, monkeypatch: pytest.MonkeyPatch, takes_s: float
) -> None:
    project = make_project()
    folder = project.folder.round(1)
    queue = folder.need(QUEUE)
    queue.pending = [entry.task for entry in queue.entries]
    folder.save(QUEUE, queue)
    shutil.rmtree(project.settings.cache_dir)
    monkeypatch.setattr(download, "_QUIET_S", 0.0)
    monkeypatch.setattr(coverage, "_PAUSES_S", () if takes_s else (60.0,))
    pictures: list[str] = []

    def down(path: str) -> int | None:
        if not path.endswith(".png"):
            return None
        pictures.append(path)
        time.sleep(takes_s)
        return 503

    studio.fault = down
    with ThreadPoolExecutor(1) as pool:
        drawing = pool.submit(draw_pending, project, nothing)
        time.sleep(2)
        assert not drawing.done()
        project.schedule.round("test")
        asked, begun = time.monotonic(), len(pictures)
        assert drawing.result(timeout=240) == 0
    assert time.monotonic() - asked < 40, "it would wait for 60 s"
    assert not takes_s or len(pictures) <= begun + 2, "of all that would take their time to fail"
    assert folder.need(QUEUE) == queue


def test_a_publication_that_fails_forgets_no_mask_that_is_still_to_come(
    make_project: Make, monkeypatch: pytest.MonkeyPatch, studio: HttpStudio
) -> None:
    project = make_project()
    before, folder = served(project), project.folder.round(1)
    queue = folder.need(QUEUE)
    queue.pending = [entry.task for entry in queue.in_order()[-2:]]
    folder.save(QUEUE, queue)
    for row in studio.memory.imported:
        if row["task"] in queue.pending:
            row["result"] = []

    with monkeypatch.context() as patched:
        patched.setattr(task_order, "store_predictions", _down)
        with pytest.raises(StudioError):
            go_on(project, nothing)
    assert served(project) == before
    reconcile.count(project)

    there = folder.need(QUEUE)
    assert [*there.withdrawn] == [folder.need(FURTHER).model_version]
    assert there.model_copy(update={"withdrawn": {}}) == queue
    assert draw_pending(project, nothing) == 2
    assert {count for _, count in stored(studio, before.model_version).values()} == {1}


def test_what_is_appended_meanwhile_gets_its_mask_too(
    make_project: Make, studio: HttpStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before all masks are made, and in the moment after, when it is left to a gpu worker."""
    project = make_project()
    folder = project.folder.round(1)
    queued = [entry.task for entry in folder.need(QUEUE).entries]
    early, late = [task for task in ORDER[LABELLED:] if task not in queued][:2]

    def append(task: int) -> None:
        queue = folder.need(QUEUE)
        queue.entries.append(QueueEntry(task=task, score=0.1 + task / 1000, kind="top-up"))
        folder.save(QUEUE, queue)

    def progress(step: str, done: int, total: int) -> None:
        if step == "publish" and total > 1 and done == total:
            append(early)

    alone = ProjectSchedule.alone

    def in_this_moment(self: ProjectSchedule, what: Any, *, wait: bool) -> Any:
        if what == "queue":
            append(late)
            monkeypatch.setattr(ProjectSchedule, "alone", alone)
        return alone(self, what, wait=wait)

    monkeypatch.setattr(ProjectSchedule, "alone", in_this_moment)
    assert go_on(project, progress)

    queue, version = folder.need(QUEUE), served(project).model_version
    assert (queue.pending, queue.unmasked) == ([late], [])
    counts = {task: count for task, (_, count) in stored(studio, version).items()}
    assert counts == {**dict.fromkeys([*queued, early], 1), late: 0}

    assert draw_pending(project, nothing) == 1

    assert folder.need(QUEUE).bare == set()
    assert stored(studio, version)[late][1] == 1
