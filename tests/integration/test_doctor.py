"""`nextslice doctor` beside the real Label Studio, which the tests run on SQLite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_backend.embedded.processes import wait_until
from ml_backend.health.examination import examine
from ml_backend.health.finding import FIX
from ml_backend.health.projects import mend, projects
from ml_backend.rounds.schedule import CONTROL, GPU
from ml_backend.rounds.service import WEBHOOK_HEADER, Service, webhook_secret
from tests.integration.conftest import LiveProject


def test_all_is_well_but_the_database(
    make_project: Callable[..., LiveProject], service: Service
) -> None:
    make_project(slices=2, connect=False)
    wait_until(lambda: all(map(service.schedule.listening, (CONTROL, GPU))), "both workers", 400)
    found = {finding.check: finding for finding in examine(service)}
    assert found["Label Studio"].says.startswith("1.23.2 answers")
    assert "demo@nextslice.local" in found["token"].says
    assert "SQLite" in found.pop("database").says
    parts = {f.verdict for name, f in found.items() if not name.startswith("project ")}
    assert parts == {"good"}


def test_what_was_changed_in_label_studio_is_found_and_mended(
    make_project: Callable[..., LiveProject],
) -> None:
    """Reconcile would mend some of it within half a minute: it is looked at once."""
    project = make_project()
    number, call = project.number, project.session.call

    def amiss() -> set[str]:
        ours = f"project {number} ("
        return {f.mend for f in projects(project.service) if f.check.startswith(ours)}

    def hooks() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = call("GET", f"/api/webhooks/?project={number}").json()
        return found

    wait_until(lambda: amiss() == {""}, "the adoption", 240)
    for hook in hooks():
        call("PATCH", f"/api/webhooks/{hook['id']}/", json={"is_active": False})
    assert amiss() == {FIX}
    assert list(mend(project.service))
    assert [hook["is_active"] for hook in hooks()] == [True]

    for hook in hooks():
        call("DELETE", f"/api/webhooks/{hook['id']}/")
    assert amiss() == {FIX}
    assert list(mend(project.service))
    assert [hook["headers"] for hook in hooks()] == [
        {WEBHOOK_HEADER: webhook_secret(project.service.settings)}
    ]
    assert amiss() == {""}
