"""Whether the service is able to work: each part that it needs, and what is wrong with it.

That the process answers is another question: it goes on answering while it cannot work.
"""

from __future__ import annotations

from typing import Literal, get_args

from redis.exceptions import RedisError

from ml_backend.logs import without_passwords
from ml_backend.rounds.deployment import check_queues, our_workers
from ml_backend.rounds.schedule import CONTROL, GPU, Kind
from ml_backend.rounds.service import Service

__all__ = ["PARTS", "Part", "fault"]

Part = Literal["redis", "store", "control", "gpu"]
"""Redis answers · the store can be written · a control worker of ours listens · and a gpu
worker."""
PARTS: tuple[Part, ...] = get_args(Part)


def fault(service: Service, part: Part) -> str | None:
    """What is wrong with ``part`` at this moment, in a sentence; None: it does its part.

    Raises nothing. Waits as long as Redis and the store let it.
    """
    try:
        if part == "redis":
            return _redis(service)
        if part == "store":
            return _store(service)
        return _workers(service, CONTROL if part == "control" else GPU)
    except Exception as error:  # whatever a store's library raises, it is what is wrong
        return without_passwords(str(error) or type(error).__name__)


def _redis(service: Service) -> str | None:
    try:
        service.schedule.connection.ping()
    except RedisError as error:
        return without_passwords(f"Redis does not answer ({error}): is it up, at REDIS_URL?")
    return None


def _store(service: Service) -> str | None:
    service.store.check_writable(service.settings.label_studio_host)
    return None


def _workers(service: Service, kind: Kind) -> str | None:
    schedule, settings = service.schedule, service.settings
    try:
        check_queues(schedule, settings)  # others drop what they take of our jobs
        if our_workers(schedule, settings, kind):
            return None
    except RedisError:
        return f"Whether a {kind} worker listens is not known: Redis does not answer."
    return f"No {kind} worker listens. Start one: nextslice worker {kind}."
