"""The queues on a real Redis: one job of a kind a project, and no job lost to a dead worker."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Event
from typing import Any

import pytest
from rq.executions import Execution
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from ml_backend.embedded.stack import settings_from
from ml_backend.rounds.schedule import CONTROL, GPU, SIMULATE, Schedule
from ml_backend.settings import Settings

KEY = "7.1763865028"


@pytest.fixture
def schedule(make_settings: Callable[..., Settings], redis_url: str) -> Schedule:
    return Schedule(make_settings(REDIS_URL=redis_url))


def jobs(schedule: Schedule, kind: str) -> list[tuple[str, list[object]]]:
    return [(job.func_name.rsplit(".", 1)[1], list(job.args)) for job in schedule.queue(kind).jobs]


def job_of(schedule: Schedule, name: str) -> Job:
    return Job.fetch(
        schedule.job_id(name, KEY), connection=schedule.connection, serializer=JSONSerializer
    )


def start(schedule: Schedule, name: str, heartbeat: datetime) -> Job:
    """Make the job look as a worker that took it left it."""
    job = job_of(schedule, name)
    schedule.queue(GPU).remove(job.id)
    schedule.queue(CONTROL).remove(job.id)
    job.set_status(JobStatus.STARTED)
    job.last_heartbeat = heartbeat
    job.save()
    return job


def test_training_goes_to_the_gpu_and_the_rest_does_not(schedule: Schedule) -> None:
    schedule.of(KEY).round("8 new annotations", 1)
    schedule.of(KEY).adopt("http://backend")
    schedule.of(KEY).start()
    schedule.of(KEY).tidy()
    assert jobs(schedule, GPU) == [("round", [KEY, "8 new annotations", 1])]
    assert jobs(schedule, CONTROL) == [
        ("adopt", [KEY, "http://backend"]),
        ("start", [KEY]),
        ("tidy", [KEY]),
    ]


def test_only_one_round_of_a_project_waits(schedule: Schedule) -> None:
    assert schedule.of(KEY).round("first")
    assert not schedule.of(KEY).round("second")
    assert schedule.of("8.1").round("another project")
    assert len(jobs(schedule, GPU)) == 2


def test_a_round_has_time_enough(schedule: Schedule) -> None:
    schedule.of(KEY).round("x")
    assert job_of(schedule, "round").timeout == 86_400


def test_a_large_project_has_time_enough_to_be_listed(schedule: Schedule) -> None:
    """100,000 tasks are 200 pages, which took a busy Label Studio 13 s each."""
    schedule.of(KEY).adopt("http://backend")
    schedule.of(KEY).count()
    assert job_of(schedule, "adopt").timeout >= 200 * 13
    assert job_of(schedule, "count").timeout >= 200 * 13


def test_a_hint_during_a_count_is_followed_by_one_more_count(schedule: Schedule) -> None:
    schedule.of(KEY).count()
    start(schedule, "count", datetime.now(UTC))
    for _ in range(5):
        schedule.of(KEY).count()
    assert jobs(schedule, CONTROL) == [("count", [KEY])]


@pytest.mark.parametrize("running", [False, True], ids=["waiting", "running, another waits"])
def test_a_hint_that_is_one_of_a_storm_is_a_look_and_no_more(
    schedule: Schedule, running: bool
) -> None:
    """Label Studio waits one second for it, inside of a submit."""
    project = schedule.of(KEY)
    project.count()
    if running:
        start(schedule, "count", datetime.now(UTC))
        project.count()
    before = commands(schedule)
    for _ in range(10):
        project.count()
    assert commands(schedule) - before <= 10 * 2 + 1
    assert jobs(schedule, CONTROL) == [("count", [KEY])]


def commands(schedule: Schedule) -> int:
    """How many Redis has processed."""
    found: Any = schedule.connection.info("stats")
    return int(found["total_commands_processed"])


def test_a_count_that_was_taken_and_never_begun_is_not_waited_for(schedule: Schedule) -> None:
    schedule.of(KEY).count()
    job = job_of(schedule, "count")
    schedule.queue(CONTROL).remove(job.id)
    job.enqueued_at = datetime.now(UTC) - timedelta(minutes=2)
    job.save()
    schedule.of(KEY).count()
    assert jobs(schedule, CONTROL) == [("count", [KEY])]


def test_a_running_round_is_not_started_again(schedule: Schedule) -> None:
    schedule.of(KEY).round("x")
    start(schedule, "round", datetime.now(UTC))
    assert not schedule.of(KEY).round("again")


def test_a_round_whose_worker_went_silent_is_started_again(schedule: Schedule) -> None:
    schedule.of(KEY).round("x")
    start(schedule, "round", datetime.now(UTC) - timedelta(minutes=5))
    assert schedule.of(KEY).round("again")
    assert jobs(schedule, GPU) == [("round", [KEY, "again", None])]


def test_a_sign_of_life_from_the_future_is_none(schedule: Schedule) -> None:
    """As after a clock was put back: it would hold for as long as the clock was put back by."""
    schedule.of(KEY).round("first", 1)
    start(schedule, "round", heartbeat=datetime.now(UTC) + timedelta(hours=1))
    assert schedule.of(KEY).round("taken over", 1)
    assert job_of(schedule, "round").args == [KEY, "taken over", 1]


def test_a_job_from_the_future_that_was_taken_and_never_begun_is_started_again(
    schedule: Schedule,
) -> None:
    schedule.of(KEY).round("lost", 1)
    job = job_of(schedule, "round")
    schedule.queue(GPU).remove(job.id)
    job.enqueued_at = datetime.now(UTC) + timedelta(hours=1)
    job.save()
    assert schedule.of(KEY).round("again", 1)
    assert jobs(schedule, GPU) == [("round", [KEY, "again", 1])]


# -- locks


def _hold(url: str, held: Event) -> None:
    connection = Schedule(settings_from({"REDIS_URL": url}))
    with connection.alone("work", 1200, wait=True):
        held.set()
        time.sleep(600)


def test_the_lock_of_a_killed_process_is_free_soon(
    schedule: Schedule, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when the work would have had to be over: minutes of a queue that nobody fills."""
    monkeypatch.setattr("ml_backend.rounds.schedule._LEASE_S", 6.0)
    context = multiprocessing.get_context("fork")
    held = context.Event()
    holder = context.Process(target=_hold, args=(redis_url, held), daemon=True)
    holder.start()
    assert held.wait(240)
    time.sleep(7.5)
    with schedule.alone("work", 1200, wait=False) as alone:
        assert not alone, "its holder is at work"
    holder.kill()
    holder.join()

    begin = time.monotonic()
    with schedule.alone("work", 1200, wait=True) as alone:
        assert alone
    assert time.monotonic() - begin < 120


