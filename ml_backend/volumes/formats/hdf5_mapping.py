"""Which part of a virtual HDF5 dataset is which part of a source, in indices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ml_backend.volumes.formats.hdf5_holes import Grid
from ml_backend.volumes.volume import VolumeError

__all__ = ["pairs"]


@dataclass(frozen=True)
class _Selection:
    """What is selected of a dataset. Along an axis of ``blocks`` the indices come in blocks: how
    long, how far apart; the count is that of all together. ``long``: axes that are more than one
    index, or may become so."""

    grid: Grid
    blocks: dict[int, tuple[int, int]]
    long: tuple[int, ...]

    @property
    def lengths(self) -> list[int]:
        return [self.grid.count[axis] for axis in self.long]


def pairs(
    own: Any, selected: Any, whole: tuple[int, ...], source: tuple[int, ...]
) -> list[tuple[Grid, Grid]] | None:
    """Parts of a virtual dataset of shape ``whole`` and of one of its sources that have the same
    indices, as far as both reach; None where they are not as simple as that.

    Raises VolumeError for a source of another shape than it was mapped with; it says which.
    """
    from h5py import h5s

    mine = _selection(own, whole)
    if selected.get_select_type() == h5s.SEL_ALL:
        if mine is None:
            return None
        theirs: _Selection | None = _all_of(source, mine.lengths)
    else:
        theirs = _selection(selected, source)
    if mine is None or theirs is None or len(mine.long) != len(theirs.long):
        return None
    if theirs.blocks or len(mine.blocks) > 1:
        return None
    grid, other = mine.grid, theirs.grid
    for place, axis in zip(mine.long, theirs.long, strict=True):
        reach = -(-(source[axis] - other.start[axis]) // other.step[axis])
        length = max(0, min(grid.count[place], other.count[axis], reach))
        grid, other = grid.cut(place, length), other.cut(axis, length)
    if 0 in grid.count or any(i >= n for i, n in zip(other.start, source, strict=True)):
        return []
    for place, (block, stride) in mine.blocks.items():
        axis = theirs.long[mine.long.index(place)]
        return list(_in_blocks(grid, place, other, axis, block, stride))
    return [(grid, other)]


def _in_blocks(
    grid: Grid, place: int, other: Grid, axis: int, block: int, stride: int
) -> Iterator[tuple[Grid, Grid]]:
    for before in range(0, grid.count[place], block):
        count = min(block, grid.count[place] - before)
        start = grid.start[place] + before // block * stride
        from_ = other.start[axis] + other.step[axis] * before
        yield grid.along(place, start, count), other.along(axis, from_, count)


def _all_of(shape: tuple[int, ...], lengths: list[int]) -> _Selection:
    """All of a source, for a part of ``lengths`` beside axes of 1. HDF5 takes its values in their
    order, however long its rows have become, so only the first of them may be longer."""
    long = [axis for axis, length in enumerate(shape) if length != 1]
    grid = Grid((0,) * len(shape), (1,) * len(shape), shape)
    if len(long) == len(lengths) + 1:
        grid, long = grid.cut(long[0], 1), long[1:]
    found = [grid.count[axis] for axis in long]
    if found[1:] != lengths[1:] or len(found) != len(lengths) or found[:1] < lengths[:1]:
        raise VolumeError(
            f"has the shape {shape}, expected {tuple(lengths)} beside axes of length 1"
        )
    return _Selection(grid, {}, tuple(long))


def _selection(space: Any, shape: tuple[int, ...]) -> _Selection | None:
    """Of a dataset of ``shape``, which may have grown since; None where it is not regular."""
    from h5py import h5s

    kind = space.get_select_type()
    if kind == h5s.SEL_ALL:  # of the virtual dataset itself
        slab = ((0,) * len(shape), (1,) * len(shape), (1,) * len(shape), shape)
    elif kind == h5s.SEL_HYPERSLABS and space.is_regular_hyperslab():
        slab = space.get_regular_hyperslab()
    else:
        return None
    if len(slab[0]) != len(shape):
        return None
    steps, counts, blocks, long = [], [], {}, []
    for axis, (first, stride, count, block) in enumerate(zip(*slab, strict=True)):
        length = max(0, shape[axis] - first)
        if h5s.UNLIMITED in (count, block) or count * block != 1:
            long.append(axis)
        apart = count != 1 and stride != block
        steps.append(stride if apart and block == 1 else 1)
        if apart and block != 1:
            blocks[axis] = (block, stride)
        if block == h5s.UNLIMITED:
            counts.append(length)
        elif count == h5s.UNLIMITED:
            counts.append(length // stride * block + min(length % stride, block))
        else:
            counts.append(count * block)
    return _Selection(Grid(slab[0], tuple(steps), tuple(counts)), blocks, tuple(long))
