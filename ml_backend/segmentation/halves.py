"""Labelled slices in two halves, so that what learned from one can be asked of the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from al_strategies.evidence import SliceId
from al_strategies.learner import IGNORE, SliceSource
from ml_backend.segmentation.dataset import ImagesAndMasks

__all__ = ["CutInTwo", "halves"]


def halves(source: SliceSource, ids: Sequence[SliceId]) -> list[int]:
    """For each of ``ids`` 0 or 1: the first and the second half of them along volume and z, so that
    what is next to each other is in one of them."""
    places = [source.position(i) for i in ids]
    order = sorted(range(len(ids)), key=lambda i: (places[i].volume, places[i].z))
    folds = [0] * len(ids)
    for i in order[len(ids) // 2 :]:
        folds[i] = 1
    return folds


class CutInTwo:
    """`ImagesAndMasks` of one slice twice: once labelled on one side of a straight cut, once on the
    other.

    The cut is across the longer side of ``mask`` (H, W) and has half of its labelled pixels on
    either side, or nearly. What is not labelled on a side has no labels in it at all.
    """

    ids = ("first", "second")

    def __init__(
        self, source: ImagesAndMasks, slice_id: SliceId, mask: npt.NDArray[np.uint8]
    ) -> None:
        self._source = source
        self._slice_id = slice_id
        self._mask = mask
        axis = int(np.argmax(mask.shape))
        labelled = np.nonzero(mask != IGNORE)[axis]
        before = np.arange(mask.shape[axis]) <= (np.median(labelled) if len(labelled) else 0)
        self._first = before[:, None] if axis == 0 else before[None]

    def image(self, slice_id: SliceId) -> npt.NDArray[Any]:
        """The whole slice."""
        return self._source.image(self._slice_id)

    def mask(self, slice_id: SliceId) -> npt.NDArray[np.uint8]:
        """(H, W): the labels of one side."""
        kept = self._first if slice_id == self.ids[0] else ~self._first
        return np.where(kept, self._mask, np.uint8(IGNORE))
