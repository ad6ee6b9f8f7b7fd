"""Files that are there whole or not at all, and locks of files that end with their process.

docs/locks.md says which lock is for what.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ml_backend.errors import NextsliceError

__all__ = ["held", "move_whole", "write_whole"]


def write_whole(path: Path, data: bytes, *, flush: bool = True, alone: bool = False) -> None:
    """Write ``path``, whose folder is made: it is there whole or as it was before, however this
    ends. Several processes may write it at once; one of them is the last.

    ``flush``: return when a power cut would lose nothing. Without it a file may be empty after one:
    for what can be had again. ``alone``: nobody else writes it meanwhile, as a lock says. Then it
    is written as ``.<name>.part``, and what a killed process has left of it is replaced by the
    next; else the name is another one every time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unique = "" if alone else f"{uuid.uuid4().hex[:8]}."
    part = path.with_name(f".{path.name}.{unique}part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            if flush:
                os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if flush:
        _flush(path.parent)


def move_whole(part: Path, target: Path, aside: Path | None = None) -> None:
    """Give what was written as ``part``, a file or a folder on the same disk, the name ``target``.

    A file survives a power cut from then on; of a folder its name does. A file that is there is
    replaced; a folder that is there is moved to ``aside`` first, for it cannot be in one step.
    """
    if part.is_file():
        _flush(part)
    if aside is not None and target.is_dir():
        target.replace(aside)
    part.replace(target)
    _flush(target.parent)


def _flush(path: Path) -> None:
    """Return when a file, or the names in a folder, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def held(path: Path, *, otherwise: NextsliceError | None = None) -> Iterator[None]:
    """Hold the lock of the file ``path``, which is made with its folder, alone of all processes and
    threads. It ends with the process, however that ends; the file stays.

    While another holds it: raises ``otherwise`` at once; None waits. Not reentrant. On a network
    disk it holds for all machines where that disk's locks do (NFS: yes).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Never filelock's lock by mere existence, where a disk has no other: it outlives a killed
    # process. Not one a thread: a generator may end in another thread than it began in.
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(blocking=otherwise is None)
    except Timeout:
        assert otherwise is not None
        raise otherwise from None
    try:
        yield
    finally:
        lock.release()
