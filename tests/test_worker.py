"""`nextslice worker` on a real Redis, also on one that goes away and comes back."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from rq import Callback, SpawnWorker
from rq.exceptions import InvalidJobOperation

from ml_backend.cli.worker import Kind, _tick, _worker_class
from ml_backend.embedded.processes import ProcessGroup, free_port, kill_tree, wait_until
from ml_backend.embedded.redis_server import find_redis_server, redis_answers
from ml_backend.rounds.deployment import QueuesTaken, check_queues
from ml_backend.rounds.jobs import _job_progress
from ml_backend.rounds.schedule import CONTROL, GPU, SIMULATE, Schedule
from ml_backend.settings import Settings, load_settings
from tests.conftest import REPOSITORY
from tests.test_cli import nextslice


def imported(module: str) -> bool:
    """A job: whether its process had ``module`` before the job asked for anything."""
    return module in sys.modules


def niceness() -> int:
    """A job: how far its process stands back for others."""
    return os.nice(0)


def note(file: str, line: str) -> None:
    """A job: append ``line`` to ``file``."""
    with Path(file).open("a") as lines:
        lines.write(f"{line}\n")


def persist(folder: str) -> None:
    """A job: go on whatever goes wrong, for two minutes, then note "persisted"."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            time.sleep(0.1)
        except Exception as error:
            note(f"{folder}/taken", type(error).__name__)
    note(f"{folder}/done", "persisted")


def train(folder: str) -> None:
    """A job: report a step every 0.1 s until ``folder``/enough is there, then note "trained"."""
    report = _job_progress(load_settings())
    for step in range(3000):
        report(f"step {step}", step, 3000)
        note(f"{folder}/steps", str(step))
        if Path(folder, "enough").exists():
            note(f"{folder}/done", "trained")
            return
        time.sleep(0.1)


