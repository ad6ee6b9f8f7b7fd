from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from al_strategies import Evidence, Position, Query, Spacing, get_strategy


def evidence(x: np.ndarray, first_id: int = 0) -> Evidence:
    return Evidence(
        tuple(range(first_id, first_id + len(x))),
        tuple(Position("v", z) for z in range(len(x))),
        features={"embedding": x.astype(np.float32)},
    )


def groups(sizes: list[int]) -> np.ndarray:
    """On a circle around each of some distant points, and one slice right at each point."""
    parts = []
    for i, size in enumerate(sizes):
        angles = np.linspace(0, 2 * np.pi, size - 1, endpoint=False)
        ring = np.stack([np.cos(angles), np.sin(angles)], 1)
        parts.append(np.concatenate([ring, [[0, 0]]]) + np.array([100 * i, 0]))
    return np.concatenate(parts)


def test_the_most_typical_slice_of_each_cluster_the_largest_first() -> None:
    pool = evidence(groups([10, 30, 20]))
    selection = get_strategy("typiclust").select(Query(pool, Evidence.empty(), 3))
    assert selection.chosen == (39, 59, 9)  # the centres of the groups of 30, 20 and 10


def test_clusters_with_a_label_come_after_those_without() -> None:
    pool = evidence(groups([10, 30, 20]))
    labelled = evidence(np.array([[100.0, 0.1], [0.0, 0.1]]), first_id=500)
    chosen = get_strategy("typiclust", max_clusters=3).select(Query(pool, labelled, 1)).chosen
    assert chosen == (59,)


def test_a_cluster_keeps_its_turn_when_its_most_typical_slice_may_not_be_picked() -> None:
    # a group of 10 without a label, the last its centre, beside a labelled one of 30
    x = groups([10, 30])
    labelled = evidence(np.array([[100.0, 0.1]]), first_id=500)
    strategy = get_strategy("typiclust", max_clusters=2)
    asked = Query(evidence(x), labelled, 1)
    assert strategy.select(asked).chosen == (9,)
    waiting = dataclasses.replace(asked, deferred=frozenset({9}))
    assert strategy.select(waiting).chosen[0] in range(9)
    beside = dataclasses.replace(labelled, positions=(Position("v", 10),))
    near = dataclasses.replace(asked, labelled=beside, spacing=Spacing(gap=3))
    assert strategy.select(near).chosen[0] in range(8)


def test_typicality_is_one_over_the_mean_distance_to_the_neighbours() -> None:
    pool = evidence(np.array([[0.0], [1.0], [3.0]]))
    strategy = get_strategy("typiclust", neighbours=2, least_size=1)
    selection = strategy.select(Query(pool, Evidence.empty(), 1, reserve=2))
    expected = {0: 1 / 2, 1: 1 / 1.5, 2: 1 / 2.5}
    assert selection.chosen == (1,)
    assert dict(selection.scores) == pytest.approx(expected, rel=1e-4)


def test_small_clusters_come_last() -> None:
    pool = evidence(np.concatenate([groups([12, 9]), [[-300, 0]]]))
    selection = get_strategy("typiclust").select(Query(pool, Evidence.empty(), 3))
    assert 21 not in selection.chosen


def test_parameters_are_checked() -> None:
    with pytest.raises(ValueError, match="neighbours is 0"):
        get_strategy("typiclust", neighbours=0)
