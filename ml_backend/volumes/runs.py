"""Where the values of z slices lie in a file, each in one run of bytes: whoever knows that reads
them without the library that parsed the file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.volume import VolumeError

__all__ = ["Runs", "file_state", "fill"]

FileState = tuple[int, int, int, int]
"""Device, number, time and size: a file, until somebody writes to it or replaces it."""


@dataclass(frozen=True)
class Runs:
    """``starts``: the byte at which each slice begins in the file at ``path``, whose ``state`` it
    holds for. ``dtype`` with its byte order."""

    path: Path
    dtype: np.dtype[Any]
    starts: Sequence[int]
    state: FileState

    def read(self, index: int, shape: tuple[int, int]) -> npt.NDArray[Any] | None:
        """Slice ``index``, in native byte order; None where the file is not what it was."""
        with open(self.path, "rb", 0, opener=_opened) as file:
            if file_state(file.fileno()) != self.state:
                return None
            values = np.empty(shape, self.dtype)
            if fill(values, file, self.starts[index]) < values.nbytes:
                return None
        return values.astype(self.dtype.newbyteorder("="), copy=False)

    def to_json(self) -> dict[str, Any]:
        """For another process. ``step``: how far apart the starts are, where they all are so."""
        starts = [*self.starts]
        step = starts[1] - starts[0] if len(starts) > 1 else 0
        even = starts == [starts[0] + i * step for i in range(len(starts))]
        return {
            "path": str(self.path),
            "dtype": self.dtype.str,
            "starts": starts[:1] if even else starts,
            "step": step if even else None,
            "state": [*self.state],
        }

    @classmethod
    def from_json(cls, said: dict[str, Any], shape: tuple[int, int, int]) -> Runs:
        """Of a volume of ``shape``. Raises VolumeError for runs that are not in the file."""
        dtype, starts, step = np.dtype(said["dtype"]), said["starts"], said["step"]
        if step is not None:
            starts = [starts[0] + z * step for z in range(shape[0])]
        device, number, modified, size = map(int, said["state"])
        last = size - math.prod(shape[1:]) * dtype.itemsize
        if len(starts) != shape[0] or not all(0 <= start <= last for start in starts):
            raise VolumeError(f"{said['path']} has {size} bytes, and slices beyond them")
        return cls(Path(said["path"]), dtype, starts, (device, number, modified, size))


def file_state(descriptor: int) -> FileState:
    """Of an open file."""
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def fill(values: npt.NDArray[Any], file: Any, start: int) -> int:
    """Fill ``values`` from byte ``start`` of an unbuffered ``file``; how many bytes were there."""
    buffer, done = memoryview(values.reshape(-1).view(np.uint8).data), 0
    file.seek(start)
    # Linux reads 2 GiB at a time at most
    while done < len(buffer) and (count := file.readinto(buffer[done:])):
        done += count
    return done


def _opened(path: str, flags: int) -> int:
    # a pipe in its place would be waited for
    return os.open(path, flags | os.O_NONBLOCK)
