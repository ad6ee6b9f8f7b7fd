"""What `rounds list` says of the round that is next: how far it is, and who is at it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ml_backend.cli.rounds_list import _begun, _labels, _step, rounds_table
from ml_backend.cli.tables import whole
from ml_backend.rounds.claim import claimed
from ml_backend.rounds.overview import Running, project_overview
from ml_backend.rounds.project import ConnectedProject
from ml_backend.settings import Settings
from ml_backend.studio.client import Filter, Studio
from tests.http_studio import HttpStudio, phantom_project, phantom_server
from tests.test_cli import nextslice


@pytest.fixture
def server() -> Iterator[HttpStudio]:
    with phantom_server() as server:
        server.memory.fields["title"] = "implants [week 12]"
        yield server


@pytest.fixture
def project(
    server: HttpStudio, make_settings: Callable[..., Settings], redis_url: str
) -> ConnectedProject:
    variables = {"NEXTSLICE_EARLY_LABELS": "", "NEXTSLICE_K": 8, "REDIS_URL": redis_url}
    project = phantom_project(server, make_settings, range(5), **variables)
    # what a look leaves of a round before anybody is at it
    project.folder.store.write(f"{project.folder.path}/round-0001/dataset.part", b"")
    return project


def test_a_round_without_a_worker_is_not_in_progress(project: ConnectedProject) -> None:
    project.schedule.round("test", 1)
    seen = project_overview(project)
    assert _begun(1, seen) == "waiting for a gpu worker: none is running"
    shown = whole(rounds_table(project.folder, seen))
    assert "waiting for a gpu worker: none is running" in shown
    assert shown.startswith("Rounds of project 7 implants [week 12] (127.0.0.1")


def test_a_round_that_somebody_is_at_is_running(project: ConnectedProject) -> None:
    with claimed(project.folder.round(1), project.settings.claim_ttl_s):
        assert _begun(1, project_overview(project)).startswith("running")
    assert _begun(1, project_overview(project)) == "waiting to go on"
    assert _begun(9, project_overview(project)) == "left"


def test_a_look_at_a_project_that_is_taken_off_meanwhile_does_not_make_its_folder_anew(
    project: ConnectedProject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It was there and empty, and the folder that was moved back lay inside."""
    folder = Path(project.settings.store, project.folder.path)
    count = Studio.count_tasks

    def moved(studio: Studio, number: int, filters: Sequence[Filter] = ()) -> int:
        if folder.exists():
            folder.rename(tmp_path / "taken-off")
        return count(studio, number, filters)

    monkeypatch.setattr(Studio, "count_tasks", moved)
    project_overview(project)
    assert (tmp_path / "taken-off").exists()
    assert not folder.exists()


def test_how_far_it_is_to_the_next_round(project: ConnectedProject) -> None:
    said = _labels(project_overview(project))
    assert said.startswith("5 of 8 labels for the next round; 5 slices are annotated, ")


def test_slices_that_people_skipped_are_counted_by_themselves(
    project: ConnectedProject, server: HttpStudio
) -> None:
    tasks = project.studio.count_tasks(7)
    for task in (5, 6, 7):
        server.memory.skip(task)
    said = _labels(project_overview(project))
    assert said.endswith(f"; 5 slices are annotated, {tasks - 8} are not, 3 were skipped.")


def test_what_is_submitted_meanwhile_is_no_skip(
    project: ConnectedProject, server: HttpStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = list(range(6, 12))

    def count(studio: Studio, number: int, filters: Sequence[Filter] = ()) -> int:
        server.memory.submit(left.pop(), [])
        return counted(studio, number, filters)

    server.memory.skip(5)
    counted = Studio.count_tasks
    monkeypatch.setattr(Studio, "count_tasks", count)
    labels = project_overview(project).labels
    assert labels is not None
    assert labels.skipped == 1


def test_a_step_with_what_is_left() -> None:
    running = Running(step="train", done=1200, total=6000, seconds_left=250)
    assert _step(running) == "train, 1,200 of 6,000, 4 min left"
    assert _step(Running()) == ""


def test_for_programs_and_where_label_studio_is_gone(
    project: ConnectedProject, server: HttpStudio
) -> None:
    settings = project.settings
    env = {
        "NEXTSLICE_STORE": settings.store, "LABEL_STUDIO_URL": server.url, "NEXTSLICE_K": "8",
        "LABEL_STUDIO_API_KEY": server.key, "REDIS_URL": settings.redis_url or "",
        "NEXTSLICE_QUEUE_PREFIX": settings.queue_prefix, "NEXTSLICE_EARLY_LABELS": "",
    }  # fmt: skip
    (found,) = json.loads(nextslice("rounds", "list", "--json", **env).stdout)["projects"]
    assert (found["title"], found["labels"]["fresh"]) == ("implants [week 12]", 5)
    wrong = nextslice("rounds", "list", "--json", "--watch", **env)
    assert (wrong.returncode, "--watch cannot be given with --json" in wrong.stderr) == (2, True)
    shown = nextslice("rounds", "list", "7", **(env | {"LABEL_STUDIO_API_KEY": "wrong"}))
    assert shown.returncode == 0
    assert "Rounds of project 7 (127.0.0.1" in shown.stdout
    assert "refused the token" in shown.stderr
