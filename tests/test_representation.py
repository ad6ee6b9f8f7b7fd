from __future__ import annotations

import dataclasses

import numpy as np

from al_strategies import Evidence, Position, Query, Spacing, get_strategy


def query(xs: list[float], entropies: list[float], **kwargs) -> Query:
    pool = Evidence(
        tuple(range(len(xs))),
        tuple(Position("v", z) for z in range(len(xs))),
        scores={"mc_entropy": np.array(entropies)},
        features={"embedding": np.array(xs, dtype=np.float32)[:, None]},
    )
    return Query(pool, Evidence.empty(), **kwargs)


def test_of_the_2k_most_uncertain_the_k_farthest_apart() -> None:
    # the top four by entropy are 5, 4, 3, 2; from 5 (x = 0) the farthest is 3, then 2 at a distance
    # of 4 from 5 and 6 from 3, then 4; 0 is far off, but not uncertain
    asked = query([100, 50, 4, 10, 1, 0], [0.1, 0.2, 0.6, 0.7, 0.8, 0.9], k=2, reserve=4)
    selection = get_strategy("max_representation").select(asked)
    assert selection.chosen == (5, 3)
    assert selection.reserve == (2, 4, 1, 0)


def test_equally_far_slices_go_by_id() -> None:
    asked = query([0, -3, 3, 3], [0.9, 0.5, 0.6, 0.7], k=2)
    assert get_strategy("max_representation").select(asked).chosen == (0, 1)


def test_the_shortlist_is_spaced_already() -> None:
    # without spacing the four most uncertain are neighbours, and two of them would be chosen
    entropies = [0.9, 0.8, 0.7, 0.6] + [0.5 - z / 100 for z in range(8)]
    asked = query([float(z) for z in range(12)], entropies, k=2, spacing=Spacing(gap=3))
    chosen = get_strategy("max_representation").select(asked).chosen
    assert chosen == (0, 9)


def test_the_spacing_that_held_is_told_for_a_single_slice() -> None:
    asked = query([0.0], [0.9], k=1, spacing=Spacing(gap=5))
    beside = Evidence((7,), (Position("v", 1),))
    for name in ("max_representation", "mc_dropout"):
        selection = get_strategy(name).select(dataclasses.replace(asked, labelled=beside))
        assert selection.spacing == Spacing(gap=0)
