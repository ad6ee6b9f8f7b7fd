"""What `doctor` says of an adopted project: each thing amiss by itself, and what mends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np
import pytest

from ml_backend.health.finding import FIX, Finding
from ml_backend.health.projects import mend, projects
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.service import WEBHOOK_HEADER, Service, webhook_secret
from ml_backend.rounds.store import StoreFault
from ml_backend.settings import Settings
from ml_backend.studio import task_order
from ml_backend.studio.client import Backend, Webhook
from ml_backend.studio.label_config import bitmask_config
from tests.bucket import Bucket, NoAnswer
from tests.memory_studio import FIRST_MOMENT, MemoryStudio

KEY = f"7.{int(FIRST_MOMENT.timestamp())}"
URL = "http://us:9090"


class Hooked(MemoryStudio):
    """A project that has webhooks, too."""

    hooks: list[Webhook]

    def projects(self) -> Iterator[Any]:
        yield self.project(7)

    def webhooks(self, project_id: int, url: str) -> list[Webhook]:
        return [hook for hook in self.hooks if hook.url == url]

    def set_webhook(self, project_id: int, url: str) -> None:
        self.hooks = [Webhook(id=1, url=url)]

    def find_backend(self, project_id: int, url: str) -> Backend | None:
        return next((b for b in self.backends(project_id) if b.url == url), None)


@pytest.fixture
def service(make_settings: Callable[..., Settings], redis_url: str) -> Service:
    """A service with one adopted project that is well."""
    studio: Any = Hooked(bitmask_config(["bone"]), 3, lambda _: np.zeros((8, 9)))
    settings = make_settings(
        REDIS_URL=redis_url, NEXTSLICE_BACKEND_URL=URL, BASIC_AUTH_USER="ls", BASIC_AUTH_PASS="x"
    )
    service = Service(settings, studio=studio)
    headers = {WEBHOOK_HEADER: webhook_secret(settings)}
    studio.hooks = [Webhook(id=1, url=f"{URL}/webhook", headers=headers)]
    studio.backend = Backend(id=1, url=URL, state="CO", basic_auth_user="ls")
    studio.fields |= {"sampling": task_order.SAMPLING, "show_collab_predictions": True}
    ConnectedProject(service, KEY).update(
        lambda record: record.adopted("2026-01-01T00:00:00"), adopting=True
    )
    return service


def found(service: Service) -> Finding:
    (finding,) = projects(service)
    return finding


def test_a_project_that_is_well_is_one_good_line(service: Service) -> None:
    assert found(service) == Finding(
        "project 7", "good", "Connected; it follows the queue of nothing yet."
    )


def test_a_redis_that_fails_as_a_project_is_mended_is_said(service: Service) -> None:
    service.studio.update_project(7, sampling="Sequential sampling")
    settings = service.settings.model_copy(update={"redis_url": "redis://:secret@127.0.0.1:9/0"})
    without = Service(settings, studio=service.studio)
    (said,) = mend(without)
    assert said.startswith("project 7 could not be mended: ")
    assert "secret" not in said


def test_a_store_that_fails_as_a_project_is_looked_at_is_a_fault_of_it(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(project: ConnectedProject) -> NoReturn:
        raise StoreFault("The store's published.json cannot be read: Input/output error.")

    monkeypatch.setattr(ConnectedProject, "published", property(failing))
    assert {(f.check, f.verdict) for f in projects(service)} == {("project 7", "fault")}
    monkeypatch.setattr("ml_backend.health.projects._CHECKS", ())
    assert found(service).says == "The store's published.json cannot be read: Input/output error."


def test_an_object_store_that_is_away_is_a_fault_of_it(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = service.settings.model_copy(update={"store": "bucket://lab"})
    away = Service(settings, studio=service.studio)
    monkeypatch.setattr(Bucket, "refuses", NoAnswer("Could not connect to the endpoint URL"))
    finding = found(away)
    assert (finding.check, finding.verdict) == ("projects", "fault")
    assert "Could not connect to the endpoint URL. Is its server up" in finding.says


def test_a_project_that_label_studio_does_not_have_any_more_is_no_matter(service: Service) -> None:
    ConnectedProject(service, "9.1").update(
        lambda record: record.adopted("2026-01-01T00:00:00"), adopting=True
    )
    assert found(service).verdict == "good"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"sampling": "Sequential sampling"}, "handed out by Sequential sampling: the order"),
        ({"show_collab_predictions": False}, "slices open without masks"),
    ],
)
def test_settings_that_hide_the_queue_can_be_mended(
    service: Service, fields: dict[str, Any], says: str
) -> None:
    studio: Any = service.studio
    studio.fields |= fields
    assert says in found(service).says
    assert (found(service).verdict, found(service).mend) == ("fault", FIX)


def test_a_config_that_cannot_be_segmented_is_said_in_our_words(service: Service) -> None:
    studio: Any = service.studio
    studio.fields["label_config"] = '<View><Text name="t" value="$t"/></View>'
    assert found(service).verdict == "fault"
    assert "Image" in found(service).says


@pytest.mark.parametrize(
    ("backend", "says", "mend"),
    [
        (None, "no ML backend at http://us:9090", FIX),
        (
            Backend(id=1, url=URL, state="ER", error_message="Traceback\nConnection refused"),
            "cannot use the ML backend at http://us:9090: Connection refused",
            "NEXTSLICE_BACKEND_URL",
        ),
        (
            Backend(id=1, url=URL, state="CO"),
            "as nobody, expected is the user ls",
            "BASIC_AUTH_USER",
        ),
    ],
)
def test_an_ml_backend_that_is_not_us_as_we_are(
    service: Service, backend: Backend | None, says: str, mend: str
) -> None:
    studio: Any = service.studio
    studio.backend = backend
    assert says in found(service).says
    assert (found(service).verdict, found(service).mend) == ("fault", mend)


@pytest.mark.parametrize(
    ("hooks", "says"),
    [
        ([], "is missing"),
        ([Webhook(id=1, url=f"{URL}/webhook", is_active=False)], "is set off"),
        ([Webhook(id=1, url=f"{URL}/webhook", headers={})], "lacks our secret"),
    ],
)
def test_a_webhook_that_tells_us_nothing(service: Service, hooks: list[Webhook], says: str) -> None:
    studio: Any = service.studio
    studio.hooks = hooks
    assert says in found(service).says
    assert (found(service).verdict, found(service).mend) == ("warning", FIX)


def test_a_round_that_failed_is_a_fault_in_the_words_of_rounds_list(service: Service) -> None:
    def fail(record: Any) -> None:
        record.last_error, record.failures = "the disk is full", 2

    ConnectedProject(service, KEY).update(fail)
    assert found(service).verdict == "fault"
    assert "The last attempt failed (2×): the disk is full." in found(service).says
