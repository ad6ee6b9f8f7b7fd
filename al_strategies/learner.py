"""What the loop trains: the protocols shared by the live loop and the simulation.

A `Learner` learns from the labelled slices of a `SliceSource` and leaves evidence of the others.
`ml_backend.segmentation.learner` implements it with HRNet; tests and experiments may bring any
other. This module imports nothing but NumPy and `al_strategies.evidence`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from al_strategies.evidence import Evidence, Position, SliceId

__all__ = [
    "IGNORE",
    "FitReport",
    "Learner",
    "Metrics",
    "Prediction",
    "Progress",
    "SliceSource",
    "Surrounded",
]

IGNORE = 255
"""Mask value of a pixel that nobody labelled: the loss and the metrics leave it out."""

Progress = Callable[[str, int, int], None]
"""``progress(step, done, total)``: called often, must return quickly."""


@runtime_checkable
class SliceSource(Protocol):
    """Where slices come from: a project's tasks, a folder, a phantom."""

    @property
    def ids(self) -> Sequence[SliceId]:
        """Every slice, in task order."""

    def image(self, slice_id: SliceId) -> npt.NDArray[Any]:
        """The slice as read: (H, W) or (H, W, 3), any real dtype, native grey values."""

    def mask(self, slice_id: SliceId) -> npt.NDArray[np.uint8]:
        """(H, W) uint8: the class index of each pixel, `IGNORE` where unlabelled.

        Raises KeyError for a slice without a label.
        """

    def position(self, slice_id: SliceId) -> Position:
        """Volume and z of the slice."""


@runtime_checkable
class Surrounded(Protocol):
    """What a `SliceSource` offers besides where it knows the slices before and after one."""

    def around(self, slice_id: SliceId, neighbours: int) -> npt.NDArray[Any]:
        """(H, W, 2 n + 1): the slice in the middle, ``neighbours`` on each side along its axis; at
        the ends of the volume the last one again."""


@dataclass(frozen=True)
class Metrics:
    """Segmentation quality over all pixels of a set of slices together (not a mean over slices).

    ``iou``: per class name, NaN for a class that has no pixel in the truth; ``miou``: the mean of
    those that are not NaN, so the same slices always give the mean over the same classes. What is
    wrongly predicted as an absent class lowers the IoU of the class it is taken from. Values in
    [0, 1].
    """

    miou: float
    iou: dict[str, float]
    accuracy: float
    slices: int


@dataclass(frozen=True)
class FitReport:
    """What a training did: ``steps`` optimiser steps on ``slices`` labelled slices, ``losses`` a
    thinned curve of (step, loss), ``seconds`` of wall time, ``settings`` that replay it."""

    steps: int
    slices: int
    seconds: float
    losses: tuple[tuple[int, float], ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """``mask`` (H, W) uint8 class indices at the slice's own size; ``confidence`` the mean over
    pixels of the largest class probability, in [0, 1]."""

    mask: npt.NDArray[np.uint8]
    confidence: float


class Learner(Protocol):
    """A model that can be trained again and again. Everything random follows ``seed``."""

    def fit(
        self,
        source: SliceSource,
        labelled: Sequence[SliceId],
        *,
        pseudo: dict[SliceId, npt.NDArray[np.uint8]] | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> FitReport:
        """Train on ``labelled`` (and on ``pseudo``: id → (H, W) uint8 mask made by a model)."""

    def evidence(
        self,
        source: SliceSource,
        ids: Sequence[SliceId],
        names: frozenset[str],
        *,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Evidence:
        """One pass over ``ids`` that leaves the scores and features called ``names``."""

    def predict(
        self, source: SliceSource, ids: Sequence[SliceId], *, progress: Progress | None = None
    ) -> Iterator[tuple[SliceId, Prediction]]:
        """The segmentation of each slice, in the order of ``ids``, one at a time."""

    def evaluate(
        self, source: SliceSource, ids: Sequence[SliceId], *, progress: Progress | None = None
    ) -> Metrics:
        """Compare predictions with `SliceSource.mask`, leaving `IGNORE` pixels out."""
