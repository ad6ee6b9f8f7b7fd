"""Annotations that Label Studio has stored and not counted: every list of it goes by its counters.
Races with a real one: tests/integration/test_queue.py."""

from __future__ import annotations

from collections.abc import Callable, Set
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.reconcile import reconcile
from ml_backend.rounds.service import Service
from ml_backend.settings import Settings
from ml_backend.studio.client import Project
from ml_backend.studio.counters import change_task, count_anew
from ml_backend.studio.label_config import bitmask_config
from tests.memory_studio import MemoryStudio

KEY = "7.1763865028"


class Listed(MemoryStudio):
    """One that lists its project. ``deaf``: tasks whose counters it does not change."""

    deaf: Set[int] = frozenset()

    def projects(self) -> list[Any]:
        return [self.project(7)]

    def webhooks(self, project_id: int) -> list[Any]:
        return []

    def set_webhook_header(self, *arguments: Any) -> bool:
        return True

    def request(self, method: str, path: str, *, json: dict[str, Any]) -> Any:
        if int(path.split("/")[2]) in self.deaf:
            json = {name: json[name] for name in json if name == "data"}
        return super().request(method, path, json=json)


@pytest.fixture
def studio() -> Any:  # stands for a Studio
    return Listed(bitmask_config(["bone"]), 4, lambda _: np.zeros((8, 9)))


def test_a_look_begins_a_round_on_a_label_that_label_studio_has_not_counted(
    studio: Any, make_settings: Callable[..., Settings], redis_url: str
) -> None:
    settings = make_settings(
        REDIS_URL=redis_url, NEXTSLICE_COLD_START="random", NEXTSLICE_EARLY_ROUNDS="1"
    )
    service = Service(settings, studio=studio)
    project = ConnectedProject(service, KEY)
    project.update(lambda record: record.adopted("2026-11-30T00:00:00+00:00"), adopting=True)
    reconcile(service)
    assert project.published is not None
    assert project.schedule.round_progress() is None

    studio.submit(2, [])
    studio.lose_count(2)
    reconcile(service)

    assert project.schedule.round_progress() is not None
    assert studio.totals(7) == (4, 1)


class Answering:
    """A Label Studio with one task, 5, that answers PATCH. ``meanwhile``: what people do after it
    has read the task's row and before it writes it, once each."""

    def __init__(self, skip_queue: str = "REQUEUE_FOR_OTHERS", overlap: int = 1) -> None:
        self.skip_queue = skip_queue
        self.row: dict[str, Any] = {
            "id": 5, "overlap": overlap, "is_labeled": False,
            "total_annotations": 0, "cancelled_annotations": 0,
        }  # fmt: skip
        self.annotations: list[dict[str, Any]] = []
        self.meanwhile: list[Callable[[], None]] = []
        self.changes: list[dict[str, Any]] = []

    def project(self, project_id: int) -> Project:
        created = datetime(2026, 11, 30, tzinfo=UTC)
        return Project(id=project_id, created_at=created, skip_queue=self.skip_queue)

    def request(self, method: str, path: str, *, json: dict[str, Any]) -> dict[str, Any]:
        assert (method, path) == ("PATCH", "api/tasks/5/")
        read = dict(self.row)
        if self.meanwhile:
            self.meanwhile.pop(0)()
        self.changes.append(json)
        self.row = read | json
        return {**self.row, "annotations": list(self.annotations)}

    def submit(self, person: int, *, skip: bool = False) -> None:
        self.annotations.append({"completed_by": person, "was_cancelled": skip})
        self.row["cancelled_annotations" if skip else "total_annotations"] += 1
        self.row["is_labeled"] = True

    def counters(self) -> tuple[int, int, bool]:
        names = ("total_annotations", "cancelled_annotations", "is_labeled")
        total, skips, done = (self.row[name] for name in names)
        return total, skips, done


def test_who_submits_between_reading_and_writing_is_counted_also_at_the_second_try() -> None:
    studio: Any = Answering(overlap=2)
    studio.meanwhile = [lambda: studio.submit(1), lambda: studio.submit(2)]
    change_task(studio, 7, 5, {"data": {"why": "Place 1."}})
    assert studio.counters() == (2, 0, True)
    assert studio.changes == [
        {"data": {"why": "Place 1."}},
        {"total_annotations": 1, "is_labeled": False},
        {"total_annotations": 2, "is_labeled": True},
    ]


@pytest.mark.parametrize(
    ("skip_queue", "done"), [("REQUEUE_FOR_OTHERS", False), ("IGNORE_SKIPPED", True)]
)
def test_a_skip_is_counted_as_the_project_takes_it(skip_queue: str, done: bool) -> None:
    studio: Any = Answering(skip_queue)
    studio.meanwhile = [lambda: studio.submit(1, skip=True)]
    change_task(studio, 7, 5, {"data": {}})
    assert studio.counters() == (0, 1, done)


def test_an_annotation_that_is_deleted_meanwhile_leaves_a_slice_that_is_handed_out() -> None:
    studio: Any = Answering()
    studio.submit(1)
    studio.meanwhile = [studio.annotations.clear]
    change_task(studio, 7, 5, {"data": {}})
    assert studio.counters() == (0, 0, False)


def test_what_is_counted_is_left_alone(studio: Any) -> None:
    studio.submit(1, [])
    assert count_anew(studio, studio.project(7)) == []
    answering: Any = Answering()
    answering.submit(1)
    change_task(answering, 7, 5, {"data": {}})
    assert answering.changes == [{"data": {}}]


def test_one_that_is_counted_never_is_said_and_keeps_none_from_being_counted(
    studio: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for task in (1, 2):
        studio.submit(task, [])
        studio.lose_count(task)
    studio.deaf = {1}
    assert count_anew(studio, studio.project(7)) == [2]
    (said,) = caplog.messages
    assert "task 1: it was told {'total_annotations': 1}, 5 times" in said
