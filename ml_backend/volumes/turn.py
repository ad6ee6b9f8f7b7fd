"""Axes of a volume swapped and reversed: every voxel keeps its value, none is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["Affine", "Turn", "as_affine"]

Affine = tuple[tuple[float, float, float, float], ...]
"""(3, 4): where voxel (z, y, x) lies is ``affine @ (z, y, x, 1)``, towards right, anterior and
superior, in the volume's unit."""

_Value = TypeVar("_Value")
_Three = tuple[_Value, _Value, _Value]


@dataclass(frozen=True)
class Turn:
    """``axes``: which axis of before each of z, y, x is; ``reversed``: whether it runs the other
    way."""

    axes: tuple[int, int, int]
    reversed: tuple[bool, bool, bool]

    @property
    def changes(self) -> bool:
        """Whether anything is another way than before."""
        return self.axes != (0, 1, 2) or any(self.reversed)

    def of(self, before: _Three[_Value]) -> _Three[_Value]:
        """What belongs to z, y, x (lengths, voxel sizes), in their order afterwards."""
        z, y, x = (before[axis] for axis in self.axes)
        return z, y, x

    def place(self, axis: int, index: int, shape: tuple[int, int, int]) -> tuple[int, int]:
        """Axis and index before of the slice at ``index`` across ``axis``; ``shape``: before."""
        was = self.axes[axis]
        return was, shape[was] - 1 - index if self.reversed[axis] else index

    def slice(self, axis: int, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The slice across ``axis`` afterwards, from the ``values`` of `place`."""
        across = [other for other in range(3) if other != axis]
        if self.axes[across[0]] > self.axes[across[1]]:
            values = values.T
        steps = tuple(slice(None, None, -1 if self.reversed[other] else 1) for other in across)
        return np.ascontiguousarray(values[steps])

    def affine(self, before: Affine, shape: tuple[int, int, int]) -> Affine:
        """Where voxels lie afterwards; ``shape``: before."""
        columns = np.array(before)
        turned = columns.copy()
        for axis, was in enumerate(self.axes):
            turned[:, axis] = -columns[:, was] if self.reversed[axis] else columns[:, was]
            if self.reversed[axis]:
                turned[:, 3] += (shape[was] - 1) * columns[:, was]
        return as_affine(turned)


def as_affine(matrix: npt.NDArray[Any]) -> Affine:
    """The first three rows of a matrix of four columns."""
    rows = [tuple(float(value) for value in row) for row in matrix[:3]]
    return tuple((row[0], row[1], row[2], row[3]) for row in rows)
