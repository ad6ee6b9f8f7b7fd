"""The runs of an experiment on RQ gpu workers, of any machine that sees the experiment's folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from redis.exceptions import RedisError

from ml_backend.errors import RedisUnavailable
from ml_backend.experiment.files import RunFiles
from ml_backend.experiment.runner import Job, check_ended, run_one
from ml_backend.rounds.schedule import SIMULATE, Schedule, outlast_restarts
from ml_backend.settings import Settings

__all__ = ["NoRedis", "gpu_workers", "run_on_workers"]

_POLL_S = 1.0
_ENTRY_POINT = f"{run_one.__module__}.{run_one.__name__}"


class NoRedis(RedisUnavailable, RuntimeError):
    """The Redis of ``REDIS_URL`` does not answer; the message says what to do."""


def gpu_workers(settings: Settings) -> tuple[Schedule, int]:
    """The queues of ``REDIS_URL``, and how many gpu workers take runs there. Raises NoRedis."""
    schedule = Schedule(settings)
    with _redis_needed():
        return schedule, schedule.listening(SIMULATE)


def run_on_workers(
    schedule: Schedule, out: Path, jobs: Sequence[Job], watch: Callable[[list[Job]], None]
) -> None:
    """Enqueue ``jobs`` for ``nextslice worker gpu`` and wait until the last has ended.

    ``out`` must be the same path on every worker's machine. ``watch(running)`` once a second.
    Interrupted, the jobs go on; called again, it waits for them. `check_ended` raises at the end.
    Raises NoRedis when Redis goes away for more than a minute.
    """
    with _redis_needed():
        ids = {job: schedule.run(_ENTRY_POINT, str(out), *job) for job in jobs}
        outlast_restarts(schedule.connection)
        waiting = list(jobs)
        while waiting:
            time.sleep(_POLL_S)
            waiting = [job for job in waiting if not schedule.ended(ids[job])]
            watch([job for job in waiting if RunFiles(out, *job).status()])
    check_ended(out, jobs)


@contextmanager
def _redis_needed() -> Iterator[None]:
    try:
        yield
    except RedisError as error:
        raise NoRedis(
            f"Redis does not answer ({error}): start it, or set REDIS_URL to the one that the gpu "
            "workers listen to. The same command goes on then"
        ) from error
