"""k-means++ seeding and k-means, for the strategies that look for groups."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from al_strategies.base import Features, Floats, Rows

__all__ = ["BLOCK_CELLS", "draw_by_distance", "k_means", "shrink_to", "squared_norms"]

BLOCK_CELLS = 1 << 20
"""Distances computed at a time: some MiB."""


def squared_norms(x: Features) -> Features:
    """‖x‖² of each row of ``x`` (N, D): (N,) float32."""
    return np.asarray(np.einsum("ij,ij->i", x, x))


def shrink_to(nearest: Features, x: Features, norms: Features, centre: int) -> None:
    """Lower ``nearest`` (N,), squared distances, to those from row ``centre``, in place."""
    distances = norms + norms[centre] - 2 * (x @ x[centre])
    np.minimum(nearest, np.maximum(distances, 0), out=nearest)
    nearest[centre] = 0


def draw_by_distance(
    nearest: Features, allowed: npt.NDArray[np.bool_], rng: np.random.Generator
) -> int:
    """One of the ``allowed`` rows, with probability in proportion to ``nearest`` (N,), the squared
    distance: k-means++. The lowest row when all distances are 0. Arthur & Vassilvitskii 2007."""
    rows = np.flatnonzero(allowed)
    cumulative = np.cumsum(nearest[rows], dtype=np.float64)
    if cumulative[-1] == 0:
        return int(rows[0])
    place = np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")
    return int(rows[min(place, len(rows) - 1)])


def k_means(x: Features, clusters: int, rng: np.random.Generator, iterations: int = 20) -> Rows:
    """The cluster of each row of ``x`` (N, D): (N,) in [0, clusters). Some may have no row.

    Lloyd's iterations from k-means++ seeds, until nothing moves or ``iterations`` are done. The
    distances of a block of rows at a time: memory does not grow with N times ``clusters``.
    """
    x = x - x.mean(axis=0)
    norms = squared_norms(x)
    centres = x[_seeds(x, norms, clusters, rng)]
    labels = _assign(x, centres)
    for _ in range(iterations):
        centres = _centroids(x, labels, centres)
        moved = _assign(x, centres)
        if np.array_equal(moved, labels):
            break
        labels = moved
    return labels


def _seeds(x: Features, norms: Features, clusters: int, rng: np.random.Generator) -> Rows:
    everything = np.ones(len(x), dtype=bool)
    nearest = np.full(len(x), np.inf, dtype=np.float32)
    seeds = [int(rng.integers(len(x)))]
    shrink_to(nearest, x, norms, seeds[0])
    while len(seeds) < clusters:
        seeds.append(draw_by_distance(nearest, everything, rng))
        shrink_to(nearest, x, norms, seeds[-1])
    return np.array(seeds)


def _assign(x: Features, centres: Features) -> Rows:
    target = -2 * centres.T
    squares = squared_norms(centres)
    labels = np.empty(len(x), dtype=np.int64)
    step = max(64, BLOCK_CELLS // len(centres))
    for start in range(0, len(x), step):
        block = slice(start, start + step)
        labels[block] = np.argmin(x[block] @ target + squares, axis=1)
    return labels


def _centroids(x: Features, labels: Rows, centres: Features) -> Features:
    """Means of the clusters; one without a row stays where it was."""
    order = np.argsort(labels, kind="stable")
    full, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    sums: Floats = np.add.reduceat(x[order], starts, axis=0, dtype=np.float64)
    moved = centres.copy()
    moved[full] = sums / counts[:, None]
    return moved
