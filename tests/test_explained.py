"""Why a slice is in the queue, in the data that its page shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ml_backend.rounds import adopt, reconcile
from ml_backend.rounds.explained import explain, reasons_of
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.queue import known_queue
from ml_backend.rounds.records import QueueEntry, QueueRecord, SelectionRecord
from ml_backend.rounds.service import Service
from ml_backend.settings import Settings
from ml_backend.studio.client import Backend, StudioError
from ml_backend.studio.label_config import (
    WHY,
    bitmask_config,
    brush_config,
    parse_label_config,
    shows_why,
)
from tests.memory_studio import FIRST_MOMENT, MemoryStudio


class Told(MemoryStudio):
    """``refuses``: it takes no change of a task. ``changed``: how many it took. ``meanwhile``: is
    called after each, with its task."""

    refuses = False
    changed = 0
    meanwhile: Callable[[int], None] | None = None

    def set_webhook_header(self, project_id: int, url: str, name: str, value: str) -> bool:
        return True

    def request(self, method: str, path: str, *, json: dict[str, Any]) -> Any:
        if self.refuses:
            raise StudioError("Label Studio is busy")
        self.changed += 1
        answer = super().request(method, path, json=json)
        if self.meanwhile is not None:
            self.meanwhile(int(path.split("/")[2]))
        return answer


@pytest.fixture
def make(
    make_settings: Callable[..., Settings], redis_url: str
) -> Callable[[str], tuple[ConnectedProject, Told]]:
    def project(config: str) -> tuple[ConnectedProject, Told]:
        studio: Any = Told(config, 12, lambda _: np.zeros((8, 9), np.uint8))
        settings = make_settings(REDIS_URL=redis_url, NEXTSLICE_K=4, NEXTSLICE_RESERVE=2)
        studio.backend = Backend(id=1, url=settings.backend_url)
        service = Service(settings, studio=studio)
        return ConnectedProject(service, f"7.{int(FIRST_MOMENT.timestamp())}"), studio

    return project


def told(studio: Told) -> dict[int, str]:
    return {row.id: row.data[WHY] for row in studio.tasks(7) if WHY in row.data}


@pytest.mark.parametrize("config", [bitmask_config, brush_config])
def test_each_slice_of_the_queue_says_its_place_and_reason_once(
    make: Callable[[str], tuple[ConnectedProject, Told]], config: Callable[..., str]
) -> None:
    project, studio = make(config(["bone"], why=True))
    adopt.adopt(project)
    reconcile.count(project)

    found = told(studio)
    queue = project.folder.round(0)
    assert 4 < len(found) <= 12
    (first,) = [task for task, text in found.items() if text.startswith("Place 1 of 4. ")]
    assert "Evenly spaced between what is labelled: slice " in found[first]
    assert found[first].endswith("skip what cannot be labelled.")
    assert sum(text.startswith("In reserve, place ") for text in found.values()) == len(found) - 4
    assert all({"image", "volume", "z"} <= row.data.keys() for row in studio.tasks(7))
    assert queue is not None

    changed = studio.changed
    reconcile.count(project)
    assert studio.changed == changed


def test_others_that_wait_for_the_worker_come_first_and_no_slice_is_left_out(
    make: Callable[[str], tuple[ConnectedProject, Told]],
) -> None:
    config = bitmask_config(["bone"], why=True)
    project, studio = make(config)
    adopt.adopt(project)
    project.schedule.count()  # waits: nobody works here
    assert explain(project, config) == 1
    (text,) = told(studio).values()
    assert text.startswith("Place 1 of 4. ")
    assert explain(project, config) == 1
    project.service.schedule.connection.flushall()
    assert explain(project, config) > 2
    assert len(told(studio)) == studio.changed > 4
    assert explain(project, config) == 0


def test_beside_a_round_only_the_next_few_are_told_and_the_rest_after_it(
    make: Callable[[str], tuple[ConnectedProject, Told]],
) -> None:
    config = bitmask_config(["bone"], why=True)
    project, studio = make(config)
    adopt.adopt(project)
    project.schedule.round("a test", 1)  # waits: nobody works here
    assert explain(project, config) == 4
    assert {text.partition(".")[0] for text in told(studio).values()} == {
        f"Place {place} of 4" for place in (1, 2, 3, 4)
    }
    project.service.schedule.connection.flushall()
    assert explain(project, config) > 0
    assert len(told(studio)) == studio.changed > 4


def test_data_of_a_config_that_does_not_show_it_is_not_touched(
    make: Callable[[str], tuple[ConnectedProject, Told]],
) -> None:
    project, studio = make(bitmask_config(["bone"]))
    adopt.adopt(project)
    reconcile.count(project)
    assert (told(studio), studio.changed) == ({}, 0)


def test_what_others_write_into_the_data_meanwhile_stays(
    make: Callable[[str], tuple[ConnectedProject, Told]],
) -> None:
    """As `nextslice import` does, which signs addresses anew."""
    project, studio = make(bitmask_config(["bone"], why=True))
    adopt.adopt(project)
    queue = known_queue(project.folder.round(0))
    assert queue is not None
    first, second, *_ = [entry.task for entry in queue.entries]
    others = {"image": f"/{second}.png?sig=new", "patient": "p7"}

    def meanwhile(task: int) -> None:
        if task == first:
            MemoryStudio.request(studio, "PATCH", f"api/tasks/{second}/", json={"data": others})

    studio.meanwhile = meanwhile
    reconcile.count(project)

    found = {row.id: row.data for row in studio.tasks(7)}
    assert found[second] == {**others, WHY: told(studio)[second]}
    assert told(studio)[second].startswith("Place 2 of 4. ")


def test_a_refusal_costs_nothing_and_the_next_look_goes_on(
    make: Callable[[str], tuple[ConnectedProject, Told]],
) -> None:
    config = bitmask_config(["bone"], why=True)
    project, studio = make(config)
    adopt.adopt(project)
    studio.refuses = True
    reconcile.count(project)
    assert project.published is not None
    assert told(studio) == {}
    studio.refuses = False
    assert explain(project, config) > 4


def test_what_is_appended_says_so() -> None:
    queue = QueueRecord(
        model_version="v",
        entries=[
            QueueEntry(task=5, score=0.1, kind="chosen"),
            QueueEntry(task=6, score=0.2, kind="reserve"),
            QueueEntry(task=7, score=0.3, kind="top-up"),
        ],
    )
    selection = SelectionRecord(
        strategy="entropy", seed=0, chosen=[5], reserve=[6],
        reasons={5: "Least certain of 9 slices."},
    )  # fmt: skip
    texts = reasons_of(queue, selection)
    assert texts[5].startswith("Place 1 of 1. Least certain of 9 slices. Odd slices")
    assert texts[6] == "In reserve, place 1 of 1."
    assert texts[7] == "Next in line, as the queue ran low."


@pytest.mark.parametrize("config", [bitmask_config, brush_config])
def test_a_config_with_the_field_is_read_as_one_without(config: Callable[..., str]) -> None:
    plain, shown = config(["bone"]), config(["bone"], why=True)
    assert (shows_why(plain), shows_why(shown)) == (False, True)
    assert parse_label_config(shown).fingerprint == parse_label_config(plain).fingerprint
    assert 'Header value="$why"' in shown
