"""Files that can be had again, kept on disk under a size limit."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from pathlib import Path

from ml_backend.durable import write_whole

__all__ = ["FILES", "DiskCache"]

logger = logging.getLogger(__name__)

FILES = "files"
"""The folder under the root of a cache."""


class DiskCache:
    """Bytes by name under ``root/files``; beyond ``limit_gib`` the least recently used go first.

    What else lies under ``root`` is left alone. Several of them, in several processes, may share a
    root: each looks at all files in it, anew after every twentieth of the limit that it wrote. Safe
    to use from many threads.
    """

    def __init__(self, root: Path, limit_gib: float) -> None:
        self._root = root / FILES
        self._limit = int(limit_gib * 2**30)
        self._lock = threading.Lock()
        self._written = 0
        self._size: int | None = None

    def read(self, name: str) -> bytes | None:
        """What is kept as ``name``, None when nothing is (any more). ``name`` may have folders.

        An empty file, as a crash may leave it, is nothing.
        """
        file = self._root / name
        try:
            data = file.read_bytes()
        except OSError:  # not there, or a disk that is not: it can be had again
            return None
        if not data:
            return None
        with suppress(OSError):  # deleted since, or not ours: the bytes are good all the same
            os.utime(file)
        return data

    def keep(self, name: str, data: bytes) -> None:
        """Keep ``data`` as ``name``. A disk that is full is only logged: it must stop nobody."""
        file = self._root / name
        try:
            write_whole(file, data, flush=False)
        except OSError as error:
            logger.warning("cannot keep %s in the cache: %s", file, error)
            return
        with self._lock:
            self._make_room(len(data))

    def drop(self, name: str) -> None:
        """Delete what is kept as ``name``, if anything is."""
        with suppress(OSError):  # deleted since, or another user's
            (self._root / name).unlink()

    def _make_room(self, length: int) -> None:
        """Count ``length`` more bytes, and delete files if that is too much."""
        self._written += length
        if self._size is None or self._written > self._limit / 20:
            self._size, self._written = sum(size for _, size, _ in self._files()), 0
        else:
            self._size += length
        if self._size > self._limit:
            self._size = self._evict()

    def _evict(self) -> int:
        """Delete the least recently used files down to nine tenths of the limit."""
        files = self._files()
        size = sum(length for _, length, _ in files)
        for _, length, file in sorted(files, key=lambda item: item[0]):
            if size <= 0.9 * self._limit:
                break
            with suppress(OSError):  # deleted since, or another user's
                file.unlink()
                size -= length
        return size

    def _files(self) -> list[tuple[float, int, Path]]:
        """(time of last use, size, path) of every file. Others may delete them meanwhile."""
        found = []
        for folder, _, names in os.walk(self._root):
            for file in (Path(folder, name) for name in names):
                with suppress(OSError):
                    state = file.stat()
                    found.append((state.st_mtime, state.st_size, file))
        return found
