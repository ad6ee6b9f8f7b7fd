"""Chunked arrays: a slice costs its whole row of chunks, so the last row is kept for the next."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.volume import VolumeSpec

__all__ = ["Slabs", "chunk_shape", "in_slabs"]

Array = npt.NDArray[Any]

_KEPT = 128 * 2**20
"""Bytes of a slab that is kept in memory: a row of chunks, or the part of one that fits."""


class Slabs:
    """``read`` of a `Volume` over ``block(axis, start, stop)``, which gives the part (Z, Y, X)
    between two indices of an axis in native values. Safe from several threads."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        chunks: tuple[int, int, int] | None,
        itemsize: int,
        block: Callable[[int, int, int], Array],
    ) -> None:
        self._shape, self._block = shape, block
        self._chunks = chunks or (1, 1, 1)
        self._thickness = [1, 1, 1]
        for axis, length in enumerate(shape):
            row = min(self._chunks[axis], length)
            others = math.prod(n for i, n in enumerate(shape) if i != axis)
            parts = math.ceil(row / max(1, _KEPT // (others * itemsize)))
            self._thickness[axis] = math.ceil(row / parts)
        self._lock = threading.Lock()
        self._at = (-1, -1)
        self._slab: Array | None = None

    def read(self, axis: int, index: int) -> Array:
        """The slice at ``index`` across ``axis``."""
        thickness = self._thickness[axis]
        if thickness == 1:
            return np.ascontiguousarray(self._block(axis, index, index + 1).squeeze(axis))
        within = index % self._chunks[axis]
        start, left = index - within % thickness, self._chunks[axis] - within
        with self._lock:
            if self._slab is None or self._at != (axis, start):
                self._slab = None  # before the next one needs the memory
                stop = min(start + thickness, index + left, self._shape[axis])
                self._slab, self._at = self._block(axis, start, stop), (axis, start)
            part: Array = self._slab.take(index - start, axis)
            return part

    def close(self) -> None:
        with self._lock:
            self._slab = None


def chunk_shape(spec: VolumeSpec) -> tuple[int, int, int]:
    """Chunks to write: 256² in the plane and 16 to 64 slices, about 64 MiB a slab."""
    depth, height, width = spec.shape
    plane = height * width * spec.dtype.itemsize
    return min(depth, max(16, min(64, 64 * 2**20 // plane))), min(256, height), min(256, width)


def in_slabs(slices: Iterable[Array], spec: VolumeSpec, thickness: int) -> Iterator[Array]:
    """``slices`` stacked, ``thickness`` at a time, always in the same memory."""
    slab = np.empty((thickness, *spec.shape[1:]), spec.dtype)
    filled = 0
    for one in slices:
        slab[filled] = one
        filled += 1
        if filled == thickness:
            yield slab
            filled = 0
    if filled:
        yield slab[:filled]
