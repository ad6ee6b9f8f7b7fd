"""The parts that the service needs beside Label Studio: as /ready finds them (`readiness`)."""

from __future__ import annotations

import shutil
import time

from redis.exceptions import RedisError

from ml_backend.errors import NextsliceError
from ml_backend.health.finding import Finding
from ml_backend.rounds.deployment import QueuesTaken, check_queues, our_workers
from ml_backend.rounds.readiness import Part, fault
from ml_backend.rounds.schedule import Kind, WorkerSign
from ml_backend.rounds.service import Service
from ml_backend.settings import misspelt_settings, without_passwords

__all__ = ["part", "settings"]

_NAMES: dict[Part, tuple[str, str]] = {
    "redis": ("Redis", "REDIS_URL"),
    "store": ("store", "NEXTSLICE_STORE"),
    "control": ("control worker", "nextslice worker control"),
    "gpu": ("gpu worker", "nextslice worker gpu"),
}
"""What is printed of each: its name, and what mends it."""
_GIB = 2**30
_LITTLE_GIB = 2.0
"""Less than that of free space is warned of: a round writes a checkpoint and its evidence."""


def part(service: Service, which: Part) -> Finding:
    """Whether ``which`` does its part."""
    name, mend = _NAMES[which]
    said = fault(service, which)
    if said is not None:
        if which in ("control", "gpu") and _are_taken(service):
            mend = "NEXTSLICE_QUEUE_PREFIX"
        return Finding(name, "fault", said, mend)
    if which == "redis":
        where = without_passwords(service.settings.redis_address)
        return Finding(name, "good", f"{where} answers.")
    return _store(service) if which == "store" else _worker(service, which, name)


def _store(service: Service) -> Finding:
    where = without_passwords(service.settings.store)
    free = _free_gib(service)
    if free is None:
        return Finding("store", "good", f"{where} can be written.")
    said = f"{where} can be written, {free:,.1f} GiB are free."
    if free >= _LITTLE_GIB:
        return Finding("store", "good", said)
    return Finding("store", "warning", f"{said} That is little.", "nextslice rounds prune")


def _free_gib(service: Service) -> float | None:
    """Free space of the store's disk; None where nobody says, as in an object store."""
    if not service.store.local:
        return None
    try:
        return shutil.disk_usage(service.store.root).free / _GIB
    except OSError:  # gone since
        return None


def _are_taken(service: Service) -> bool:
    """Whether a worker that is started would be refused."""
    try:
        check_queues(service.schedule, service.settings)
    except RedisError:
        return False
    except QueuesTaken:
        return True
    return False


def _worker(service: Service, kind: Kind, name: str) -> Finding:
    try:
        signs = our_workers(service.schedule, service.settings, kind)
    except RedisError:
        signs = []
    if not signs:  # since a moment: it listened when it was asked for
        return Finding(name, "good", "One listens, at least.")
    more = f" {len(signs) - 1} more listen." if len(signs) > 1 else ""
    return Finding(name, "good", f"{_sign(signs[0])}{more}")


def _sign(sign: WorkerSign) -> str:
    device = f" on {sign.device}" if sign.device else ""
    age = max(time.time() - sign.beat, 0.0)
    ago = f"{age:.0f} s" if age < 120 else f"{age / 60:.0f} min"
    return (
        f"Process {sign.pid} of {sign.host} listens{device}, and is {sign.state or 'there'}; its "
        f"last sign of life was {ago} ago."
    )


def settings(_service: Service) -> Finding:
    """Whether what is written as our settings is read: a misspelt name is not."""
    try:
        wrong = misspelt_settings()
    except NextsliceError as error:
        return Finding("settings", "warning", str(error), "nextslice config")
    if wrong:
        return Finding("settings", "warning", " ".join(wrong), "nextslice config")
    return Finding("settings", "good", "Every variable that begins with NEXTSLICE_ is a setting.")
