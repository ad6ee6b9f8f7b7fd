"""One child process that reads volumes (`reader_process`), as who has started it sees it."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.volume import VolumeError

__all__ = ["Reader", "ReaderEnded", "ReaderTimeout"]

_START_S = 120
"""How long Python may take to start: a machine may be very busy, and it opens no volume yet."""
_RETURNED = 64 << 20
"""Bytes of shared memory that are given back to the system after a slice that took more."""
_SECRET = ("NEXTSLICE_", "LABEL_STUDIO_", "BASIC_AUTH_", "REDIS_URL", "AWS_")
_ELSEWHERE = ("HDF5_EXT_PREFIX", "HDF5_VDS_PREFIX")
"""With these HDF5 looks for files in other places than those that were checked."""
_HDF5 = {"HDF5_EXTFILE_PREFIX": "${ORIGIN}", "HDF5_USE_FILE_LOCKING": "FALSE"}
"""It finds values beside the file that names them, and keeps nobody from writing."""


class ReaderTimeout(VolumeError):
    """The process has not answered in time, and was killed."""


class ReaderEnded(VolumeError):
    """The process has ended without an answer; the message says how."""


class Reader:
    """A process that may take ``memory`` bytes. For one thread at a time.

    ``keys``: what it has open; ``closing``: what of that nobody needs any more.
    """

    def __init__(self, memory: int) -> None:
        self.keys: set[str] = set()
        self.closing: set[str] = set()
        self._channel, theirs = socket.socketpair()
        self._shared = os.memfd_create("nextslice-slice", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        # were it made shorter, a look at it would end us
        fcntl.fcntl(self._shared, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self._view: mmap.mmap | None = None
        with theirs:
            passed = (theirs.fileno(), self._shared)
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "ml_backend.volumes.reader_process"),
                    *map(str, (*passed, memory)),
                ],
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(),
                cwd="/",
            )
        self._answers = b""
        try:
            self._answer(_START_S)
        except (ReaderEnded, ReaderTimeout) as error:
            raise RuntimeError(f"the process that reads volumes does not start: {error}") from error

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None and self._channel.fileno() >= 0

    def ask(
        self, request: dict[str, Any], timeout_s: float, values: npt.NDArray[Any] | None = None
    ) -> dict[str, Any]:
        """Its answer; ``values`` are filled with what it has read.

        Raises ReaderTimeout and ReaderEnded; it is of no use afterwards.
        """
        if values is not None:
            view = self._room(values.nbytes)
        line = json.dumps(request | {"timeout_s": timeout_s}) + "\n"
        try:
            self._channel.settimeout(timeout_s)
            self._channel.sendall(line.encode("ascii"))
        except OSError as error:
            raise self._ended() from error
        answer = self._answer(timeout_s)
        if values is not None and answer.get("bytes") == values.nbytes:
            shared = np.frombuffer(view, values.dtype, values.size).reshape(values.shape)
            np.copyto(values, shared)
            del shared
            if values.nbytes > _RETURNED:
                view.madvise(mmap.MADV_REMOVE)
        return answer

    def kill(self) -> None:
        """End it, whatever it is at."""
        self._process.kill()
        self._process.wait()
        self.leave()

    def leave(self) -> None:
        """Let go of it; without anybody who holds it, it ends by itself."""
        self._channel.close()
        if self._shared >= 0:
            os.close(self._shared)
            self._shared = -1

    def _room(self, size: int) -> mmap.mmap:
        """The shared memory, with ``size`` bytes or more."""
        if self._view is None or len(self._view) < size:
            self._view = None
            os.ftruncate(self._shared, size)
            self._view = mmap.mmap(self._shared, size)
        return self._view

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        until = time.monotonic() + timeout_s
        while b"\n" not in self._answers:
            self._channel.settimeout(max(0.001, until - time.monotonic()))
            try:
                part = self._channel.recv(1 << 16)
            except TimeoutError:
                self.kill()
                raise ReaderTimeout(f"it took longer than {timeout_s:g} s") from None
            except OSError:
                part = b""
            if not part:
                raise self._ended()
            self._answers += part
        line, _, self._answers = self._answers.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ended(self) -> ReaderEnded:
        self._await_end()
        code = self._process.returncode
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return ReaderEnded(how)

    def _await_end(self) -> None:
        """As `kill`, but what it died of itself stays known."""
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.leave()


def _environment() -> dict[str, str]:
    """Ours, without secrets, and with our own modules where it finds them."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_SECRET) and name not in _ELSEWHERE
    }
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # noqa: PTH109
    # as many threads as there are processes are enough
    return kept | _HDF5 | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
