"""The two queues on a real Redis: one job of a kind a project, and no job lost to a dead worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from ml_backend.rounds.schedule import CONTROL, GPU, Schedule
from ml_backend.settings import Settings

KEY = "7.1763865028"


@pytest.fixture
def schedule(make_settings: Callable[..., Settings], redis_url: str) -> Iterator[Schedule]:
    schedule = Schedule(make_settings(REDIS_URL=redis_url))
    yield schedule
    schedule.connection.flushall()


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
    schedule.round(KEY, "8 new annotations", 1)
    schedule.adopt(KEY, "http://backend")
    schedule.start(KEY)
    schedule.tidy(KEY)
    assert jobs(schedule, GPU) == [("round", [KEY, "8 new annotations", 1])]
    assert jobs(schedule, CONTROL) == [
        ("adopt", [KEY, "http://backend"]),
        ("start", [KEY]),
        ("tidy", [KEY]),
    ]


def test_only_one_round_of_a_project_waits(schedule: Schedule) -> None:
    assert schedule.round(KEY, "first")
    assert not schedule.round(KEY, "second")
    assert schedule.round("8.1", "another project")
    assert len(jobs(schedule, GPU)) == 2


def test_a_round_has_time_enough(schedule: Schedule) -> None:
    schedule.round(KEY, "x")
    assert job_of(schedule, "round").timeout == 86_400


def test_a_hint_during_a_count_is_followed_by_one_more_count(schedule: Schedule) -> None:
    schedule.count(KEY)
    start(schedule, "count", datetime.now(UTC))
    for _ in range(5):
        schedule.count(KEY)
    assert jobs(schedule, CONTROL) == [("count", [KEY])]


def test_a_running_round_is_not_started_again(schedule: Schedule) -> None:
    schedule.round(KEY, "x")
    start(schedule, "round", datetime.now(UTC))
    assert not schedule.round(KEY, "again")


def test_a_round_whose_worker_went_silent_is_started_again(schedule: Schedule) -> None:
    schedule.round(KEY, "x")
    start(schedule, "round", datetime.now(UTC) - timedelta(minutes=5))
    assert schedule.round(KEY, "again")
    assert jobs(schedule, GPU) == [("round", [KEY, "again", None])]


@pytest.mark.parametrize("status", [JobStatus.FINISHED, JobStatus.FAILED, JobStatus.STOPPED])
def test_a_job_that_ended_does_not_block_its_successor(
    schedule: Schedule, status: JobStatus
) -> None:
    schedule.round(KEY, "x")
    job = start(schedule, "round", datetime.now(UTC))
    job.set_status(status)
    assert schedule.round(KEY, "next")


def test_progress_is_read_from_the_job(schedule: Schedule) -> None:
    assert schedule.round_progress(KEY) is None
    schedule.round(KEY, "x")
    job = job_of(schedule, "round")
    job.meta.update(step="train", done=3, total=10)
    job.save_meta()
    found = schedule.round_progress(KEY)
    assert found is not None
    assert (found["step"], found["done"], found["total"]) == ("train", 3, 10)


def test_jobs_are_json_and_never_pickled(schedule: Schedule) -> None:
    schedule.adopt(KEY, None)
    data = schedule.connection.hget(f"rq:job:{schedule.job_id('adopt', KEY)}", "data")
    assert isinstance(data, bytes)
    import json
    import zlib

    assert json.loads(zlib.decompress(data))[0] == "ml_backend.rounds.jobs.adopt"
