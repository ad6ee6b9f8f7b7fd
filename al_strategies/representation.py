"""Uncertain first, then unlike one another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from al_strategies.base import Problem, Ranking, Rows, Strategy, StrategyInfo, register
from al_strategies.coreset import Cover
from al_strategies.evidence import EMBEDDING, MC_ENTROPY

__all__ = ["MaxRepresentation"]


@register(
    StrategyInfo(
        name="max_representation",
        summary="Of the 2K of highest Monte Carlo dropout entropy, the K farthest apart.",
        evidence=(MC_ENTROPY, EMBEDDING),
        source="Yang et al. 2017 (Suggestive Annotation); Kazimi et al. 2022",
    )
)
@dataclass(frozen=True)
class MaxRepresentation(Strategy):
    """The top 2K by `mc_dropout`; of those the most uncertain, then one at a time the slice
    farthest (Euclidean) from those chosen. The reserve goes on with the rest of the 2K, then with
    the others by uncertainty. Reports the Monte Carlo entropy.

    With spacing, the 2K are spaced already, so that the K need not be taken from one place.
    """

    def rank(self, problem: Problem) -> Ranking:
        entropy = problem.score(MC_ENTROPY)
        order = np.argsort(-entropy, kind="stable")
        shortlist = problem.new_admission().pick_in_order(order, 2 * problem.k)
        far = _farthest_apart(problem, shortlist) if len(shortlist) else shortlist
        rest = order[~np.isin(order, far)]
        others = problem.admission.pick_in_order(rest, problem.count - len(far))
        rows = np.concatenate([far, others])
        return Ranking(rows, entropy[rows])


def _farthest_apart(problem: Problem, shortlist: Rows) -> Rows:
    """The rows of ``shortlist``, its first one first, each next one farthest from those before."""
    members = np.sort(shortlist)  # so that Cover breaks ties by slice id
    embeddings = problem.feature(EMBEDDING)
    cover = Cover(embeddings[members], embeddings[:0])
    place = int(np.searchsorted(members, shortlist[0]))
    picks: list[int] = []
    while True:
        picks.append(int(members[place]))
        problem.admission.pick(picks[-1])
        cover.add(place)
        if len(picks) == min(len(members), problem.count):
            break
        allowed = problem.admission.allowed()[members]
        if not allowed.any():
            break
        place = cover.farthest(allowed)
    return np.array(picks, dtype=np.int64)
