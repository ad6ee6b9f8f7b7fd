"""What a round decides by itself; the round as a whole is held by the integration tests."""

from __future__ import annotations

from al_strategies.evidence import Position
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