@pytest.fixture(autouse=True)
def _our_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that are started here may call the jobs of this file."""
    names = [
        f"{job.__module__}.{job.__name__}" for job in (imported, niceness, note, persist, train)
    ]
    monkeypatch.setenv("NEXTSLICE_ENTRY_POINTS", ",".join([*names, "subprocess.check_call"]))


@pytest.mark.parametrize("as_on_a_gpu", [False, True], ids=["forked", "spawned"])
def test_a_job_of_somebody_else_calls_nothing(
    make_settings: Callable[..., Settings],
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    as_on_a_gpu: bool,
) -> None:
    """Whoever may write to Redis; the worker goes on with the next job."""
    monkeypatch.setenv("NEXTSLICE_ENTRY_POINTS", "tests.test_worker.note")
    queue = Schedule(make_settings(REDIS_URL=redis_url, NEXTSLICE_QUEUE_PREFIX="foreign")).queue(
        GPU
    )
    touch = ["touch", str(tmp_path / "called")]
    hooks = {"on_success": Callback("os.abort"), "on_failure": Callback("os.abort")}
    queue.enqueue("subprocess.check_call", touch)
    queue.enqueue("subprocess.check_call", touch, **hooks)
    queue.enqueue("pathlib.Path.touch", str(tmp_path / "called"))
    queue.enqueue("tests.test_worker.note", str(tmp_path / "done"), "ours", **hooks)

    told = work_off(redis_url, "foreign", as_on_a_gpu=as_on_a_gpu)
    assert as_on_a_gpu or "calls subprocess.check_call, which is none of nextslice's" in told

    assert not (tmp_path / "called").exists()
    assert (tmp_path / "done").read_text() == "ours\n"


@pytest.mark.parametrize(("kind", "torch"), [("control", False), ("gpu", True)])
def test_a_job_finds_the_loop_imported_and_where_it_trains_torch_and_less_of_the_cpu(
    make_settings: Callable[..., Settings], redis_url: str, kind: str, torch: bool
) -> None:
    schedule = Schedule(make_settings(REDIS_URL=redis_url, NEXTSLICE_QUEUE_PREFIX="warm"))
    queue = schedule.queue(kind)
    modules = ("ml_backend.rounds.jobs", "ml_backend.segmentation.learner", "torch")
    asked = [queue.enqueue(imported, module) for module in modules]
    nice = queue.enqueue(niceness)

    done = nextslice(
        "worker",
        kind,
        "--burst",
        REDIS_URL=redis_url,
        NEXTSLICE_QUEUE_PREFIX="warm",
        NEXTSLICE_TRAIN_DEVICE="cpu",
        NEXTSLICE_TRAIN_NICE="7",
        LABEL_STUDIO_API_KEY="token",
        PYTHONPATH=str(REPOSITORY),
    )

    assert done.returncode == 0, done.stderr
    assert [job.return_value(refresh=True) for job in asked] == [True, torch, torch]
    stood_back = min(19, os.nice(0) + 7) if torch else os.nice(0)
    assert nice.return_value(refresh=True) == stood_back


_AS_ON_A_GPU = """
from ml_backend.cli import main, worker
from ml_backend.rounds.worker import SpawningWorker
worker._worker_class = lambda *_: SpawningWorker
main()
"""


def work_off_as_on_a_gpu(redis_url: str, prefix: str) -> None:
    """A gpu worker, until nothing waits; without the seconds that torch takes."""
    env = {
        "REDIS_URL": redis_url,
        "NEXTSLICE_QUEUE_PREFIX": prefix,
        "PYTHONPATH": str(REPOSITORY),
    }
    argv = [sys.executable, "-c", _AS_ON_A_GPU, "worker", "gpu", "--burst"]
    subprocess.run(argv, env={**os.environ, **env}, check=True, timeout=1200)


def work_off(redis_url: str, prefix: str, *, as_on_a_gpu: bool) -> str:
    """A gpu worker of either kind, until nothing waits; what a forking one says."""
    if as_on_a_gpu:
        work_off_as_on_a_gpu(redis_url, prefix)
        return ""
    env = {"REDIS_URL": redis_url, "NEXTSLICE_QUEUE_PREFIX": prefix}
    done = nextslice("worker", "gpu", "--burst", **env, PYTHONPATH=str(REPOSITORY))
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("as_on_a_gpu", [False, True], ids=["forked", "spawned"])
def test_the_time_of_a_job_ends_it_though_it_outlives_every_error(
    make_settings: Callable[..., Settings], redis_url: str, tmp_path: Path, as_on_a_gpu: bool
) -> None:
    settings = make_settings(REDIS_URL=redis_url, NEXTSLICE_QUEUE_PREFIX="late")
    queue = Schedule(settings).queue(GPU)
    job = queue.enqueue(persist, str(tmp_path), job_timeout=1)

    told = work_off(redis_url, "late", as_on_a_gpu=as_on_a_gpu)
    assert as_on_a_gpu or "TimeUp: the job was given 1 seconds, and has not ended" in told

    assert job.get_status(refresh=True) == "failed"
    assert not list(tmp_path.iterdir())


def test_a_gpu_worker_takes_rounds_before_runs_of_experiments(
    make_settings: Callable[..., Settings], redis_url: str, tmp_path: Path
) -> None:
    schedule = Schedule(make_settings(REDIS_URL=redis_url, NEXTSLICE_QUEUE_PREFIX="first"))
    for kind, line in ((SIMULATE, "run"), (SIMULATE, "run"), (GPU, "round")):
        told = ["sh", "-c", f"echo {line} >> '{tmp_path}/order'"]
        schedule.queue(kind).enqueue("subprocess.check_call", told)

    work_off_as_on_a_gpu(redis_url, "first")

    assert (tmp_path / "order").read_text().split() == ["round", "run", "run"]


def test_a_job_on_a_gpu_gets_an_interpreter_of_its_own() -> None:
    assert issubclass(_worker_class(Kind.gpu, "cuda:1"), SpawnWorker)


def test_a_job_in_an_interpreter_of_its_own_reports_its_progress(
    make_settings: Callable[..., Settings], redis_url: str, tmp_path: Path
) -> None:
    queue = Schedule(make_settings(REDIS_URL=redis_url, NEXTSLICE_QUEUE_PREFIX="own")).queue(GPU)
    (tmp_path / "enough").touch()
    job = queue.enqueue(train, str(tmp_path))

    work_off_as_on_a_gpu(redis_url, "own")

    assert (tmp_path / "done").read_text() == "trained\n"
    found = job.get_meta(refresh=True)
    assert {name: found[name] for name in ("step", "done", "total")} == {
        "step": "step 0", "done": 0, "total": 3000,
    }  # fmt: skip


@pytest.mark.parametrize("as_on_a_gpu", [False, True], ids=["forked", "spawned"])
def test_a_job_ends_with_its_worker_even_where_that_is_killed(
    stage: Stage, make_settings: Callable[..., Settings], as_on_a_gpu: bool
) -> None:
    queue = Schedule(make_settings(REDIS_URL=stage.url)).queue(CONTROL)
    queue.enqueue(train, str(stage.folder), job_timeout=600)
    worker = stage.start_worker(*(("-c", _AS_ON_A_GPU) if as_on_a_gpu else ()))
    stage.wait_for_steps(1)
    (horse,) = psutil.Process(worker.pid).children()

    worker.kill()

    wait_until(lambda: not horse.is_running(), "the end of the job's process", 120)


def test_no_error_ends_the_looks_at_every_project(
    make_settings: Callable[..., Settings], redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = Schedule(make_settings(REDIS_URL=redis_url))
    stop, looks = threading.Event(), []

    def reconcile() -> None:
        looks.append(len(looks))
        if len(looks) == 1:
            raise InvalidJobOperation("it ended in between")
        stop.set()

    monkeypatch.setattr(schedule, "reconcile", reconcile)
    _tick(schedule, 0.01, stop)
    assert looks == [0, 1]


# -- a Redis that goes away


class Stage:
    """A Redis that can be stopped and started again, and a worker that works off its queues."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.redis = ProcessGroup(folder / "logs")
        self.workers = ProcessGroup(folder / "logs")

    def start_redis(self) -> None:
        (self.folder / "redis").mkdir(exist_ok=True)
        listens = ["--port", str(self.port), "--bind", "127.0.0.1"]
        keeps = ["--save", "", "--appendonly", "yes", "--dir", str(self.folder / "redis")]
        self.redis.start("redis", [find_redis_server(), *listens, *keeps])
        self.redis.wait("redis", lambda: redis_answers(self.url), timeout_s=240)

    def stop_redis(self) -> None:
        self.redis.stop()

    def start_worker(self, *code: str) -> subprocess.Popen[bytes]:
        argv = code or ("-m", "ml_backend.cli")
        env = {
            "REDIS_URL": self.url,
            "NEXTSLICE_RECONCILE_S": "3600",
            "NEXTSLICE_STORE": str(self.folder / "store"),
            "NEXTSLICE_CACHE_DIR": str(self.folder / "cache"),
            "PYTHONPATH": str(REPOSITORY),
        }
        return self.workers.start("worker", [sys.executable, *argv, "worker", "control"], env=env)

    def log(self) -> str:
        return (self.folder / "logs" / "worker.log").read_text()

    def steps(self) -> int:
        file = self.folder / "steps"
        return len(file.read_text().split()) if file.exists() else 0

    def wait_for_steps(self, more: int) -> None:
        wanted = self.steps() + more
        wait_until(lambda: self.steps() >= wanted, f"step {wanted} of the job", 600)

    def wait_for(self, line: str) -> None:
        file = self.folder / "done"
        wait_until(
            lambda: file.exists() and line in file.read_text().split(), f"the job {line!r}", 600
        )


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    with stage.redis, stage.workers:
        stage.start_redis()
        yield stage


