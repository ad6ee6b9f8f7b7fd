"""The protocol that ranks strategies: label, train, measure, select, again, where truth is known.

Pure: no disk, no network, any `Learner`. `simulate` yields a round as soon as it is whole, with all
that the next one needs (`Start`), so a caller can keep it and go on from there another day.
After Kazimi et al. 2022: K slices a round, the test slices are read once a round, for the curve
alone; nothing is ever chosen by them. ``judged`` holds labels out besides, as the live loop does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from al_strategies.base import Query, Selection, Strategy, get_strategy
from al_strategies.effort import Correction, correction_of_truth, total
from al_strategies.evidence import Evidence, Position, SliceId
from al_strategies.handing_out import hand_out
from al_strategies.holdout import ZBlock, fixed_blocks, split_labelled
from al_strategies.learner import (
    FitReport,
    Learner,
    Metrics,
    Progress,
    SliceSource,
    Surrounded,
)
from al_strategies.spacing import Spacing, even_spacing

__all__ = [
    "Learned",
    "Protocol",
    "SimulatedRound",
    "Start",
    "begin",
    "fully_supervised",
    "learn",
    "simulate",
]

Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Protocol:
    """What is simulated on which slices.

    ``pool``: the slices that may be annotated; ``test``: those that the curve is measured on.
    ``k`` slices a round after the ``start`` of round 1 (None: K too), which ``cold_start`` chooses
    without a model. ``spaced``: `even_spacing` holds under every strategy, as in the live loop.
    ``judged``: as there, blocks of the pool are held out of every training, a fifth of what is
    annotated is of them, and each round's model is measured on these too (`Learned.validation`).
    ``seed`` decides everything random; runs of different strategies with the same seed are paired:
    they start from the same slices and the same weights.

    Raises ValueError when a number is below 1 (``seed``: 0), or a part is empty or shares slices.
    """

    pool: tuple[SliceId, ...]
    test: tuple[SliceId, ...]
    k: int = 8
    rounds: int = 10
    start: int | None = None
    cold_start: str = "strided"
    spaced: bool = True
    judged: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("k", self.k), ("rounds", self.rounds), ("start", self.first)):
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, expected 0 or more")
        if not self.pool or not self.test:
            raise ValueError(
                f"{len(self.pool)} slices to choose from and {len(self.test)} to test on: "
                "expected at least one of each"
            )
        both = set(self.pool).intersection(self.test)
        if both:
            raise ValueError(f"slice {min(both)!r} is in the pool and in the test slices")

    @property
    def first(self) -> int:
        """Slices of round 1."""
        return self.k if self.start is None else self.start

    def fit_seed(self, round_: int) -> int:
        """Seed of the training of a round; different for every seed and round."""
        return self.seed * 10_000 + round_


@dataclass(frozen=True)
class Learned:
    """What one training left: its report, and its quality on the test slices; ``validation``: on
    the annotated slices that are held out, None without any."""

    report: FitReport
    metrics: Metrics
    validation: Metrics | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """Where round ``round`` begins.

    ``labelled``: ids annotated in the rounds before. ``selection``: what is annotated now.
    ``pseudo``: id → (H, W) mask that the model of the round before made, for this training alone.
    ``learned``: given when this round's training is done and the learner holds its weights.
    ``cost``: what it takes to annotate ``selection``, each slice opened as the model of the round
    before segments it, in round 1 blank (class 0); None where it was not counted. ``before``: the
    model of the round before on the held-out slices that this round is judged by; None without
    either.
    """

    round: int
    labelled: tuple[SliceId, ...]
    selection: Selection
    pseudo: Mapping[SliceId, Mask] = field(default_factory=dict)
    learned: Learned | None = None
    cost: Correction | None = None
    before: Metrics | None = None

    @property
    def training(self) -> tuple[SliceId, ...]:
        """Every annotated slice, this round's included, in the order of annotation."""
        return (*self.labelled, *self.selection.chosen)


