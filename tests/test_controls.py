from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from al_strategies import Evidence, Position, Query, SliceId, get_strategy
from al_strategies.spacing import Spacing, even_spacing


def query(sizes: dict[str, int], k: int, *, reserve: int = 0, seed: int = 0, **scores) -> Query:
    """Volumes of the given sizes, one after the other; slice "v/3" is at z = 3 of v."""
    places = [Position(volume, z) for volume, size in sizes.items() for z in range(size)]
    ids: tuple[SliceId, ...] = tuple(f"{p.volume}/{int(p.z):03}" for p in places)
    pool = Evidence(ids, tuple(places), scores=scores)
    return Query(pool, Evidence.empty(), k, reserve=reserve, seed=seed)


def by_volume(ids: tuple[SliceId, ...]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for slice_id in ids:
        volume, z = str(slice_id).split("/")
        found.setdefault(volume, []).append(int(z))
    return {volume: sorted(zs) for volume, zs in found.items()}


@pytest.mark.parametrize("seed", range(5))
def test_strided_slices_are_evenly_spaced(seed: int) -> None:
    chosen = get_strategy("strided").select(query({"v": 80}, 8, seed=seed)).chosen
    assert set(np.diff(by_volume(chosen)["v"])) == {10}


def test_strided_phase_is_random() -> None:
    firsts = {
        min(by_volume(get_strategy("strided").select(query({"v": 80}, 8, seed=s)).chosen)["v"])
        for s in range(30)
    }
    assert len(firsts) > 5
    assert firsts <= set(range(10))


def test_strided_takes_from_every_volume_alike_and_in_turn() -> None:
    chosen = get_strategy("strided").select(query({"a": 30, "b": 90, "c": 50}, 6)).chosen
    assert [str(i)[0] for i in chosen] == ["a", "b", "c"] * 2


def test_strided_takes_more_from_others_when_a_volume_is_small() -> None:
    chosen = get_strategy("strided").select(query({"a": 1, "b": 40, "c": 40}, 9)).chosen
    assert {v: len(zs) for v, zs in by_volume(chosen).items()} == {"a": 1, "b": 4, "c": 4}


def test_strided_volumes_get_one_more_by_chance() -> None:
    strategy = get_strategy("strided")
    shares = [
        by_volume(strategy.select(query({"a": 9, "b": 9}, 3, seed=s)).chosen) for s in range(40)
    ]
    assert {len(share["a"]) for share in shares} == {1, 2}
    assert 8 < sum(len(share["a"]) == 2 for share in shares) < 32


def test_strided_beginnings_are_spread_out_too() -> None:
    chosen = get_strategy("strided").select(query({"v": 80}, 8)).chosen
    first_two = by_volume(chosen[:2])["v"]
    assert np.diff(first_two).tolist() == [40]


def test_strided_is_even_among_the_slices_that_are_not_deferred() -> None:
    asked = query({"v": 80}, 8)
    odd = frozenset(i for i in asked.pool.ids if int(str(i)[2:]) % 2)
    chosen = get_strategy("strided").select(dataclasses.replace(asked, deferred=odd)).chosen
    assert set(np.diff(by_volume(chosen)["v"])) == {10}


def test_strided_looks_at_z_not_at_ids() -> None:
    zs = [3.0, 0.0, 2.0, 1.0]
    pool = Evidence((1, 2, 3, 4), tuple(Position("v", z) for z in zs))
    chosen = get_strategy("strided").select(Query(pool, Evidence.empty(), 2)).chosen
    z_of = dict(zip(pool.ids, zs, strict=True))
    assert abs(z_of[chosen[0]] - z_of[chosen[1]]) == 2


def after_rounds(asked: Query, rounds: int, name: str = "strided") -> tuple[SliceId, ...]:
    """What has been chosen after ``rounds`` more selections from ``asked``, all of it labelled."""
    strategy = get_strategy(name)
    done: list[int] = []
    for round in range(rounds):
        left = [i for i in range(len(asked.pool)) if i not in set(done)]
        chosen = strategy.select(
            dataclasses.replace(
                asked,
                pool=asked.pool.take(left),
                labelled=dataclasses.replace(asked.pool.take(done), scores={}),
                round=round,
            )
        ).chosen
        done += [asked.pool.ids.index(i) for i in chosen]
    return tuple(asked.pool.ids[row] for row in done)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("k", "rounds"), [(2, 10), (8, 5), (1, 12)])
def test_strided_stays_even_between_what_is_labelled(k: int, rounds: int, seed: int) -> None:
    places = [Position("v", z) for z in range(80)]
    asked = dataclasses.replace(query({"v": 80}, k, seed=seed), spacing=even_spacing(places, k))
    zs = by_volume(after_rounds(asked, rounds))["v"]
    step = 80 / len(zs)
    inside = np.diff(zs)
    # a gap is halved or left as it is, so none is far from the even step
    assert 0.4 * step - 1 <= min(inside)
    assert max(*inside, 2 * zs[0], 2 * (79 - zs[-1])) <= 2 * step + 1


