"""Whose jobs the queues hold: of one Label Studio and one store.

Jobs name a project and nothing else. A worker of another deployment would find none of its own
under that name, do nothing, and the job would be gone.
"""

from __future__ import annotations

import os
import socket

import psutil
from fsspec.core import split_protocol

from ml_backend.errors import TryAgainLater
from ml_backend.logs import without_passwords
from ml_backend.rounds.schedule import KINDS, Kind, Schedule, WorkerSign
from ml_backend.rounds.store import Store
from ml_backend.settings import Settings

__all__ = ["QueuesTaken", "check_queues", "named_store", "our_workers"]


class QueuesTaken(TryAgainLater, RuntimeError):
    """Workers of another deployment take the jobs of these queues."""


def named_store(settings: Settings) -> str:
    """The store, by a name that is the same for every process of its machine, however
    NEXTSLICE_STORE spells it; no password. That of a folder has no ``://``."""
    protocol, _ = split_protocol(settings.store)
    if protocol in (None, "file", "local"):
        return os.path.realpath(f"{Store(settings.store).root}/")
    return without_passwords(settings.store.rstrip("/"))


def our_workers(schedule: Schedule, settings: Settings, kind: Kind) -> list[WorkerSign]:
    """The workers that take jobs of ``kind`` and work for this deployment, who showed a sign of
    life last first; those that do not say whom they work for are among them."""
    studio, store = settings.label_studio_host, named_store(settings)
    return [sign for sign in schedule.workers(kind) if _is_ours(sign, studio, store)]


def check_queues(schedule: Schedule, settings: Settings) -> None:
    """Raise QueuesTaken where a worker of another deployment takes jobs of the queues."""
    studio, store = settings.label_studio_host, named_store(settings)
    for sign in (sign for kind in KINDS for sign in schedule.workers(kind)):
        if not _is_ours(sign, studio, store) and not _is_gone(sign):
            raise QueuesTaken(
                f"The queues {settings.queue_prefix!r} are those of another nextslice: worker "
                f"{sign.pid} on {sign.host} works for the Label Studio {sign.label_studio} with "
                f"the store {sign.store}, this one is for {studio} with {store}. Should the two be "
                "one, give LABEL_STUDIO_URL and NEXTSLICE_STORE alike to both. Otherwise each "
                "would take the other's jobs: set NEXTSLICE_QUEUE_PREFIX to another name for one "
                "of the two, in all its processes, or stop the other."
            )


def _is_ours(sign: WorkerSign, studio: str, store: str) -> bool:
    """Workers of one deployment name their Label Studio alike, which is a folder of the store, and
    on one machine the store too. Folders of other machines may be mounted anywhere."""
    if not sign.label_studio:
        return True
    if sign.label_studio != studio:
        return False
    here = sign.host == socket.gethostname()
    comparable = here or ("://" in sign.store and "://" in store)
    return not comparable or sign.store == store


def _is_gone(sign: WorkerSign) -> bool:
    """Whether it was killed: what it told Redis stays for some minutes."""
    return sign.host == socket.gethostname() and not psutil.pid_exists(sign.pid)
