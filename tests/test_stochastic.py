from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from al_strategies import Evidence, Position, Query, Spacing, get_strategy

VALUES = np.random.default_rng(0).random(60)


def query(k: int, seed: int = 0, *, reserve: int = 0) -> Query:
    pool = Evidence(
        tuple(range(60)),
        tuple(Position("v", z) for z in range(60)),
        scores={"entropy": VALUES, "margin": VALUES},
    )
    return Query(pool, Evidence.empty(), k, seed=seed, reserve=reserve)


def batches(base: str, seed: int) -> list[float]:
    selection = get_strategy("stochastic_batches", base=base).select(query(6, seed, reserve=54))
    queue = np.array(selection.chosen + selection.reserve)
    return [float(VALUES[part].mean()) for part in queue.reshape(10, 6)]


@pytest.mark.parametrize("seed", range(5))
def test_batches_come_by_their_mean_score(seed: int) -> None:
    means = batches("entropy", seed)
    assert means == sorted(means, reverse=True)


def test_a_base_that_takes_the_lowest_is_followed() -> None:
    means = batches("margin", 0)
    assert means == sorted(means)


def test_better_than_random_but_not_the_top() -> None:
    means = [batches("entropy", seed)[0] for seed in range(20)]
    assert VALUES.mean() < np.mean(means) < np.sort(VALUES)[-6:].mean()
    assert len(set(means)) > 10


def test_a_batch_begins_with_its_best_slice() -> None:
    chosen = get_strategy("stochastic_batches").select(query(6)).chosen
    values = [VALUES[int(i)] for i in chosen]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("seed", range(8))
def test_batches_are_drawn_from_what_spacing_lets_be_picked(seed: int) -> None:
    """Twelve slices are alone in their volumes, the others are too near to a labelled one."""
    asked = query(6, seed, reserve=6)
    places = tuple(Position("v" if i >= 12 else f"v{i}", i) for i in range(60))
    asked = dataclasses.replace(
        asked,
        pool=dataclasses.replace(asked.pool, positions=places),
        labelled=Evidence((100,), (Position("v", 30),)),
        spacing=Spacing(gap=100),
    )
    selection = get_strategy("stochastic_batches").select(asked)

    drawn = np.random.default_rng([seed, 1]).permutation(12)
    reserve, chosen = sorted((drawn[:6], drawn[6:]), key=lambda batch: VALUES[batch].mean())
    assert set(selection.chosen) == set(chosen)
    assert set(selection.reserve) == set(reserve)


def test_an_oracle_stays_one_under_the_wrapper() -> None:
    assert get_strategy("stochastic_batches", base="worst_iou").needs_ground_truth
    assert not get_strategy("stochastic_batches").needs_ground_truth


def test_the_base_says_what_evidence_is_needed() -> None:
    strategy = get_strategy("stochastic_batches", base="coreset_nearest")
    assert strategy.evidence == ("embedding",)
    assert strategy.labelled_evidence == ("embedding",)
    assert get_strategy("stochastic_batches", base="mc_dropout").evidence == ("mc_entropy",)


def test_a_base_without_a_score_per_slice_is_refused() -> None:
    with pytest.raises(ValueError, match="a score per slice, not 'coreset'"):
        get_strategy("stochastic_batches", base="coreset")


def test_the_record_replays_the_base() -> None:
    selection = get_strategy("stochastic_batches", base="margin").select(query(6))
    again = get_strategy(selection.strategy, **selection.params).select(query(6))
    assert again == selection
