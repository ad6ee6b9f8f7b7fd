"""What a round decides by itself; the round as a whole is held by the integration tests."""

from __future__ import annotations

import pytest

from al_strategies.evidence import Position
from ml_backend.rounds.round import default_spacing
from ml_backend.rounds.source import PROJECT_VOLUME, positions
from ml_backend.rounds.store import DatasetRecord, TaskRecord


def dataset(*tasks: TaskRecord) -> DatasetRecord:
    return DatasetRecord(
        round=0, classes=["background", "bone"], label_config="", fingerprint="", synced_at="",
        tasks=list(tasks),
    )  # fmt: skip


def volume(name: str, slices: int, first: int = 0) -> list[TaskRecord]:
    return [TaskRecord(id=first + z, image="i", volume=name, z=float(z)) for z in range(slices)]


def test_positions_come_from_the_tasks() -> None:
    found = positions(dataset(TaskRecord(id=5, image="i", volume="a", z=7.5)))
    assert found == {5: Position("a", 7.5)}


def test_without_a_z_the_place_in_task_order_stands_in() -> None:
    found = positions(dataset(*(TaskRecord(id=i, image="i") for i in (30, 10, 20))))
    assert found == {
        10: Position(PROJECT_VOLUME, 0.0),
        20: Position(PROJECT_VOLUME, 1.0),
        30: Position(PROJECT_VOLUME, 2.0),
    }


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
def test_spacing_shares_k_between_the_volumes(
    volumes: int, k: int, quota: int | None, gap: float
) -> None:
    tasks = [t for v in range(volumes) for t in volume(f"v{v}", 96, first=1000 * v)]
    spacing = default_spacing(dataset(*tasks), k)
    assert spacing.quota == quota
    assert spacing.gap == pytest.approx(gap)


def test_spacing_of_nothing_is_none() -> None:
    assert default_spacing(dataset(), 8).quota is None
