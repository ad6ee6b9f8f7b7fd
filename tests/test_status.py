"""What is said of a project's state: with real stores, claims and processes."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event

import pytest

from ml_backend.rounds.claim import claimed
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import ProjectRecord, Published
from ml_backend.rounds.service import Service
from ml_backend.rounds.status import ProjectStatus, State, project_status
from ml_backend.rounds.store import Store
from ml_backend.settings import Settings

KEY = "7.1763865028"
HOUR = 3600.0


@pytest.fixture
def project(make_settings: Callable[..., Settings], redis_url: str) -> ConnectedProject:
    """One whose round 2 is published, so that round 3 is next."""
    settings = make_settings(REDIS_URL=redis_url, NEXTSLICE_QUEUE_PREFIX="status")
    project = ConnectedProject(Service(settings), KEY)
    project.folder.published = Published(
        round=2, model_version="nextslice-r002-3fa9c1", classes=["background"], fingerprint="f"
    )
    project.folder.record = ProjectRecord(project=7, key=KEY)
    return project


def note(project: ConnectedProject, **fields: object) -> None:
    project.folder.record = project.record.model_copy(update=fields)


def said(status: ProjectStatus, state: State) -> str:
    (condition,) = [c for c in status.conditions if c.state == state]
    return condition.says


def test_nothing_is_said_of_a_project_that_waits_for_labels(project: ConnectedProject) -> None:
    status = project_status(project)
    assert (status.project, status.key, status.round) == (7, KEY, 3)
    assert status.model_version == "nextslice-r002-3fa9c1"
    assert status.conditions == []


def test_who_runs_a_round_and_since_when(project: ConnectedProject) -> None:
    note(project, unended=1, began_at=time.time() - HOUR)
    with claimed(project.folder.round(3), ttl_s=60):
        status = project_status(project)
    assert status.holder is not None
    assert status.holder.pid == os.getpid()
    text = said(status, "running")
    assert text.startswith(f"Round 3 is held by process {os.getpid()} on {socket.gethostname()}")
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(status.holder.since))
    assert f"since {since}" in text
    assert "last sign of life was 0 s ago" in text


def _hold(root: str, path: tuple[str, str], held: Event) -> None:
    with claimed(Store(root).project(*path).round(3), ttl_s=600):
        held.set()
        time.sleep(600)


def test_a_round_whose_worker_was_killed_is_not_running(project: ConnectedProject) -> None:
    context = multiprocessing.get_context("fork")
    held = context.Event()
    path = (project.settings.label_studio_host, KEY)
    worker = context.Process(target=_hold, args=(project.settings.store, path, held))
    worker.start()
    assert held.wait(30)
    began = time.time() - 30
    note(project, unended=1, began_at=began)
    assert project_status(project).has("running")

    worker.kill()
    worker.join()

    status = project_status(project)
    assert status.holder is None
    assert not status.has("running")
    text = said(status, "killed")
    assert text.startswith(f"Round 3 is not running: process {worker.pid} on ")
    next_at = time.strftime("%H:%M:%S", time.localtime(began + 60))
    assert next_at in text


def test_attempts_that_were_killed_again_and_again_are_counted(project: ConnectedProject) -> None:
    note(project, unended=3, began_at=time.time() - HOUR)
    assert "3 attempts at it have begun and not ended" in said(project_status(project), "killed")


def test_an_attempt_that_has_just_begun_is_running(project: ConnectedProject) -> None:
    """It is noted before the round is claimed."""
    note(project, unended=1, began_at=time.time())
    assert said(project_status(project), "running").startswith("Round 3 began at ")


def test_the_last_error_is_told_until_a_round_succeeds(project: ConnectedProject) -> None:
    note(project, failures=2, failed_at=time.time(), last_error="StudioError: 500")
    assert said(project_status(project), "failed") == (
        "The last attempt failed (2×): StudioError: 500"
    )
