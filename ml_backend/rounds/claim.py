"""Who is on a round: a fenced token in the store, and a folder that only its holder writes.

One of three kinds of lock, see `docs/locks.md`: this one outlives Redis and the machine. A worker
that was taken over writes nothing more.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from ml_backend.errors import NextsliceError, TryAgainLater
from ml_backend.rounds.artefacts import Artefact, File, record_file
from ml_backend.rounds.records import Record
from ml_backend.rounds.store import RoundFolder, StoreError

__all__ = ["Claim", "ClaimLost", "ClaimTaken", "ClaimedRound", "claimed"]


class ClaimTaken(TryAgainLater, RuntimeError):
    """Another worker is on this round."""


class ClaimLost(NextsliceError, RuntimeError):
    """Our claim was taken over: whatever we computed since must not be written."""


class _Holder(Record):
    """`claims/<token>.json`: who holds a round, and when it last showed a sign of life."""

    token: int
    host: str
    pid: int
    started: float
    """Start time of the process, so that a reused pid is not taken for the holder."""
    beat: float
    released: bool = False


_CLAIMS = "claims"


def _token_file(token: int) -> Artefact[_Holder]:
    return record_file(f"{_CLAIMS}/{token:06d}.json", _Holder)


class Claim:
    """A fenced token: the highest number in ``claims/`` holds the round.

    A token is created exclusively, so two workers never hold the same one. It is void when its
    process is gone (same host) or has not shown a sign of life for the ttl; then the next number
    may be taken, and the old holder's `check` raises before it can write.
    """

    def __init__(self, folder: RoundFolder, token: int, ttl_s: float) -> None:
        self.folder = folder
        self.token = token
        self._stop = threading.Event()
        self._interval_s = max(ttl_s / 8, 0.5)
        self._thread = threading.Thread(target=self._keep_alive, daemon=True)

    @classmethod
    def take(cls, folder: RoundFolder, ttl_s: float) -> Claim:
        """Take the next token, or raise ClaimTaken."""
        current = cls._current(folder)
        if current is not None and _alive(current, ttl_s):
            raise ClaimTaken(
                f"{folder.path} is held by process {current.pid} on {current.host} "
                f"(token {current.token})."
            )
        token = 1 if current is None else current.token + 1
        claim = cls(folder, token, ttl_s)
        file, data = folder.where(claim._file), claim._file.encode(claim._holder())
        if not folder.store.create(file, data):
            raise ClaimTaken(f"{folder.path}: token {token} was taken in this moment.")
        claim._thread.start()
        return claim

    @staticmethod
    def _current(folder: RoundFolder) -> _Holder | None:
        names = folder.store.names(f"{folder.path}/{_CLAIMS}")
        tokens = [int(name.partition(".")[0]) for name in names if name.endswith(".json")]
        for token in reversed(tokens):
            try:
                return folder.load(_token_file(token))
            except StoreError:  # a token being written in this moment: somebody's, and fresh
                return _Holder(token=token, host="?", pid=0, started=0, beat=time.time())
        return None

    @property
    def _file(self) -> Artefact[_Holder]:
        return _token_file(self.token)

    def _holder(self, *, released: bool = False) -> _Holder:
        return _Holder(
            token=self.token,
            host=socket.gethostname(),
            pid=os.getpid(),
            started=psutil.Process().create_time(),
            beat=time.time(),
            released=released,
        )

    def _keep_alive(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.folder.save(self._file, self._holder())

    def check(self) -> None:
        """Raise ClaimLost when a higher token exists."""
        current = self._current(self.folder)
        if current is not None and current.token > self.token:
            raise ClaimLost(
                f"{self.folder.path} was taken over with token {current.token}, "
                f"ours was {self.token}."
            )

    def release(self) -> None:
        """Give the round back; the next worker need not wait for the ttl."""
        self._stop.set()
        self._thread.join()
        self.folder.save(self._file, self._holder(released=True))


def _alive(holder: _Holder, ttl_s: float) -> bool:
    if holder.released or time.time() - holder.beat > ttl_s:
        return False
    if holder.host != socket.gethostname():
        return True
    try:
        # One clock tick of slack: create_time is derived from jiffies.
        return bool(abs(psutil.Process(holder.pid).create_time() - holder.started) < 0.1)
    except psutil.NoSuchProcess:
        return False


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
