"""Values that lie one after another in a file, as in raw, NumPy, NIfTI and plain TIFF.

A slice that is one run of bytes is read as one; the others are cut from a memory map. Files are
opened for each slice and their size is looked at first: a map that reaches beyond the end of its
file would end the process (SIGBUS), and nothing stays open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.formats.checks import native, reading
from ml_backend.volumes.runs import fill
from ml_backend.volumes.volume import VolumeError, slice_shape

__all__ = ["Flat", "read_run"]

Slice = npt.NDArray[Any]


@dataclass(frozen=True)
class Flat:
    """``shape`` (Z, Y, X) values of ``dtype`` (with its byte order) from byte ``offset`` of a file.

    ``order``: "C" where x runs fastest, "F" where z does.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int = 0
    order: Literal["C", "F"] = "C"

    @property
    def end(self) -> int:
        """How long the file must be, in bytes."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize

    def check(self, *, exact: bool = False) -> None:
        """Raises VolumeError when the file is too short, or with ``exact`` of any other size."""
        with reading(self.path, "a file"):
            found = self.path.stat().st_size
        if found < self.end or (exact and found > self.end):
            raise VolumeError(
                f"{self.path} has {found} bytes, expected {self.end}: {self.dtype} of shape "
                f"{self.shape} from byte {self.offset}"
            )

    def read(self, axis: int, index: int) -> Slice:
        """The slice at ``index`` across ``axis``."""
        if axis == (0 if self.order == "C" else 2):
            return self._run(axis, index)
        self.check()
        with reading(self.path, "the volume it was when it was opened"):
            volume = np.memmap(self.path, self.dtype, "r", self.offset, self.shape, self.order)
            place = tuple(index if i == axis else slice(None) for i in range(3))
            return native(np.array(volume[place], order="C"))

    def _run(self, axis: int, index: int) -> Slice:
        rows, columns = slice_shape(self.shape, axis)
        start = self.offset + index * rows * columns * self.dtype.itemsize
        if self.order == "C":
            return read_run(self.path, start, (rows, columns), self.dtype)
        return np.ascontiguousarray(read_run(self.path, start, (columns, rows), self.dtype).T)


def read_run(path: Path, start: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Slice:
    """The array of ``shape`` at byte ``start``, in native byte order. Raises VolumeError where the
    file ends before it does."""
    with reading(path, "the volume it was when it was opened"), path.open("rb", 0) as file:
        values = np.empty(shape, dtype)
        done = fill(values, file, start)
    if done < values.nbytes:
        raise VolumeError(
            f"{path} ends at byte {start + done}, expected {values.nbytes} bytes of a slice from "
            f"byte {start}"
        )
    return native(values)
