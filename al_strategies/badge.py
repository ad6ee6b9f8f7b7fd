"""Gradient embeddings: uncertain and diverse at once, without a weight between the two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from al_strategies.base import Problem, Ranking, Strategy, StrategyInfo, register
from al_strategies.clustering import draw_by_distance, shrink_to, squared_norms
from al_strategies.evidence import GRADIENT

__all__ = ["Badge"]


@register(
    StrategyInfo(
        name="badge",
        summary="k-means++ seeds among the gradients of the model's own predictions.",
        evidence=(GRADIENT,),
        source="Ash et al. 2020 (BADGE)",
    )
)
@dataclass(frozen=True)
class Badge(Strategy):
    """k-means++ seeding over gradient embeddings: the slice of largest gradient first, then each
    with probability in proportion to its squared distance from those chosen. A long gradient is an
    uncertain slice. Reports the gradient's length.
    """

    def rank(self, problem: Problem) -> Ranking:
        gradients = problem.feature(GRADIENT)
        norms = squared_norms(gradients)
        nearest = np.full(len(gradients), np.inf, dtype=np.float32)
        rows = np.empty(problem.count, dtype=np.int64)
        for i in range(problem.count):
            allowed = problem.admission.allowed()
            if i == 0:
                rows[i] = np.argmax(np.where(allowed, norms, -1))
            else:
                rows[i] = draw_by_distance(nearest, allowed, problem.rng)
            problem.admission.pick(int(rows[i]))
            shrink_to(nearest, gradients, norms, int(rows[i]))
        return Ranking(rows, np.sqrt(norms[rows].astype(np.float64)))
