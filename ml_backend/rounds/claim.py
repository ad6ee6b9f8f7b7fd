"""Who is on a round: a fenced token in the store, and a folder that only its holder writes.

One of three kinds of lock, see `docs/locks.md`: this one outlives Redis and the machine. A worker
that was taken over writes nothing more.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context

import psutil

from ml_backend.errors import NextsliceError, TryAgainLater
from ml_backend.rounds.artefacts import Artefact, File, record_file
from ml_backend.rounds.records import Record
from ml_backend.rounds.store import RoundFolder, StoreError

__all__ = ["Claim", "ClaimLost", "ClaimTaken", "ClaimedRound", "Holder", "claimed", "last_holder"]

logger = logging.getLogger(__name__)


class ClaimTaken(TryAgainLater, RuntimeError):
    """Another worker is on this round."""


class ClaimLost(NextsliceError, RuntimeError):
    """Our claim was taken over, or is gone with the project's folder: whatever we computed since
    must not be written."""


class Holder(Record):
    """`claims/<token>.json`: who holds a round, and when it last showed a sign of life."""

    token: int
    host: str
    """Empty: the file cannot be read, and only its age is known."""
    pid: int
    started: float
    """Start time of the process, so that a reused pid is not taken for the holder."""
    since: float = 0.0
    """When the round was claimed."""
    beat: float
    released: bool = False

    def __str__(self) -> str:
        if not self.host:
            return f"somebody whose claim, token {self.token}, cannot be read"
        return f"process {self.pid} on {self.host} (token {self.token})"

    @property
    def age_s(self) -> float:
        """Seconds since the last sign of life."""
        return time.time() - self.beat

    def alive(self, ttl_s: float) -> bool:
        """Whether the claim holds: not given back, a sign of life within ``ttl_s`` seconds, and its
        process there, if that can be seen from here.

        One from the future, as after a clock was put back, is none: it would hold until then.
        """
        if self.released or abs(self.age_s) > ttl_s:
            return False
        if self.host != socket.gethostname():
            return True
        try:
            # One clock tick of slack: create_time is derived from jiffies.
            return bool(abs(psutil.Process(self.pid).create_time() - self.started) < 0.1)
        except psutil.NoSuchProcess:
            return False


_CLAIMS = "claims"


def _token_file(token: int) -> Artefact[Holder]:
    return record_file(f"{_CLAIMS}/{token:06d}.json", Holder)


def last_holder(folder: RoundFolder) -> Holder | None:
    """Who claimed the round last, alive or not; None: nobody ever did.

    A claim that cannot be read (a disk that was full, a power cut) is somebody's, and as old as its
    file: it ends like any other.
    """
    names = folder.store.names(f"{folder.path}/{_CLAIMS}")
    stems = [name.removesuffix(".json") for name in names if name.endswith(".json")]
    for token in sorted((int(stem) for stem in stems if stem.isdecimal()), reverse=True):
        file = _token_file(token)
        try:
            found = folder.load(file)
        except StoreError:
            beat = folder.store.modified(folder.where(file)) or 0.0
            return Holder(token=token, host="", pid=0, started=0, since=beat, beat=beat)
        if found is not None:
            return found
    return None


class Claim:
    """A fenced token: the highest number in ``claims/`` holds the round.

    A token is created exclusively, so two workers never hold the same one. It is void when its
    process is gone (same host) or has not shown a sign of life for the ttl; then the next number
    may be taken, and the old holder's `check` raises before it can write.
    """

    def __init__(self, folder: RoundFolder, token: int, ttl_s: float) -> None:
        self.folder = folder
        self.token = token
        self._since = time.time()
        self._stop = threading.Event()
        self._interval_s = max(ttl_s / 8, 0.5)
        self._thread = threading.Thread(
            target=copy_context().run,  # what it logs is of this round, too
            args=(self._keep_alive,),
            daemon=True,
        )

    @classmethod
    def take(cls, folder: RoundFolder, ttl_s: float) -> Claim:
        """Take the next token, or raise ClaimTaken."""
        current = last_holder(folder)
        if current is not None and current.alive(ttl_s):
            raise ClaimTaken(
                f"{folder.path} is held by {current}, whose last sign of life was "
                f"{current.age_s:.0f} s ago: without another it is void after {ttl_s:.0f} s."
            )
        token = 1 if current is None else current.token + 1
        claim = cls(folder, token, ttl_s)
        file, data = folder.where(claim._file), claim._file.encode(claim._holder())
        if not folder.store.create(file, data):
            raise ClaimTaken(f"{folder.path}: token {token} was taken in this moment.")
        claim._thread.start()
        return claim

    @property
    def _file(self) -> Artefact[Holder]:
        return _token_file(self.token)

    def _holder(self, *, released: bool = False) -> Holder:
        return Holder(
            token=self.token,
            host=socket.gethostname(),
            pid=os.getpid(),
            started=psutil.Process().create_time(),
            since=self._since,
            beat=time.time(),
            released=released,
        )

    def _keep_alive(self) -> None:
        """Signs of life until the end. No error ends them: a disk that is full for a second would
        give the round to another worker."""
        silent = False
        while not self._stop.wait(self._interval_s):
            try:
                self._show()
            except Exception as error:
                if not silent:
                    logger.warning(
                        "%s: no sign of life can be written, the work goes on: %s",
                        self.folder.path,
                        error,
                    )
                silent = True
            else:
                silent = False

    def _show(self, *, released: bool = False) -> None:
        """Write a sign of life; none where the round's folder is gone: it would make that of a
        project that was taken off anew. Nor one over another's."""
        current = last_holder(self.folder)
        if current is None:
            ours = self.folder.store.exists(self.folder.path)
        else:
            ours = current.token <= self.token and not self._shared_with(current)
        if ours:
            self.folder.save(self._file, self._holder(released=released))

    def _shared_with(self, current: Holder) -> bool:
        """Whether our token is another's, too, as of a store that has no conditional puts. What
        cannot be read is taken for ours."""
        if current.token != self.token or not current.host:
            return False
        return (current.pid, current.since) != (os.getpid(), self._since)

    def check(self) -> None:
        """Raise ClaimLost when a higher token exists, or none, or ours is another's."""
        current = last_holder(self.folder)
        if current is None:
            raise ClaimLost(
                f"{self.folder.path} is not in the store any more: was the project taken off?"
            )
        if current.token > self.token:
            raise ClaimLost(
                f"{self.folder.path} was taken over with token {current.token}, "
                f"ours was {self.token}."
            )
        if self._shared_with(current):
            raise ClaimLost(
                f"{self.folder.path}: token {self.token} is held by {current} as well. Has the "
                "store no conditional puts? Then one worker alone can use it."
            )

    def release(self) -> None:
        """Give the round back; the next worker need not wait for the ttl."""
        self._stop.set()
        self._thread.join()
        try:
            self._show(released=True)
        except Exception as error:  # it is void soon, and what the work came to counts more
            logger.warning("%s: that it is released cannot be noted: %s", self.folder.path, error)


class ClaimedRound(RoundFolder):
    """A round's folder that this process holds: nothing is written or deleted in it any more once
    another one took it over, ClaimLost is raised instead."""

    def __init__(self, claim: Claim) -> None:
        super().__init__(claim.folder.project, claim.folder.number)
        self.claim = claim

    def write(self, file: File, data: bytes) -> None:
        """Write the file, whole or not at all. Raises ClaimLost."""
        self.claim.check()
        super().write(file, data)

    def remove(self, *files: File) -> None:
        """Delete files, in the order given. Raises ClaimLost."""
        self.claim.check()
        super().remove(*files)


@contextmanager
def claimed(folder: RoundFolder, ttl_s: float) -> Iterator[ClaimedRound]:
    """Hold a round alone. Raises ClaimTaken while another worker shows signs of life, void after
    ``ttl_s`` seconds without one."""
    claim = Claim.take(folder, ttl_s)
    try:
        yield ClaimedRound(claim)
    finally:
        claim.release()
