"""`nextslice worker control | gpu`: work off one of the two queues until told to stop."""

from __future__ import annotations

import logging
import threading
from enum import StrEnum
from importlib import import_module
from typing import Annotated

import typer
from redis.exceptions import RedisError
from rq import SpawnWorker, Worker
from rq.serializers import JSONSerializer

from ml_backend.cli import app
from ml_backend.rounds.schedule import CONTROL, GPU, HEARTBEAT_S, Schedule
from ml_backend.settings import configure_logging, load_settings

__all__ = ["Kind", "worker"]

logger = logging.getLogger(__name__)


class Kind(StrEnum):
    """The two kinds of worker."""

    control = CONTROL
    gpu = GPU


def _tick(schedule: Schedule, every_s: float, stop: threading.Event) -> None:
    """Enqueue a look at every project, every ``every_s`` seconds.

    A thread and not a chain of scheduled jobs: a chain that breaks once never comes back. With
    several control workers the job's id keeps it to one at a time.
    """
    while not stop.wait(every_s):
        try:
            schedule.reconcile()
        except RedisError as error:
            logger.warning("reconcile was not enqueued: %s", error)


def _worker_class(kind: Kind, train_device: str) -> type[Worker]:
    """How jobs get a process of their own: forked where that is safe, off what is imported here,
    so that none spends seconds of its time on imports."""
    import_module("ml_backend.rounds.jobs")
    if kind is Kind.control:
        return Worker
    from ml_backend.rounds.training import device_of  # with all of torch

    # A forked child of a process that has touched CUDA is dead: a GPU job gets a new interpreter.
    return Worker if device_of(train_device) == "cpu" else SpawnWorker


@app.command()
def worker(
    kind: Annotated[Kind, typer.Argument(help="control: short jobs, no torch. gpu: trains.")],
    burst: Annotated[bool, typer.Option(help="End when the queue is empty.")] = False,
) -> None:
    """Work off one of the two queues. Start one or two `control`, and a `gpu` per GPU."""
    settings = load_settings()
    configure_logging(settings.log_level)
    schedule = Schedule(settings)
    rq_worker = _worker_class(kind, settings.train_device)(
        [schedule.queue(kind)],
        connection=schedule.connection,
        serializer=JSONSerializer,
        job_monitoring_interval=HEARTBEAT_S,
    )
    stop = threading.Event()
    if kind is Kind.control:
        ticking = (schedule, settings.reconcile_s, stop)
        threading.Thread(target=_tick, args=ticking, daemon=True).start()
    rq_worker.work(burst=burst, logging_level=settings.log_level)
    stop.set()
