"""What reconcile does without a Label Studio, or with one in memory; with a real one:
tests/integration/test_queue.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ml_backend.embedded.processes import free_port
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.reconcile import count, reconcile
from ml_backend.rounds.records import ProjectRecord
from ml_backend.rounds.service import Service
from ml_backend.settings import Settings
from ml_backend.studio.label_config import bitmask_config
from tests.memory_studio import MemoryStudio

KEY = "7.1763865028"


def test_while_label_studio_is_down_nothing_changes_and_it_is_said_once(
    make_settings: Callable[..., Settings], caplog: pytest.LogCaptureFixture
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    service = Service(make_settings(LABEL_STUDIO_URL=url))
    record = ProjectRecord(project=7, key=KEY)
    project = ConnectedProject(service, KEY)
    project.folder.record = record

    reconcile(service)

    (said,) = caplog.messages
    assert said.startswith("no project can be looked at: ")
    assert url in said
    assert project.folder.record == record


def test_while_the_store_does_not_tell_its_projects_it_is_said_once(
    make_settings: Callable[..., Settings], caplog: pytest.LogCaptureFixture
) -> None:
    settings = make_settings()
    there = Path(settings.store, settings.label_studio_host)
    there.parent.mkdir()
    there.symlink_to(there)  # refused, and not for want of a folder
    studio: Any = SimpleNamespace(projects=list)

    reconcile(Service(settings, studio=studio))

    (said,) = caplog.messages
    assert said.startswith("no project can be looked at: ")
    assert str(there) in said


def test_a_look_notes_how_many_annotations_a_slice_is_to_get(
    make_settings: Callable[..., Settings], redis_url: str
) -> None:
    studio = MemoryStudio(bitmask_config(["bone"]), 3, lambda _: np.zeros((8, 9)))
    settings = make_settings(REDIS_URL=redis_url, NEXTSLICE_COLD_START="random")
    project = ConnectedProject(Service(settings, studio=studio), KEY)  # type: ignore[arg-type]  # in memory
    project.update(lambda record: None, adopting=True)
    for wanted in (1, 2):
        studio.update_project(7, maximum_annotations=wanted)
        count(project)
        assert project.record.wanted_annotations == wanted
