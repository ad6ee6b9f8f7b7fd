"""A few processes that read volumes: they stay warm and serve every volume.

One that takes too long is killed, one that ended is replaced when there is work for it.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from ml_backend.volumes.reader import Reader, ReaderEnded, ReaderTimeout
from ml_backend.volumes.volume import ReadOptions

__all__ = ["MEMORY", "FileStamp", "Readers"]

MEMORY = 4 << 30
"""Bytes that one of the processes may take."""
_MOST = max(2, min(4, os.cpu_count() or 1))
_REFUSED_S = 300
"""How long a file that took too long is refused at once: to try it again holds a process."""

_LOOKED_AT = 2000
"""Folders in a folder, and files in each, whose last change is looked at."""

Slice = npt.NDArray[Any]

FileStamp = tuple[str, ReadOptions, int, int, int, int]
"""Path, options, number, times and size: a file, until it is changed or replaced."""


@dataclass(frozen=True)
class _Slow:
    """A file that took too long: why it is refused, until when (by two clocks), and what was the
    last change in it, where it is a folder."""

    reason: str
    until: float
    said: str
    changed_ns: int


class Readers:
    """At most ``most`` processes that may take ``memory`` bytes each, started when there is work
    for them. Safe to use from many threads, not across a fork."""

    def __init__(self, most: int = _MOST, memory: int = MEMORY) -> None:
        self._most, self._memory = most, memory
        self._changed = threading.Condition()
        self._idle: list[Reader] = []
        self._busy: set[Reader] = set()
        self._starting = 0
        self._keys = itertools.count()
        # filled wherever garbage is collected, so without the lock
        self._forgotten: deque[str] = deque()
        self._slow: dict[FileStamp, _Slow] = {}

    def key(self, owner: object) -> str:
        """What a volume is called from now on, until nothing refers to ``owner``."""
        key = f"{next(self._keys)}"
        weakref.finalize(owner, self._forgotten.append, key).atexit = False
        return key

    def processes(self) -> list[int]:
        """Numbers of the processes that are there."""
        with self._changed:
            return [reader.pid for reader in (*self._idle, *self._busy)]

    def close(self) -> None:
        """End the processes, those at work as well."""
        with self._changed:
            ended = [*self._idle, *self._busy]
            self._idle.clear()
        for reader in ended:
            reader.kill()

    def leave(self) -> None:
        """After a fork: the processes belong to the one that was forked."""
        for reader in (*self._idle, *self._busy):
            reader.leave()

    def ask(
        self,
        key: str,
        stamp: FileStamp | None,
        request: dict[str, Any],
        timeout_s: float,
        values: Slice | None = None,
    ) -> dict[str, Any]:
        """What a process answers, preferably one that has the volume called ``key`` open.

        Raises as `Reader.ask`; ReaderTimeout also for a file that took too long a short while ago.
        """
        with self._borrowed(key) as reader:
            self._check(stamp)  # now: others may have found out while we waited
            self._tidy(reader)
            reader.keys.add(key)
            try:
                return reader.ask(request, timeout_s, values)
            except ReaderTimeout as error:
                if stamp is not None:
                    self._slow[stamp] = _slow(stamp, str(error))
                raise

    def forget(self, key: str) -> None:
        """Close what is called ``key``: at once, or after what a process is at with it."""
        self._forgotten.append(key)
        with self._changed:
            self._sort_forgotten()
            untidy = [reader for reader in self._idle if reader.closing]
            for reader in untidy:
                self._idle.remove(reader)
                self._busy.add(reader)
        for reader in untidy:
            try:
                self._tidy(reader)
            finally:
                self._give_back(reader)

    @property
    def most_for_one(self) -> int:
        """How many processes one volume may have at once: it must not hang all of them."""
        return max(1, self._most - 1)

    @contextmanager
    def _borrowed(self, key: str) -> Iterator[Reader]:
        reader = self._take(key) or self._start()
        try:
            yield reader
        finally:
            self._give_back(reader)

    def _take(self, key: str) -> Reader | None:
        """An idle one; None for one that may be started."""
        with self._changed:
            while not self._idle and len(self._busy) + self._starting >= self._most:
                self._changed.wait()
            self._sort_forgotten()
            if not self._idle:
                self._starting += 1
                return None
            having = [one for one in self._idle if key in one.keys]
            reader = (having or self._idle)[-1]
            self._idle.remove(reader)
            self._busy.add(reader)
            return reader

    def _start(self) -> Reader:
        try:
            reader = Reader(self._memory)
        except BaseException:
            with self._changed:
                self._starting -= 1
                self._changed.notify()
            raise
        with self._changed:
            self._starting -= 1
            self._busy.add(reader)
        return reader

    def _give_back(self, reader: Reader) -> None:
        with self._changed:
            self._busy.discard(reader)
            if reader.alive:
                self._idle.append(reader)
            self._changed.notify()

    def _sort_forgotten(self) -> None:
        """Tell each process what it need not keep open. Called under the lock."""
        while self._forgotten:
            key = self._forgotten.popleft()
            for reader in (*self._idle, *self._busy):
                if key in reader.keys:
                    reader.closing.add(key)

    def _tidy(self, reader: Reader) -> None:
        keys = [reader.closing.pop() for _ in range(len(reader.closing))]
        if keys:
            reader.keys.difference_update(keys)
            with suppress(ReaderEnded, ReaderTimeout):
                reader.ask({"do": "close", "keys": keys}, 30)

    def _check(self, stamp: FileStamp | None) -> None:
        now = time.monotonic()
        for other, slow in list(self._slow.items()):
            if slow.until <= now:
                self._slow.pop(other, None)
        found = None if stamp is None else self._slow.get(stamp)
        if stamp is None or found is None:
            return
        if _last_change(stamp[0]) != found.changed_ns:
            self._slow.pop(stamp, None)
            return
        raise ReaderTimeout(
            f"{found.reason} a short while ago; it is tried again at {found.said}, and at once "
            "when it is changed"
        )


def _slow(stamp: FileStamp, reason: str) -> _Slow:
    said = time.strftime("%H:%M:%S", time.localtime(time.time() + _REFUSED_S))
    return _Slow(reason, time.monotonic() + _REFUSED_S, said, _last_change(stamp[0]))


def _last_change(path: str) -> int:
    """Of the files in a folder, as far as they are looked at; 0 for a file."""
    place, newest = Path(path), 0
    if not place.is_dir():
        return newest
    for folder, _, names in itertools.islice(os.walk(place), _LOOKED_AT):
        for name in ("", *names[:_LOOKED_AT]):
            with suppress(OSError):
                newest = max(newest, (Path(folder) / name).stat().st_ctime_ns)
    return newest
