"""Stochastic batches: judge random batches as a whole, not slices one by one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from al_strategies.base import (
    Problem,
    Ranking,
    ScoreStrategy,
    Strategy,
    StrategyInfo,
    get_strategy,
    register,
)
from al_strategies.evidence import ENTROPY

__all__ = ["StochasticBatches"]


@register(
    StrategyInfo(
        name="stochastic_batches",
        summary="The random batch of K slices whose mean score (by default entropy) is best.",
        evidence=(ENTROPY,),
        source="Gaillochet et al. 2023",
    )
)
@dataclass(frozen=True)
class StochasticBatches(Strategy):
    """A wrapper: the pool is cut into random batches of K and the batch with the best mean score of
    the strategy ``base`` is chosen, the next best batches are the reserve; within a batch the best
    slice first. ``base`` is any strategy that scores slices one by one; the evidence needed is what
    it needs. Reports its score.

    Where the pool is not a multiple of K, some batches are larger than K by a few. Batches are
    drawn from what spacing lets be picked at first; in place of a slice that is too near to another
    one of its batch, or over the quota, comes the first of the next batches.
    """

    base: str = "entropy"

    def __post_init__(self) -> None:
        if not isinstance(get_strategy(self.base), ScoreStrategy):
            raise ValueError(
                f"stochastic batches need a strategy with a score per slice, not {self.base!r}"
            )

    @property
    def needs_ground_truth(self) -> bool:
        return self._base().needs_ground_truth

    @property
    def evidence(self) -> tuple[str, ...]:
        return self._base().evidence

    @property
    def labelled_evidence(self) -> tuple[str, ...]:
        return self._base().labelled_evidence

    def rank(self, problem: Problem) -> Ranking:
        base = self._base()
        scores = base.score(problem)
        utility = -scores if base.lowest else scores
        allowed = problem.admission.allowed()
        drawn = problem.rng.permutation(np.flatnonzero(allowed))
        batches = np.array_split(drawn, max(1, len(drawn) // max(problem.k, 1)))
        batches.sort(key=lambda b: -utility[b].mean())
        rest = np.flatnonzero(~allowed)
        order = np.concatenate([b[np.lexsort((b, -utility[b]))] for b in (*batches, rest)])
        rows = problem.admission.pick_in_order(order, problem.count)
        return Ranking(rows, scores[rows])

    def _base(self) -> ScoreStrategy:
        base = get_strategy(self.base)
        assert isinstance(base, ScoreStrategy)
        return base