@dataclass(frozen=True)
class SimulatedRound:
    """A whole round: where it started, what it learned, and where the next one starts.

    ``following`` is None after the last round, or when every slice of the pool is annotated.
    ``seconds``: wall time of ``train``, ``test``, ``score``, ``select`` and ``effort``.
    """

    start: Start
    learned: Learned
    following: Start | None
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class _Part:
    """Some slices of a source as a source: what a learner may look at. KeyError for the others."""

    source: SliceSource
    ids: tuple[SliceId, ...]

    def image(self, slice_id: SliceId) -> npt.NDArray[Any]:
        return self.source.image(self._known(slice_id))

    def mask(self, slice_id: SliceId) -> Mask:
        return self.source.mask(self._known(slice_id))

    def position(self, slice_id: SliceId) -> Position:
        return self.source.position(self._known(slice_id))

    def _known(self, slice_id: SliceId) -> SliceId:
        if slice_id not in self._members:
            raise KeyError(f"slice {slice_id!r} is in another part of the source")
        return slice_id

    @cached_property
    def _members(self) -> frozenset[SliceId]:
        return frozenset(self.ids)


class _SurroundedPart(_Part):
    """Of a source that knows what is around its slices."""

    def around(self, slice_id: SliceId, neighbours: int) -> npt.NDArray[Any]:
        assert isinstance(self.source, Surrounded)
        return self.source.around(self._known(slice_id), neighbours)


def _part(source: SliceSource, ids: tuple[SliceId, ...]) -> SliceSource:
    return (_SurroundedPart if isinstance(source, Surrounded) else _Part)(source, ids)


def begin(source: SliceSource, protocol: Protocol, classes: Sequence[str]) -> Start:
    """The start of round 1: ``protocol.first`` slices chosen by the cold start, without a model.

    ``classes``: names by index, of its cost.
    """
    places = _positions(source, protocol.pool)
    query = Query(
        pool=Evidence(ids=protocol.pool, positions=places),
        labelled=Evidence.empty(),
        k=protocol.first,
        round=0,
        seed=protocol.seed,
        spacing=_spacing(protocol, places, protocol.first),
    )
    selection = _select(get_strategy(protocol.cold_start), query, source, protocol)
    masks = [source.mask(slice_id) for slice_id in selection.chosen]
    cost = total(correction_of_truth(np.zeros_like(mask), mask, classes) for mask in masks)
    return Start(round=1, labelled=(), selection=selection, cost=cost)


def learn(
    learner: Learner,
    source: SliceSource,
    protocol: Protocol,
    start: Start,
    progress: Progress | None = None,
) -> Learned:
    """Train on all that is annotated, and measure on the test slices, once.

    The learner sees the pool alone, so that nothing (its grey values included) comes from the test
    slices; one that takes neighbours sees those of the pool's slices, whichever part they are in.
    """
    begun = time.perf_counter()
    taught, held = _split(source, protocol, start.training)
    report = learner.fit(
        _part(source, protocol.pool),
        taught,
        pseudo=dict(start.pseudo),
        seed=protocol.fit_seed(start.round),
        progress=progress,
    )
    trained = time.perf_counter()
    metrics = learner.evaluate(source, protocol.test, progress=progress)
    seconds = {"train": trained - begun, "test": time.perf_counter() - trained}
    validation = _measured(learner, source, held)
    return Learned(report, metrics, validation, seconds)


def simulate(
    strategy: Strategy,
    learner: Learner,
    source: SliceSource,
    protocol: Protocol,
    *,
    start: Start | None = None,
    progress: Progress | None = None,
) -> Iterator[SimulatedRound]:
    """The rounds of one run, each yielded when it is whole.

    ``start``: where to go on, None for round 1. A warm-started learner must hold the weights of the
    round before then. The same arguments and a deterministic learner give the same rounds, whether
    or not the run was interrupted.
    """
    start = start or begin(source, protocol, learner.classes)
    while True:
        learned = start.learned or learn(learner, source, protocol, start, progress)
        following, seconds = None, dict(learned.seconds)
        if start.round < protocol.rounds and len(start.training) < len(protocol.pool):
            following = _next(strategy, learner, source, protocol, start, seconds, progress)
        yield SimulatedRound(start, learned, following, seconds)
        if following is None:
            return
        start = following


