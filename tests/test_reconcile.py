"""What reconcile does without a Label Studio; with one: tests/integration/test_queue.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ml_backend.embedded.processes import free_port
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.reconcile import reconcile
from ml_backend.rounds.records import ProjectRecord
from ml_backend.rounds.service import Service
from ml_backend.settings import Settings

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
