"""RQ workers that outlast a Redis that goes away, at a job and between two.

RQ's own end at the first command that fails other than the wait for a job, and leave the job that
they are at to itself.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from rq import Queue, SpawnWorker, Worker
from rq.exceptions import DeserializationError, StopRequested
from rq.executions import Execution
from rq.job import Job
from rq.timeouts import JobTimeoutException, UnixSignalDeathPenalty

from ml_backend.errors import NextsliceError, TimeUp
from ml_backend.logs import about
from ml_backend.parents import end_with_parent
from ml_backend.rounds.deployment import named_store
from ml_backend.rounds.schedule import DEVICE_FIELD, JOBS, STORE_FIELD, STUDIO_FIELD
from ml_backend.settings import configure_logging, load_settings

__all__ = [
    "ENTRY_POINTS",
    "Alarm",
    "ForeignJob",
    "ForkingWorker",
    "OurJob",
    "SpawningWorker",
    "keep_working",
]

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0

_JOBS = "ml_backend.rounds.jobs"
ENTRY_POINTS = frozenset(
    {f"{_JOBS}.{name}" for name in JOBS} | {"ml_backend.experiment.runner.run_one"}
)
"""What a job may call. Redis holds a job as the name of a function, and whoever may write there
would have any function of this machine called."""


class ForeignJob(NextsliceError):
    """A job in our queues that calls something else than our entry points."""


class OurJob(Job):
    """A job that calls one of `ENTRY_POINTS` and nothing when it ends. Raises ForeignJob."""

    @property
    def func(self) -> Any:
        """The entry point."""
        if self.instance or self.func_name not in ENTRY_POINTS | load_settings().also_called:
            raise ForeignJob(
                f"job {self.id} calls {self.func_name}, which is none of nextslice's: somebody "
                "else writes to this Redis. Give it a password, or nextslice one of its own."
            )
        return super().func

    @property
    def success_callback(self) -> None:
        """None: nothing of ours has one."""

    @property
    def failure_callback(self) -> None:
        """None, likewise."""

    @property
    def stopped_callback(self) -> None:
        """None, likewise."""


def _project_of(job: Job) -> str | None:
    """The key of the project that one of our jobs is called with; None: of none, or of others."""
    try:
        arguments = job.args if (job.func_name or "").startswith(f"{_JOBS}.") else ()
    except DeserializationError:  # the job fails of it, as any other that is foreign
        return None
    first = next(iter(arguments or ()), None)
    return first if isinstance(first, str) else None


class Alarm(UnixSignalDeathPenalty):
    """RQ's, but a job's time ends with `TimeUp`, which is no Exception."""

    def handle_death_penalty(self, signum: int, frame: FrameType | None) -> None:
        """Of SIGALRM. Raises TimeUp."""
        if issubclass(self._exception, JobTimeoutException):
            raise TimeUp(f"the job was given {self._timeout} seconds, and has not ended")
        super().handle_death_penalty(signum, frame)  # type: ignore[no-untyped-call]  # RQ has no types

    def __exit__(self, *error: object) -> None:
        with suppress(TimeUp):  # the job has just ended
            super().__exit__(*error)  # type: ignore[no-untyped-call]  # RQ has no types


class ForkingWorker(Worker):
    """Jobs run in forked processes."""

    death_penalty_class = Alarm
    max_connection_wait_time = 5.0
    told_to_stop = False
    device = ""
    """What its jobs train on, for people to see; empty: nothing."""

    def register_birth(self) -> None:
        """Say that it is there, its device, and whom it works for."""
        super().register_birth()  # type: ignore[no-untyped-call]  # RQ has no types
        settings = load_settings()
        told: dict[Any, Any] = {
            STUDIO_FIELD: settings.label_studio_host,
            STORE_FIELD: named_store(settings),
        }
        if self.device:
            told[DEVICE_FIELD] = self.device
        self.connection.hset(self.key, mapping=told)

    def _set_ip_address(self, connection: Redis) -> None:
        """For people to see. Redis tells it beside the path of its socket, and in a path with a
        space or "=" what it tells cannot be taken apart."""
        try:
            super()._set_ip_address(connection)
        except ValueError:
            self.ip_address = "unknown"

    def main_work_horse(self, job: Job, queue: Queue) -> None:
        """The job, in its own process. It ends with its worker, even where that is killed: nobody
        would end it, or know of it."""
        end_with_parent(signal.SIGKILL)
        if os.getppid() != self.pid:  # killed before that
            os._exit(1)
        super().main_work_horse(job, queue)

    def perform_job(self, job: Job, queue: Queue, execution: Execution) -> bool:
        """Run the job, in its own process. What is logged meanwhile says of which job it is, an
        error that ends it included."""
        settings = load_settings()
        configure_logging(settings.log_level)  # in a new interpreter nobody has
        if self.device == "cpu":
            os.nice(settings.train_nice)
        with about(job=job.id, project=_project_of(job)):
            return super().perform_job(job, queue, execution)

    def maintain_heartbeats(self, job: Job, execution: Execution) -> None:
        """A sign of life that cannot be given is given next time: the job goes on."""
        try:
            super().maintain_heartbeats(job, execution)
        except RedisError as error:
            logger.warning("no sign of life of job %s, which goes on: %s", job.id, error)

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """SIGTERM or SIGINT: end, after the job that runs. Redis is not waited for any more."""
        self.told_to_stop = True
        self.connection.set_retry(Retry(NoBackoff(), 0))
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]  # RQ has no types

    def set_shutdown_requested_date(self) -> None:
        """For RQ's dashboards only: it must not take the worker from its job."""
        try:
            super().set_shutdown_requested_date()  # type: ignore[no-untyped-call]  # RQ has no types
        except RedisError as error:
            logger.warning("that this worker ends after its job is not noted: %s", error)

    def teardown(self) -> None:
        """Sign off. The thread that listens for RQ's commands ends even when that fails."""
        try:
            super().teardown()  # type: ignore[no-untyped-call]  # RQ has no types
        finally:
            thread: Any = self.pubsub_thread
            if thread is not None:
                thread.stop()


class SpawningWorker(ForkingWorker, SpawnWorker):
    """Jobs run in new interpreters."""


def keep_working(make: Callable[[], ForkingWorker], redis: Redis, log_level: str) -> None:
    """Let a worker that ``make`` gives work off its queues until SIGTERM or SIGINT.

    When it ends for want of ``redis``, or of an error in RQ that it has logged, the next one begins
    once Redis answers, after a pause of 1 to 30 seconds.
    """
    pause, began = _FIRST_PAUSE_S, time.monotonic()
    try:
        _stop_on_signals()  # until the worker installs handlers of its own
        while not _work(make, log_level):
            _stop_on_signals()
            if time.monotonic() - began > 2 * _LONGEST_PAUSE_S:
                pause = _FIRST_PAUSE_S
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
            _wait_for(redis)
            began = time.monotonic()
    except StopRequested:
        return


def _stop_on_signals() -> None:
    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        raise StopRequested

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def _work(make: Callable[[], ForkingWorker], log_level: str) -> bool:
    """Whether the worker ended because it was told to."""
    worker = None
    try:
        worker = make()
        worker.work(logging_level=log_level)
    except RedisError as error:
        if worker is None or not worker.told_to_stop:
            logger.error("lost Redis (%s): the worker begins again when it answers", error)
    return worker is not None and worker.told_to_stop


def _wait_for(redis: Redis) -> None:
    while True:
        try:
            redis.ping()
        except RedisError:
            time.sleep(_FIRST_PAUSE_S)
        else:
            return
