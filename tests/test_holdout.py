"""What is held out, to test on or to judge checkpoints by, lies in blocks along z."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from al_strategies.base import Problem, Query, Ranking, Strategy, StrategyInfo, get_strategy
from al_strategies.evidence import Evidence, Position, SliceId
from al_strategies.handing_out import hand_out
from al_strategies.holdout import (
    ZBlock,
    closed,
    fixed_blocks,
    held_out_block,
    held_out_places,
    inside,
    split_labelled,
)


def along_z(zs: list[int], volume: str = "v") -> dict[SliceId, Position]:
    return {f"{volume}{z}": Position(volume, float(z)) for z in zs}


def test_consecutive_slices_lose_a_gap_on_both_sides() -> None:
    train, held = held_out_block(along_z(list(range(112))))
    z = [int(str(i)[1:]) for i in held]
    assert len(held) == 22
    assert z == list(range(z[0], z[0] + 22))
    assert set(train) == {f"v{k}" for k in range(112) if k < z[0] - 5 or k > z[-1] + 5}
    assert len(train) == 80


def test_every_fiftieth_slice_needs_no_gap() -> None:
    zs = [0, 50, 100, 150, 180, 200, 250, 300, 350, 400]
    train, held = held_out_block(along_z(zs), fraction=0.4)
    assert held == ("v150", "v180", "v200", "v250")
    assert train == ("v0", "v50", "v100", "v300", "v350", "v400")


def test_every_volume_has_its_block_and_keeps_the_order_of_tasks() -> None:
    positions = along_z(list(range(19, -1, -1)), "a") | along_z(list(range(20)), "b")
    train, held = held_out_block(positions, fraction=0.2, gap=1)
    assert held == ("a11", "a10", "a9", "a8", "b8", "b9", "b10", "b11")
    assert [i for i in positions if i in train] == list(train)
    assert len(train) == 40 - 8 - 4


def test_block_at_the_end_has_one_neighbour_only() -> None:
    train, held = held_out_block(along_z(list(range(10))), fraction=0.2, gap=2, centre=1.0)
    assert held == ("v8", "v9")
    assert train == ("v0", "v1", "v2", "v3", "v4", "v5")


@pytest.mark.parametrize(
    ("zs", "options"),
    [
        ([0, 1], {}),
        (list(range(6)), {}),  # the gap of 5 leaves nothing
        (list(range(50)), {"fraction": 0.0}),
        (list(range(50)), {"fraction": 1.0}),
        (list(range(50)), {"gap": -1.0}),
        (list(range(50)), {"gap": float("nan")}),
        (list(range(50)), {"centre": 1.5}),
    ],
)
def test_impossible_block(zs: list[int], options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="fraction"):
        held_out_block(along_z(zs), **options)


@given(
    zs=st.lists(st.integers(0, 300), min_size=3, max_size=60, unique=True),
    fraction=st.floats(0.05, 0.9),
    gap=st.floats(0, 20),
    centre=st.floats(0, 1),
)
def test_no_trained_slice_lies_within_the_gap(
    zs: list[int], fraction: float, gap: float, centre: float
) -> None:
    positions = along_z(zs)
    try:
        train, held = held_out_block(positions, fraction=fraction, gap=gap, centre=centre)
    except ValueError as error:
        assert "left 0" in str(error)  # noqa: PT017
        return
    block = [positions[i].z for i in held]
    assert all(abs(positions[i].z - z) > gap for i in train for z in block)
    inside = [i for i in positions if min(block) <= positions[i].z <= max(block)]
    assert set(inside) == set(held)


# -- what judges checkpoints


def stack(volume: str, slices: int, step: float = 1.0) -> dict[SliceId, Position]:
    return {f"{volume}{z:03d}": Position(volume, step * z) for z in range(slices)}


def held(positions: dict[SliceId, Position], blocks: Sequence[ZBlock]) -> list[SliceId]:
    return sorted(inside(positions, positions, blocks))


@pytest.mark.parametrize("seed", range(5))
def test_a_volume_holds_a_fifth_out_in_blocks_all_over_it(seed: int) -> None:
    positions = stack("v", 90)

    blocks = fixed_blocks(positions, seed=seed)

    assert len(blocks) == 3
    assert [int(str(i)[1:]) // 30 for i in held(positions, blocks)] == [0] * 6 + [1] * 6 + [2] * 6
    assert blocks == fixed_blocks(positions, seed=seed)


def test_another_seed_holds_others_out() -> None:
    assert len({fixed_blocks(stack("v", 90), seed=seed) for seed in range(10)}) > 5


def test_blocks_stay_and_volumes_that_come_later_get_their_own() -> None:
    first = fixed_blocks(stack("a", 40), seed=1)
    both = stack("a", 60) | stack("b", 40)

    second = fixed_blocks(both, blocks=first, seed=1)

    assert second[: len(first)] == first
    assert {block.volume for block in second[len(first) :]} == {"b"}
    assert fixed_blocks(both, blocks=second, seed=99) == second


def test_small_volumes_are_held_out_whole_and_at_most_a_fifth_of_them() -> None:
    positions: dict[SliceId, Position] = {}
    for volume in "abcdefghij":
        positions |= stack(volume, 2)

    blocks = fixed_blocks(positions, seed=3)

    assert len(blocks) == 2
    assert all((block.low, block.high) == (-0.5, 1.5) for block in blocks)
    assert fixed_blocks(positions, blocks=blocks, seed=4) == blocks


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("step", [1.0, 0.25])
@pytest.mark.parametrize("slices", [1, 2, 12, 60])
def test_slices_that_a_volume_gains_are_not_held_out_by_blocks_at_its_ends(
    slices: int, step: float, seed: int
) -> None:
    """As of `import --range 400:600`, and of the rest later."""

    def cut(*rows: int) -> dict[SliceId, Position]:
        return {f"{v}{row}": Position(v, step * row) for v in "abcdefghij" for row in rows}

    there = cut(*range(400, 400 + slices))
    blocks = fixed_blocks(there, seed=seed)
    assert 0.15 * len(there) < len(held(there, blocks)) < 0.25 * len(there)

    gained = cut(*range(390, 400), *range(400 + slices, 410 + slices))

    assert fixed_blocks(there | gained, blocks=blocks, seed=seed)[: len(blocks)] == blocks
    assert not held(gained, blocks)


def test_open_ends_of_an_older_record_stop_where_the_volume_did() -> None:
    blocks = (ZBlock("v", None, 4.5), ZBlock("v", 20.5), ZBlock("w"), ZBlock("gone", 3.0))
    positions = stack("v", 30) | {"w7": Position("w", 7.0)}

    assert tuple(closed(block, positions.values()) for block in blocks) == (
        ZBlock("v", -0.5, 4.5),
        ZBlock("v", 20.5, 29.5),
        ZBlock("w", 7.0, 7.0),
        ZBlock("gone", 3.0),
    )


def test_a_handful_of_slices_is_all_trained_on() -> None:
    assert fixed_blocks(stack("v", 9)) == ()


@pytest.mark.parametrize("seed", range(5))
def test_what_was_learned_before_there_were_blocks_stays_outside_where_it_can(seed: int) -> None:
    positions = stack("v", 90)
    learned = {i for i in positions if int(str(i)[1:]) % 10 == 0}

    blocks = fixed_blocks(positions, labelled=learned, learned=learned, seed=seed)

    assert not learned & set(held(positions, blocks))
    assert len(held(positions, blocks)) == 18


def test_labels_from_before_adoption_are_held_out_in_proportion() -> None:
    positions = stack("v", 100)
    labelled = [f"v{z:03d}" for z in range(30, 45)]

    blocks = fixed_blocks(positions, labelled=labelled, seed=0)

    assert len(inside(labelled, positions, blocks)) == 3


@pytest.mark.parametrize("seed", range(20))
def test_labels_of_a_part_of_a_volume_do_not_hold_the_rest_of_it_out(seed: int) -> None:
    positions = stack("v", 100)
    labelled = [f"v{z:03d}" for z in range(30, 45)]

    blocks = fixed_blocks(positions, labelled=labelled, seed=seed)

    assert len(held(positions, blocks)) == 3


def test_every_fifth_label_is_one_that_judges() -> None:
    places = [place for place, due in enumerate(held_out_places(20, 0, 0)) if due]
    assert places == [4, 9, 14, 19]
    following = [held_out_places(3, labelled, labelled // 5) for labelled in range(0, 30, 3)]
    assert sum(due for places in following for due in places) == 6


def test_too_few_are_made_up_for_slowly_and_too_many_are_waited_for() -> None:
    assert [p for p, due in enumerate(held_out_places(12, 60, 0)) if due] == [4, 9]
    assert not any(held_out_places(12, 20, 8))


@pytest.mark.parametrize("k", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("labelled", [0, 40, 43])
def test_no_more_than_one_in_five_makes_up_whatever_k_is(k: int, labelled: int) -> None:
    handed: list[bool] = []
    while len(handed) < 48:
        handed += held_out_places(k, labelled + len(handed), sum(handed))

    assert [n for n, due in enumerate(handed) if due] == list(range(4 - labelled % 5, 48, 5))


def test_the_labels_inside_validate_and_the_others_train() -> None:
    positions = stack("v", 10)
    split = split_labelled(["v001", "v002", "v007"], positions, [ZBlock("v", 2, 4)])

    assert (split.train, split.validation) == (("v001", "v007"), ("v002",))


def test_blocks_give_way_where_nothing_else_is_labelled() -> None:
    blocks = [ZBlock("v", 2, 4), ZBlock("v", 7, 8)]

    split = split_labelled(["v002"], stack("v", 10), blocks)

    assert (split.train, split.validation) == (("v002",), ())
    assert split.blocks == (ZBlock("v", 7, 8),)


# -- handing out


def without_evidence(zs: Sequence[int]) -> Evidence:
    return Evidence(tuple(zs), tuple(Position("v", float(z)) for z in zs))


def rounds_of(
    strategy: Strategy, slices: int, blocks: tuple[ZBlock, ...], k: int
) -> list[list[int]]:
    """What each round hands out, until nothing is left."""
    pool, found = list(range(slices)), list[list[int]]()
    while pool:
        labelled = [z for chosen in found for z in chosen]
        query = Query(without_evidence(pool), without_evidence(labelled), k, round=len(found) + 1)
        found.append([int(i) for i in hand_out(strategy, query, blocks).chosen])
        pool = [z for z in pool if z not in found[-1]]
    return found


@pytest.mark.parametrize("held", [1, 3, 11])
def test_a_round_is_whole_also_where_few_slices_are_left_that_judge(held: int) -> None:
    blocks = (ZBlock("v", 0.0, float(held - 1)),)
    found = rounds_of(get_strategy("random"), 60, blocks, 8)
    assert [len(chosen) for chosen in found] == [8] * 7 + [4]


def test_a_strategy_is_told_how_many_slices_it_has_chosen() -> None:
    """So that its turns go on where they stopped: how many judge differs from round to round."""
    told: list[int] = []

    class Listening(Strategy):
        info = StrategyInfo("listening", "What it is told.")

        def rank(self, problem: Problem) -> Ranking:
            told.append(problem.query.chosen_before)
            rows = problem.admission.pick_in_order(np.arange(len(problem)), problem.count)
            return Ranking(rows, np.zeros(len(rows)))

    found = rounds_of(Listening(), 60, (ZBlock("v", 40.0, 51.0),), 8)
    taught = [sum(not 40 <= z <= 51 for z in chosen) for chosen in found]
    assert len(set(taught)) > 1
    assert told == [sum(taught[:before]) for before in range(len(told))]


@pytest.mark.parametrize("volumes", [1, 3, 10])
@pytest.mark.parametrize("further", [0, 5], ids=["K a round", "K of the reserve too"])
@pytest.mark.parametrize("reserve", [5, 320], ids=["a short reserve", "that of a live round"])
def test_what_judges_is_evenly_spread_from_the_first_label_on(
    volumes: int, further: int, reserve: int
) -> None:
    """``further``: slices that people label of the reserve, while a round is trained."""
    k, rounds = 5, 10
    places: dict[SliceId, Position] = {}
    for volume in range(volumes):
        places |= stack(f"v{volume} ", 600 // volumes)
    blocks = fixed_blocks(places)
    within, labelled = inside(places, places, blocks), list[SliceId]()

    def part(ids: list[SliceId]) -> Evidence:
        return Evidence(tuple(ids), tuple(places[i] for i in ids))

    for number in range(rounds):
        pool = [i for i in places if i not in labelled]
        query = Query(part(pool), part(labelled), k, reserve, number, seed=number)
        selection = hand_out(get_strategy("random"), query, blocks)
        labelled += [*selection.chosen, *selection.reserve][: k + further]

    judged = [places[i] for i in labelled if i in within]
    assert len(judged) == (k + further) * rounds // 5
    heights = [[p.z for p in judged if p.volume == v] for v in {p.volume for p in places.values()}]
    shares = sorted(len(z) for z in heights)
    assert shares[-1] - shares[0] <= 1, "as many of each volume"
    assert all(min(np.diff(sorted(z)), default=99) > 2 for z in heights), "no near-copies"


@pytest.mark.parametrize("skipped", [False, True], ids=["plain", "a slice that judges is skipped"])
@pytest.mark.parametrize("reserve", [0, 20])
@pytest.mark.parametrize("k", [1, 2, 8])
@pytest.mark.parametrize("name", ["ceal", "ceal_confident"])
def test_k_slices_are_pseudo_labelled_whatever_of_the_k_judges(
    name: str, k: int, reserve: int, skipped: bool
) -> None:
    def part(zs: list[int]) -> Evidence:
        sure = np.array(zs, float) / 100
        scores = {"entropy": 1 - sure, "confidence": sure, "margin": sure}
        return Evidence(tuple(zs), tuple(Position("v", float(z)) for z in zs), scores)

    done, judges = [0, 2, 4, 6], list(range(40, 60))
    query = Query(
        part([z for z in range(100) if z not in done]),
        part(done),
        k,
        reserve,
        deferred=frozenset(judges if skipped else ()),
    )

    selection = hand_out(get_strategy(name), query, (ZBlock("v", 40.0, 59.0),))

    assert len(selection.chosen) == len(selection.pseudo) == k
    assert not {*selection.pseudo} & {*selection.chosen, *judges}