def test_strided_divides_a_gap_evenly_and_goes_to_the_widest_first() -> None:
    asked = query({"v": 61}, 4)
    labelled = [0, 31, 60]  # gaps of 30 and 28 slices, and no end of the volume is open
    left = [z for z in range(61) if z not in labelled]
    asked = dataclasses.replace(
        asked, pool=asked.pool.take(left), labelled=asked.pool.take(labelled)
    )
    strided = get_strategy("strided")
    assert by_volume(strided.select(asked).chosen)["v"] == [10, 21, 41, 50]
    one = strided.select(dataclasses.replace(asked, k=1)).chosen
    assert by_volume(one)["v"] == [16]  # 15.5


def test_strided_leaves_half_a_step_to_the_ends_of_a_volume() -> None:
    asked = query({"v": 9}, 2)
    left = [z for z in range(9) if z != 4]
    asked = dataclasses.replace(asked, pool=asked.pool.take(left), labelled=asked.pool.take([4]))
    assert by_volume(get_strategy("strided").select(asked).chosen)["v"] == [1, 7]


def test_strided_goes_to_the_volumes_with_the_fewest_labels_first() -> None:
    asked = query({"a": 20, "b": 20, "c": 20}, 2)
    labelled = [5, 15, 25]  # a, a, b
    left = [row for row in range(60) if row not in labelled]
    asked = dataclasses.replace(
        asked, pool=asked.pool.take(left), labelled=asked.pool.take(labelled)
    )
    for seed in range(5):
        chosen = get_strategy("strided").select(dataclasses.replace(asked, seed=seed)).chosen
        assert set(by_volume(chosen)) == {"b", "c"}


def test_strided_takes_the_nearest_slice_that_the_spacing_allows() -> None:
    asked = query({"v": 30}, 1)
    left = [z for z in range(30) if z not in (9, 20)]
    asked = dataclasses.replace(
        asked,
        pool=asked.pool.take(left),
        labelled=asked.pool.take([9, 20]),
        spacing=Spacing(gap=7),
    )
    # the ends are 9 slices from a label, as the middle is 5: the step there is longer, the tooth 6
    # from the label, and only 2, 1 and 0, or 27 to 29 are 7 away
    assert by_volume(get_strategy("strided").select(asked).chosen)["v"] in ([2], [27])


def test_random_takes_every_slice_equally_often() -> None:
    counts = Counter(
        slice_id
        for seed in range(400)
        for slice_id in get_strategy("random").select(query({"v": 10}, 3, seed=seed)).chosen
    )
    assert len(counts) == 10
    assert all(80 < n < 160 for n in counts.values())  # 120 expected, standard deviation 9


def test_foreground_random_prefers_foreground_two_times_in_three() -> None:
    foreground = np.array([0.0] * 50 + [0.9] * 50)
    strategy = get_strategy("foreground_random")
    chosen = [
        str(i)
        for seed in range(60)
        for i in strategy.select(query({"v": 100}, 9, seed=seed, foreground=foreground)).chosen
    ]
    share = np.mean([int(i[2:]) >= 50 for i in chosen])
    assert 0.78 < share < 0.90  # 2/3 + 1/3 × 44/94, roughly


@pytest.mark.parametrize(("k", "rounds"), [(1, 9), (2, 6), (4, 6), (8, 3)])
def test_foreground_random_counts_two_in_three_over_all_rounds(k: int, rounds: int) -> None:
    foreground = np.array([0.0] * 150 + [0.9] * 150)
    asked = query({"v": 300}, k, foreground=foreground)
    by_foreground, n = 0, k * rounds
    for seed in range(30):
        for round in range(1, rounds + 1):
            at = dataclasses.replace(asked, seed=seed, round=round)
            chosen = get_strategy("foreground_random").select(at).chosen
            by_foreground += sum(int(str(i)[2:]) >= 150 for i in chosen)
    assert 0.76 < by_foreground / (30 * n) < 0.90  # 2/3 + 1/3 × 1/2, roughly


def test_foreground_random_without_its_fraction_is_random() -> None:
    foreground = np.array([0.0] * 50 + [0.9] * 50)
    strategy = get_strategy("foreground_random", fraction=0.0)
    chosen = [
        str(i)
        for seed in range(60)
        for i in strategy.select(query({"v": 100}, 9, seed=seed, foreground=foreground)).chosen
    ]
    assert 0.42 < np.mean([int(i[2:]) >= 50 for i in chosen]) < 0.58


def test_foreground_random_checks_its_fraction() -> None:
    with pytest.raises(ValueError, match=r"fraction is 1\.5"):
        get_strategy("foreground_random", fraction=1.5)
