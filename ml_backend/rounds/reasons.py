"""Why a slice was selected, in a plain sentence each: for annotators, who ask it first."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from al_strategies import Query, Selection, get_strategy
from al_strategies.evidence import (
    CLASS_FRACTIONS,
    CLASS_SCORES,
    CONFIDENCE,
    ENTROPY,
    MARGIN,
    MC_ENTROPY,
    Evidence,
    SliceId,
)
from ml_backend.rounds.source import PROJECT_VOLUME

__all__ = ["BY_CLASS", "UNCERTAINTIES", "reasons"]

UNCERTAINTIES = {MC_ENTROPY: 1, ENTROPY: 1, MARGIN: -1, CONFIDENCE: -1}
"""Scores that say how uncertain the network is of a slice: 1 where more of it is more uncertain."""
BY_CLASS = frozenset({CLASS_SCORES, CLASS_FRACTIONS})
"""What says where in the slice."""
_JUDGES = "One of the slices that judge the network, evenly spread: it is never trained on"
_LEAST_FRACTION = 0.002
"""Of a slice's pixels: a class of fewer is not named."""
_BY_UNCERTAINTY_ALONE = frozenset(
    {"entropy", "confidence", "margin", "mc_dropout", "ceal", "ceal_confident"}
)


def reasons(
    selection: Selection,
    query: Query,
    classes: Sequence[str],
    judging: Collection[SliceId] = (),
) -> dict[SliceId, str]:
    """A sentence for each slice that is chosen or in reserve.

    ``query``: what the selection answers. ``classes``: what `CLASS_SCORES` counts. ``judging``:
    slices that are held out of all training, which the strategy did not choose.
    """
    pool = query.pool
    rows = {slice_id: row for row, slice_id in enumerate(pool.ids)}
    ranks, worst = _ranks(pool), _worst_class(pool, classes)
    found: dict[SliceId, str] = {}
    for slice_id in (*selection.chosen, *selection.reserve):
        row = rows[slice_id]
        rank = None if ranks is None else int(ranks[row])
        said = _why(selection.strategy, pool, row, rank)
        if rank is not None and worst is not None and worst[row] >= 0:
            said = f"{said}, most where it sees {classes[worst[row]]}"
        if slice_id in judging:
            said = _JUDGES
        if slice_id in query.deferred:
            said = f"{said}; put last, as somebody has skipped or begun it"
        found[slice_id] = f"{said}."
    return found


def _why(strategy: str, pool: Evidence, row: int, rank: int | None) -> str:
    slices = f"{len(pool):,} slices"
    if rank is not None:
        uncertain = f"{_ordinal(rank)}least certain of {slices}"
        if strategy in _BY_UNCERTAINTY_ALONE:
            return uncertain[0].upper() + uncertain[1:]
        return f"{_summary(strategy)}; {uncertain}"
    if strategy == "random":
        return f"Drawn at random from {slices}"
    if strategy == "strided":
        position = pool.positions[row]
        where = "" if position.volume == PROJECT_VOLUME else f" of {position.volume}"
        return f"Evenly spaced between what is labelled: slice {position.z:g}{where}"
    return _summary(strategy)


def _summary(strategy: str) -> str:
    for_people = get_strategy(strategy).info.summary.rstrip(".")
    return f"{strategy}: {for_people[0].lower()}{for_people[1:]}"


def _ordinal(rank: int) -> str:
    """``"2nd "``; nothing for the first."""
    if rank == 1:
        return ""
    ending = (
        "th" if rank % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(rank % 10, "th")
    )
    return f"{rank:,}{ending} "


def _ranks(pool: Evidence) -> npt.NDArray[np.int64] | None:
    """Of each slice, from 1 for the least certain; None where no score says so."""
    name = next((n for n in UNCERTAINTIES if n in pool.scores), None)
    if name is None:
        return None
    score = np.asarray(pool.scores[name], dtype=np.float64) * UNCERTAINTIES[name]
    order = np.argsort(-score, kind="stable")
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(1, len(order) + 1)
    return ranks


def _worst_class(pool: Evidence, classes: Sequence[str]) -> npt.NDArray[np.int64] | None:
    """The class whose pixels are the least certain in each slice, -1 where all are certain; None
    where nobody knows.

    Not the one with the largest share of the entropy, which is nearly always the background.
    """
    if not all(name in pool.features for name in BY_CLASS):
        return None
    shares = np.asarray(pool.features[CLASS_SCORES], dtype=np.float64)
    fractions = np.asarray(pool.features[CLASS_FRACTIONS], dtype=np.float64)
    if not shares.shape[1] == fractions.shape[1] == len(classes):
        return None
    there = fractions >= _LEAST_FRACTION
    density = np.where(there, shares / np.where(there, fractions, 1.0), 0.0)
    worst: npt.NDArray[np.int64] = np.where(density.max(1) > 0, density.argmax(1), -1)
    return worst
