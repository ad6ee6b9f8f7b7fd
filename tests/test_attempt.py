"""What is noted of an attempt, also where it cannot be; more: tests/test_recovery.py."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_backend.errors import TimeUp
from ml_backend.rounds import reconcile
from ml_backend.rounds.artefacts import DATASET, WEIGHTS
from ml_backend.rounds.attempt import attempt
from ml_backend.rounds.claim import ClaimLost, ClaimTaken
from ml_backend.rounds.pauses import MAX_FAILURES, may_try_again
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import ProjectRecord
from ml_backend.rounds.service import Service
from ml_backend.rounds.status import project_status
from ml_backend.rounds.store import StoreFault
from ml_backend.settings import Settings
from ml_backend.studio.client import Project, StudioError
from ml_backend.studio.label_config import LabelConfigError, bitmask_config
from tests.bucket import Bucket, NoAnswer
from tests.memory_studio import MemoryStudio

KEY = "7.1763865028"


class Failing(MemoryStudio):
    """A Label Studio that is down from the moment on at which the store breaks as well."""

    record: Path

    def project(self, project_id: int) -> Project:
        self.record.unlink()
        self.record.mkdir()  # no file of this name can be read or written
        raise StudioError("Label Studio is down")


def test_the_error_of_an_attempt_is_told_also_where_it_cannot_be_noted(
    make_settings: Callable[..., Settings], redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    studio: Any = Failing(bitmask_config(["bone"]), 3, lambda _: np.zeros((8, 9)))
    settings = make_settings(REDIS_URL=redis_url, NEXTSLICE_QUEUE_PREFIX="attempt")
    project = ConnectedProject(Service(settings, studio=studio), KEY)
    project.folder.record = ProjectRecord(project=7, key=KEY)
    studio.record = Path(settings.store, project.folder.path, "project.json")

    with pytest.raises(StudioError, match="Label Studio is down"):
        attempt(project, "test")

    assert "that the attempt failed cannot be noted" in caplog.text
    assert str(studio.record) in caplog.text


def connected(make_settings: Callable[..., Settings], redis_url: str) -> ConnectedProject:
    settings = make_settings(
        REDIS_URL=redis_url, NEXTSLICE_QUEUE_PREFIX="attempt", NEXTSLICE_STORE="bucket://attempt"
    )
    studio: Any = MemoryStudio(bitmask_config(["bone"]), 3, lambda _: np.zeros((8, 9)))
    project = ConnectedProject(Service(settings, studio=studio), KEY)
    project.folder.record = ProjectRecord(project=7, key=KEY)
    project.folder.round(0).write(DATASET, b"{}")
    return project


def test_an_object_store_that_is_away_for_a_moment_is_no_fault_of_the_labels(
    make_settings: Callable[..., Settings], redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = connected(make_settings, redis_url)

    def brief(*_: object) -> None:
        with monkeypatch.context() as moment:
            moment.setattr(Bucket, "refuses", NoAnswer("Could not connect"))
            project.folder.round(0).write(WEIGHTS, b"")

    monkeypatch.setattr("ml_backend.rounds.attempt.run_round", brief)
    with pytest.raises(StoreFault):
        attempt(project, "test")

    assert (project.record.failures, project.record.outage) == (1, True)
    assert "Could not connect" in (project.record.last_error or "")


@pytest.mark.parametrize("error", [LabelConfigError("no"), ClaimTaken("now"), ClaimLost("gone")])
def test_how_an_attempt_ended_is_told_also_where_the_store_is_away(
    make_settings: Callable[..., Settings],
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    project = connected(make_settings, redis_url)

    def long(*_: object) -> None:
        monkeypatch.setattr(Bucket, "refuses", NoAnswer("Could not connect"))
        raise error

    monkeypatch.setattr("ml_backend.rounds.attempt.run_round", long)
    with pytest.raises(type(error), match=str(error)):
        attempt(project, "test")

    assert "cannot be noted: The store's" in caplog.text


def test_an_attempt_whose_time_is_up_has_failed(
    make_settings: Callable[..., Settings], redis_url: str
) -> None:
    class Slow(MemoryStudio):
        def project(self, project_id: int) -> Project:
            raise TimeUp("the job was given 86400 seconds, and has not ended")

    studio: Any = Slow(bitmask_config(["bone"]), 3, lambda _: np.zeros((8, 9)))
    settings = make_settings(REDIS_URL=redis_url, NEXTSLICE_QUEUE_PREFIX="attempt")
    project = ConnectedProject(Service(settings, studio=studio), KEY)
    project.folder.record = ProjectRecord(project=7, key=KEY)

    with pytest.raises(TimeUp):
        attempt(project, "test")

    assert (project.record.failures, project.record.unended) == (1, 0)
    assert "86400 seconds" in (project.record.last_error or "")


def test_a_failing_round_0_is_told_until_it_succeeds(
    make_settings: Callable[..., Settings], redis_url: str
) -> None:
    studio: Any = MemoryStudio(
        "<View><Image name='i' value='$image'/></View>", 9, lambda _: np.zeros((8, 9))
    )
    settings = make_settings(REDIS_URL=redis_url, NEXTSLICE_QUEUE_PREFIX="attempt")
    project = ConnectedProject(Service(settings, studio=studio), KEY)
    project.update(lambda record: record.adopted("2026-11-28T08:00:00+00:00"), adopting=True)
    for _ in range(MAX_FAILURES + 1):
        with pytest.raises(LabelConfigError) as refused:
            reconcile.count(project)

    failed, unpublished = project_status(project).conditions

    assert failed.state == "failed"
    assert str(refused.value).rstrip(".") in failed.says
    assert failed.says.endswith("It is tried again at each look, twice a minute.")
    assert unpublished.says == "Nothing is published yet."

    studio.fields["label_config"] = bitmask_config(["bone"])
    reconcile.count(project)

    assert project.published is not None
    assert [condition.state for condition in project_status(project).conditions] == ["waiting"]


@pytest.mark.parametrize("noted", [{"unended": 1}, {"failures": 1}])
def test_an_attempt_from_the_future_has_no_pause(noted: dict[str, int]) -> None:
    """As after a clock was put back: the pause would last for as long as that, and a minute. Two
    machines may differ by a few seconds: that is no reason to leave it out."""
    for ahead_s, over in ((3600, True), (5, False)):
        moment = {"began_at": time.time() + ahead_s, "failed_at": time.time() + ahead_s}
        assert may_try_again(ProjectRecord(project=7, key=KEY, **noted, **moment)) is over
