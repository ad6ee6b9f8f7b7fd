"""A raw file that is written slice by slice across one axis of a volume and read across another.

What lies between the passes of a segmentation: results on their way into the final format, which is
written along z, and copies of a volume that is to be cut along y or x. Plain reads and writes, no
memory map: mapped pages would count as memory of the process.
"""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.volume import VolumeError

__all__ = ["SliceFile"]

_SLAB_BYTES = 32 << 20
"""Of a slab in memory; there are two, as a reader that is ahead is in the next one."""

Values = npt.NDArray[Any]


class SliceFile(AbstractContextManager["SliceFile", None]):
    """``channels`` values for every voxel of a volume of ``shape`` (Z, Y, X), at ``path``.

    Written in slices across axis ``written``, read in slices across ``read`` (0, 1, 2). It is laid
    out (written, read, channels, the third axis): so what a slab of slices to be read has of a
    slice that was written is one piece, and a whole pass in either direction moves every byte once.
    Made when it is not there, at its full size (sparse); what is there stays. ``there``: it holds
    what an earlier pass has left, so VolumeError where it is not, or is shorter: what is made
    anew is 0 everywhere. Slices may be read from several threads at once.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        *,
        written: int,
        read: int,
        channels: int = 1,
        dtype: npt.DTypeLike = np.uint8,
        there: bool = False,
    ) -> None:
        self.path, self.shape = path, shape
        self._axis, self._read_axis = written, read
        rows, columns = (i for i in range(3) if i != written)
        self._turned = columns == read
        if self._turned:
            rows, columns = columns, rows
        self._layout = (shape[rows], channels, shape[columns])  # of a slice that is written
        self._dtype = np.dtype(dtype)
        self._row_bytes = channels * shape[columns] * self._dtype.itemsize
        self._slice_bytes = shape[rows] * self._row_bytes
        self._depth = max(1, _SLAB_BYTES // (shape[written] * self._row_bytes))
        self._slabs: dict[int, Values] = {}
        self._lock = threading.Lock()
        if there:
            self._check_there()
        path.touch()
        # Unbuffered, or every read of a part would fetch what follows it.
        self._file = path.open("r+b", buffering=0)
        os.truncate(self._file.fileno(), self.nbytes)

    @property
    def nbytes(self) -> int:
        """Its size when it is full."""
        return self.shape[self._axis] * self._slice_bytes

    def _check_there(self) -> None:
        if not self.path.exists():
            raise VolumeError(
                f"{self.path} is gone: something else has deleted it. Delete its folder to begin "
                "again"
            )
        if self.path.stat().st_size < self.nbytes:
            raise self._shorter()

    def _shorter(self) -> VolumeError:
        return VolumeError(
            f"{self.path} is shorter than its {self.nbytes} bytes: something else has cut it. "
            "Delete its folder to begin again"
        )

    def write(self, index: int, values: Values) -> None:
        """Write slice ``index`` of the axis written along: (channels, height, width)."""
        order = (2, 0, 1) if self._turned else (1, 0, 2)
        laid_out = np.ascontiguousarray(values.transpose(order))
        if laid_out.shape != self._layout or laid_out.dtype != self._dtype:
            raise ValueError(
                f"slice {index} for {self.path} is {values.dtype}, laid out as {laid_out.shape}: "
                f"expected {self._dtype}, {self._layout}"
            )
        left, place = laid_out.data.cast("B"), index * self._slice_bytes
        while left:
            written = os.pwrite(self._file.fileno(), left, place)
            left, place = left[written:], place + written

    def flush(self) -> None:
        """Return when everything written so far would survive a power cut."""
        os.fsync(self._file.fileno())

    def __getitem__(self, index: int) -> Values:
        """Slice ``index`` of the axis read along: (channels, height, width), not to be changed.

        Across another axis than the one written along it is cut from a slab of slices read
        together: asked for in rising order, more or less, the file is read once.
        """
        if self._axis == self._read_axis:
            values = np.empty(self._layout, self._dtype)
            self._fill(values, index * self._slice_bytes)
            return values.transpose(1, 0, 2)
        with self._lock:
            first = index - index % self._depth
            if first not in self._slabs:
                while len(self._slabs) > 1:
                    del self._slabs[min(self._slabs)]
                self._slabs[first] = self._slab(first)
            section = self._slabs[first][:, index - first]  # (written, channels, the third axis)
        third = 3 - self._axis - self._read_axis
        return section.transpose((1, 0, 2) if self._axis < third else (1, 2, 0))

    def _slab(self, first: int) -> Values:
        length, channels, columns = self._layout
        depth = min(self._depth, length - first)
        slab = np.empty((self.shape[self._axis], depth, channels, columns), self._dtype)
        for index, part in enumerate(slab):
            self._fill(part, index * self._slice_bytes + first * self._row_bytes)
        return slab

    def _fill(self, values: Values, place: int) -> None:
        left = values.data.cast("B")
        while left:
            count = os.preadv(self._file.fileno(), [left], place)
            if not count:
                raise self._shorter()
            left, place = left[count:], place + count

    def close(self) -> None:
        """Close the file and let go of what is in memory."""
        self._file.close()
        self._slabs.clear()

    def __exit__(self, *failure: object) -> None:
        self.close()
