"""A tiny phantom for the tests of ``ml_backend.segmentation``: discs and squares in noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from al_strategies.evidence import Position

CLASSES = ("background", "bone", "implant")


class Phantom:
    """16-bit slices of 64 × 80: background near 200, a disc near 500, a square near 800."""

    def __init__(self, slices: int, seed: int = 0, size: tuple[int, int] = (64, 80)) -> None:
        self.ids = [f"z{i:03d}" for i in range(slices)]
        self._rng_seed, self._size = seed, size

    def mask(self, slice_id: str) -> npt.NDArray[np.uint8]:
        return self._truth(slice_id)

    def _truth(self, slice_id: str) -> npt.NDArray[np.uint8]:
        rng = np.random.default_rng([self._rng_seed, self.ids.index(slice_id)])
        height, width = self._size
        y, x = np.mgrid[:height, :width]
        mask = np.zeros(self._size, np.uint8)
        cy, cx = rng.integers(20, height - 20), rng.integers(20, width - 20)
        mask[(y - cy) ** 2 + (x - cx) ** 2 < 15**2] = 1
        cy, cx = rng.integers(5, height - 20), rng.integers(5, width - 20)
        mask[cy : cy + 14, cx : cx + 14] = 2
        return mask

    def image(self, slice_id: str) -> npt.NDArray[Any]:
        rng = np.random.default_rng([self._rng_seed, self.ids.index(slice_id), 1])
        grey = np.array([200, 500, 800])[self._truth(slice_id)] + rng.normal(0, 40, self._size)
        return grey.clip(0).astype(np.uint16)

    def position(self, slice_id: str) -> Position:
        return Position("phantom", float(self.ids.index(slice_id)))
