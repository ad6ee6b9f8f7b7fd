"""The dataset of an HDF5 file that is the volume, open for reading beside whoever writes it."""

from __future__ import annotations

import resource
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.formats.axes import choose_axes
from ml_backend.volumes.formats.checks import chunk_size, number_type, reading
from ml_backend.volumes.formats.hdf5_axes import axis_names
from ml_backend.volumes.formats.hdf5_files import Hdf5Files
from ml_backend.volumes.formats.hdf5_holes import Hole
from ml_backend.volumes.formats.hdf5_parts import parts_of
from ml_backend.volumes.formats.hdf5_search import found, named
from ml_backend.volumes.runs import Runs, file_state
from ml_backend.volumes.volume import AXES, ReadOptions, VolumeError

__all__ = ["OpenDataset"]

_EXPECTED = "a whole dataset, in a compression that HDF5 or hdf5plugin knows"
_VOLUMES = 8
"""That a process has open at once: each may have as many files open as the others."""

Array = npt.NDArray[Any]


class OpenDataset:
    """``shape`` (Z, Y, X), ``dtype`` in native byte order, and which ``axes`` of the dataset
    ``values`` they are. Safe from several threads.

    Raises VolumeError for what is no volume, or made of what is not there; beside it whatever h5py
    raises.
    """

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self._path, self._options = path, options
        self._lock = threading.Lock()
        self._open()

    def close(self) -> None:
        """Close all its files."""
        self.files.close()

    def block(self, axis: int, start: int, stop: int) -> Array:
        """The part between two indices of an axis. Raises VolumeError, also where HDF5 itself
        would give zeros for voxels that are nowhere."""
        with self._lock, reading(self._place, _EXPECTED):
            if self.files.changed():
                self._reopen()
            if self._hole(axis, start, stop):
                self._reopen()  # it may have been written since
            if hole := self._hole(axis, start, stop):
                raise VolumeError(
                    f"{self._place}, slice {hole.index[self.axes[axis]]} along {AXES[axis]}, has "
                    f"voxels that are nowhere ({hole.reason}), expected all of them, or a fill "
                    "value that the file sets"
                )
            self._parts.check_storage()
            return self._read(axis, start, stop)

    def runs(self) -> Runs | None:
        """Where its slices lie, if HDF5 keeps them as they are, one after another."""
        from h5py import h5t

        with self._lock:
            own, file = self.values, self.values.file
            plain = own.dtype.kind in "iuf" and h5t.py_create(own.dtype) == own.id.get_type()
            start = own.id.get_offset() if plain and not (own.chunks or own.is_virtual) else None
            if start is None or own.external or self.files.changed() or not self._in_order():
                return None
            size = own.size // self.shape[0] * own.dtype.itemsize
            starts = range(start, start + self.shape[0] * size, size)
            state = file_state(file.id.get_vfd_handle())
            return Runs(Path(file.filename), own.dtype, starts, state)

    def _in_order(self) -> bool:
        """Whether all of it is the volume, z, y, x as it lies."""
        others = (self.values.shape[place] for place in self._choice.picked)
        return self._choice.order == (0, 1, 2) and all(length == 1 for length in others)

    def _open(self) -> None:
        self.files = Hdf5Files(self._path, self._options)
        try:
            name = self._options.dataset
            place = named(self.files, name) if name is not None else found(self.files)
            self.values, self.group = place.dataset, place.group
            self._place = Path(f"{self._path}:{self.values.name}")
            self.dtype = number_type(self._place, self.values.dtype)
            self._parts = parts_of(self.files, self.values)
            names = axis_names(self._place, *place)
            self._choice = choose_axes(self._place, names, self.values.shape, self._options)
            self.axes = self._choice.axes
            self.chunks = self.values.chunks
            chunk_size(self._place, self.chunks or (), self.dtype)
            z, y, x = (self.values.shape[axis] for axis in self.axes)
            self.shape = z, y, x
        except BaseException:
            self.files.close()
            raise

    def _reopen(self) -> None:
        """Whoever writes it has changed what HDF5 remembers of it."""
        before = self.shape, self.dtype, self.axes
        self.files.close()
        self._open()
        if (self.shape, self.dtype, self.axes) != before:
            raise VolumeError(f"{self._path} has been replaced since it was opened: open it again")

    def _hole(self, axis: int, start: int, stop: int) -> Hole | None:
        if self._parts.holes is None:
            return None
        cut = self._choice.index(axis, start, stop)
        whole = self.values.shape
        pairs = [
            part.indices(length)[:2] if isinstance(part, slice) else (part, part + 1)
            for part, length in zip(cut, whole, strict=True)
        ]
        first, last = zip(*pairs, strict=True)
        return self._parts.holes.within(first, last)

    def _read(self, axis: int, start: int, stop: int) -> Array:
        """In parts between which it is closed where it is made of very many files: HDF5 keeps them
        open, and reads zeros when there may be no more."""
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _VOLUMES
        if self._parts.files <= most:
            return self._values(axis, start, stop)
        z = self.shape[0]
        step = max(1, z * most // self._parts.files)
        bounds = [(start, stop), *((0, self.shape[i]) for i in (1, 2))]
        if axis:
            bounds[0], bounds[axis] = (0, z), (start, stop)
        shape = [b - a for a, b in bounds]
        whole: Array = np.empty(shape, self.dtype)
        for first in range(*bounds[0], step):
            last = min(first + step, bounds[0][1])
            part = self._values(0, first, last)[:, slice(*bounds[1]), slice(*bounds[2])]
            whole[first - bounds[0][0] : last - bounds[0][0]] = part
            # HDF5 keeps the files open as long as this is
            file, name = self.values.file, self.values.name
            self.values.id.close()
            self.values = file[name]
        return whole

    def _values(self, axis: int, start: int, stop: int) -> Array:
        part = np.asarray(self.values[self._choice.index(axis, start, stop)])
        return part.transpose(self._choice.order).astype(self.dtype, copy=False)
