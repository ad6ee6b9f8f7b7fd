from __future__ import annotations

import numpy as np

from al_strategies import Evidence, Position, Query, available_strategies, get_strategy


def test_the_k_of_lowest_true_iou() -> None:
    places = tuple(Position("v", z) for z in range(4))
    pool = Evidence((1, 2, 3, 4), places, scores={"iou": np.array([0.7, 0.2, 0.9, 0.2])})
    selection = get_strategy("worst_iou").select(Query(pool, Evidence.empty(), 2, reserve=1))
    assert selection.chosen == (2, 4)
    assert selection.reserve == (1,)


def test_only_the_oracle_needs_ground_truth() -> None:
    assert [i.name for i in available_strategies() if i.needs_ground_truth] == ["worst_iou"]
