"""Slices that chunks are cut from: of the scan at every level, and masks. Kept in memory and on
disk, read few at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.api.dashboard.volumes import TooManyVolumes
from ml_backend.api.ome_zarr.images import compressed, decompressed
from ml_backend.disk_cache import DiskCache
from ml_backend.volumes.formats.pyramid import Level
from ml_backend.volumes.volume import Volume

__all__ = ["Planes", "scan_plane"]

_READ_AT_ONCE = 2
"""Each takes three times the memory of its slice, and a core."""
_WAIT_S = 60.0
_KEPT_BYTES = 256 << 20
"""Of slices in memory, all together: eight of 4,096² at 16 bit. A larger one is read anew for each
of its chunks."""
_BAND = 64
"""Rows of a smaller slice that are made at once."""

Plane = npt.NDArray[Any]

OnDisk = tuple[tuple[int, int], np.dtype[Any]]


class Planes:
    """Arrays by name, made once for all who ask meanwhile. Safe to use from many threads."""

    def __init__(self, cache: DiskCache) -> None:
        self._cache = cache
        self._making = tuple(threading.Lock() for _ in range(64))
        self._readers = threading.BoundedSemaphore(_READ_AT_ONCE)
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Plane] = OrderedDict()

    def get(self, name: str, make: Callable[[], Plane], on_disk: OnDisk | None = None) -> Plane:
        """The array called ``name``, which stands for its content, else what ``make`` gives.

        ``on_disk``: its shape and dtype, where it is kept there as well. Raises TooManyVolumes
        where it had to wait for a minute, and as ``make``.
        """
        found = self._held(name)
        if found is not None:
            return found
        with _within(self._making[hash(name) % len(self._making)]):
            found = self._held(name)
            if found is None:
                found = self._found(name, make, on_disk)
                self._hold(name, found)
        return found

    def _found(self, name: str, make: Callable[[], Plane], on_disk: OnDisk | None) -> Plane:
        place = f"zarr/{name}"
        data = None if on_disk is None else self._cache.read(place)
        if data is not None and on_disk is not None:
            shape, dtype = on_disk
            return np.frombuffer(decompressed(data), dtype).reshape(shape)
        with _within(self._readers):
            found = make()
        if on_disk is not None:
            self._cache.keep(place, compressed(found))
        return found

    def _held(self, name: str) -> Plane | None:
        with self._lock:
            found = self._kept.get(name)
            if found is not None:
                self._kept.move_to_end(name)
            return found

    def _hold(self, name: str, plane: Plane) -> None:
        with self._lock:
            self._kept.pop(name, None)
            if plane.nbytes > _KEPT_BYTES:
                return
            self._kept[name] = plane
            while sum(one.nbytes for one in self._kept.values()) > _KEPT_BYTES:
                self._kept.popitem(last=False)


@contextmanager
def _within(lock: threading.Lock | threading.Semaphore) -> Iterator[None]:
    if not lock.acquire(timeout=_WAIT_S):
        raise TooManyVolumes("the slice could not be read yet, others are: ask again")
    try:
        yield
    finally:
        lock.release()


def scan_plane(volume: Volume, level: Level, place: int) -> Plane:
    """The slice at ``place`` along z of a smaller one of ``volume``, in its dtype. At most two of
    the volume's slices are read for it, the middle ones of those that it stands for: their mean,
    each pixel that of its cell. Class ids and integers of 64 bits: the first voxel of each cell.
    Raises VolumeError."""
    deep, rows, columns = level.factors
    along = volume.along("z")
    if not level.means or level.factors == (1, 1, 1):
        return along[place * deep][::rows, ::columns]
    last = len(along) - 1
    first, second = (place * deep + middle for middle in ((deep - 1) // 2, deep // 2))
    chosen = {min(first, last), min(second, last)}
    with np.errstate(invalid="ignore", over="ignore"):  # of infinities
        found = sum(_averaged(along[index], rows, columns) for index in sorted(chosen))
        mean = np.asarray(found) / len(chosen)
    if volume.dtype.kind != "f":
        np.rint(mean, out=mean)
    return mean.astype(volume.dtype)


def _averaged(plane: Plane, rows: int, columns: int) -> npt.NDArray[np.float64]:
    """The mean of each cell of ``plane``; at the edges cells are smaller."""
    height, width = plane.shape
    found = np.empty((-(-height // rows), -(-width // columns)))
    for top in range(0, len(found), _BAND):
        band = plane[top * rows : (top + _BAND) * rows]
        found[top : top + _BAND] = _sums(_sums(band, rows).T, columns).T
    found /= np.minimum(rows, height - np.arange(0, height, rows))[:, np.newaxis]
    found /= np.minimum(columns, width - np.arange(0, width, columns))
    return found


def _sums(values: Plane, step: int) -> npt.NDArray[np.float64]:
    """Of every ``step`` rows, of fewer at the end."""
    found = values[::step].astype(np.float64)
    for first in range(1, step):
        more = values[first::step]
        found[: len(more)] += more
    return found
