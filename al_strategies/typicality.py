"""Typical slices first: what to label while the model knows next to nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from al_strategies.base import (
    Features,
    Floats,
    Problem,
    Ranking,
    Rows,
    Strategy,
    StrategyInfo,
    register,
)
from al_strategies.clustering import k_means, squared_norms
from al_strategies.evidence import EMBEDDING

__all__ = ["TypiClust"]

_BLOCK_ROWS = 1_024


@register(
    StrategyInfo(
        name="typiclust",
        summary="The most typical slice of each cluster that has no label yet; for cold starts.",
        evidence=(EMBEDDING,),
        labelled_evidence=(EMBEDDING,),
        source="Hacohen et al. 2022 (TypiClust)",
    )
)
@dataclass(frozen=True)
class TypiClust(Strategy):
    """Pool and labelled slices fall into as many clusters as there are labelled and chosen ones (at
    most ``max_clusters``). Clusters with the fewest labelled or chosen slices come first, of those
    the largest; from each the slice that is closest on average to its ``neighbours`` nearest in the
    cluster. Clusters smaller than ``least_size`` come last. Reports typicality, one over that mean
    distance.
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
        covered = np.bincount(labels[len(pool) :], minlength=clusters)
        typicality = np.empty(len(pool))
        keys: list[tuple[bool, int, int, int, int]] = []
        for cluster in range(clusters):
            members = np.flatnonzero(labels[: len(pool)] == cluster)
            typicality[members] = self._typicality(pool[members])
            small = len(members) < self.least_size
            ranked = members[np.argsort(-typicality[members], kind="stable")]
            keys += [
                (small, int(covered[cluster]) + place, -len(members), cluster, int(row))
                for place, row in enumerate(ranked)
            ]
        order: Rows = np.array([row for *_, row in sorted(keys)], dtype=np.int64)
        rows = problem.admission.pick_in_order(order, problem.count)
        return Ranking(rows, typicality[rows])

    def _typicality(self, members: Features) -> Floats:
        """One over the mean distance to the nearest members: (m,), highest for the most typical."""
        count = min(self.neighbours, len(members) - 1)
        if count < 1:
            return np.ones(len(members))
        centred = members - members.mean(axis=0)
        norms = squared_norms(centred)
        means = np.empty(len(members))
        for start in range(0, len(members), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            squares = norms[block, None] + norms - 2 * (centred[block] @ centred.T)
            # the nearest of all is the member itself, at distance 0
            nearest = np.partition(np.maximum(squares, 0), count, axis=1)[:, : count + 1]
            means[block] = np.sqrt(nearest).sum(axis=1) / count
        return 1 / (means + 1e-5)
