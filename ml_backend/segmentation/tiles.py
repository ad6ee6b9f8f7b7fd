"""Where a slice is cut into tiles, and how it is padded to what networks take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ml_backend.segmentation.networks import MULTIPLE, SCORING_STRIDE
from ml_backend.segmentation.preprocessing import FloatImage

__all__ = ["Span", "pad", "padded_size", "scored_length", "spans"]


@dataclass(frozen=True)
class Span:
    """A tile along one axis: its ``pixels``, and those ``start`` … ``stop`` that it owns."""

    pixels: slice
    start: int
    stop: int

    @property
    def owned(self) -> slice:
        return slice(self.start // SCORING_STRIDE, self.stop // SCORING_STRIDE)

    @property
    def scored(self) -> slice:
        return self.at(SCORING_STRIDE)

    def at(self, stride: int) -> slice:
        return slice(self.pixels.start // stride, self.pixels.stop // stride)

    def ramp(self, stride: int, device: torch.device) -> Tensor:
        """Weights that fall towards both ends of the tile, over a quarter of it at most."""
        length: int = (self.pixels.stop - self.pixels.start) // stride
        distance = torch.arange(length, device=device, dtype=torch.float32) + 0.5
        distance = torch.minimum(distance, length - distance)
        return (distance / (length / 4)).clamp(max=1.0)


def spans(length: int, tile: int, overlap: int) -> list[Span]:
    """Tiles over an axis of ``length`` (a multiple of 32), evenly spread, at multiples of 32."""
    if length <= tile:
        return [Span(slice(0, length), 0, length)]
    count = -(-(length - overlap) // (tile - overlap))
    last = length - tile
    starts = [round(i * last / (count - 1) / MULTIPLE) * MULTIPLE for i in range(count)]
    starts[-1] = last
    # The middle of every overlap, at whole scoring pixels, is where ownership changes.
    cuts = [
        (after + before + tile) // 2 // SCORING_STRIDE * SCORING_STRIDE
        for before, after in pairwise(starts)
    ]
    borders = [0, *cuts, length]
    return [
        Span(slice(start, start + tile), borders[i], borders[i + 1])
        for i, start in enumerate(starts)
    ]


def padded_size(shape: Sequence[int]) -> tuple[int, int]:
    height, width = (-(-length // MULTIPLE) * MULTIPLE for length in shape)
    return height, width


def pad(image: FloatImage, height: int, width: int) -> FloatImage:
    """Mirrored at the bottom and the right: black padding would look like the sample's edge."""
    missing = (height - image.shape[1], width - image.shape[2])
    if not any(missing):
        return image
    return np.pad(image, ((0, 0), (0, missing[0]), (0, missing[1])), mode="symmetric")


def scored_length(length: int) -> int:
    """Scoring pixels of which at least half lies inside ``length`` pixels; one at least."""
    return max(1, (length + SCORING_STRIDE // 2) // SCORING_STRIDE)
