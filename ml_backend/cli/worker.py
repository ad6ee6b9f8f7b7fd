"""`nextslice worker control | gpu`: work off the queues of a kind until told to stop."""

from __future__ import annotations

import logging
import os
import signal
import threading
from enum import StrEnum
from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer

from ml_backend.cli import app

if TYPE_CHECKING:
    from ml_backend.rounds.schedule import Kind as Queue
    from ml_backend.rounds.schedule import Schedule
    from ml_backend.rounds.worker import ForkingWorker

__all__ = ["Kind", "worker"]

logger = logging.getLogger(__name__)


class Kind(StrEnum):
    """The two kinds of worker."""

    control = "control"
    gpu = "gpu"


def _queues(kind: Kind) -> tuple[Queue, ...]:
    """What it listens to; a job of the first queue goes before one of the next."""
    from ml_backend.rounds.schedule import CONTROL, GPU, SIMULATE, SPARE

    return (CONTROL,) if kind is Kind.control else (GPU, SIMULATE, SPARE)


def _tick(schedule: Schedule, every_s: float, stop: threading.Event) -> None:
    """Enqueue a look at every project, every ``every_s`` seconds.

    A thread and not a chain of scheduled jobs: a chain that breaks once never comes back. With
    several control workers the job's id keeps it to one at a time. No error ends it: nobody would
    miss it until a webhook is lost.
    """
    from redis.exceptions import RedisError

    while not stop.wait(every_s):
        try:
            schedule.reconcile()
        except RedisError as error:
            logger.warning("reconcile was not enqueued: %s", error)
        except Exception:
            logger.exception("reconcile was not enqueued")


def _worker_class(kind: Kind, train_device: str) -> type[ForkingWorker]:
    """How jobs get a process of their own: forked where that is safe, off what is imported here,
    so that none spends seconds of its time on imports."""
    from ml_backend.rounds.worker import ForkingWorker, SpawningWorker

    import_module("ml_backend.rounds.jobs")
    if kind is Kind.control:
        return ForkingWorker
    from ml_backend.rounds.learners import device_of  # with all of torch

    # A forked child of a process that has touched CUDA is dead: a GPU job gets a new interpreter.
    return ForkingWorker if device_of(train_device) == "cpu" else SpawningWorker


@app.command()
def worker(
    kind: Annotated[Kind, typer.Argument(help="control: short jobs, no torch. gpu: trains.")],
    burst: Annotated[bool, typer.Option(help="End when the queue is empty.")] = False,
) -> None:
    """Work off the queues of a kind. Start one or two `control`, and a `gpu` per GPU."""
    from rq.serializers import JSONSerializer

    from ml_backend.rounds.deployment import check_queues
    from ml_backend.rounds.leftovers import sweep_leftovers
    from ml_backend.rounds.schedule import HEARTBEAT_S, Schedule, outlast_restarts
    from ml_backend.rounds.worker import OurJob, keep_working
    from ml_backend.settings import configure_logging, load_settings

    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # RQ takes what it raises for a fault of a job
    os.umask(0o077)  # store and cache are this user's own
    settings = load_settings()
    configure_logging(settings.log_level)
    schedule = Schedule(settings)
    schedule.connection.ping()  # a wrong REDIS_URL must show at the start
    check_queues(schedule, settings)
    outlast_restarts(schedule.connection)
    worker_class = _worker_class(kind, settings.train_device)
    device = ""
    if kind is Kind.gpu:
        from ml_backend.rounds.learners import check_network, device_of

        check_network(settings)
        device = device_of(settings.train_device)

    def make() -> ForkingWorker:
        made = worker_class(
            [schedule.queue(name) for name in _queues(kind)],
            connection=schedule.connection,
            serializer=JSONSerializer,
            job_class=OurJob,
            job_monitoring_interval=HEARTBEAT_S,
        )
        made.device = device
        return made

    leftovers = sweep_leftovers(settings)
    stop = threading.Event()
    if kind is Kind.control:
        ticking = (schedule, settings.reconcile_s, stop)
        threading.Thread(target=_tick, args=ticking, daemon=True).start()
    if burst:
        make().work(burst=True, logging_level=settings.log_level)
        leftovers.join()
    else:
        keep_working(make, schedule.connection, settings.log_level)
    stop.set()
