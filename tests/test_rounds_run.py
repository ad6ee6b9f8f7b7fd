"""`rounds run`: a round of a project that is connected, and of no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from ml_backend.cli import app, load_commands
from ml_backend.rounds import attempt as attempts
from ml_backend.rounds import reconcile
from ml_backend.rounds.artefacts import DATASET
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import DatasetRecord, ProjectRecord, Published, next_round
from ml_backend.rounds.service import Service
from ml_backend.settings import Settings
from ml_backend.studio.label_config import bitmask_config
from tests.memory_studio import MemoryStudio

KEY = "7.1763865028"


@pytest.fixture
def service(
    make_settings: Callable[..., Settings], redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Service:
    """With a Label Studio that has one project, number 7, and a store that has none."""
    studio = MemoryStudio(bitmask_config(["bone"]), 20, lambda _: np.zeros((8, 9), np.uint8))
    settings = make_settings(REDIS_URL=redis_url, NEXTSLICE_QUEUE_PREFIX="rounds-run")
    service = Service(settings, studio=studio)
    monkeypatch.setattr(Service, "from_environment", classmethod(lambda cls: service))
    load_commands()
    return service


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["rounds", "run", *arguments])


@pytest.mark.parametrize("here", [[], ["--here"]])
def test_a_project_that_was_never_connected_is_left_alone(
    service: Service, here: list[str]
) -> None:
    done = run("7", *here)
    assert service.project_keys() == []
    assert service.studio.imported == []  # type: ignore[attr-defined]  # it is the one above
    assert set(service.studio.fields) == {"label_config"}  # type: ignore[attr-defined]  # likewise
    assert service.schedule.length("control") == (0, 0)
    assert "project 7 is not in" in str(done.exception)
    assert "nextslice connect" in str(done.exception)


def test_a_round_that_another_worker_has_published_is_not_said_to_lack_labels(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = ConnectedProject(service, KEY)
    project.folder.record = ProjectRecord(project=7, key=KEY)

    def publishes(found: ConnectedProject, *_: object) -> None:
        found.folder.published = Published(
            round=1, model_version="nextslice-r001-abcdef", classes=["bone"], fingerprint="f",
            published_at="2026-11-28T08:00:00+00:00",
        )  # fmt: skip

    monkeypatch.setattr(attempts, "attempt", publishes)
    done = run("7", "--here")
    said = " ".join((done.output + capsys.readouterr().err).split())
    assert done.exit_code == 0
    assert "another worker has published nextslice-r001-abcdef" in said
    assert "nobody has annotated" not in said


@pytest.mark.parametrize("slices", [0, 20])
@pytest.mark.parametrize("earlier", [None, "waits", "was begun"])
def test_a_round_that_has_nothing_to_train_on_is_not_asked_for_any_more(
    service: Service, capsys: pytest.CaptureFixture[str], slices: int, earlier: str | None
) -> None:
    """What somebody asked for before it stays, also where an attempt has begun with it, and failed,
    before the label was deleted."""
    studio: Any = service.studio
    for task in range(slices, 20):
        studio.delete_task(task)
    project = ConnectedProject(service, KEY)
    moment = "2026-11-30T12:00:00+00:00" if earlier == "waits" else None
    project.folder.record = ProjectRecord(project=7, key=KEY, start_requested_at=moment)
    reconcile.count(project)
    assert (project.published is not None) == (slices > 0)
    if earlier == "was begun":
        dataset = DatasetRecord(
            round=1, classes=["bone"], fingerprint="f", asked=True, synced_at="",
            label_config=studio.fields["label_config"],
        )  # fmt: skip
        project.folder.round(next_round(project.published)).save(DATASET, dataset)

    done = run("7", "--here")
    said = " ".join((done.output + capsys.readouterr().err).split())
    assert done.exit_code == 1
    why = "nobody has annotated a slice yet" if slices else "it has no slices yet"
    assert f"nothing to train on: {why}." in said
    assert (project.record.start_requested_at is None) == (earlier is None)
