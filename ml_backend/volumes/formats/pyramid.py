"""Smaller and smaller ones of a volume, for viewers that load what a screen can show.

An axis is halved while its voxels are less than twice as long as the shortest edge, so they become
cubes first. Of class ids every second voxel is taken, for a mean of two classes is a third one; so
it is of integers of 64 bits; of all else the mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.volume import VolumeSpec

__all__ = ["Level", "levels_of", "reduce_into"]

_SMALL = 256
"""Voxels along every axis of the last one: a chunk."""

_Three = tuple[int, int, int]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Level:
    """``shape`` (Z, Y, X); ``factors``: voxels of the full resolution in one along z, y, x;
    ``means``: whether it is their mean, else it is the first of them."""

    shape: _Three
    factors: _Three
    means: bool

    @property
    def method(self) -> str:
        """What NGFF calls ``type``."""
        return "mean" if self.means else "nearest"

    def offset(self, factor: int) -> float:
        """Where its voxel lies among the ``factor`` ones, along an axis, that it stands for."""
        return (factor - 1) / 2 if self.means else 0.0

    def transformations(
        self, size: tuple[float, float, float], origin: tuple[float, float, float]
    ) -> list[dict[str, Any]]:
        """NGFF's: where the middle of its voxel (0, 0, 0) lies, and how far apart they are."""
        scale = [edge * factor for edge, factor in zip(size, self.factors, strict=True)]
        start = [
            at + edge * self.offset(factor)
            for at, edge, factor in zip(origin, size, self.factors, strict=True)
        ]
        found: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
        if any(start):
            found.append({"type": "translation", "translation": start})
        return found


def levels_of(spec: VolumeSpec) -> list[Level]:
    """The full resolution and what is made of it, the largest first."""
    size = spec.voxel_size or (1.0, 1.0, 1.0)
    exact = spec.dtype.kind != "f" and spec.dtype.itemsize == 8  # a mean would lose digits
    levels = [Level(spec.shape, (1, 1, 1), spec.classes is None and not exact)]
    while max((last := levels[-1]).shape) > _SMALL:
        edges = [edge * factor for edge, factor in zip(size, last.factors, strict=True)]
        long = [one for one, length in zip(edges, last.shape, strict=True) if length > 1]
        steps = [
            2 if length > 1 and edge < 2 * min(long) else 1
            for edge, length in zip(edges, last.shape, strict=True)
        ]
        z, y, x = (-(-length // step) for length, step in zip(last.shape, steps, strict=True))
        a, b, c = (factor * step for factor, step in zip(last.factors, steps, strict=True))
        levels.append(Level((z, y, x), (a, b, c), last.means))
    return levels


def reduce_into(smaller: Any, larger: Any, before: Level, after: Level) -> None:
    """Fill the Zarr array ``smaller`` (``after``) with what is made of ``larger`` (``before``),
    chunk by chunk."""
    steps = [b // a for a, b in zip(before.factors, after.factors, strict=True)]
    for part in _chunks(after.shape, smaller.chunks):
        taken = tuple(
            slice(one.start * step, min(one.stop * step, length))
            for one, step, length in zip(part, steps, before.shape, strict=True)
        )
        smaller[part] = _reduced(np.asarray(larger[taken]), steps, after.means)


def _chunks(shape: _Three, chunks: _Three) -> Iterator[tuple[slice, slice, slice]]:
    starts = [range(0, length, edge) for length, edge in zip(shape, chunks, strict=True)]
    for z, y, x in product(*starts):
        ends = (min(at + edge, n) for at, edge, n in zip((z, y, x), chunks, shape, strict=True))
        depth, height, width = ends
        yield slice(z, depth), slice(y, height), slice(x, width)


def _reduced(values: Array, steps: list[int], means: bool) -> Array:
    if not means:
        return values[tuple(slice(None, None, step) for step in steps)]
    dtype = values.dtype
    for axis, step in enumerate(steps):
        if step == 1:
            continue
        if values.shape[axis] % 2:
            edge = values.take([-1], axis)
            values = np.concatenate([values, edge], axis)
        even = tuple(slice(None, None, 2) if i == axis else slice(None) for i in range(3))
        odd = tuple(slice(1, None, 2) if i == axis else slice(None) for i in range(3))
        with np.errstate(invalid="ignore"):  # of infinities
            values = values[even] / 2.0 + values[odd] / 2.0
    return np.asarray(values if dtype.kind == "f" else np.rint(values)).astype(dtype)
