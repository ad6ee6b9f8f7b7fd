"""Masks of slices that join the queue, or come back to it, after its round.

The backend is the real application at its address, with the real network; Label Studio is a server
of the tests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from ml_backend.app import create_app
from ml_backend.cli.rounds_list import rounds_table
from ml_backend.cli.tables import whole
from ml_backend.embedded.processes import free_port
from ml_backend.rounds import coverage, filling, live_masks, publish, reconcile, tidying
from ml_backend.rounds.artefacts import DRAWING, QUEUE
from ml_backend.rounds.pauses import next_job_at
from ml_backend.rounds.pending import draw_pending
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import Published, QueueRecord, TriesRecord
from ml_backend.rounds.round import run_round
from ml_backend.rounds.schedule import GPU
from ml_backend.rounds.status import project_status
from ml_backend.rounds.unreadable import UnreadableSlices
from ml_backend.settings import Settings
from ml_backend.studio import download, task_order
from tests.http_studio import HttpStudio, phantom_project, phantom_server
from tests.served import web_process

RESERVE = 2


@pytest.fixture
def server() -> Iterator[HttpStudio]:
    with phantom_server() as running:
        yield running


@pytest.fixture
def project(
    server: HttpStudio, make_settings: Callable[..., Settings], redis_url: str
) -> ConnectedProject:
    """Round 1 is published: every mask of its queue was made by its network."""
    found = phantom_project(
        server,
        make_settings,
        REDIS_URL=redis_url,
        NEXTSLICE_BACKEND_URL=f"http://127.0.0.1:{free_port()}",
        NEXTSLICE_RESERVE=RESERVE,
    )
    run_round(found, "test")
    return found


def backend(project: ConnectedProject) -> AbstractContextManager[str]:
    """The backend answers at its address until the end of the block."""
    port = int(project.settings.backend_url.rpartition(":")[2])
    return web_process(create_app(project.settings), port)


def published(project: ConnectedProject) -> Published:
    found = project.published
    assert found is not None
    return found


def record(project: ConnectedProject) -> QueueRecord:
    return project.folder.round(1).need(QUEUE)


def order(project: ConnectedProject) -> list[int]:
    return [entry.task for entry in record(project).entries]


def stored(server: HttpStudio, project: ConnectedProject) -> dict[int, list[tuple[float, Any]]]:
    """Task → score and regions of each stored prediction of the published version."""
    found: dict[int, list[tuple[float, Any]]] = {}
    for row in server.memory.imported:
        if row["model_version"] == published(project).model_version:
            found.setdefault(row["task"], []).append((row["score"], row["result"]))
    return found


def masks(server: HttpStudio, project: ConnectedProject) -> dict[int, Any]:
    """Task → regions of its one prediction of the published version."""
    return {task: row[1] for task, (row,) in stored(server, project).items()}


def draw(project: ConnectedProject) -> int:
    """What a gpu worker does when no round waits."""
    project.service.schedule.queue(GPU).empty()
    return draw_pending(project, lambda step, done, total: None)


def forget_images(project: ConnectedProject) -> None:
    for file in project.settings.cache_dir.rglob("*"):
        if file.is_file():
            file.unlink()


def delete_predictions(server: HttpStudio, tasks: list[int]) -> None:
    """As somebody does in the Data Manager."""
    rows = server.memory.imported
    rows[:] = [row for row in rows if row["task"] not in tasks]


def test_what_was_deleted_waits_for_the_backend_while_there_are_slices_enough(
    server: HttpStudio, project: ConnectedProject
) -> None:
    before = stored(server, project)
    gone = order(project)[:2]
    delete_predictions(server, gone)

    filling.top_up(project)
    assert not set(gone) & set(stored(server, project)), "without a mask, for good"
    with backend(project):
        filling.top_up(project)

    assert stored(server, project) == before


def test_annotators_go_on_without_masks_and_get_them_drawn(
    server: HttpStudio, project: ConnectedProject
) -> None:
    """Nothing is left to hand out: a few are better than none."""
    before, places = stored(server, project), order(project)
    delete_predictions(server, places)

    filling.top_up(project)

    bare = stored(server, project)
    assert all(regions == [] for rows in bare.values() for _, regions in rows)
    assert RESERVE < len(bare) < len(before), "no more than are needed"
    assert record(project).pending == [task for task in places if task in bare]
    assert "whose masks are still to come" in whole(rounds_table(project.folder))
    reconcile.count(project)
    assert project.service.schedule.length(GPU) == (1, 0)
    assert draw(project) == len(bare)
    with backend(project):
        filling.top_up(project)

    assert stored(server, project) == before
    assert record(project).pending == []
    assert record(project).unmasked == []


@pytest.mark.parametrize("stored_before", [False, True])
def test_one_that_is_killed_while_it_fills_the_queue_forgets_no_mask(
    server: HttpStudio,
    project: ConnectedProject,
    monkeypatch: pytest.MonkeyPatch,
    stored_before: bool,
) -> None:
    before, places = stored(server, project), order(project)
    delete_predictions(server, places)
    store = task_order.store_predictions

    def killed(*arguments: Any) -> int:
        if stored_before:
            store(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(task_order, "store_predictions", killed)
        with pytest.raises(KeyboardInterrupt):
            filling.top_up(project)

    filling.top_up(project)
    draw(project)
    with backend(project):
        filling.top_up(project)
    assert stored(server, project) == before


def test_an_outage_while_they_are_drawn_costs_none(
    server: HttpStudio, project: ConnectedProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, places = masks(server, project), order(project)
    delete_predictions(server, places)
    filling.top_up(project)
    waiting = record(project).pending
    forget_images(project)
    monkeypatch.setattr(coverage, "_wait", lambda seconds: None)
    monkeypatch.setattr(download, "_QUIET_S", 0.0)
    server.fault = lambda path: 500
    with pytest.raises(UnreadableSlices):
        draw(project)
    assert record(project).pending == waiting
    assert record(project).unmasked == []
    reconcile.count(project)
    assert project.service.schedule.length(GPU) == (0, 0), "a pause"
    (condition,) = project_status(project).conditions
    assert "Masks of the queue could not be drawn (1×): UnreadableSlices: " in condition.says
    folder = project.folder.round(1)
    assert next_job_at(folder.need(DRAWING)) - folder.need(DRAWING).failed_at == 60
    folder.save(DRAWING, folder.need(DRAWING).model_copy(update={"failed_at": 1.0}))
    reconcile.count(project)
    assert project.service.schedule.length(GPU) == (1, 0)
    server.fault = lambda path: None

    assert draw(project) == len(waiting)
    assert folder.need(DRAWING) == TriesRecord()

    assert masks(server, project) == {task: before[task] for task in waiting}


def test_what_a_top_up_notes_while_they_are_drawn_is_drawn_next(
    server: HttpStudio, project: ConnectedProject
) -> None:
    delete_predictions(server, order(project))
    filling.top_up(project)
    waiting = record(project).pending
    appended: list[int] = []

    def top_up(step: str, done: int, total: int) -> None:
        if done == 1:
            delete_predictions(server, waiting[-1:])
            for task in waiting[:-1]:
                server.memory.submit(task, [])
            filling.top_up(project)
            appended.extend(task for task in record(project).pending if task not in waiting)

    draw_pending(project, top_up)

    assert appended
    assert record(project).pending == appended
    assert record(project).unmasked == []
    assert draw(project) == len(appended)
    assert all(masks(server, project)[task] for task in appended)


def test_a_backend_that_does_not_answer_is_asked_once_a_look(
    server: HttpStudio, project: ConnectedProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs costs five minutes each time, and the control worker has other projects."""
    asked: list[str] = []
    post = live_masks.httpx.post

    def spy(url: str, **options: Any) -> Any:
        asked.append(url)
        return post(url, **options)

    monkeypatch.setattr(live_masks.httpx, "post", spy)
    monkeypatch.setattr(filling, "_PREDICT_CHUNK", 1)
    monkeypatch.setattr(filling, "_LARGEST_CHUNK", 1)
    delete_predictions(server, order(project))

    filling.top_up(project)

    assert len(stored(server, project)) > 1
    assert len(asked) == 1


