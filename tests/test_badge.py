from __future__ import annotations

import numpy as np
import pytest

from al_strategies import Evidence, Position, Query, get_strategy


def query(gradients: list[list[float]], k: int, seed: int = 0) -> Query:
    pool = Evidence(
        tuple(range(len(gradients))),
        tuple(Position("v", z) for z in range(len(gradients))),
        features={"gradient": np.array(gradients, dtype=np.float32)},
    )
    return Query(pool, Evidence.empty(), k, seed=seed)


def test_the_largest_gradient_comes_first_and_is_reported() -> None:
    selection = get_strategy("badge").select(query([[0, 1], [3, 4], [0, 2]], 1))
    assert selection.chosen == (1,)
    assert selection.scores[1] == pytest.approx(5)


def test_each_next_one_by_its_squared_distance_from_those_chosen() -> None:
    # after slice 0, at squared distances 1 and 9 from it; a copy of it is never drawn
    gradients = [[10.0], [9.0], [7.0], [10.0]]
    second = [
        get_strategy("badge").select(query(gradients, 2, seed)).chosen[1] for seed in range(400)
    ]
    assert 3 not in second
    assert np.mean([i == 2 for i in second]) == pytest.approx(0.9, abs=0.05)


def test_copies_are_taken_by_id_when_there_is_nothing_else() -> None:
    assert get_strategy("badge").select(query([[4.0], [5.0], [5.0], [4.0]], 4)).chosen in (
        (1, 0, 2, 3),
        (1, 3, 0, 2),
    )
