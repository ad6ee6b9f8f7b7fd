"""Grey values of a slice → the network's input. The one function of this kind in the project.

Training, scoring, serving and full-volume segmentation all go through the same `Preprocessing`,
which is fitted once on a sample of slices and then travels inside the checkpoint. It is a window
over the whole sample, not one per slice: a slice that is darker than the others stays darker.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ml_backend.errors import NextsliceError
from ml_backend.grey import PERCENTILES, finite_sample, from_low, grey_window, scales_apart

__all__ = ["FloatImage", "InvalidImage", "Preprocessing", "luminance"]

FloatImage = npt.NDArray[np.float32]

_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # Rec. 601, as in Pillow
Tail = Literal["clip", "log"]
_LIMIT = 3.0
_FAR = 1e3
"""Beyond so many half windows a logarithmic tail ends."""


class InvalidImage(NextsliceError, ValueError):
    """An array that is not a slice: the message says what was found and what was expected."""


@dataclass(frozen=True)
class Preprocessing:
    """A linear window of grey values.

    ``window_low`` becomes −1, ``window_high`` becomes +1. Values outside go on by ``tail``: "log",
    as ±(1 + ln |x|) for the x of the line, so that metal neither is flattened nor squeezes what
    lies beside it; "clip", along the line up to ±3, in checkpoints of before. NaN counts as
    ``window_low`` (a pixel outside the reconstructed circle is dark), ±inf as the end of the tail.

    ``channels``: 1 reduces RGB to luminance; 3 keeps RGB and repeats grey. ``neighbours``: so many
    slices on each side are further input channels (2.5-D); then ``channels`` is 1.
    """

    window_low: float
    window_high: float
    channels: int = 1
    neighbours: int = 0
    tail: Tail = "clip"

    def __post_init__(self) -> None:
        if not (np.isfinite(self.window_low) and np.isfinite(self.window_high)):
            raise ValueError(f"The window must be finite, found {self}.")
        if not self.window_high > self.window_low:
            raise ValueError(f"The window must have window_low < window_high, found {self}.")
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, found {self.channels}.")
        if self.neighbours < 0 or (self.neighbours and self.channels != 1):
            raise ValueError(
                f"neighbours must be 0 or more, and 0 for colour, found {self.neighbours} with "
                f"{self.channels} channels."
            )

    @property
    def planes(self) -> int:
        """Channels of what the network takes: `channels`, or one a slice with neighbours."""
        return 2 * self.neighbours + 1 if self.neighbours else self.channels

    @classmethod
    def fit(
        cls,
        images: Iterable[npt.NDArray[Any]],
        *,
        channels: int = 1,
        neighbours: int = 0,
        percentiles: tuple[float, float] = PERCENTILES,
    ) -> Preprocessing:
        """The window between two percentiles of all finite pixels of ``images`` together.

        Every image counts with at most 65,536 pixels on a regular grid, so a large one does not
        outvote the others. A sample without contrast between the percentiles falls back on its
        minimum and maximum, and then on a window of width 1.

        Raises InvalidImage when there is no image, and when one is not a slice.
        """
        samples = [finite_sample(luminance(image)) for image in images]
        if not samples:
            raise InvalidImage(
                "Preprocessing needs at least one slice to be fitted on, found none."
            )
        values = np.concatenate(samples)
        if not values.size:
            raise InvalidImage("None of the sampled slices has a finite pixel.")
        return cls(*grey_window(values, percentiles), channels, neighbours, "log")

    def __call__(self, image: npt.NDArray[Any]) -> FloatImage:
        """(H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of any real dtype → (planes, H, W) float32.

        With neighbours the last axis is that of the slices, 2 n + 1 of them in their order; a slice
        that comes alone stands in for them. Values in [−3, 3]. An alpha channel is dropped. Raises
        InvalidImage.
        """
        planes = self._planes(image)
        if planes.dtype in (np.uint8, np.uint16):
            # A table gives the very same numbers as the formula, in one pass over the slice.
            planes = _table(self, planes.dtype.str)[planes]
        else:
            planes = self._window(planes)
        if len(planes) < self.planes:
            planes = np.repeat(planes, self.planes, axis=0)
        return np.ascontiguousarray(planes)

    def _planes(self, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(1 or planes, H, W) in native values."""
        if not self.neighbours:
            return _colour(image) if self.channels == 3 else luminance(image)[np.newaxis]
        if image.ndim == 3 and image.shape[2] == self.planes:
            return np.moveaxis(_check_values(image), 2, 0)
        if image.ndim != 2:
            raise InvalidImage(
                f"With {self.neighbours} neighbours on each side a slice is (H, W) or (H, W, "
                f"{self.planes}), found shape {image.shape}."
            )
        return luminance(image)[np.newaxis]

    def _window(self, values: npt.NDArray[Any]) -> FloatImage:
        scaled = from_low(values, self.window_low, 2.0 / (self.window_high - self.window_low))
        scaled -= 1.0
        end = _LIMIT if self.tail == "clip" else _FAR
        np.nan_to_num(scaled, copy=False, nan=-1.0, posinf=end, neginf=-end)
        scaled = np.clip(scaled, -end, end).astype(np.float32, copy=False)
        if self.tail == "log":
            far = np.abs(scaled) > 1
            scaled[far] = np.sign(scaled[far]) * (1 + np.log(np.abs(scaled[far])))
        return scaled

    def serves_for(self, other: Preprocessing) -> bool:
        """Whether weights that know this one can go on with slices that ``other`` was fitted on:
        they are seen alike, and on one grey scale."""
        alike = (self.channels, self.neighbours, self.tail) == (
            other.channels, other.neighbours, other.tail,
        )  # fmt: skip
        mine, theirs = ((p.window_low, p.window_high) for p in (self, other))
        return alike and not scales_apart(mine, theirs)

    def to_json(self) -> str:
        """For the checkpoint's metadata; `from_json` gives an equal Preprocessing back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Preprocessing:
        """Raises ValueError for what `to_json` did not write."""
        try:
            fields = json.loads(text)
            return cls(
                float(fields["window_low"]),
                float(fields["window_high"]),
                int(fields["channels"]),
                int(fields.get("neighbours", 0)),  # checkpoints of before had none
                "log" if fields.get("tail") == "log" else "clip",
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"Expected the JSON of a Preprocessing (window_low, window_high, channels), "
                f"found {text[:200]!r}."
            ) from error


@lru_cache(maxsize=8)
def _table(preprocessing: Preprocessing, dtype: str) -> FloatImage:
    info = np.iinfo(np.dtype(dtype))
    return preprocessing._window(np.arange(info.max + 1, dtype=dtype))


def _check(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    image = _check_values(image)
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise InvalidImage(
            f"A slice is (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), found shape {image.shape}."
        )
    return image


def _check_values(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """``image`` in native byte order, if its values are real numbers and it has some."""
    image = np.asarray(image)
    if image.dtype == np.bool_:
        image = image.astype(np.uint8)
    if image.dtype.kind not in "uif":
        raise InvalidImage(f"A slice has real grey values, found dtype {image.dtype}.")
    if not image.dtype.isnative:
        image = image.astype(image.dtype.newbyteorder("="))
    if not image.size:
        raise InvalidImage(f"A slice has pixels, found shape {image.shape}.")
    return image


def luminance(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(H, W): the slice itself, or the luminance of a colour image as float32."""
    image = _check(image)
    if image.ndim == 2:
        return image
    if image.shape[2] == 1:
        return image[:, :, 0]
    return image[:, :, :3].astype(np.float32) @ _LUMINANCE


def _colour(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(3, H, W), or (1, H, W) for a grey slice."""
    image = _check(image)
    if image.ndim == 2:
        return image[np.newaxis]
    return np.moveaxis(image[:, :, :3], 2, 0)
