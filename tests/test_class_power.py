from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from al_strategies import ClassPower, Evidence, Position, Query, get_strategy

NO_NOISE = {"first_beta": 1e9, "last_beta": 1e9}


def query(k: int, *, entropy: list[float], scores: list[list[float]], fractions: list[list[float]]):
    pool = Evidence(
        tuple(range(len(entropy))),
        tuple(Position("v", z) for z in range(len(entropy))),
        scores={"entropy": np.array(entropy)},
        features={
            "class_scores": np.array(scores, dtype=np.float32),
            "class_fractions": np.array(fractions, dtype=np.float32),
        },
    )
    return Query(pool, Evidence.empty(), k)


def three_classes(k: int) -> Query:
    """Slice 0 most uncertain overall, and on the background; 1 on class 1, 2 on class 2, 3 on the
    rare class 3; class 4 is nowhere."""
    return query(
        k,
        entropy=[0.9, 0.5, 0.4, 0.3, 0.2],
        scores=[
            [0.70, 0.10, 0.10, 0.00, 0],
            [0.00, 0.40, 0.10, 0.00, 0],
            [0.05, 0.05, 0.30, 0.00, 0],
            [0.05, 0.05, 0.05, 0.15, 0],
            [0.07, 0.06, 0.06, 0.01, 0],
        ],
        fractions=[
            [0.80, 0.10, 0.10, 0.00, 0],
            [0.10, 0.50, 0.40, 0.00, 0],
            [0.20, 0.40, 0.40, 0.00, 0],
            [0.20, 0.40, 0.30, 0.10, 0],
            [0.19, 0.80, 0.00, 0.01, 0],
        ],
    )


def test_two_in_three_class_by_class_the_rarest_first() -> None:
    # slots: class, global, class, class (0.66 × 1, 2, 3, 4 rounded: 1, 1, 2, 3)
    selection = get_strategy("class_power", **NO_NOISE).select(three_classes(4))
    assert selection.chosen == (3, 0, 2, 1)


def test_without_strata_it_is_the_entropy() -> None:
    strategy = get_strategy("class_power", stratified=0.0, **NO_NOISE)
    assert strategy.select(three_classes(5)).chosen == (0, 1, 2, 3, 4)


def test_a_slice_counts_for_a_class_from_the_least_fraction_on() -> None:
    strategy = get_strategy("class_power", stratified=1.0, least_fraction=0.2, **NO_NOISE)
    assert strategy.select(three_classes(2)).chosen == (2, 1)  # class 3 has no slice left


def test_the_background_is_no_stratum() -> None:
    strategy = get_strategy("class_power", stratified=1.0, **NO_NOISE)
    assert strategy.select(three_classes(3)).chosen == (3, 2, 1)
    assert 0 not in strategy.select(three_classes(4)).chosen


def test_a_small_k_gets_to_every_class_over_the_rounds() -> None:
    strategy = get_strategy("class_power", stratified=1.0, **NO_NOISE)
    asked = three_classes(1)
    picks = [strategy.select(dataclasses.replace(asked, round=r)).chosen[0] for r in (1, 2, 3)]
    assert picks == [3, 2, 1]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_share_holds_over_the_rounds_and_no_class_is_passed_over(k: int) -> None:
    # 0 is taken by the entropy over all pixels; 3, 2, 1, 3, … class by class, 8 of 12
    strategy, asked = get_strategy("class_power", **NO_NOISE), three_classes(k)
    taken: list[object] = []
    for number in range(1, 12 // k + 1):
        taken += strategy.select(dataclasses.replace(asked, round=number)).chosen
    assert taken == [3, 0, 2, 1, 0, 3, 2, 0, 1, 3, 0, 2]


def test_beta_rises_geometrically_from_the_first_round_to_the_last() -> None:
    strategy, asked = ClassPower(), three_classes(1)
    betas = [strategy.beta(dataclasses.replace(asked, round=r, rounds=5)) for r in range(7)]
    assert betas == pytest.approx([1, 1, 10**0.5, 10, 10**1.5, 100, 100])


def test_at_beta_one_slices_are_drawn_in_proportion_to_their_score() -> None:
    asked = query(1, entropy=[0.6, 0.3, 0.1], scores=[[0.0]] * 3, fractions=[[1.0]] * 3)
    strategy = get_strategy("class_power", stratified=0.0)
    picks = [strategy.select(dataclasses.replace(asked, seed=s)).chosen[0] for s in range(1500)]
    np.testing.assert_allclose(np.bincount(picks) / 1500, [0.6, 0.3, 0.1], atol=0.04)


@pytest.mark.parametrize("params", [{"stratified": 1.1}, {"first_beta": 0.0}, {"last_beta": -1.0}])
def test_parameters_are_checked(params: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        get_strategy("class_power", **params)
