"""What the loop trains: the protocols shared by the live loop, serving, segment and the simulation.

A `Learner` learns from the labelled slices of a `SliceSource` and leaves evidence of the others.
All that is asked of one stands here: `ml_backend.segmentation.learner` implements it with a
network, `ml_backend.rounds.learners` makes it; tests and experiments may bring any other. This
module imports nothing but NumPy and `al_strategies`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from al_strategies.errors import NextsliceError
from al_strategies.evidence import Evidence, Position, SliceId

__all__ = [
    "IGNORE",
    "SMALL_SIDE",
    "Beliefs",
    "FitReport",
    "HearsLoss",
    "InvalidMask",
    "Learner",
    "Maps",
    "Metrics",
    "NotTrained",
    "Prediction",
    "Progress",
    "SliceSource",
    "Surrounded",
    "Unreadable",
    "UnreadableSlice",
    "Unusable",
    "Votes",
]

IGNORE = 255
"""Mask value of a pixel that nobody labelled: the loss and the metrics leave it out."""

SMALL_SIDE = 256
"""Pixels of the longer side of a small picture of a slice, at most."""

Progress = Callable[[str, int, int], None]
"""``progress(step, done, total)``: called often, must return quickly."""


@runtime_checkable
class HearsLoss(Protocol):
    """A progress that is also told the loss of a training, each time that it is known."""

    def told_loss(self, loss: float) -> None:
        """The mean loss over the last steps. Must return quickly."""


class NotTrained(NextsliceError, RuntimeError):
    """Evidence or predictions asked of a learner that has no weights yet."""


class InvalidMask(NextsliceError, ValueError):
    """A mask that does not fit its slice or the classes."""


class UnreadableSlice(NextsliceError, RuntimeError):
    """A slice that could not be read or preprocessed; ``slice_id`` says which."""

    def __init__(self, slice_id: SliceId, reason: BaseException) -> None:
        super().__init__(f"Slice {slice_id!r} cannot be read: {type(reason).__name__}: {reason}")
        self.slice_id = slice_id


Unreadable = Callable[[UnreadableSlice], None]
"""What is told of a slice that cannot be read; the pass goes on without it."""

Unusable = Callable[[SliceId, Exception], None]
"""What is told of a labelled slice that cannot be read, or whose mask does not fit its image (then
the error is an `InvalidMask`); the pass goes on without it."""


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
    [0, 1]. ``by_slice``: the mIoU of each slice alone, in the order in which they were asked for,
    NaN for one without a labelled pixel; empty where nobody noted it.
    """

    miou: float
    iou: dict[str, float]
    accuracy: float
    slices: int
    by_slice: tuple[float, ...] = ()