def test_masks_of_the_version_before_are_not_stored(
    server: HttpStudio, project: ConnectedProject, caplog: pytest.LogCaptureFixture
) -> None:
    """The backend looks at what is published every few seconds only."""
    with backend(project):
        app_sees = published(project)
        project.folder.published = app_sees.model_copy(update={"model_version": "nextslice-old"})
        with caplog.at_level(logging.WARNING):
            asked = live_masks.LiveMasks(project, app_sees.model_version)
            rows = list(project.studio.tasks_by_id(project.number, order(project)[:2]))
            assert asked.of(rows) == {}
    assert asked.silent
    assert "nextslice-old" in caplog.text


def test_a_slice_that_cannot_be_predicted_is_named_and_not_asked_for_again(
    server: HttpStudio, project: ConnectedProject
) -> None:
    first = order(project)[0]
    delete_predictions(server, [first])
    forget_images(project)
    server.fault = lambda path: 404 if path == f"/{first}.png" else None

    with backend(project):
        filling.top_up(project)
        assert [regions for _, regions in stored(server, project)[first]] == [[]]
        assert record(project).unmasked == [first]
        assert record(project).pending == []
        assert filling.top_up(project) == 0


def test_a_record_that_is_lost_leaves_nobody_without_a_mask(
    server: HttpStudio, project: ConnectedProject
) -> None:
    masks_before, places = masks(server, project), order(project)
    delete_predictions(server, places)
    filling.top_up(project)
    project.folder.round(1).remove(QUEUE)

    with backend(project):
        filling.top_up(project)
    draw(project)

    assert order(project) == places
    assert masks(server, project) == masks_before


def test_classes_that_changed_and_changed_back_leave_the_queue_filled(
    server: HttpStudio, project: ConnectedProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retiring was killed before the switch, and somebody took the new class back."""
    before = record(project)

    def killed(*_: object) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publish, "serve", killed)
        served = published(project)
        with pytest.raises(KeyboardInterrupt):
            publish.retire(project, served, "another class", ["background", "screw"], "f" * 8)
    left = record(project).model_version
    assert left != published(project).model_version
    gone = before.entries[0].task
    delete_predictions(server, [gone])

    with backend(project):
        for _ in range(2):
            filling.top_up(project)

    there = record(project)
    assert [*there.withdrawn] == [left]
    assert there.model_copy(update={"withdrawn": {}}) == before
    assert gone in stored(server, project)
    tidying.tidy(project)
    assert not [row for row in server.memory.imported if row["model_version"] == left]
