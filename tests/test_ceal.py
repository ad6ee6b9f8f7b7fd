from __future__ import annotations

import numpy as np
import pytest

from al_strategies import Evidence, Position, Query, get_strategy


def query(k: int, *, deferred: frozenset[int] = frozenset(), reserve: int = 0) -> Query:
    scores = {
        "entropy": [0.9, 0.8, 0.7, 0.2, 0.1, 0.3],  # ranks 1 2 3 5 6 4
        "confidence": [0.5, 0.3, 0.4, 0.8, 0.9, 0.7],  # ranks 3 1 2 5 6 4
        "margin": [0.2, 0.1, 0.3, 0.6, 0.9, 0.3],  # ranks 2 1 3.5 5 6 3.5
    }  # means 2, 4/3, 17/6, 5, 6, 23/6
    pool = Evidence(
        (10, 11, 12, 13, 14, 15),
        tuple(Position("v", z) for z in range(6)),
        scores={name: np.array(values) for name, values in scores.items()},
    )
    return Query(pool, Evidence.empty(), k, reserve=reserve, deferred=deferred)


def test_mean_of_three_ranks_then_the_next_k_for_pseudo_labels() -> None:
    selection = get_strategy("ceal").select(query(2, reserve=1))
    assert selection.chosen == (11, 10)
    assert selection.reserve == (12,)
    assert selection.pseudo == (12, 15)
    assert list(selection.scores.values()) == pytest.approx([4 / 3, 2, 17 / 6])


def test_the_original_pseudo_labels_the_most_confident() -> None:
    selection = get_strategy("ceal_confident").select(query(2))
    assert selection.chosen == (11, 10)
    assert selection.pseudo == (14, 13)


def test_pseudo_labels_end_where_the_pool_does() -> None:
    assert get_strategy("ceal").select(query(4)).pseudo == (13, 14)
    assert get_strategy("ceal_confident").select(query(5)).pseudo == (14,)
    assert get_strategy("ceal").select(query(6)).pseudo == ()


@pytest.mark.parametrize(("name", "expected"), [("ceal", (15, 13)), ("ceal_confident", (13, 15))])
def test_deferred_slices_get_no_pseudo_label(name: str, expected: tuple[int, ...]) -> None:
    selection = get_strategy(name).select(query(2, deferred=frozenset({12, 14})))
    assert selection.pseudo == expected
