from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from al_strategies.evidence import Position
from al_strategies.spacing import Admission, Spacing, even_spacing


def column(n: int, volume: str = "v") -> list[Position]:
    return [Position(volume, z) for z in range(n)]


def rows(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_ranking_is_read_from_the_top_past_near_copies() -> None:
    admission = Admission(column(10), spacing=Spacing(gap=3))
    assert admission.pick_in_order(rows(5, 4, 6, 3, 8, 2, 1), 3).tolist() == [5, 8, 2]


def test_an_order_of_some_rows_ends_where_none_of_them_is_allowed() -> None:
    admission = Admission(column(10), spacing=Spacing(gap=3))
    assert admission.pick_in_order(rows(5, 4), 2).tolist() == [5]


def test_labelled_slices_keep_their_neighbours_away() -> None:
    admission = Admission(column(10), labelled=[Position("v", 5)], spacing=Spacing(gap=3))
    assert np.flatnonzero(admission.allowed()).tolist() == [0, 1, 2, 8, 9]


def test_labelled_slices_of_other_volumes_do_not_matter() -> None:
    admission = Admission(column(4), labelled=[Position("w", 1)], spacing=Spacing(gap=3))
    assert admission.allowed().all()


def test_labelled_slices_do_not_use_up_the_quota() -> None:
    admission = Admission(column(4), labelled=[Position("v", 9)], spacing=Spacing(quota=1))
    assert admission.allowed().all()


def test_a_volume_with_its_quota_full_is_closed() -> None:
    positions = column(3, "v") + column(3, "w")
    admission = Admission(positions, spacing=Spacing(quota=1))
    admission.pick(1)
    assert np.flatnonzero(admission.allowed()).tolist() == [3, 4, 5]


def test_the_quota_is_raised_before_the_gap_is_touched() -> None:
    admission = Admission(column(20), spacing=Spacing(quota=1, gap=10))
    picks = admission.pick_in_order(np.arange(20), 2)
    assert picks.tolist() == [0, 10]
    assert admission.spacing_of(1) == Spacing(quota=1, gap=10)
    assert admission.spacing_of(2) == Spacing(quota=2, gap=10)


def test_the_gap_is_halved_only_when_no_volume_has_room() -> None:
    positions = column(5, "v") + column(5, "w")
    admission = Admission(positions, spacing=Spacing(gap=4))
    # 0 and 4 fill v, 5 and 9 (z = 0 and 4) fill w; then half the gap lets the middles in
    assert admission.pick_in_order(np.arange(10), 6).tolist() == [0, 4, 5, 9, 2, 7]
    assert [admission.spacing_of(n).gap for n in (4, 5, 6)] == [4, 2, 2]


def test_the_gap_is_given_up_below_one_slice() -> None:
    admission = Admission([Position("v", 3.0)] * 3, spacing=Spacing(gap=5))
    assert admission.pick_in_order(np.arange(3), 3).tolist() == [0, 1, 2]
    assert admission.spacing_of(3).gap == 0


def test_deferred_slices_wait_for_all_others() -> None:
    admission = Admission(column(4), deferred=np.array([True, False, True, False]))
    assert admission.pick_in_order(rows(0, 1, 2, 3), 4).tolist() == [1, 3, 0, 2]


def test_spacing_is_relaxed_before_a_deferred_slice_is_taken() -> None:
    deferred = np.array([False, False, False, True])
    admission = Admission(column(4), spacing=Spacing(gap=3), deferred=deferred)
    assert admission.pick_in_order(np.arange(4), 3).tolist() == [0, 2, 1]


def test_a_slice_is_picked_once() -> None:
    admission = Admission(column(2))
    admission.pick(1)
    with pytest.raises(ValueError, match="slice 1 has been picked before"):
        admission.pick(1)


def test_nothing_is_allowed_when_all_is_picked() -> None:
    admission = Admission(column(1), spacing=Spacing(quota=1, gap=1))
    admission.pick(0)
    assert not admission.allowed().any()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"quota": 0}, "quota is 0"),
        ({"gap": -1}, "gap is -1"),
        ({"gap": float("nan")}, "gap is nan"),
        ({"gap": float("inf")}, "gap is inf"),
    ],
)
def test_a_spacing_checks_itself(kwargs: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Spacing(**kwargs)  # type: ignore[arg-type]


def test_an_even_spacing_of_no_slices_has_the_least_quota() -> None:
    assert even_spacing(column(9, "v") + column(9, "w"), 0) == Spacing(quota=1, gap=2)


@given(
    zs=st.lists(st.integers(0, 30), min_size=1, max_size=25),
    quota=st.none() | st.integers(1, 4),
    gap=st.floats(0, 40),
    volumes=st.integers(1, 3),
    labelled=st.lists(st.integers(0, 30), max_size=3),
)
def test_every_slice_is_picked_in_the_end_and_what_held_was_held(
    zs: list[int], quota: int | None, gap: float, volumes: int, labelled: list[int]
) -> None:
    positions = [Position(f"v{i % volumes}", z) for i, z in enumerate(zs)]
    before = [Position("v0", z) for z in labelled]
    admission = Admission(positions, labelled=before, spacing=Spacing(quota, gap))

    picks = admission.pick_in_order(np.arange(len(zs)), len(zs)).tolist()

    assert sorted(picks) == list(range(len(zs)))
    for n, row in enumerate(picks):
        held, here = admission.spacing_of(n + 1), positions[row]
        others = [positions[i] for i in picks[:n]]
        same = [p for p in others if p.volume == here.volume]
        assert held.quota is None or len(same) < held.quota
        near = [p for p in same + before if p.volume == here.volume]
        assert all(abs(p.z - here.z) >= held.gap for p in near)


@pytest.mark.parametrize(
    ("volumes", "k", "quota", "gap"),
    [
        (1, 8, None, 95 / 32),  # 8 of one volume: an even spread is 95/8 apart, a quarter of that
        (2, 8, 4, 95 / 16),
        (3, 8, 3, 95 / 12),
        (8, 8, 1, 95 / 4),
        (20, 8, 1, 95 / 4),
    ],
)
def test_even_spacing_shares_k_between_the_volumes(
    volumes: int, k: int, quota: int | None, gap: float
) -> None:
    places = [Position(f"v{v}", float(z)) for v in range(volumes) for z in range(96)]
    spacing = even_spacing(places, k)
    assert spacing.quota == quota
    assert spacing.gap == pytest.approx(gap)


def test_even_spacing_of_nothing_is_none() -> None:
    assert even_spacing([], 8) == Spacing()
