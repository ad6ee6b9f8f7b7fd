"""Typical slices first: what to label while the model knows next to nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from al_strategies.base import (
    Features,
    Floats,
    Problem,
    Ranking,
    Strategy,
    StrategyInfo,
    register,
)
from al_strategies.clustering import BLOCK_CELLS, k_means, squared_norms
from al_strategies.evidence import EMBEDDING

__all__ = ["TypiClust"]


@register(
    StrategyInfo(
        name="typiclust",
        summary="The most typical slice of each cluster without a label; for the first rounds.",
        evidence=(EMBEDDING,),
        labelled_evidence=(EMBEDDING,),
        source="Hacohen et al. 2022 (TypiClust)",
    )
)
@dataclass(frozen=True)
class TypiClust(Strategy):
    """Pool and labelled slices fall into as many clusters as there are labelled and chosen ones (at
    most ``max_clusters``). The next slice comes from the cluster with the fewest labelled or chosen
    slices, of those the largest: the one that is closest on average to its ``neighbours`` nearest
    in the cluster, of those that may be picked. Clusters smaller than ``least_size`` come last.
    Reports typicality, one over that mean distance.
    """

    neighbours: int = 20
    max_clusters: int = 500
    least_size: int = 5

    def __post_init__(self) -> None:
        for name in ("neighbours", "max_clusters", "least_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")

    def rank(self, problem: Problem) -> Ranking:
        pool = problem.feature(EMBEDDING)
        labelled = problem.labelled_feature(EMBEDDING)
        everything = np.concatenate([pool, labelled])
        clusters = min(len(labelled) + max(problem.k, 1), self.max_clusters, len(everything))
        labels = k_means(everything, clusters, problem.rng)
        own, taken = labels[: len(pool)], np.bincount(labels[len(pool) :], minlength=clusters)
        sizes = np.bincount(own, minlength=clusters)
        typicality = np.empty(len(pool))
        for cluster in np.flatnonzero(sizes):
            members = np.flatnonzero(own == cluster)
            typicality[members] = self._typicality(pool[members])
        rows = np.empty(problem.count, dtype=np.int64)
        for i in range(problem.count):
            allowed = np.flatnonzero(problem.admission.allowed())
            open_ = np.unique(own[allowed])
            small = sizes[open_] < self.least_size
            cluster = open_[np.lexsort((-sizes[open_], taken[open_], small))[0]]
            members = allowed[own[allowed] == cluster]
            rows[i] = members[np.argmax(typicality[members])]
            problem.admission.pick(int(rows[i]))
            taken[cluster] += 1
        return Ranking(rows, typicality[rows])

    def _typicality(self, members: Features) -> Floats:
        """One over the mean distance to the nearest members: (m,), highest for the most typical."""
        count = min(self.neighbours, len(members) - 1)
        if count < 1:
            return np.ones(len(members))
        centred = members - members.mean(axis=0)
        norms = squared_norms(centred)
        means = np.empty(len(members))
        step = max(1, BLOCK_CELLS // len(members))
        for start in range(0, len(members), step):
            block = slice(start, start + step)
            squares = norms[block, None] + norms - 2 * (centred[block] @ centred.T)
            # the nearest of all is the member itself, at distance 0
            nearest = np.partition(np.maximum(squares, 0), count, axis=1)[:, : count + 1]
            means[block] = np.sqrt(nearest).sum(axis=1) / count
        return 1 / (means + 1e-5)
