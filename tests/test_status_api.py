"""/api/status and /api/projects/N: of a real round, a real Redis, and what is broken on purpose."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from rq import Worker
from rq.serializers import JSONSerializer

from ml_backend.api import status
from ml_backend.embedded.processes import free_port, wait_until
from ml_backend.rounds.artefacts import METRICS, QUEUE
from ml_backend.rounds.attempt import attempt
from ml_backend.rounds.claim import claimed
from ml_backend.rounds.jobs import _JobProgress
from ml_backend.rounds.overview import ProjectOverview, project_overview
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.project_settings import change_settings
from ml_backend.rounds.records import MetricsRecord
from ml_backend.rounds.schedule import CONTROL, GPU
from ml_backend.settings import Settings
from ml_backend.studio.client import Studio, StudioError
from tests.fuzz.endpoints import DESCRIPTION
from tests.http_studio import HttpStudio, phantom_project, phantom_server
from tests.openapi_schemas import record_schemas
from tests.served import client, look_each_time
from tests.test_recovery import raising


@pytest.fixture
def server() -> Iterator[HttpStudio]:
    with phantom_server() as server:
        server.posix = True
        server.memory.fields["title"] = "Explant 7"
        yield server


@pytest.fixture(autouse=True)
def _look_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    look_each_time(monkeypatch)


@pytest.fixture
def project(
    server: HttpStudio, make_settings: Callable[..., Settings], redis_url: str
) -> ConnectedProject:
    return phantom_project(server, make_settings, REDIS_URL=redis_url)


def listening(project: ConnectedProject, device: str = "cpu") -> None:
    for kind in (CONTROL, GPU):
        queue = project.service.schedule.queue(kind)
        worker = Worker([queue], connection=queue.connection, serializer=JSONSerializer)
        worker.register_birth()
        if kind == GPU:
            queue.connection.hset(worker.key, "nextslice_device", device)


def findings(answer: Any) -> dict[str, dict[str, str]]:
    return {found["check"]: found for found in answer.get_json()["findings"]}


def test_the_schemas_are_those_of_the_records() -> None:
    written = json.loads(DESCRIPTION.read_text())["components"]["schemas"]
    for name, schema in record_schemas().items():
        assert written[name] == schema, f"python -m tests.openapi_schemas writes {name} anew"


def test_a_service_that_is_well_says_what_it_stands_on(project: ConnectedProject) -> None:
    listening(project)
    answer = client(project).get("/api/status")
    found = answer.get_json()
    assert found["ok"] is True
    checks = findings(answer)
    assert {finding["verdict"] for finding in checks.values()} == {"good"}
    assert "1.23.2 answers" in checks["Label Studio"]["says"]
    assert "GiB are free" in checks["store"]["says"]
    gpu = checks["gpu worker"]["says"]
    assert "listens on cpu, and is" in gpu
    assert re.search(r"last sign of life was \d+ s ago", gpu)
    (one,) = found["projects"]
    assert (one["project"], one["title"], one["k"]) == (7, "Explant 7", 3)
    assert one["label_studio"].endswith("/projects/7")
    assert one["model_version"].startswith("nextslice-r000-")
    assert [c["state"] for c in one["conditions"]] == ["waiting"]


def test_a_checkpoint_that_could_not_be_loaded_is_a_warning(project: ConnectedProject) -> None:
    why = "round-0003/weights.safetensors: The file is not there any more."
    project.folder.round(0).save(METRICS, MetricsRecord(not_loaded=why))
    (said,) = client(project).get("/api/projects/7").get_json()["warnings"]
    assert said.startswith("The checkpoint before could not be loaded, so the network has learned")
    assert said.endswith(why)


def test_each_fault_is_one_and_says_what_mends_it(project: ConnectedProject) -> None:
    answer = client(project).get("/api/status")
    assert answer.get_json()["ok"] is False
    gpu = findings(answer)["gpu worker"]
    assert (gpu["verdict"], gpu["mend"]) == ("fault", "nextslice worker gpu")
    gone = {"redis_url": f"redis://:secret@127.0.0.1:{free_port()}/0"}
    answer = client(project, **gone).get("/api/status")
    assert findings(answer)["Redis"]["mend"] == "REDIS_URL"
    assert "secret" not in answer.text
    (one,) = answer.get_json()["projects"]
    assert one["title"] == "Explant 7"
    wrong = type(project.service.settings.label_studio_api_key)("wrong")
    answer = client(project, label_studio_api_key=wrong).get("/api/status")
    assert findings(answer)["token"]["mend"] == "LABEL_STUDIO_API_KEY"
    assert len(answer.get_json()["projects"]) == 1


def test_one_project_with_labels_queue_and_reasons_of_the_cold_start(
    project: ConnectedProject,
) -> None:
    found = client(project).get("/api/projects/7").get_json()
    assert found["labels"] == {"annotated": 3, "fresh": 3, "wanted": 3, "pool": 9, "skipped": 0}
    assert found["unanswered"] is None
    places = found["queue"]
    assert [place["place"] for place in places] == list(range(1, len(places) + 1))
    assert not {place["task"] for place in places} & {0, 1, 2}, "they are labelled"
    why = {place["why"] for place in places if place["kind"] == "chosen"}
    assert all(w.startswith("Evenly spaced between what is labelled: slice ") for w in why)
    assert places[0]["volume"] == "phantom"
    held = {one["name"]: (one["value"], one["source"]) for one in found["settings"]}
    assert held["k"][0] == 3
    assert held["neighbours"] == (0, "default")


def test_a_round_leaves_its_curve_and_says_which_class_a_slice_is_uncertain_of(
    project: ConnectedProject,
) -> None:
    change_settings(project, {"strategy": "entropy", "pause": "true"})
    assert attempt(ConnectedProject(project.service, project.key), "3 new annotations") is not None
    found = client(project).get("/api/projects/7").get_json()
    assert found["paused"] is True
    assert [c["state"] for c in found["conditions"]] == ["paused"]
    assert found["labels"]["fresh"] == 0
    assert [one["round"] for one in found["rounds"]] == [0, 1]
    last = found["rounds"][-1]
    assert (last["labels"], last["served"], last["strategy"]) == (3, True, "entropy")
    assert last["settings"]["k"] == 3
    first = found["queue"][0]
    assert first["masked"] is True
    assert "least certain of 9 slices, most where it sees " in first["why"].lower()
    assert first["score"] is not None

    queue = project.folder.round(1).need(QUEUE)
    queue.pending, queue.unmasked = [first["task"]], [found["queue"][1]["task"]]
    project.folder.round(1).save(QUEUE, queue)
    places = client(project).get("/api/projects/7").get_json()["queue"]
    assert [place["masked"] for place in places[:3]] == [False, False, True]
    page = client(project).get("/projects/7", headers={"Accept": "text/html"}).text
    assert "with the masks that they will find" in page
    queue.pending = [place["task"] for place in places]
    project.folder.round(1).save(QUEUE, queue)
    page = client(project).get("/projects/7", headers={"Accept": "text/html"}).text
    assert "Their masks are still to come." in page


def test_a_round_that_runs_tells_step_pace_and_loss(project: ConnectedProject) -> None:
    project.schedule.round("3 new annotations")
    job = project.service.schedule.job(project.schedule.job_id("round"))
    assert job is not None
    with claimed(project.folder.round(1), ttl_s=60):
        report = _JobProgress(job[0])
        report("train", 0, 12)
        report.told_loss(0.75)
        job[0].meta.update(began=time.time() - 300)
        report._written = 0.0
        report("train", 3, 12)
        running = client(project).get("/api/projects/7").get_json()["running"]
        assert (running["step"], running["done"], running["total"]) == ("train", 3, 12)
        assert running["loss"] == 0.75
        assert running["seconds_left"] == pytest.approx(900, abs=150)
        report("score", 0, 9)
        running = client(project).get("/api/projects/7").get_json()["running"]
        assert (running["loss"], running["seconds_left"]) == (None, None)
    assert client(project).get("/api/projects/7").get_json()["running"] is None


def test_label_studio_away_leaves_what_the_store_knows(project: ConnectedProject) -> None:
    wrong = type(project.service.settings.label_studio_api_key)("wrong")
    gone = client(project, label_studio_api_key=wrong)
    found = gone.get("/api/projects/7").get_json()
    assert found["labels"] is None
    assert found["queue"] == []
    assert found["unanswered"]
    assert [one["round"] for one in found["rounds"]] == [0]


def test_the_last_project_that_is_deleted_in_label_studio_is_shown_no_more(
    project: ConnectedProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = client(project)
    monkeypatch.setattr(Studio, "projects", raising(StudioError("502: Bad Gateway")))
    assert [one["project"] for one in asked.get("/api/status").get_json()["projects"]] == [7]
    monkeypatch.setattr(Studio, "projects", lambda self, **asked: iter(()))
    assert asked.get("/api/status").get_json()["projects"] == []


def test_what_is_not_there_and_what_cannot_be_read_say_so(project: ConnectedProject) -> None:
    asked = client(project)
    assert asked.get("/api/projects/8").status_code == 404
    project.update(lambda record: record.given_settings({"k": 0}, ()))
    answer = asked.get("/api/projects/7")
    assert answer.status_code == 503
    assert "nextslice project set 7 k=" in answer.get_json()["error"]
    assert project.key in asked.get("/api/status").get_json()["unreadable"]


def test_a_look_that_takes_long_is_no_missing_project(
    project: ConnectedProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "_WAIT_S", 0.1)
    over = threading.Event()

    def slow(project: ConnectedProject) -> ProjectOverview:
        over.wait(600)
        return project_overview(project)

    monkeypatch.setattr(status, "project_overview", slow)
    monkeypatch.setattr(status, "examine_parts", lambda service: over.wait(600) and [])
    asked = client(project)
    try:
        for path in ("/api/projects/7", "/projects/7", "/api/status", "/"):
            answer = asked.get(path, headers={"Accept": "text/html"})
            assert answer.status_code == 503, path
            assert "has not ended yet" in answer.text, path
            assert answer.headers["Retry-After"] == "2", path
        assert asked.get("/api/projects/8").status_code == 404
    finally:
        over.set()
    monkeypatch.setattr(status, "_WAIT_S", 300.0)
    assert asked.get("/api/projects/7").status_code == 200


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), RedisConnectionError("Redis is at lunch")]
)
def test_what_a_look_meets_is_said(
    project: ConnectedProject, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(project: ConnectedProject) -> ProjectOverview:
        raise error

    monkeypatch.setattr(status, "project_overview", fail)
    for path in ("/api/projects/7", "/projects/7"):
        answer = client(project).get(path)
        assert answer.status_code == 503
        assert str(error) in answer.text


def test_few_wait_for_a_look_and_the_others_see_what_was_seen_last(
    project: ConnectedProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "LOOKS", 1)
    asked, over = client(project), threading.Event()
    before = asked.get("/api/projects/7").get_json()

    def slow(project: ConnectedProject) -> ProjectOverview:
        over.wait(600)
        return project_overview(project)

    monkeypatch.setattr(status, "project_overview", slow)
    monkeypatch.setattr(status, "_WAIT_S", 600.0)
    with ThreadPoolExecutor(1) as browser:
        waits = browser.submit(lambda: asked.application.test_client().get("/api/projects/7"))
        try:
            looking = asked.application.extensions["nextslice status"]._look(project.key)
            wait_until(lambda: not looking.over, "the look to begin", 120)
            began = time.monotonic()
            assert asked.get("/api/projects/7").get_json() == before
            assert time.monotonic() - began < 60
        finally:
            over.set()
        assert waits.result().status_code == 200


def test_the_login_is_that_of_the_rest(project: ConnectedProject) -> None:
    settings = project.service.settings
    password = type(settings.basic_auth_pass)("secret")
    locked = client(project, basic_auth_user="ann", basic_auth_pass=password)
    for path in ("/api/status", "/api/projects/7"):
        assert locked.get(path).status_code == 401
        assert locked.get(path, auth=("ann", "secret")).status_code == 200
