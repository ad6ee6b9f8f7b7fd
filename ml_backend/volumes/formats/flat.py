"""Values that lie one after another in a file, as in raw, NumPy, NIfTI and plain TIFF.

A slice that is one run of bytes is read as one; the others, and those of one channel among others,
are cut from a memory map. Files are opened for each slice and their size is looked at first: a map
that reaches beyond the end of its file would end the process (SIGBUS), and nothing stays open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.formats.axes import AxisChoice
from ml_backend.volumes.formats.checks import native, reading
from ml_backend.volumes.runs import fill
from ml_backend.volumes.volume import VolumeError, slice_shape

__all__ = ["Cut", "Flat", "cut_out", "read_run"]

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


@dataclass(frozen=True)
class Cut:
    """What ``choice`` takes of an array of ``lengths``, the fastest axis last, that begins at byte
    ``offset``: z, y, x in any order, and one of several channels or times."""

    path: Path
    lengths: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    choice: AxisChoice

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Z, Y, X)."""
        z, y, x = (self.lengths[axis] for axis in self.choice.axes)
        return z, y, x

    @property
    def end(self) -> int:
        """How long the file must be, in bytes."""
        return self.offset + math.prod(self.lengths) * self.dtype.itemsize

    def check(self) -> None:
        """Raises VolumeError when the file is too short for the whole array."""
        rows = self.lengths[-2:]
        Flat(
            self.path, (math.prod(self.lengths[:-2]), rows[0], rows[1]), self.dtype, self.offset
        ).check()

    def read(self, axis: int, index: int) -> Slice:
        """The slice at ``index`` across ``axis``."""
        self.check()
        with reading(self.path, "the volume it was when it was opened"):
            array = np.memmap(self.path, self.dtype, "r", self.offset, self.lengths)
            part = array[self.choice.index(axis, index, index + 1)].transpose(self.choice.order)
            return native(np.array(part.take(0, axis), order="C"))


def cut_out(
    path: Path, lengths: Sequence[int], dtype: np.dtype[Any], offset: int, choice: AxisChoice
) -> Flat | Cut:
    """What reads the volume that ``choice`` takes of an array, see `Cut`: as one run of bytes where
    it is one."""
    z, y, x = choice.axes
    before = all(place < z or lengths[place] == 1 for place in choice.picked)
    if not (before and z < y < x):
        return Cut(path, tuple(lengths), dtype, offset, choice)
    place = [choice.picked.get(axis, 0) for axis in range(len(lengths))]
    first = int(np.ravel_multi_index(place, tuple(lengths)))
    shape = (lengths[z], lengths[y], lengths[x])
    return Flat(path, shape, dtype, offset + first * dtype.itemsize)


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
