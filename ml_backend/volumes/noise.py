"""Smooth 3-D random fields that can be read one slice at a time, in any order.

White noise on a lattice, interpolated by cubic B-splines: the value at (z, y, x) depends on the
seed and the point alone, so a slice costs O(H·W) and needs no other slice. Only gathers and
element-wise arithmetic are used, functions through `rounded`: the result does not depend on BLAS,
on the number of threads or on the CPU.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = ["REACH", "LineNoise", "SplineNoise", "norm", "rounded"]

Floats = npt.NDArray[np.float32]

REACH = 5.0
"""Half width, in the unit of the coordinates, of the square that a `SplineNoise` covers."""

_MEAN_POWER = 151 / 315  # mean over a cell of the squared cubic B-spline weights, per axis


def rounded(function: np.ufunc, *x: npt.ArrayLike) -> Floats:
    """``function`` of ``x``, computed in float64 and rounded to float32.

    Which exponential NumPy takes depends on the CPU, and their last bits differ: in float32 one
    pixel in a hundred, and after a Poisson draw the whole rest of a slice.
    """
    return np.asarray(function(*(np.asarray(values, np.float64) for values in x)), np.float32)


def norm(y: Floats, x: Floats) -> Floats:
    """√(y² + x²), float32. `np.hypot` is not the same on every CPU, a square root is."""
    return np.asarray(np.sqrt(y * y + x * x), np.float32)


class SplineNoise:
    """A stationary Gaussian field with mean 0 and variance 1, correlated over about ``cell``.

    ``key`` (ints) seeds it; ``cell`` is the lattice spacing along z, y and x, in the unit of the
    coordinates; y and x must lie in [-REACH, REACH].
    """

    def __init__(self, key: tuple[int, ...], cell: tuple[float, float, float]) -> None:
        self.key = key
        self.cell = cell
        self._size = (math.ceil(2 * REACH / cell[1]) + 4, math.ceil(2 * REACH / cell[2]) + 4)

    def grid(self, z: float, y: Floats, x: Floats) -> Floats:
        """The field at ``z`` over the grid ``y`` (H,) × ``x`` (W,): (H, W) float32."""
        columns = _interpolate(self._plane(z), (y + REACH) / self.cell[1])
        return np.ascontiguousarray(_interpolate(columns.T, (x + REACH) / self.cell[2]).T)

    def at(self, z: float, y: Floats, x: Floats) -> Floats:
        """The field at the points (``z``, ``y[i]``, ``x[i]``), float32 of their shape."""
        # the spline of node i is centred on i + 1, as in `_interpolate`
        points = [(y + REACH) / self.cell[1] + 1, (x + REACH) / self.cell[2] + 1]
        value = ndimage.map_coordinates(
            self._plane(z), points, order=3, prefilter=False, mode="nearest"
        )
        return np.asarray(value / np.float32(_MEAN_POWER), np.float32)

    def _plane(self, z: float) -> Floats:
        """The lattice at ``z``: variance 1 at every node."""
        first, weights = _weights(np.array([z / self.cell[0]]))
        nodes = range(int(first[0]), int(first[0]) + 4)
        return sum(
            (
                w * _white((*self.key, k), self._size)
                for k, w in zip(nodes, weights[:, 0], strict=True)
            ),
            start=np.zeros(self._size, np.float32),
        )


class LineNoise:
    """The same along one axis t that drifts with z: rings (t a radius), streaks (t an angle).

    ``cell`` is (z, t); t lies in [0, ``length``]; with ``wrap``, t = length is t = 0.
    """

    def __init__(
        self, key: tuple[int, ...], cell: tuple[float, float], length: float, *, wrap: bool = False
    ) -> None:
        self.key = key
        self.cell = cell
        self.wrap = wrap
        self._nodes = max(round(length / cell[1]), 4) if wrap else math.ceil(length / cell[1]) + 4
        self._step = length / self._nodes if wrap else cell[1]

    def line(self, z: float, t: Floats) -> Floats:
        """The field at ``z`` and the points ``t`` (N,): (N,) float32."""
        first, weights = _weights(np.array([z / self.cell[0]]))
        nodes: Floats = np.zeros((self._nodes, 1), np.float32)
        for k, w in enumerate(weights[:, 0]):
            nodes += w * _white((*self.key, int(first[0]) + k), (self._nodes, 1))
        if self.wrap:
            nodes = np.concatenate([nodes, nodes[:4]])
            t = np.mod(t, self._nodes * self._step)
        return _interpolate(nodes, t / np.float32(self._step))[:, 0]


def _weights(t: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.int64], Floats]:
    """Index of the first of four nodes, (N,), and their weights, (4, N), with Σw² = 1."""
    first = np.floor(t).astype(np.int64)
    f = (t - first).astype(np.float64)
    g, square = 1 - f, f * f
    cube = square * f
    w = np.stack([g * g * g, 3 * cube - 6 * square + 4, 3 * (square + f - cube) + 1, cube])
    return first, (w / np.sqrt((w**2).sum(axis=0))).astype(np.float32)


def _interpolate(nodes: Floats, t: npt.NDArray[np.floating]) -> Floats:
    """Rows of ``nodes`` (n, m) at the fractional positions ``t`` (N,): (N, m)."""
    first, weights = _weights(t)
    first = np.clip(first, 0, len(nodes) - 4)
    nodes = np.ascontiguousarray(nodes)
    return sum(
        (weights[k][:, None] * nodes[first + k] for k in range(4)),
        start=np.zeros((len(t), nodes.shape[1]), np.float32),
    )


def _white(key: tuple[int, ...], size: tuple[int, int]) -> Floats:
    # a lattice index can be negative, a seed can not
    words = [k & 0xFFFFFFFF for k in key]
    return np.random.default_rng(words).standard_normal(size, np.float32)