@dataclass(frozen=True)
class FitReport:
    """What a training did: ``steps`` optimiser steps on ``slices`` labelled slices, ``losses`` a
    thinned curve of (step, loss), ``seconds`` of wall time, ``settings`` that replay it, among them
    ``warm_started``."""

    steps: int
    slices: int
    seconds: float
    losses: tuple[tuple[int, float], ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def warm_started(self) -> bool:
        """Whether it went on from the weights that the learner had, and so from what these knew."""
        return bool(self.settings.get("warm_started", False))


@dataclass(frozen=True)
class Prediction:
    """``mask`` (H, W) uint8 class indices at the slice's own size; ``confidence`` the mean over
    pixels of the largest class probability, in [0, 1]; ``uncertainty`` (h, w) uint8 of
    `SMALL_SIDE` a side at most: the entropy as a part of ln C, in [0, 1] as 0 … 255, of each small
    pixel the mean; None where not asked for."""

    mask: npt.NDArray[np.uint8]
    confidence: float
    uncertainty: npt.NDArray[np.uint8] | None = None


class Beliefs(NamedTuple):
    """What `Learner.believe_image` finds of a slice (H, W).

    ``mask`` (H, W) uint8: class indices. ``log_probabilities`` (C, H, W) float16: natural logarithm
    of each class's probability, ≤ 0.
    """

    mask: npt.NDArray[np.uint8]
    log_probabilities: npt.NDArray[np.float16]


class Maps(NamedTuple):
    """What `Learner.maps` finds of a slice (H, W), all uint8.

    ``mask`` (H, W): class indices. ``probabilities`` (C, H, W): of each class, and ``uncertainty``
    (H, W): their entropy as a part of ln C; both in [0, 1] as 0 … 255, None where not asked for.
    """

    mask: npt.NDArray[np.uint8]
    probabilities: npt.NDArray[np.uint8] | None
    uncertainty: npt.NDArray[np.uint8] | None


class Votes(Protocol):
    """What others found of the same pixels, to be averaged with a learner's own probabilities."""

    @property
    def voters(self) -> int:
        """How many others there are."""

    def __call__(self, slice_id: SliceId, rows: slice) -> npt.NDArray[np.float32]:
        """(C, h, W): the sum of their class probabilities in ``rows`` of the slice."""


class Learner(Protocol):
    """A model that can be trained again and again, kept as bytes, and asked about slices.

    Everything random follows ``seed``. Until `fit`, `load_bytes` or `start_from` has given it
    weights, all that needs them raises NotTrained. Not thread-safe. A simulation calls `fit`,
    `evidence`, `predict` and `evaluate` alone, and without ``unusable``, ``unreadable`` and
    ``uncertainty``.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of their indices; by convention 0 is the background."""

    # -- training

    def fit(
        self,
        source: SliceSource,
        labelled: Sequence[SliceId],
        *,
        pseudo: dict[SliceId, npt.NDArray[np.uint8]] | None = None,
        seed: int = 0,
        progress: Progress | None = None,
        unusable: Unusable | None = None,
    ) -> FitReport:
        """Train on ``labelled`` (and on ``pseudo``: id → (H, W) uint8 mask made by a model).

        ``unusable``: is given each slice that cannot be used, which is left out; without it that is
        raised. A training that fails keeps the weights of before.
        """

    def start_from(self, other: Learner) -> None:
        """Take the weights of ``other``: the next `fit` goes on from them as far as they fit what
        is to be trained, and afresh where they do not (`FitReport.warm_started` says which).

        Raises ValueError when it is of other classes.
        """

    def usable(
        self, source: SliceSource, ids: Sequence[SliceId], unusable: Unusable
    ) -> list[SliceId]:
        """Those of ``ids`` that can be evaluated on: readable, with a mask that fits and has a
        labelled pixel. ``unusable`` as in `fit`."""

    def evaluate(
        self, source: SliceSource, ids: Sequence[SliceId], *, progress: Progress | None = None
    ) -> Metrics:
        """Compare predictions with `SliceSource.mask`, leaving `IGNORE` pixels out."""

    # -- what it says of slices

    @property
    def neighbours(self) -> int:
        """Slices on each side that are read with one: of a `Surrounded` source by the learner
        itself, in `predict_image` by the caller."""

    def evidence(
        self,
        source: SliceSource,
        ids: Sequence[SliceId],
        names: frozenset[str],
        *,
        seed: int = 0,
        progress: Progress | None = None,
        unreadable: Unreadable | None = None,
    ) -> Evidence:
        """One pass over ``ids`` that leaves the scores and features called ``names``.

        ``unreadable``: is given each slice that cannot be read, which is left out; without it that
        is raised (UnreadableSlice). Raises ValueError for names that it cannot compute.
        """

    def predict(
        self,
        source: SliceSource,
        ids: Sequence[SliceId],
        *,
        progress: Progress | None = None,
        unreadable: Unreadable | None = None,
        uncertainty: bool = False,
    ) -> Iterator[tuple[SliceId, Prediction]]:
        """The segmentation of each slice, in the order of ``ids``, one at a time. ``unreadable`` as
        in `evidence`. ``uncertainty``: with `Prediction.uncertainty`, of the same pass."""

    def predict_image(
        self, image: npt.NDArray[Any], *, progress: Progress | None = None
    ) -> Prediction:
        """The segmentation of one image as read: (H, W), (H, W, 3 or 4), or (H, W, 2 n + 1) with
        its `neighbours`. ``progress``: is told of each part of it; what it raises ends it."""

    def believe_image(
        self, image: npt.NDArray[Any], *, progress: Progress | None = None
    ) -> Beliefs:
        """`predict_image`, with the probabilities of all classes: what a correction decides by."""

    # -- whole volumes

    def maps(
        self,
        source: SliceSource,
        ids: Sequence[SliceId],
        *,
        probability: bool = False,
        uncertainty: bool = False,
        votes: Votes | None = None,
    ) -> Generator[tuple[SliceId, Maps], None, None]:
        """`predict` with the probabilities behind it, in the order of ``ids``, one at a time.

        With ``votes`` all maps come from the mean of the own probabilities and theirs. Raises
        UnreadableSlice.
        """

    def slices_per_batch(self, shape: Sequence[int]) -> int:
        """How many slices of (H, W) ``shape`` are computed at once: the last bits of their maps
        depend on which they are."""

    @property
    def grey_window(self) -> tuple[float, float]:
        """The native grey values that are black and white to the trained model."""

    @property
    def inference_settings(self) -> dict[str, Any]:
        """What besides the weights decides the maps of a slice, as JSON has it."""

    # -- as bytes

    def to_bytes(self) -> bytes:
        """The weights and all it needs to be used, as one checkpoint; nothing in it is code."""

    def load_bytes(self, data: bytes) -> None:
        """Take the weights that `to_bytes` wrote. Raises ValueError for those of other classes and
        for bytes that are no checkpoint."""