def test_a_job_and_its_worker_outlast_a_restart_of_redis(
    stage: Stage, make_settings: Callable[..., Settings]
) -> None:
    queue = Schedule(make_settings(REDIS_URL=stage.url)).queue(CONTROL)
    job = queue.enqueue(train, str(stage.folder), job_timeout=600)
    worker = stage.start_worker()
    stage.wait_for_steps(1)

    stage.stop_redis()
    stage.wait_for_steps(70)  # more than RQ's monitoring interval of 5 s
    stage.start_redis()
    stage.wait_for_steps(30)
    wait_until(lambda: job.get_meta(refresh=True)["done"] > 70, "progress to be told again", 120)
    (stage.folder / "enough").touch()
    stage.wait_for("trained")

    queue.enqueue(note, str(stage.folder / "done"), "next")
    stage.wait_for("next")
    assert worker.poll() is None
    assert "lost Redis" not in stage.log()

    stage.stop_redis()
    time.sleep(1)
    worker.terminate()
    assert worker.wait(20) == 0


_WITHOUT_PATIENCE = """
from redis.backoff import NoBackoff
from redis.retry import Retry
from ml_backend.rounds import schedule
schedule._MINUTE = Retry(NoBackoff(), 0)
from ml_backend.cli import main
main()
"""


