"""Annotations that Label Studio has stored and not counted: every list of it goes by its counters.
Races with a real one: tests/integration/test_queue.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.reconcile import reconcile
from ml_backend.rounds.service import Service
from ml_backend.settings import Settings
from ml_backend.studio.client import StudioError
from ml_backend.studio.counters import change_task, count_anew
from ml_backend.studio.label_config import bitmask_config
from tests.memory_studio import MemoryStudio

KEY = "7.1763865028"


class Listed(MemoryStudio):
    """One that lists its project, and whose answers to PATCH a test may change."""

    deaf = False

    def projects(self) -> list[Any]:
        return [self.project(7)]

    def webhooks(self, project_id: int) -> list[Any]:
        return []

    def set_webhook_header(self, *arguments: Any) -> bool:
        return True

    def request(self, method: str, path: str, *, json: dict[str, Any]) -> Any:
        if self.deaf:
            json = {name: json[name] for name in json if name == "data"}
        return super().request(method, path, json=json)


@pytest.fixture
def studio() -> Listed:
    return Listed(bitmask_config(["bone"]), 4, lambda _: np.zeros((8, 9)))


def test_a_look_begins_a_round_on_a_label_that_label_studio_has_not_counted(
    studio: Listed, make_settings: Callable[..., Settings], redis_url: str
) -> None:
    settings = make_settings(
        REDIS_URL=redis_url, NEXTSLICE_COLD_START="random", NEXTSLICE_EARLY_ROUNDS="1"
    )
    service = Service(settings, studio=studio)  # type: ignore[arg-type]  # in memory
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


def test_what_is_counted_is_left_alone(studio: Listed) -> None:
    studio.submit(1, [])
    studio.skip(2)
    assert count_anew(studio, 7) == []  # type: ignore[arg-type]  # in memory
    assert not change_task(studio, 7, 1, {})  # type: ignore[arg-type]


def test_a_label_studio_that_counts_no_annotation_is_given_up_with_the_numbers(
    studio: Listed,
) -> None:
    studio.submit(1, [])
    studio.lose_count(1)
    studio.deaf = True
    said = r"task 1: it was told \{'total_annotations': 1\}, 5 times"
    with pytest.raises(StudioError, match=said):
        change_task(studio, 7, 1, {})  # type: ignore[arg-type]  # in memory
