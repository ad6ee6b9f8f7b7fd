"""What a peer is given and what it must do."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from al_strategies.evidence import Position, SliceId
from al_strategies.learner import SliceSource

__all__ = ["Mask", "Peer", "Pool", "Task", "Unavailable", "cpu_seconds"]

Mask = npt.NDArray[np.uint8]


class Unavailable(RuntimeError):
    """The peer cannot be had on this machine; the message says why. It becomes the table's row."""


class Pool:
    """The slices that may be looked at while learning: images of all, masks of the labelled.

    A test slice is not among ``ids``; asking for a mask that nobody drew raises KeyError.
    """

    def __init__(
        self, source: SliceSource, ids: Sequence[SliceId], labelled: Iterable[SliceId]
    ) -> None:
        self.ids: Sequence[SliceId] = tuple(ids)
        self._source = source
        self._labelled = frozenset(labelled)

    def image(self, slice_id: SliceId) -> npt.NDArray[Any]:
        return self._source.image(slice_id)

    def mask(self, slice_id: SliceId) -> Mask:
        if slice_id not in self._labelled:
            raise KeyError(f"slice {slice_id} is not labelled")
        return self._source.mask(slice_id)

    def position(self, slice_id: SliceId) -> Position:
        return self._source.position(slice_id)


@dataclass(frozen=True)
class Task:
    """One training: ``labelled`` slices of ``pool``, classes by mask value (255: unlabelled).

    ``seconds``: CPU seconds for a peer that trains as long as it is given, else None. ``absolute``:
    a grey value means the same in every slice (CT), so it must not be normalised slice by slice.
    """

    pool: Pool
    labelled: tuple[SliceId, ...]
    classes: tuple[str, ...]
    seed: int = 0
    seconds: float | None = None
    absolute: bool = True

    @property
    def images(self) -> list[npt.NDArray[Any]]:
        """(H, W) each, as read."""
        return [self.pool.image(i) for i in self.labelled]

    @property
    def masks(self) -> list[Mask]:
        return [self.pool.mask(i) for i in self.labelled]


class Peer(Protocol):
    """``idle_s``: CPU seconds so far that went into starting interpreters; they are not counted.
    ``steps``: of the last training; None: it has none."""

    idle_s: float
    steps: int | None

    def fit(self, task: Task) -> None:
        """Learn from ``task`` alone. Raises Unavailable."""

    def predict(self, source: SliceSource, ids: Sequence[SliceId]) -> Iterator[Mask]:
        """The class of every pixel of each slice, (H, W), in the order of ``ids``. Reads images and
        positions of ``source``, never a mask."""


def cpu_seconds() -> float:
    """CPU seconds, user and system, of this process and of its children that have ended."""
    usages = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
