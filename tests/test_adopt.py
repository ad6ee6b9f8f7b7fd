"""Who may have a project adopted: a person, or Label Studio, where it knows us as its backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ml_backend.rounds import adopt as adoption
from ml_backend.rounds import jobs
from ml_backend.rounds.claim import claimed
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.schedule import CONTROL
from ml_backend.rounds.service import Service
from ml_backend.settings import Settings
from ml_backend.studio.client import Backend
from ml_backend.studio.label_config import bitmask_config
from ml_backend.studio.task_order import PENDING_VERSION
from tests.memory_studio import FIRST_MOMENT, MemoryStudio

KEY = f"7.{int(FIRST_MOMENT.timestamp())}"


class OtherBackends(MemoryStudio):
    """A project whose ML backend is another program. ``secrets``: to where our webhook secret was
    given."""

    found = Backend(id=1, url="http://another:9090")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.secrets: list[str] = []

    def backends(self, project_id: int) -> list[Backend]:
        return [self.found]

    def set_webhook_header(self, project_id: int, url: str, header: str, value: str) -> bool:
        self.secrets.append(url)
        return True


@pytest.fixture
def project(
    make_settings: Callable[..., Settings], redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> ConnectedProject:
    monkeypatch.setattr(adoption, "_APPEAR_S", 0.2)
    studio: Any = OtherBackends(bitmask_config(["bone"]), 3, lambda _: np.zeros((8, 9)))
    service = Service(make_settings(REDIS_URL=redis_url), studio=studio)
    monkeypatch.setattr(jobs, "_service", lambda: service)
    return ConnectedProject(service, KEY)


def untouched(project: ConnectedProject) -> bool:
    studio: Any = project.studio
    kept = {"label_config": bitmask_config(["bone"])}
    left = not project.adopted and studio.imported == [] and studio.fields == kept
    return left and studio.secrets == []


def test_a_project_that_does_not_know_us_is_left_alone(project: ConnectedProject) -> None:
    with pytest.raises(adoption.NotConnected, match="no ML backend at http://us:9090"):
        adoption.adopt(project, "http://us:9090", confirmed=False)
    assert untouched(project)


def test_a_job_that_anybody_enqueued_does_nothing(project: ConnectedProject) -> None:
    jobs.adopt(KEY, "http://us:9090")
    for job in (jobs.count, jobs.start, jobs.tidy):
        job(KEY)
    jobs.round(KEY, "because")
    assert untouched(project)


def test_a_job_that_comes_while_an_import_adopts_gives_way(
    project: ConnectedProject, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Registering makes Label Studio ask /setup, which enqueues it: no error for the log."""
    studio: Any = project.studio
    ours = Backend(id=1, url="http://us:9090", model_version=PENDING_VERSION, is_interactive=True)
    monkeypatch.setattr(studio, "found", ours)
    with claimed(project.folder.round(0), 60), caplog.at_level("INFO"):
        jobs.adopt(KEY, "http://us:9090")
    assert project.published is None
    assert "round-0000" in caplog.text
    assert {record.levelname for record in caplog.records} == {"INFO"}
    jobs.adopt(KEY, "http://us:9090")
    assert project.published is not None


def test_a_job_for_a_config_that_cannot_be_segmented_is_a_warning(
    project: ConnectedProject, caplog: pytest.LogCaptureFixture
) -> None:
    studio: Any = project.studio
    studio.fields["label_config"] = "<View/>"
    jobs.adopt(KEY, "http://us:9090")
    assert "no Image tag" in caplog.text


def test_who_may_be_nobody_gives_way_to_others(
    project: ConnectedProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adoption, "_APPEAR_S", 60)
    monkeypatch.setattr(adoption, "_GIVE_WAY_S", 0)
    project.service.schedule.reconcile()
    assert project.service.schedule.queue(CONTROL).count == 1
    with pytest.raises(adoption.NotConnected):
        adoption.adopt(project, "http://us:9090", confirmed=False)


US = "http://us:9090"


@pytest.mark.parametrize(
    ("found", "named"),
    [
        # at the address that our settings name, on Label Studio's own machine
        (Backend(id=1, url="http://127.0.0.1:9090", model_version="sam-2.1"), US),
        (Backend(id=1, url="http://127.0.0.1:9090"), US),
        # at the address that whoever asks has named
        (Backend(id=1, url="http://sam:9090", model_version="INITIAL"), "http://sam:9090"),
        (Backend(id=1, url=US, model_version="nextslice-r004-3fa9c1"), US),
    ],
)
def test_another_program_at_the_address_is_not_taken_for_us(
    project: ConnectedProject, found: Backend, named: str
) -> None:
    studio: Any = project.studio
    studio.found = found
    with pytest.raises(adoption.NotConnected, match="answers as this nextslice does"):
        adoption.adopt(project, named, confirmed=False)
    assert untouched(project)


@pytest.mark.parametrize(("asked_as", "ours"), [("ann", True), ("bob", False), (None, False)])
def test_it_is_asked_as_our_user(
    make_settings: Callable[..., Settings], redis_url: str, monkeypatch: pytest.MonkeyPatch,
    asked_as: str | None, ours: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(adoption, "_APPEAR_S", 0.2)
    studio: Any = OtherBackends(bitmask_config(["bone"]), 3, lambda _: np.zeros((8, 9)))
    studio.found = Backend(
        id=1, url=US, model_version="nextslice-pending", basic_auth_user=asked_as
    )
    settings = make_settings(
        REDIS_URL=redis_url, BASIC_AUTH_USER="ann", BASIC_AUTH_PASS="secret",
        NEXTSLICE_QUEUE_PREFIX="asked-as",
    )  # fmt: skip
    project = ConnectedProject(Service(settings, studio=studio), KEY)

    if ours:
        assert adoption.adopt(project, US, confirmed=False).backend_url == US
        assert studio.secrets == [f"{US}/webhook"]
    else:
        with pytest.raises(adoption.NotConnected):
            adoption.adopt(project, US, confirmed=False)
        assert untouched(project)


def test_what_was_adopted_is_not_given_to_another_program(project: ConnectedProject) -> None:
    """Before round 0 is published, anybody may have it adopted again, at another address."""
    studio: Any = project.studio
    project.update(lambda record: record.linked(US), adopting=True)
    studio.found = Backend(id=1, url="http://sam:9090", model_version="INITIAL")

    adoption.adopt(project, "http://sam:9090", confirmed=False)

    assert project.record.backend_url == US
    assert studio.secrets == [f"{US}/webhook"]
