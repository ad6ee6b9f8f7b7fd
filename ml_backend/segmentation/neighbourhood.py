"""2.5-D input: a slice with those before and after it, as channels of one image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from al_strategies.evidence import Position, SliceId
from al_strategies.learner import SliceSource, Surrounded

__all__ = ["with_neighbours"]


def with_neighbours(source: SliceSource, neighbours: int) -> SliceSource:
    """``source`` whose images are (H, W, 2 n + 1), the slice itself in the middle.

    A source that does not know what surrounds its slices (it is not `Surrounded`) gives them alone,
    and the preprocessing puts the slice itself in the places of its neighbours.
    """
    if not neighbours or not isinstance(source, Surrounded):
        return source
    return _Neighbourhood(source, neighbours)


class _Neighbourhood:
    """A `SliceSource`: everything but the images is that of the source."""

    def __init__(self, source: SliceSource, neighbours: int) -> None:
        assert isinstance(source, Surrounded)
        self._source = source
        self._around = source.around
        self._neighbours = neighbours

    @property
    def ids(self) -> Sequence[SliceId]:
        return self._source.ids

    def image(self, slice_id: SliceId) -> npt.NDArray[Any]:
        return self._around(slice_id, self._neighbours)

    def mask(self, slice_id: SliceId) -> npt.NDArray[np.uint8]:
        return self._source.mask(slice_id)

    def position(self, slice_id: SliceId) -> Position:
        return self._source.position(slice_id)