def _next(
    strategy: Strategy,
    learner: Learner,
    source: SliceSource,
    protocol: Protocol,
    start: Start,
    seconds: dict[str, float],
    progress: Progress | None,
) -> Start:
    """Score the pool, select, pseudo-label what the strategy wants pseudo-labelled, and count what
    it costs to correct the selection."""
    begun = time.perf_counter()
    annotated = set(start.training)
    pool = tuple(i for i in protocol.pool if i not in annotated)
    seed = protocol.fit_seed(start.round)

    def evidence(ids: tuple[SliceId, ...], names: tuple[str, ...]) -> Evidence:
        if not names:
            return Evidence(ids=ids, positions=_positions(source, ids))
        return learner.evidence(source, ids, frozenset(names), seed=seed, progress=progress)

    query = Query(
        pool=evidence(pool, strategy.evidence),
        labelled=evidence(start.training, strategy.labelled_evidence),
        k=protocol.k,
        round=start.round,
        rounds=max(protocol.rounds - 1, 1),
        seed=protocol.seed,
        spacing=_spacing(protocol, _positions(source, protocol.pool), protocol.k),
    )
    scored = time.perf_counter()
    selection = _select(strategy, query, source, protocol)
    selected = time.perf_counter()
    pseudo = {
        slice_id: prediction.mask
        for slice_id, prediction in learner.predict(source, selection.pseudo, progress=progress)
    }
    labelled = time.perf_counter()
    cost = total(
        correction_of_truth(prediction.mask, source.mask(slice_id), learner.classes)
        for slice_id, prediction in learner.predict(source, selection.chosen, progress=progress)
    )
    seconds |= {"score": scored - begun, "select": selected - scored}
    if pseudo:
        seconds["pseudo-label"] = labelled - selected
    seconds["effort"] = time.perf_counter() - labelled
    _, held = _split(source, protocol, (*start.training, *selection.chosen))
    before = _measured(learner, source, held)
    return Start(start.round + 1, start.training, selection, pseudo, cost=cost, before=before)


def fully_supervised(protocol: Protocol, strategy: str) -> Start:
    """The start of the run that annotates the whole pool at once: the ceiling of the others.

    ``strategy``: the name that its selection carries.
    """
    everything = Selection(chosen=protocol.pool, strategy=strategy, seed=protocol.seed)
    return Start(round=1, labelled=(), selection=everything)


def _select(strategy: Strategy, query: Query, source: SliceSource, protocol: Protocol) -> Selection:
    blocks = _blocks(source, protocol)
    return hand_out(strategy, query, blocks) if blocks else strategy.select(query)


def _blocks(source: SliceSource, protocol: Protocol) -> tuple[ZBlock, ...]:
    """What of the pool is held out."""
    if not protocol.judged:
        return ()
    places = _positions(source, protocol.pool)
    return fixed_blocks(dict(zip(protocol.pool, places, strict=True)), seed=protocol.seed)


def _split(
    source: SliceSource, protocol: Protocol, annotated: tuple[SliceId, ...]
) -> tuple[tuple[SliceId, ...], tuple[SliceId, ...]]:
    """Those of ``annotated`` that are trained on, and those that judge."""
    places = dict(zip(annotated, _positions(source, annotated), strict=True))
    split = split_labelled(annotated, places, _blocks(source, protocol))
    return split.train, split.validation


def _measured(learner: Learner, source: SliceSource, held: tuple[SliceId, ...]) -> Metrics | None:
    return learner.evaluate(source, held) if held else None


def _positions(source: SliceSource, ids: Sequence[SliceId]) -> tuple[Position, ...]:
    return tuple(source.position(i) for i in ids)


def _spacing(protocol: Protocol, places: Sequence[Position], k: int) -> Spacing | None:
    return even_spacing(places, k) if protocol.spaced else None
