"""`nextslice doctor` beside the real Label Studio, which the tests run on SQLite."""

from __future__ import annotations

from collections.abc import Callable

from ml_backend.embedded.processes import wait_until
from ml_backend.health.examination import examine
from ml_backend.rounds.schedule import CONTROL, GPU
from ml_backend.rounds.service import Service
from tests.integration.conftest import LiveProject


def test_all_is_well_but_the_database(
    make_project: Callable[..., LiveProject], service: Service
) -> None:
    make_project(slices=2, connect=False)
    wait_until(lambda: all(map(service.schedule.listening, (CONTROL, GPU))), "both workers", 120)
    found = {finding.check: finding for finding in examine(service)}
    assert found["Label Studio"].says.startswith("1.23.2 answers")
    assert "demo@nextslice.local" in found["token"].says
    assert "SQLite" in found.pop("database").says
    assert {finding.verdict for finding in found.values()} == {"good"}
