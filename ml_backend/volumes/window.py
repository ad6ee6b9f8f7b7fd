"""Native grey values on a screen: a window that shows a whole volume, and slices seen through it.

One window for all slices of a volume: a slice that is darker than the others stays darker.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.errors import NextsliceError
from ml_backend.grey import (
    PERCENTILES,
    SAMPLED_SLICES,
    finite_sample,
    from_low,
    grey_window,
    middles,
)
from ml_backend.volumes.volume import Volume, VolumeError

__all__ = ["Window", "WindowError", "fit_window", "render"]

Pixels = npt.NDArray[np.uint8]


class WindowError(NextsliceError, ValueError):
    """Two grey values between which nothing can be shown."""


@dataclass(frozen=True)
class Window:
    """Grey values from ``low`` (shown black) to ``high`` (shown white).

    Raises WindowError unless both are finite and ``low`` < ``high``.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise WindowError(f"window is {self.low} to {self.high}, expected low < high, finite")


def fit_window(volume: Volume, percentiles: tuple[float, float] = PERCENTILES) -> Window:
    """The window between two percentiles of the volume's finite values.

    At most 24 slices, evenly spread along the volume's axis, count with at most 65,536 pixels each,
    on a regular grid. Values without contrast between the percentiles fall back on their minimum
    and maximum, and then on a window of width 1, as in `Preprocessing.fit`. Raises VolumeError when
    nothing is finite, and for a file that is broken there.
    """
    samples = [finite_sample(volume[index]) for index in middles(len(volume), SAMPLED_SLICES)]
    values = np.concatenate(samples) if samples else np.empty(0)
    if not values.size:
        raise VolumeError(
            f"{volume.path}: none of {len(samples)} slices has a finite value, so no window shows "
            "it"
        )
    return Window(*grey_window(values, percentiles))


def render(slice: npt.NDArray[Any], window: Window) -> Pixels:
    """``slice``, real values of any dtype and shape, as 8 bit of the same shape.

    ``low`` becomes 0 and ``high`` 255, linearly, rounded; values outside stop there. NaN becomes 0.
    """
    values = np.asarray(slice)
    if values.dtype == np.bool_:
        values = values.astype(np.uint8)
    if values.dtype.itemsize > 2:
        return _stretch(values, window)
    # A table gives the very same pixels as the formula, in one pass over the slice.
    bits = np.dtype(f"u{values.dtype.itemsize}")
    seen: Pixels = _table(window, values.dtype.str)[values.view(bits)]
    return seen


def _stretch(values: npt.NDArray[Any], window: Window) -> Pixels:
    grey = from_low(values, window.low, 255 / (window.high - window.low))
    np.nan_to_num(grey, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    return np.asarray(np.clip(np.rint(grey, out=grey), 0, 255, out=grey), np.uint8)


@lru_cache(maxsize=32)
def _table(window: Window, dtype: str) -> Pixels:
    """The pixel of every value of a dtype of one or two bytes, by its bits."""
    bits = np.dtype(f"u{np.dtype(dtype).itemsize}")
    return _stretch(np.arange(np.iinfo(bits).max + 1).astype(bits).view(dtype), window)
