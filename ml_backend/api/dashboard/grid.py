"""A volume as a browser can hold it: of fewer voxels where there are too many."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from al_strategies.learner import IGNORE
from ml_backend.volumes.turn import Affine, as_affine
from ml_backend.volumes.volume import AXES, Volume, axis_index
from ml_backend.volumes.window import Window, render

__all__ = ["MOST_VOXELS", "Grid", "chosen_slices", "scan_planes", "small_masks"]

MOST_VOXELS = 16 << 20
"""As 256³. Each of the page's three views keeps four bytes of a voxel on the graphics card, and as
many again of what is painted over it: 400 MB, which a phone or a laptop still has."""

Mask = npt.NDArray[np.uint8]
_Three = tuple[int, int, int]


@dataclass(frozen=True)
class Grid:
    """``whole`` (Z, Y, X): the volume's shape; ``steps``: for how many voxels along z, y, x one
    stands."""

    whole: _Three
    steps: _Three = (1, 1, 1)

    @classmethod
    def of(cls, whole: _Three, most: int = MOST_VOXELS) -> Grid:
        """At most ``most`` voxels: the longest axes are halved, together with those that are more
        than half as long, until it is so."""
        grid = cls(whole)
        while math.prod(grid.shape) > most:
            longest = max(grid.shape)
            z, y, x = (
                2 * step if 2 * length > longest else step
                for step, length in zip(grid.steps, grid.shape, strict=True)
            )
            grid = cls(whole, (z, y, x))
        return grid

    @property
    def shape(self) -> _Three:
        """(Z, Y, X) of what is shown; the last voxel along an axis may stand for fewer."""
        z, y, x = (-(-n // step) for n, step in zip(self.whole, self.steps, strict=True))
        return z, y, x

    @property
    def says(self) -> str:
        """``1/4``, or ``1/8 along y and x``; empty where every voxel is shown."""
        by_step: dict[int, list[str]] = {}
        for axis, step in zip(AXES, self.steps, strict=True):
            by_step.setdefault(step, []).append(axis)
        if len(by_step) == 1:
            return "" if self.steps == (1, 1, 1) else f"1/{self.steps[0]}"
        reduced = [f"1/{n} along {' and '.join(axes)}" for n, axes in by_step.items() if n > 1]
        return ", ".join(reduced)

    def middles(self, axis: int) -> npt.NDArray[np.int64]:
        """Of every voxel along ``axis`` that is shown: the middle one of those it stands for."""
        n, step = self.whole[axis], self.steps[axis]
        middles: npt.NDArray[np.int64] = np.arange(self.shape[axis]) * step + step // 2
        return middles.clip(max=n - 1)

    def affine(self, whole: Affine) -> Affine:
        """Where the voxels that are shown lie, from where all do."""
        matrix = np.array(whole)
        steps = np.array(self.steps)
        matrix[:, 3] += matrix[:, :3] @ ((steps - 1) / 2)
        matrix[:, :3] *= steps
        return as_affine(matrix)


def scan_planes(
    volume: Volume, window: Window, grid: Grid, check: Callable[[], None]
) -> Iterator[npt.NDArray[np.uint8]]:
    """The planes along z of ``volume`` through ``window``, 8 bit: of those that one stands for the
    middle one, its pixels averaged. ``check`` is called before each is read."""
    along_z = volume.along("z")
    _, rows, columns = grid.steps
    for index in grid.middles(0):
        check()
        seen = render(along_z[int(index)], window)
        if (rows, columns) != (1, 1):
            seen = np.asarray(Image.fromarray(seen).reduce((columns, rows)))
        yield seen


def chosen_slices(grid: Grid, axis: str, slices: Iterable[int]) -> dict[int, int]:
    """Place along ``axis`` of what is shown → the one of ``slices`` that is shown there: of several
    the one nearest to the middle."""
    along = axis_index(axis)
    step, middles = grid.steps[along], grid.middles(along)
    found: dict[int, int] = {}
    for index in sorted(slices):
        place = index // step
        middle = int(middles[place])
        if place not in found or abs(index - middle) < abs(found[place] - middle):
            found[place] = index
    return found


def small_masks(grid: Grid, axis: str, masks: Iterable[tuple[int, Mask]]) -> Mask:
    """(Z, Y, X) class indices, 255 where nobody said: each of ``masks``, label maps as they lie in
    the file, at its place along ``axis`` of what is shown, its pixels the nearest ones."""
    values: Mask = np.full(grid.shape, IGNORE, np.uint8)
    along = axis_index(axis)
    rows, columns = (grid.middles(other) for other in range(3) if other != along)
    planes: Any = np.moveaxis(values, along, 0)
    for place, mask in masks:
        planes[place] = mask[np.ix_(rows, columns)]
    return values
