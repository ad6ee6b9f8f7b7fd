"""Cost-effective active learning: a person labels the hard slices, the model labels others itself.

Pseudo-labels are for the next training only. They never reach an annotator, never count as
annotations, and are made anew each round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from al_strategies.base import (
    Floats,
    Problem,
    Ranking,
    Rows,
    ScoreStrategy,
    StrategyInfo,
    register,
)
from al_strategies.evidence import CONFIDENCE, ENTROPY, MARGIN

__all__ = ["CEAL", "CEALConfident"]


@register(
    StrategyInfo(
        name="ceal",
        summary="The K hardest by entropy, confidence and margin; the next K are pseudo-labelled.",
        evidence=(ENTROPY, CONFIDENCE, MARGIN),
        source="Kazimi et al. 2022, after Wang et al. 2016",
    )
)
@dataclass(frozen=True)
class CEAL(ScoreStrategy):
    """Mean of three ranks: entropy from the highest, confidence and margin from the lowest. The K
    of lowest mean rank are chosen, ties by slice id; the next K of the same ranking are for
    pseudo-labels.

    Equal values share the mean of the ranks that they take up. Reports the mean rank, from 1.
    Deferred slices get no pseudo-label: a person has looked at them and not approved.
    """

    lowest: ClassVar[bool] = True

    def score(self, problem: Problem) -> Floats:
        hardest_first = (
            -problem.score(ENTROPY),
            problem.score(CONFIDENCE),
            problem.score(MARGIN),
        )
        total: Floats = np.sum([_ranks(values) for values in hardest_first], axis=0)
        return total / len(hardest_first)

    def rank(self, problem: Problem) -> Ranking:
        scores = self.score(problem)
        rows = problem.admission.pick_in_order(self.order(scores), problem.count)
        candidates = self.pseudo_order(problem, scores)
        taken = np.isin(candidates, rows[: problem.k]) | problem.deferred()[candidates]
        pseudo = candidates[~taken][: problem.query.pseudo_labelled]
        return Ranking(rows, scores[rows], pseudo=pseudo)

    def pseudo_order(self, problem: Problem, scores: Floats) -> Rows:
        """All rows in the order in which they would be pseudo-labelled."""
        return self.order(scores)


@register(
    StrategyInfo(
        name="ceal_confident",
        summary="The K hardest as in ceal; the K most confident of the rest are pseudo-labelled.",
        evidence=(ENTROPY, CONFIDENCE, MARGIN),
        source="Wang et al. 2016",
    )
)
@dataclass(frozen=True)
class CEALConfident(CEAL):
    """As `CEAL`, but pseudo-labels go to the K of highest confidence, as in the original paper."""

    def pseudo_order(self, problem: Problem, scores: Floats) -> Rows:
        return np.argsort(-problem.score(CONFIDENCE), kind="stable")


def _ranks(values: Floats) -> Floats:
    """Ranks from 1, lowest value first; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((2 * last - counts + 1) / 2)[inverse]
