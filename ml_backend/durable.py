"""Files that are there whole or not at all, and locks of files that end with their process.

docs/locks.md says which lock is for what.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ml_backend.errors import NextsliceError

__all__ = ["create_whole", "held", "move_whole", "unfinished", "write_whole"]

_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


def write_whole(path: Path, data: bytes, *, flush: bool = True, alone: bool = False) -> None:
    """Write ``path``, whose folder is made: it is there whole or as it was before, however this
    ends. Several processes may write it at once; one of them is the last.

    ``flush``: return when a power cut would lose nothing. Without it a file may be empty after one:
    for what can be had again. ``alone``: nobody else writes it meanwhile, as a lock says. Then it
    is written as ``.<name>.part``, and what a killed process has left of it is replaced by the
    next; else the name is another one every time.
    """
    unique = "" if alone else f"{uuid.uuid4().hex[:8]}."
    with _part(path, unique, data, flush=flush) as part:
        part.replace(path)
    if flush:
        _flush(path.parent)


def unfinished(name: str) -> bool:
    """Whether a file called so is one that `write_whole` or `create_whole` is at, or was killed
    at."""
    return name.startswith(".") and name.endswith(".part")


def create_whole(path: Path, data: bytes) -> bool:
    """Write ``path`` as `write_whole`, but only where there is none yet; False where there is.

    Of several processes that try at once, one succeeds.
    """
    with _part(path, f"{uuid.uuid4().hex[:8]}.", data) as part:
        try:
            os.link(part, path)
        except FileExistsError:
            # NFS repeats a request whose answer was lost, and then refuses what it has done.
            if part.stat().st_nlink < 2:
                return False
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            # The name first, then the content: empty in between, which a kill may leave.
            try:
                path.open("xb").close()
            except FileExistsError:
                return False
            part.replace(path)
    _flush(path.parent)
    return True


@contextmanager
def _part(path: Path, unique: str, data: bytes, *, flush: bool = True) -> Iterator[Path]:
    """``data`` in a file beside ``path`` under another name, which is gone afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{unique}part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            if flush:
                os.fsync(file.fileno())
        yield part
    finally:
        part.unlink(missing_ok=True)


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
