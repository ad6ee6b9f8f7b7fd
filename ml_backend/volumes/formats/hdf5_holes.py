"""Voxels of an HDF5 dataset that are nowhere: HDF5 itself reads them as zeros, without a word."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Chunks", "Grid", "Hole", "Holes", "Mapping", "Mosaic", "Unwritten"]

Index = tuple[int, ...]

_MOST_CHUNKS = 1 << 27


@dataclass(frozen=True)
class Hole:
    """A voxel that is nowhere, and what is not there."""

    index: Index
    reason: str


class Holes(Protocol):
    """Where the voxels of a dataset are missing."""

    def within(self, start: Index, stop: Index) -> Hole | None:
        """A missing voxel of those from ``start`` to before ``stop``, None where all are there."""


@dataclass(frozen=True)
class Unwritten:
    """A dataset, called ``name``, of which nothing was ever written."""

    name: str

    def within(self, start: Index, stop: Index) -> Hole | None:
        return Hole(start, f"nothing was ever written into {self.name}")


@dataclass(frozen=True)
class Chunks:
    """A dataset of which some chunks were never written: ``there``, by their place."""

    name: str
    size: Index
    there: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, name: str, dataset: Any) -> Holes | None:
        """Those of ``dataset``; None where all are there."""
        counts = [
            -(-length // size) for length, size in zip(dataset.shape, dataset.chunks, strict=True)
        ]
        written = dataset.id.get_num_chunks()
        if written == math.prod(counts):
            return None
        if not written or math.prod(counts) > _MOST_CHUNKS:
            return Unwritten(name)
        there = np.zeros(counts, np.bool_)

        def note(chunk: Any) -> None:
            place = tuple(o // s for o, s in zip(chunk.chunk_offset, dataset.chunks, strict=True))
            if all(i < count for i, count in zip(place, counts, strict=True)):
                there[place] = True

        dataset.id.chunk_iter(note)
        return None if there.all() else cls(name, dataset.chunks, there)

    def within(self, start: Index, stop: Index) -> Hole | None:
        first = [i // size for i, size in zip(start, self.size, strict=True)]
        region = self.there[
            tuple(
                slice(a, -(-b // size)) for a, b, size in zip(first, stop, self.size, strict=True)
            )
        ]
        if region.all():
            return None
        missing = np.unravel_index(int(region.argmin()), region.shape)
        places = [(a + int(i)) * size for a, i, size in zip(first, missing, self.size, strict=True)]
        index = tuple(max(a, place) for a, place in zip(start, places, strict=True))
        return Hole(index, f"a chunk of {self.name} was never written")


@dataclass(frozen=True)
class Grid:
    """Part of a dataset: along each axis ``count`` indices from ``start`` on, ``step`` apart."""

    start: Index
    step: Index
    count: Index

    @property
    def long(self) -> list[int]:
        """The axes along which it has more than one index."""
        return [axis for axis, count in enumerate(self.count) if count != 1]

    def cut(self, axis: int, count: int) -> Grid:
        """With ``count`` indices along ``axis``."""
        return replace(self, count=_with(self.count, axis, count))

    def along(self, axis: int, start: int, count: int) -> Grid:
        """With ``count`` indices from ``start`` on along ``axis``."""
        return replace(self.cut(axis, count), start=_with(self.start, axis, start))


def _with(index: Index, axis: int, value: int) -> Index:
    return (*index[:axis], value, *index[axis + 1 :])


@dataclass(frozen=True)
class Mapping:
    """Where a virtual dataset takes a part of itself from: ``own`` and ``source`` have the same
    indices, axes of one index aside. ``holes`` of the source."""

    own: Grid
    source: Grid
    holes: Holes

    def within(self, start: Index, stop: Index) -> Hole | None:
        low, high = [], []
        for a, b, first, step, count in zip(
            start, stop, self.own.start, self.own.step, self.own.count, strict=True
        ):
            low.append(max(0, -(-(a - first) // step)))
            high.append(min(count, -(-(b - first) // step)))
            if low[-1] >= high[-1]:
                return None
        from_, to = [*self.source.start], [n + 1 for n in self.source.start]
        pairs = list(zip(self.own.long, self.source.long, strict=True))
        for own, axis in pairs:
            first, step = self.source.start[axis], self.source.step[axis]
            from_[axis], to[axis] = first + step * low[own], first + step * (high[own] - 1) + 1
        hole = self.holes.within(tuple(from_), tuple(to))
        if hole is None:
            return None
        places = [*low]
        for own, axis in pairs:
            ahead = hole.index[axis] - self.source.start[axis]
            places[own] = -(-ahead // self.source.step[axis])
        index = [f + s * i for f, s, i in zip(self.own.start, self.own.step, places, strict=True)]
        return Hole(tuple(index), hole.reason)


Box = tuple[Index, Index]


@dataclass(frozen=True)
class Mosaic:
    """A virtual dataset: ``unmapped`` are boxes that it takes from nowhere (first and last index),
    ``mappings`` those whose source has holes; of ``unclear`` boxes it is only known that there are
    some in their source."""

    name: str
    unmapped: npt.NDArray[np.int64]
    mappings: Sequence[Mapping] = ()
    unclear: Sequence[tuple[Box, str]] = ()

    def within(self, start: Index, stop: Index) -> Hole | None:
        first = np.maximum(self.unmapped[:, 0], start)
        reach = (first <= np.minimum(self.unmapped[:, 1], np.subtract(stop, 1))).all(axis=1)
        if reach.any():
            index = tuple(map(int, first[reach.argmax()]))
            return Hole(index, f"{self.name} is made of other datasets, and of none there")
        for (low, high), reason in self.unclear:
            index = tuple(map(max, start, low))
            if all(i <= j and i < k for i, j, k in zip(index, high, stop, strict=True)):
                return Hole(index, reason)
        found = (mapping.within(start, stop) for mapping in self.mappings)
        return next((hole for hole in found if hole is not None), None)
