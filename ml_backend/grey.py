"""The grey window: which values of a scan say something, and how far a value is into them.

One way for what people see (8 bit), what a network sees, and what is compared between the two.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "PERCENTILES",
    "SAMPLED_SLICES",
    "finite_sample",
    "from_low",
    "grey_window",
    "middles",
    "scales_apart",
]

PERCENTILES = (0.5, 99.5)
"""Of the sampled values: what is darker or brighter is rare."""
SAMPLED_SLICES = 24
"""Of a volume."""
_SAMPLED_PIXELS = 1 << 16
"""Of a slice."""

_SCALES_APART = 8.0
"""Windows whose widths differ by such a factor are of different scales."""

Values = npt.NDArray[Any]


def middles(length: int, count: int) -> list[int]:
    """At most ``count`` of ``length`` slices: the middles of as many equal parts. The first and
    last slices of a scan are often empty."""
    count = min(length, count)
    return [length * (2 * part + 1) // (2 * count) for part in range(count)]


def finite_sample(plane: Values) -> npt.NDArray[np.float64]:
    """The finite ones of at most 65,536 pixels of ``plane`` (H, W), on a regular grid: so a large
    slice does not outvote the others."""
    step = max(1, math.ceil(math.sqrt(plane.size / _SAMPLED_PIXELS)))
    values: npt.NDArray[np.float64] = plane[::step, ::step].astype(np.float64).ravel()
    finite: npt.NDArray[np.bool_] = np.isfinite(values)
    return values[finite]


def grey_window(
    values: Values, percentiles: tuple[float, float] = PERCENTILES
) -> tuple[float, float]:
    """Low and high of the window between two percentiles of ``values``, finite and not empty.

    Without contrast between them, and where they are so large that no number lies between them, it
    falls back on their minimum and maximum, and then on a width of 1 or the next number there is.
    Both are finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = (float(v) for v in np.percentile(values, percentiles))
        if not (high > low and math.isfinite(high - low)):
            low, high = float(values.min()), float(values.max())
        if not high > low:
            high = float(np.nextafter(low + 1.0, np.inf))
    if not math.isfinite(high):
        low, high = float(np.nextafter(low, 0.0)), low
    return low, high


def scales_apart(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two windows (low, high) have nothing in common, as of 8-bit pictures and native
    values: what is within the one says nothing to who knows the other."""
    ratio = (one[1] - one[0]) / (other[1] - other[0])
    outside = one[1] < other[0] or one[0] > other[1]
    return outside or not 1 / _SCALES_APART < ratio < _SCALES_APART


def from_low(values: Values, low: float, factor: float) -> Values:
    """(value − low) · factor, a new array: float32, or float64 for what float32 cannot hold, as
    32-bit integers and large float64 values."""
    narrow = values.dtype.itemsize <= 2 or values.dtype == np.float32
    scaled: Values = values.astype(np.float32 if narrow else np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled -= low
        scaled *= factor
    return scaled
