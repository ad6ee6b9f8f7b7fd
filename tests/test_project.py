"""A connected project: one noun for number, key, folder, jobs and how to reach it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from ml_backend.rounds.artefacts import QUEUE
from ml_backend.rounds.claim import claimed
from ml_backend.rounds.project import (
    ConnectedProject,
    InvalidKey,
    PublishedRound,
    TakenOff,
    find_project,
    known_project,
    stored_project,
)
from ml_backend.rounds.service import Service
from ml_backend.rounds.store import Store, StoreError
from ml_backend.settings import Settings
from ml_backend.studio.client import StudioError
from ml_backend.studio.label_config import bitmask_config
from tests.memory_studio import MemoryStudio

KEY = "7.1763865028"


@pytest.fixture
def service(make_settings: Callable[..., Settings], redis_url: str) -> Service:
    studio: Any = MemoryStudio(bitmask_config(["bone"]), 3, lambda _: np.zeros((8, 9)))
    return Service(make_settings(REDIS_URL=redis_url), studio=studio)


@pytest.mark.parametrize("key", ["", "seven", "7.x", "-7.1", "7.1.2", "../7.1"])
def test_a_key_of_another_form_is_no_project(service: Service, key: str) -> None:
    with pytest.raises(InvalidKey, match=r"expected <id>\.<created timestamp>"):
        ConnectedProject(service, key)


def test_nothing_is_asked_for_before_it_is_needed(make_settings: Callable[..., Settings]) -> None:
    """A webhook needs the queue alone: no token, no store."""
    nowhere = make_settings(LABEL_STUDIO_API_KEY="", NEXTSLICE_STORE="memory://none")
    project = ConnectedProject(Service(nowhere), KEY)

    assert (project.number, project.key) == (7, KEY)
    assert project.schedule is project.schedule


def test_what_a_service_is_given_is_used(make_settings: Callable[..., Settings]) -> None:
    store = Store("memory://given")
    project = ConnectedProject(Service(make_settings(), store=store), KEY)

    assert project.folder.store is store


def test_a_change_of_the_record_keeps_what_others_wrote(service: Service) -> None:
    first, second = ConnectedProject(service, KEY), ConnectedProject(service, KEY)

    first.update(lambda record: record.linked("http://backend:9090"), adopting=True)
    second.update(lambda record: record.attempt_failed(12.5, "no disk"))

    record = first.record
    assert (record.backend_url, record.failures, record.last_error) == (
        "http://backend:9090", 1, "no disk",
    )  # fmt: skip
    assert first.link.url == "http://backend:9090"


def test_only_an_adoption_makes_the_record(service: Service) -> None:
    project = ConnectedProject(service, KEY)
    with pytest.raises(TakenOff, match="nextslice connect"):
        project.update(lambda record: record.attempt_failed(12.5, "no disk"))
    assert service.project_keys() == []

    project.update(lambda record: record.linked("http://backend:9090"), adopting=True)
    assert service.project_keys() == [KEY]


@pytest.mark.parametrize("where", ["folder", "memory"])
def test_a_published_round_is_written_only_where_it_is(tmp_path: Path, where: str) -> None:
    store = Store(f"memory://{tmp_path.name}" if where == "memory" else str(tmp_path))
    folder = store.project("ls.example", KEY)
    round_ = PublishedRound(folder, 1)
    with pytest.raises(TakenOff, match="nextslice connect"):
        round_.write(QUEUE, b"{}")
    assert store.names("") == []

    with claimed(folder.round(1), 60):
        pass
    round_.write(QUEUE, b"{}")
    assert round_.read(QUEUE) == b"{}"

    store.fs.rm(f"{store.root}/ls.example", recursive=True)
    with pytest.raises(TakenOff, match="nextslice connect"):
        round_.write(QUEUE, b"{}")
    assert store.names("") == []


def test_a_misspelt_field_or_a_wrong_type_is_never_written(service: Service) -> None:
    project = ConnectedProject(service, KEY)
    project.update(lambda record: record.adopted("2026-11-28T08:00:00+00:00"), adopting=True)
    before = project.record

    with pytest.raises(ValueError, match="backend_uri"):
        project.update(lambda record: setattr(record, "backend_uri", "http://x"))
    with pytest.raises(ValidationError, match="failures"):
        project.update(lambda record: setattr(record, "failures", "many"))

    assert project.record == before


def test_attempts_are_counted_until_one_succeeds(service: Service) -> None:
    project = ConnectedProject(service, KEY)
    project.update(lambda record: record.attempt_began(1.0, 3), adopting=True)
    project.update(
        lambda record: record.attempt_began(2.0, 3)
    )  # the first one's process was killed
    record = project.update(lambda record: record.attempt_failed(3.0, "out of memory"))
    assert (record.unended, record.failures, record.began_at, record.failed_at) == (1, 1, 2.0, 3.0)

    record = project.update(lambda record: record.asked_to_train("now"))
    assert (record.unended, record.failures, record.last_error) == (0, 0, "out of memory")

    record = project.update(lambda record: record.round_succeeded())
    assert record.last_error is None


def test_what_was_noted_of_a_round_that_is_published_counts_no_more(service: Service) -> None:
    """Also where nobody came to note that it succeeded."""
    project = ConnectedProject(service, KEY)
    project.update(lambda record: record.attempt_began(1.0, 3), adopting=True)
    project.update(lambda record: record.attempt_failed(2.0, "out of memory"))
    before = project.update(lambda record: record.attempt_began(3.0, 3))
    assert project.update(lambda record: record.was_published(2)) == before

    record = project.update(lambda record: record.attempt_began(4.0, 4))
    assert (record.unended, record.failures, record.last_error) == (1, 0, None)
    record = project.update(lambda record: record.was_published(4))
    assert (record.unended, record.failures, record.last_error) == (0, 0, None)


def test_a_request_that_is_met_takes_no_later_one_along(service: Service) -> None:
    project = ConnectedProject(service, KEY)
    project.update(lambda record: record.asked_to_train("now"), adopting=True)
    project.update(lambda record: record.asked_to_train("later"))
    assert project.update(lambda record: record.request_met("now")).start_requested_at == "later"
    assert project.update(lambda record: record.request_met("later")).start_requested_at is None


def test_of_two_projects_of_one_number_the_youngest_has_it(service: Service) -> None:
    for key in ("7.1763865028", "7.1863865028", "8.1"):
        ConnectedProject(service, key).update(lambda record: None, adopting=True)

    found = stored_project(service, 7)
    assert found is not None
    assert found.key == known_project(service, "7").key == "7.1863865028"
    assert known_project(service, KEY).key == KEY
    assert stored_project(service, 9) is None
    with pytest.raises(StoreError, match=r"project 9 is not in .*it has 7\.1763865028"):
        known_project(service, 9)


def test_a_project_of_a_server_that_was_set_up_afresh_is_gone(service: Service) -> None:
    today = find_project(service, 7)
    assert today.in_studio().id == 7

    with pytest.raises(StudioError, match="Was the server set up afresh"):
        ConnectedProject(service, "7.1").in_studio()