def test_a_lock_is_free_after_its_seconds_even_where_its_holder_lives(
    schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml_backend.rounds.schedule._LEASE_S", 0.4)
    with (
        schedule.alone("work", 1.0, wait=False) as first,
        schedule.alone("work", 1.0, wait=True) as second,
    ):
        assert first
        assert second


@pytest.mark.parametrize("left", ["all", "registry", "entry"])
def test_what_is_left_of_a_killed_workers_job_holds_nothing_up(
    schedule: Schedule, left: str
) -> None:
    """RQ forgets an execution, and a minute later that there was one; until its workers clean up,
    the job counts as running."""
    schedule.of(KEY).round("killed", 1)
    job = start(schedule, "round", datetime.now(UTC) - timedelta(minutes=2))
    with schedule.connection.pipeline() as pipeline:
        execution = Execution.create(job, ttl=90, pipeline=pipeline)
        pipeline.execute()
    if left != "all":
        schedule.connection.delete(execution.key)
    if left == "entry":
        schedule.connection.delete(job.execution_registry.key)
    assert schedule.length(GPU) == (0, 1)

    assert schedule.of(KEY).round("again", 1)

    assert schedule.length(GPU) == (1, 0)
    assert not schedule.connection.exists(execution.key)


@pytest.mark.parametrize("status", [JobStatus.FINISHED, JobStatus.FAILED, JobStatus.STOPPED])
def test_a_job_that_ended_does_not_block_its_successor(
    schedule: Schedule, status: JobStatus
) -> None:
    schedule.of(KEY).round("x")
    job = start(schedule, "round", datetime.now(UTC))
    job.set_status(status)
    assert schedule.of(KEY).round("next")


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every job ends, and is deleted, right after it was looked up."""
    fetch = Job.fetch

    def fetch_and_end(job_id: str, **options: Any) -> Job:
        job = fetch(job_id, **options)
        job.connection.delete(job.key)
        return job

    monkeypatch.setattr(Job, "fetch", fetch_and_end)


@pytest.mark.usefixtures("ending")
@pytest.mark.parametrize("name", ["count", "round", "reconcile"])
def test_a_job_that_ends_while_it_is_looked_at_does_not_block_its_successor(
    schedule: Schedule, name: str
) -> None:
    of_a_project = name != "reconcile"
    ask = getattr(schedule.of(KEY) if of_a_project else schedule, name)
    arguments = ("x",) if name == "round" else ()
    ask(*arguments)
    kind = GPU if name == "round" else CONTROL
    schedule.queue(kind).empty()
    schedule.connection.hset(
        Job.key_for(schedule.job_id(name, KEY if of_a_project else "all")),
        mapping={"status": "started", "data": b"", "created_at": "2026-01-01T00:00:00Z"},
    )
    ask(*arguments)
    assert [job for job, _ in jobs(schedule, kind)] == [name]


@pytest.mark.usefixtures("ending")
def test_a_job_that_ends_while_it_is_looked_at_has_ended(schedule: Schedule) -> None:
    job_id = schedule.run("ml_backend.experiment.runner.run_one", "out", "random", 0)
    assert schedule.ended(job_id)
    schedule.of(KEY).round("x")
    assert schedule.of(KEY).round_progress() is None


def test_what_a_worker_writes_after_its_job_was_deleted_does_not_block_its_successor(
    schedule: Schedule,
) -> None:
    schedule.of(KEY).round("x")
    job = start(schedule, "round", datetime.now(UTC))
    schedule.connection.delete(job.key)
    job.meta.update(step="train", done=3, total=10)
    job.save_meta()
    assert schedule.of(KEY).round("next")


def take(schedule: Schedule, ago: timedelta) -> None:
    """Leave the round's job as a worker leaves it that dies with it in its hands."""
    job = job_of(schedule, "round")
    job.enqueued_at = datetime.now(UTC) - ago
    job.save()
    schedule.queue(GPU).remove(job.id)


def test_a_job_that_was_taken_and_never_begun_is_started_again(schedule: Schedule) -> None:
    schedule.of(KEY).round("x")
    take(schedule, timedelta(seconds=10))
    assert not schedule.of(KEY).round("its worker may be about to begin")
    take(schedule, timedelta(minutes=5))
    assert schedule.of(KEY).round("again")
    assert jobs(schedule, GPU) == [("round", [KEY, "again", None])]


def test_runs_of_experiments_do_not_stand_before_rounds(schedule: Schedule) -> None:
    schedule.run("ml_backend.experiment.runner.run_one", "out", "random", 0)
    schedule.of(KEY).round("x")
    assert jobs(schedule, GPU) == [("round", [KEY, "x", None])]
    assert jobs(schedule, SIMULATE) == [("run_one", ["out", "random", 0])]


def test_progress_is_read_from_the_job(schedule: Schedule) -> None:
    assert schedule.of(KEY).round_progress() is None
    schedule.of(KEY).round("x")
    job = job_of(schedule, "round")
    job.meta.update(step="train", done=3, total=10)
    job.save_meta()
    found = schedule.of(KEY).round_progress()
    assert found is not None
    assert (found.step, found.done, found.total) == ("train", 3, 10)


def test_jobs_are_json_and_never_pickled(schedule: Schedule) -> None:
    schedule.of(KEY).adopt(None)
    data = schedule.connection.hget(f"rq:job:{schedule.job_id('adopt', KEY)}", "data")
    assert isinstance(data, bytes)
    import json
    import zlib

    assert json.loads(zlib.decompress(data))[0] == "ml_backend.rounds.jobs.adopt"