def test_a_worker_begins_again_after_an_outage_of_any_length(
    stage: Stage, make_settings: Callable[..., Settings]
) -> None:
    queue = Schedule(make_settings(REDIS_URL=stage.url)).queue(CONTROL)
    queue.enqueue(train, str(stage.folder), job_timeout=600)
    worker = stage.start_worker("-c", _WITHOUT_PATIENCE)
    stage.wait_for_steps(1)

    stage.stop_redis()
    (stage.folder / "enough").touch()
    stage.wait_for("trained")
    wait_until(lambda: "lost Redis" in stage.log(), "the worker to lose Redis", 600)
    time.sleep(3)
    stage.start_redis()
    queue.enqueue(note, str(stage.folder / "done"), "next")
    stage.wait_for("next")
    assert worker.poll() is None
    assert stage.log().count("lost Redis") == 1

    stage.stop_redis()
    time.sleep(1)
    worker.terminate()
    assert worker.wait(20) == 0


# -- beside another deployment


def test_workers_of_another_deployment_leave_its_jobs_to_it(
    stage: Stage, make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """As two `nextslice up` of one user, for two Label Studios."""
    schedule = Schedule(make_settings(REDIS_URL=stage.url))
    stage.start_worker()
    stage.workers.wait("worker", lambda: schedule.listening(CONTROL) == 1, timeout_s=600)
    same = {
        "REDIS_URL": stage.url,
        "NEXTSLICE_STORE": f"{stage.folder}/./store",
        "NEXTSLICE_CACHE_DIR": str(tmp_path / "cache"),
    }
    for other, says in (
        ({"LABEL_STUDIO_URL": "http://other.example:8080"}, "this one is for other.example_8080"),
        ({"NEXTSLICE_STORE": str(tmp_path / "other")}, f"with {tmp_path}/other"),
    ):
        refused = nextslice("worker", "control", "--burst", **same | other)
        said = " ".join(refused.stderr.split())
        assert (refused.returncode, "NEXTSLICE_QUEUE_PREFIX" in said) == (75, True)
        assert says in said
        apart = other | {"NEXTSLICE_QUEUE_PREFIX": "apart"}
        assert nextslice("worker", "control", "--burst", **same | apart).returncode == 0
    assert nextslice("worker", "control", "--burst", **same).returncode == 0


def test_a_worker_that_was_killed_keeps_nobody_from_its_queues(
    stage: Stage, make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """As before the store is moved: what it told Redis stays for minutes."""
    schedule = Schedule(make_settings(REDIS_URL=stage.url))
    worker = stage.start_worker()
    stage.workers.wait("worker", lambda: schedule.listening(CONTROL) == 1, timeout_s=600)
    settings = make_settings(REDIS_URL=stage.url, NEXTSLICE_STORE=tmp_path / "moved")
    with pytest.raises(QueuesTaken):
        check_queues(schedule, settings)
    kill_tree(worker)
    assert schedule.listening(CONTROL) == 1
    check_queues(schedule, settings)
