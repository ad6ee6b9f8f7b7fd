"""What runs in the process of a worker: `nextslice worker`, made to stand still at a line.

Imported once, in the server that workers are forked off: with torch, which takes seconds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import OutOfMemoryError, Tensor

from ml_backend import durable
from ml_backend.cli import worker as command
from ml_backend.rounds import jobs
from ml_backend.rounds import learners as _with_torch  # noqa: F401
from ml_backend.rounds.store import Store
from ml_backend.segmentation.networks.hrnet import HRNetV2
from tests.faults.cells import wait_until

if TYPE_CHECKING:
    from tests.faults.worker import Stop

__all__ = ["work"]

_LONGEST_S = 600.0
_NAMESPACES = (("user", 0x10000000), ("mnt", 0x00020000))
_PR_SET_PDEATHSIG = 1


def work(
    kind: str,
    env: dict[str, str],
    log: Path,
    stop: Stop | None,
    reached: Path,
    clock: Path | None,
    inside: int | None,
    memory: Path,
) -> None:  # in the child
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if inside is not None:
        for name, flag in _NAMESPACES:
            descriptor = os.open(f"/proc/{inside}/ns/{name}", os.O_RDONLY)
            if libc.setns(descriptor, flag):
                raise OSError(ctypes.get_errno(), f"setns {name}")
    with log.open("ab") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.environ.update(env)
    if clock is not None:
        _move_clock(clock)
    if stop is not None:
        _stand_still(stop, reached)
    if kind == "gpu":
        _hold_no_more_than(memory)
    command.worker(command.Kind(kind), burst=False)


def _move_clock(file: Path) -> None:
    true = time.time
    time.time = lambda: true() + float(file.read_text() or 0)  # type: ignore[assignment]


def _hold_no_more_than(file: Path) -> None:
    """As a GPU whose memory holds as many pixels as ``file`` says; all, while there is none."""
    encode = HRNetV2._encode

    def checked(self: HRNetV2, images: Tensor) -> Any:
        batch, _, height, width = images.shape
        if file.exists() and batch * height * width > int(file.read_text()):
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return encode(self, images)

    HRNetV2._encode = checked  # type: ignore[method-assign]  # on purpose: less memory


def _stand_still(stop: Stop, reached: Path) -> None:
    def here() -> None:
        if not reached.exists():
            reached.touch()
            wait_until(reached.with_suffix(".on").exists, "leave to go on", _LONGEST_S, 0.02)

    {"step": _at_step, "write": _before_write, "flush": _before_name}[stop.kind](stop, here)


def _at_step(stop: Stop, here: Callable[[], None]) -> None:
    make = jobs._job_progress

    def progress(settings: Any) -> Any:
        report = make(settings)

        def told(step: str, done: int, total: int) -> None:
            report(step, done, total)
            if step == stop.name and done >= stop.done:
                here()

        return told

    jobs._job_progress = progress


def _before_write(stop: Stop, here: Callable[[], None]) -> None:
    write = Store.write

    def told(self: Store, path: str, data: bytes) -> None:
        if path.rpartition("/")[2] == stop.name:
            here()
        write(self, path, data)

    Store.write = told  # type: ignore[method-assign]


def _before_name(stop: Stop, here: Callable[[], None]) -> None:
    fsync = durable.os.fsync

    def told(descriptor: int) -> None:
        fsync(descriptor)
        if f"/.{stop.name}." in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            here()

    durable.os.fsync = told  # type: ignore[attr-defined]
