"""Files that are there whole or not at all, and locks of files that end with their process.

docs/locks.md says which lock is for what. What a killed process leaves half-written is found by the
lock that it no longer has, and removed by `sweep` and `sweep_scratch`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ml_backend.errors import NextsliceError

__all__ = [
    "Scratch",
    "create_whole",
    "held",
    "move_whole",
    "sweep",
    "sweep_scratch",
    "write_whole",
]

_UNIQUE_PART = re.compile(r"\..+\.[0-9a-f]{8}\.part")
_SCRATCH = "nextslice-"
_HELD = ".held"
"""Of a `Scratch` folder: its process has a lock on it."""
_FRESH_S = 60.0
"""So long nobody's file is removed: its lock may not be taken yet."""
_OLD_S = 86_400.0
"""After so long a part is removed though a disk may have no locks."""
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
            _take(file)  # until it has its name: `sweep` leaves it alone
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
    from filelock import FileLock, Timeout  # formats are declared without it

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


# -- what killed processes leave


class Scratch(tempfile.TemporaryDirectory[str]):
    """A temporary folder of this process: where it is killed, `sweep_scratch` removes it."""

    def __init__(self) -> None:
        super().__init__(prefix=_SCRATCH)
        self._held = Path(self.name, _HELD).open("wb")  # noqa: SIM115  # until `cleanup`
        _take(self._held)

    def cleanup(self) -> None:
        """Remove it."""
        self._held.close()
        super().cleanup()


def sweep(root: Path) -> list[Path]:
    """Remove the parts under ``root`` that `write_whole` and `create_whole` of killed processes
    have left, or that are a day old; which.

    One that is younger than a minute, or that a process has its lock on, on whatever machine, is
    left alone, and so is all else.
    """
    removed = []
    for folder, _, names in os.walk(root):
        for name in filter(_UNIQUE_PART.fullmatch, names):
            part = Path(folder, name)
            with suppress(OSError):  # renamed or removed meanwhile, or another user's
                age = time.time() - part.stat().st_mtime
                if age > _OLD_S or (age > _FRESH_S and _is_free(part)):
                    part.unlink()
                    removed.append(part)
    return removed


def sweep_scratch() -> list[Path]:
    """Remove this user's `Scratch` folders whose process is gone; which."""
    removed = []
    for folder in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*"):
        with suppress(OSError):
            state = folder.lstat()
            ours = state.st_uid == os.geteuid() and time.time() - state.st_mtime > _FRESH_S
            if ours and not folder.is_symlink() and _is_free(folder / _HELD):
                shutil.rmtree(folder)
                removed.append(folder)
    return removed


def _take(file: IO[bytes]) -> None:
    """Have the lock of ``file`` until it is closed, where its disk has locks."""
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_free(path: Path) -> bool:
    """Whether no process has the lock of the file. Raises OSError where there is no such file, or
    its disk has no locks."""
    with path.open("rb+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
