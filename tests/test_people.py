"""Who annotates: counted from what rounds noted, and asked for in a handful of requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ml_backend.rounds.attempt import attempt
from ml_backend.rounds.overview import project_overview
from ml_backend.rounds.people import People, Seen, people_of, seen_now
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import DatasetLabels, EffortRecord, LabelRecord
from ml_backend.settings import Settings
from ml_backend.studio.annotations import regions
from ml_backend.studio.client import User
from ml_backend.studio.label_config import parse_label_config
from tests.http_studio import CONFIG, PHANTOM, HttpStudio, phantom_project, phantom_server
from tests.served import client

ANNA = {"id": 2, "email": "anna@lab.example", "first_name": "Anna", "last_name": "Ames"}
BEN = {"id": 3, "email": "ben@lab.example", "first_name": "", "last_name": ""}


def label(task: int, who: int | None, seconds: float | None, corrected: int = 10) -> LabelRecord:
    effort = EffortRecord(
        task=task, annotation=task, completed_by=who, model_version="nextslice-r001-0",
        pixels=100, corrected=corrected, seconds=seconds,
    )  # fmt: skip
    return LabelRecord(
        task=task, annotation=task, updated_at="", completed_by=who, hash="", mask="", effort=effort
    )


def labels(*found: LabelRecord) -> DatasetLabels:
    return DatasetLabels(label_config="", synced_at="", labels=list(found))


def by_name(people: People) -> dict[str, tuple[int, int, float | None, int]]:
    return {one.name: (one.labels, one.timed, one.minutes, one.long) for one in people.people}


def test_minutes_are_those_that_were_timed_and_no_pause_is_one() -> None:
    there = labels(
        label(1, 2, 90.0), label(2, 2, 2 * 3600.0), label(3, 2, None), label(4, 3, None),
        label(5, None, 60.0),
    )  # fmt: skip
    users = {2: User.model_validate(ANNA), 3: User.model_validate(BEN)}
    found = people_of(there, 4, Seen(users))
    assert by_name(found) == {
        "Anna Ames": (3, 2, 1.5 + 30, 1),
        "ben@lab.example": (1, 0, None, 0),
        "not known": (1, 1, 1.0, 0),
    }
    assert found.round == 4
    assert by_name(people_of(there, 4, Seen())).keys() == {"user 2", "user 3", "not known"}


def test_corrected_is_of_slices_that_were_shown_with_a_mask() -> None:
    blank = label(2, 2, None, corrected=100)
    assert blank.effort is not None
    blank.effort.model_version = None
    (anna,) = people_of(labels(label(1, 2, None, corrected=25), blank), 1, Seen()).people
    assert anna.corrected == 0.25
    (alone,) = people_of(labels(blank), 1, Seen()).people
    assert alone.corrected is None


@pytest.mark.parametrize("bare", [{"blank": True}, {"model_version": "nextslice-r000-0"}])
def test_a_prediction_without_a_mask_showed_nobody_one(bare: dict[str, Any]) -> None:
    empty = label(1, 2, None, corrected=100)
    assert empty.effort is not None
    empty.effort = empty.effort.model_copy(update=bare)
    (anna,) = people_of(labels(label(2, 2, None, corrected=25), empty), 1, Seen()).people
    assert anna.corrected == 0.25


@pytest.fixture
def server() -> Iterator[HttpStudio]:
    with phantom_server() as server:
        server.posix = True
        server.memory.users = [ANNA, BEN]
        yield server


@pytest.fixture
def project(
    server: HttpStudio, make_settings: Callable[..., Settings], redis_url: str
) -> ConnectedProject:
    return phantom_project(server, make_settings, REDIS_URL=redis_url)


def ago(minutes: float) -> str:
    return (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat()


def test_who_submitted_or_saved_a_draft_lately_is_at_it(
    server: HttpStudio, project: ConnectedProject
) -> None:
    server.memory.submit(5, [], completed_by=2, created_at=ago(3))
    server.memory.submit(6, [], completed_by=3, created_at=ago(20))
    server.memory.drafts[7] = [
        {"user": "anna@lab.example", "updated_at": ago(1), "result": []},
        {"user": "ben@lab.example", "updated_at": ago(40), "result": []},
        {"user": "carl@lab.example", "updated_at": ago(14), "result": []},
    ]
    seen = seen_now(project.studio, 7, [])
    assert {who: task for who, (_, task) in seen.last.items()} == {2: 7, "carl@lab.example": 7}
    people = project_overview(project).people
    assert [(one.name, one.user, one.task, one.labels) for one in people.people] == [
        ("Anna Ames", 2, 7, 0),
        ("carl@lab.example", None, 7, 0),
    ]
    assert people.unanswered == []


def test_who_labelled_a_slice_long_before_somebody_else_did_is_not_at_it(
    server: HttpStudio, project: ConnectedProject
) -> None:
    server.memory.submit(5, [], completed_by=2, created_at=ago(60 * 24))
    server.memory.submit(5, [], completed_by=3, created_at=ago(3))
    server.memory.submit(6, [], completed_by=3, created_at=ago(4))
    assert {who: task for who, (_, task) in seen_now(project.studio, 7, []).last.items()} == {3: 6}


def test_it_costs_a_handful_of_requests_however_many_drafts_lie_about(
    server: HttpStudio, project: ConnectedProject
) -> None:
    server.memory.drafts = {
        task: [{"user": "anna@lab.example", "updated_at": ago(600), "result": []}]
        for task in range(12)
    }
    server.memory.drafts[11] = [{"user": "ben@lab.example", "updated_at": ago(0), "result": []}]
    project.studio.project(7)
    server.seen.clear()
    seen = seen_now(project.studio, 7, [11])
    assert len(server.seen) == 3 + 8
    assert seen.last[3][1] == 11, "the queue's first are looked at first"
    assert seen.drafts_unread == 4


def test_what_label_studio_refuses_is_told_and_the_rest_is_shown(
    server: HttpStudio, project: ConnectedProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.memory.users = {"detail": "not for you"}  # type: ignore[assignment]
    server.memory.submit(5, [], completed_by=2, created_at=ago(3))
    found = client(project).get("/api/projects/7").get_json()
    assert found["unanswered"] is None
    (said,) = found["people"]["unanswered"]
    assert said.startswith("who they are: The list of users has an unexpected form")
    assert found["people"]["people"][0]["name"] == "user 2"
    page = client(project).get("/projects/7", headers={"Accept": "text/html"}).text
    assert "Label Studio did not tell who they are" in page


def test_the_page_and_its_json_say_labels_and_minutes_of_each(
    server: HttpStudio, make_settings: Callable[..., Settings], redis_url: str
) -> None:
    project = phantom_project(
        server, make_settings, (), REDIS_URL=redis_url, NEXTSLICE_QUEUE_PREFIX="people"
    )
    submit_truth(server, {0: (2, 90.0), 1: (2, 4000.0), 2: (3, None)})
    assert attempt(ConnectedProject(project.service, project.key), "3 new annotations") is not None
    asked = client(project)
    found = asked.get("/api/projects/7").get_json()["people"]
    assert found["round"] == 1
    rows = {one["name"]: (one["labels"], one["minutes"], one["long"]) for one in found["people"]}
    assert rows == {"Anna Ames": (2, 31.5, 1), "ben@lab.example": (1, None, 0)}
    page = asked.get("/projects/7", headers={"Accept": "text/html"}).text
    assert "1 open for more than half an hour" in page
    assert "not timed" in page


def submit_truth(server: HttpStudio, of: dict[int, tuple[int, float | None]]) -> None:
    config = parse_label_config(CONFIG)
    for task, (who, seconds) in of.items():
        result = regions(PHANTOM.mask(PHANTOM.ids[task]), config)
        server.memory.submit(task, result, completed_by=who, lead_time=seconds)
