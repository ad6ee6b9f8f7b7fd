"""Strategies that rank by one number: which end of it they take, and who wins a tie."""

from __future__ import annotations

import numpy as np
import pytest

from al_strategies import Evidence, Position, Query, get_strategy

VALUES = [0.3, 0.9, 0.1, 0.9, 0.5]


@pytest.mark.parametrize(
    ("name", "evidence", "expected"),
    [
        ("entropy", "entropy", (2, 4, 5)),
        ("confidence", "confidence", (3, 1, 5)),
        ("margin", "margin", (3, 1, 5)),
    ],
)
def test_the_right_end_of_the_right_score(
    name: str, evidence: str, expected: tuple[int, ...]
) -> None:
    places = tuple(Position("v", z) for z in range(5))
    pool = Evidence((1, 2, 3, 4, 5), places, scores={evidence: np.array(VALUES)})

    selection = get_strategy(name).select(Query(pool, Evidence.empty(), 2, reserve=1))

    assert selection.chosen + selection.reserve == expected
    assert [selection.scores[i] for i in expected] == [VALUES[int(i) - 1] for i in expected]
