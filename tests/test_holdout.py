"""What is held out for testing is a block along z with a gap; for checkpoints: test_validation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from al_strategies.evidence import Position, SliceId
from al_strategies.holdout import held_out_block


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
