"""Who may have a project adopted: a person, or Label Studio, where it knows us as its backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from ml_backend.rounds import adopt as adoption
from ml_backend.rounds import jobs
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.schedule import CONTROL
from ml_backend.rounds.service import Service
from ml_backend.settings import Settings
from ml_backend.studio.client import Backend
from ml_backend.studio.label_config import bitmask_config
from tests.memory_studio import FIRST_MOMENT, MemoryStudio

KEY = f"7.{int(FIRST_MOMENT.timestamp())}"


class OtherBackends(MemoryStudio):
    """A project whose ML backend is another program."""

    def backends(self, project_id: int) -> list[Backend]:
        return [Backend(id=1, url="http://another:9090")]


@pytest.fixture
def project(
    make_settings: Callable[..., Settings], redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ConnectedProject]:
    monkeypatch.setattr(adoption, "_APPEAR_S", 0.2)
    studio: Any = OtherBackends(bitmask_config(["bone"]), 3, lambda _: np.zeros((8, 9)))
    service = Service(make_settings(REDIS_URL=redis_url), studio=studio)
    monkeypatch.setattr(jobs, "_service", lambda: service)
    yield ConnectedProject(service, KEY)
    service.schedule.connection.flushall()


def untouched(project: ConnectedProject) -> bool:
    studio: Any = project.studio
    kept = {"label_config": bitmask_config(["bone"])}
    return not project.adopted and studio.imported == [] and studio.fields == kept


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


def test_who_may_be_nobody_gives_way_to_others(
    project: ConnectedProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adoption, "_APPEAR_S", 60)
    monkeypatch.setattr(adoption, "_GIVE_WAY_S", 0)
    project.service.schedule.reconcile()
    assert project.service.schedule.queue(CONTROL).count == 1
    with pytest.raises(adoption.NotConnected):
        adoption.adopt(project, "http://us:9090", confirmed=False)
