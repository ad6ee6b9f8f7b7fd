from __future__ import annotations

import numpy as np

from al_strategies.clustering import draw_by_distance, k_means, shrink_to, squared_norms


def islands(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Four well separated groups of 30, and the group of each row."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(4), 30)
    centres = np.array([[0, 0, 0], [50, 0, 0], [0, 50, 0], [0, 0, 50]])
    return (centres[group] + rng.normal(size=(120, 3)) + 1000).astype(np.float32), group


def test_k_means_finds_separated_groups() -> None:
    x, group = islands()
    labels = k_means(x, 4, np.random.default_rng(0))
    assert len({(a, b) for a, b in zip(group, labels, strict=True)}) == 4


def test_k_means_with_more_clusters_than_different_rows() -> None:
    x = np.zeros((6, 2), dtype=np.float32)
    labels = k_means(x, 4, np.random.default_rng(0))
    assert labels.shape == (6,)
    assert len(set(labels.tolist())) == 1


def test_k_means_leaves_no_row_nearer_to_another_centroid() -> None:
    x = np.random.default_rng(1).normal(size=(300, 2)).astype(np.float32)
    labels = k_means(x, 5, np.random.default_rng(2), iterations=500)
    means = np.array([x[labels == c].mean(0) for c in range(5)])
    nearest = ((x[:, None] - means) ** 2).sum(-1).argmin(1)
    assert np.array_equal(nearest, labels)


def test_drawing_follows_the_squared_distance() -> None:
    rng = np.random.default_rng(0)
    nearest = np.array([0, 1, 3, 6], dtype=np.float32)
    draws = [draw_by_distance(nearest, np.array([1, 1, 1, 0], bool), rng) for _ in range(4000)]
    shares = np.bincount(draws, minlength=4) / 4000
    np.testing.assert_allclose(shares, [0, 0.25, 0.75, 0], atol=0.03)


def test_drawing_among_equals_takes_the_lowest_row() -> None:
    rng = np.random.default_rng(0)
    allowed = np.array([False, True, True])
    assert draw_by_distance(np.zeros(3, np.float32), allowed, rng) == 1


def test_distances_shrink_to_the_nearest() -> None:
    x = np.array([[0, 0], [3, 4], [6, 8]], dtype=np.float32)
    nearest = np.full(3, np.inf, dtype=np.float32)
    shrink_to(nearest, x, squared_norms(x), 0)
    assert nearest.tolist() == [0, 25, 100]
    shrink_to(nearest, x, squared_norms(x), 2)
    assert nearest.tolist() == [0, 25, 0]
