"""/metrics as Prometheus reads it, and /ready: on a real Redis, real stores, also without them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families
from rq import Worker
from rq.serializers import JSONSerializer

from ml_backend import __version__
from ml_backend.api.look import Look
from ml_backend.api.serving import Serving
from ml_backend.app import create_app
from ml_backend.embedded.processes import free_port
from ml_backend.rounds.artefacts import ROUND
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.reconcile import reconcile
from ml_backend.rounds.records import ProjectRecord, Published, RoundRecord
from ml_backend.rounds.schedule import CONTROL, GPU, Kind
from ml_backend.rounds.service import Service, slice_keys
from ml_backend.settings import Settings
from ml_backend.studio.label_config import bitmask_config, parse_label_config
from ml_backend.volumes.address import SliceAddress
from tests.conftest import REPOSITORY
from tests.memory_studio import MemoryStudio
from tests.other_deployment import OTHER, register_other

KEY = "7.1763865028"
CONFIG = bitmask_config(["bone"])


@pytest.fixture
def settings(make_settings: Callable[..., Settings], redis_url: str, tmp_path: Path) -> Settings:
    return make_settings(
        REDIS_URL=redis_url,
        NEXTSLICE_QUEUE_PREFIX="watching",
        NEXTSLICE_PUBLISHED_TTL_S="0.0001",
        NEXTSLICE_VOLUMES=f"all={tmp_path}",
    )


@pytest.fixture
def app(settings: Settings) -> Flask:
    return create_app(settings)


def serving(app: Flask) -> Serving:
    found: Serving = app.extensions["nextslice"]
    return found


def scraped(client: FlaskClient) -> dict[tuple[Any, ...], float]:
    """Each sample: its name, then the values of its labels in the order of their names."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.content_type.startswith("text/plain; version=")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def publish(project: ConnectedProject, number: int = 2, **fields: Any) -> None:
    config = parse_label_config(CONFIG)
    known = {
        "round": number,
        "model_version": f"nextslice-r{number:03d}-abcdef",
        "classes": list(config.classes),
        "fingerprint": config.fingerprint,
    }
    project.folder.published = Published(**known, **fields)
    project.folder.record = ProjectRecord(project=project.number, key=project.key, failures=1)
    seconds = {"sync": 1.5, "train": 60.25}
    record = RoundRecord(
        **known, seconds=seconds, unseen=[4, 5], committed_at="2026-11-28T20:00:00+00:00"
    )
    project.folder.round(number).save(ROUND, record)


def listening(app: Flask, kind: Kind) -> Worker:
    queue = serving(app).service.schedule.queue(kind)
    worker = Worker([queue], connection=queue.connection, serializer=JSONSerializer)
    worker.register_birth()
    return worker


# -- /metrics


def test_requests_are_counted_by_endpoint_and_status_and_by_nothing_that_anybody_names(
    app: Flask,
) -> None:
    client = app.test_client()
    client.get("/health")
    client.get("/health?x=1")
    client.post("/setup", json={"project": "seven", "schema": CONFIG})
    for path in ("/a", "/b", "/slices/../etc", "/health/nothing"):
        client.get(path)
    client.get("/slices/scan.npy/z/1.png")  # not signed
    client.open("/predict", method="BREW")

    found = scraped(client)
    counts = {key[1:]: n for key, n in found.items() if key[0] == "nextslice_http_requests_total"}
    assert counts == {
        ("/health", "200"): 2,
        ("/setup", "400"): 1,
        ("/slices", "403"): 1,
        ("other", "404"): 4,
        ("other", "405"): 1,
    }
    name = "nextslice_http_request_duration_seconds"
    assert found[f"{name}_count", "/health"] == 2
    assert 0 < found[f"{name}_sum", "/health"] < 60
    assert scraped(client)["nextslice_http_requests_total", "/metrics", "200"] == 1


def test_what_becomes_of_the_tasks_of_predictions_is_counted(
    app: Flask, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = app.test_client()
    project = ConnectedProject(serving(app).service, KEY)
    nowhere = SliceAddress("all/none.npy", "z", 0).url(settings.slices_url, slice_keys(settings))

    def predict(*tasks: dict[str, Any]) -> None:
        body = {"project": KEY, "label_config": CONFIG, "tasks": list(tasks)}
        assert client.post("/predict", json=body).status_code == 200

    publish(project)
    predict({"id": 1, "data": {}}, {"id": 2, "data": {}})  # there is no model
    publish(project, weights="round-0002/weights.safetensors")
    # of a network that is loaded nothing more is asked before the image is there
    network: Any = SimpleNamespace(neighbours=0)
    serving(app)._warmed.add((KEY, "round-0002/weights.safetensors"))
    serving(app)._models[KEY, "round-0002/weights.safetensors"] = network
    predict({"id": 3, "data": {"image": nowhere}}, {"id": 4, "data": {}})
    monkeypatch.setattr("ml_backend.api.serving._ANSWER_WITHIN_S", -1.0)
    predict({"id": 5, "data": {"image": nowhere}})

    found = scraped(client)
    outcomes = {key[1]: n for key, n in found.items() if key[0] == "nextslice_predictions_total"}
    assert outcomes == {"masks": 0, "none": 2, "failed": 2, "late": 1, "refused": 0}
    assert found["nextslice_images_failed_total", "/predict"] == 1
    assert found["nextslice_images_failed_total", "/slices"] == 0


def test_what_other_processes_do_is_known_from_store_and_redis(app: Flask) -> None:
    service = serving(app).service
    publish(ConnectedProject(service, KEY))
    fresh = ConnectedProject(service, "8.1763865028")
    fresh.folder.record = ProjectRecord(project=8, key=fresh.key, last_error="StudioError: 500")
    ConnectedProject(service, KEY).schedule.round("8 new annotations", 3)
    listening(app, GPU)

    before = time.time()
    found = scraped(app.test_client())

    assert found["nextslice_build_info", __version__] == 1
    assert found["process_resident_memory_bytes",] > 1e6
    assert found["nextslice_redis_up",] == found["nextslice_store_up",] == 1
    assert found["nextslice_queue_jobs", "gpu", "waiting"] == 1
    assert found["nextslice_queue_jobs", "gpu", "started"] == 0
    assert found["nextslice_queue_jobs", "control", "waiting"] == 0
    assert found["nextslice_workers", "gpu"] == 1
    assert found["nextslice_workers", "control"] == 0
    states = {key[1]: n for key, n in found.items() if key[0] == "nextslice_projects" and n}
    assert states == {"queued": 1, "waiting": 1, "failed": 1, "unpublished": 1}
    assert found["nextslice_projects", "killed"] == 0
    assert found["nextslice_round_number", KEY] == 2
    assert found["nextslice_round_step_seconds", KEY, "train"] == 60.25
    assert found["nextslice_round_unreadable_slices", KEY] == 2
    assert found["nextslice_round_failures", KEY] == 1
    assert found["nextslice_round_committed_timestamp_seconds", KEY] == 1795896000
    assert before - 1 <= found["nextslice_seen_timestamp_seconds",] <= time.time()
    assert not any(key[0].startswith("nextslice_reconcile") for key in found)


def test_when_reconcile_looked_last_is_told(app: Flask, settings: Settings) -> None:
    studio: Any = MemoryStudio(CONFIG, 3, lambda _: np.zeros((8, 9)))
    studio.projects = lambda: iter([studio.project(7)])
    before = time.time()
    reconcile(Service(settings, studio=studio))
    moment = scraped(app.test_client())["nextslice_reconcile_last_look_timestamp_seconds",]
    assert before <= moment <= time.time()


def test_projects_that_were_deleted_in_label_studio_are_in_no_state(
    app: Flask, settings: Settings
) -> None:
    publish(ConnectedProject(serving(app).service, KEY))
    assert scraped(app.test_client())["nextslice_projects", "waiting"] == 1
    studio: Any = MemoryStudio(CONFIG, 3, lambda _: np.zeros((8, 9)))
    studio.projects = lambda: iter(())
    reconcile(Service(settings, studio=studio))
    found = scraped(create_app(settings).test_client())  # whose first look it is
    assert not any(n for key, n in found.items() if key[0] == "nextslice_projects")
    assert ("nextslice_round_failures", KEY) not in found


def test_scrapes_are_answered_without_redis_and_store(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    settings = make_settings(
        REDIS_URL=f"redis://127.0.0.1:{free_port()}/0", NEXTSLICE_STORE=tmp_path / "file" / "store"
    )
    begin = time.monotonic()
    found = scraped(create_app(settings).test_client())
    assert time.monotonic() - begin < 10
    assert found["nextslice_redis_up",] == found["nextslice_store_up",] == 0
    assert not any(key[0] == "nextslice_queue_jobs" for key in found)


def test_scrapes_are_answered_while_the_store_hangs(app: Flask, tmp_path: Path) -> None:
    """As on a network disk whose server is gone: here a pipe that nobody writes to."""
    project = ConnectedProject(serving(app).service, KEY)
    publish(project)
    published = Path(project.settings.store, project.folder.path, "published.json")
    published.unlink()
    os.mkfifo(published)
    client = app.test_client()
    try:
        for _ in range(2):
            begin = time.monotonic()
            found = scraped(client)
            assert time.monotonic() - begin < 15
            assert found["nextslice_build_info", __version__] == 1
            assert not any(key[0] == "nextslice_projects" for key in found)
        threads = [t for t in threading.enumerate() if t.name.endswith("(_look)")]
        assert len(threads) == 1, "one look at a time, however many ask"
    finally:
        with published.open("w") as writer:
            writer.write("{}")


def test_projects_without_redis_are_in_the_state_that_says_so(
    make_settings: Callable[..., Settings],
) -> None:
    settings = make_settings(REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")
    for number in (7, 8):
        publish(ConnectedProject(Service(settings), f"{number}.1763865028"))
    found = scraped(create_app(settings).test_client())
    states = {key[1]: n for key, n in found.items() if key[0] == "nextslice_projects" and n}
    assert states == {"redis": 2, "waiting": 2}


def test_every_series_is_documented(app: Flask) -> None:
    publish(ConnectedProject(serving(app).service, KEY))
    serving(app).service.schedule.looked()
    page = (REPOSITORY / "docs" / "operations.md").read_text()
    endings = ("_created", "_bucket", "_sum", "_count")
    names = {name for name, *_ in scraped(app.test_client()) if name.startswith("nextslice_")}
    lacking = {name for name in names if not name.endswith(endings) and f"`{name}`" not in page}
    assert not lacking


def test_a_look_is_kept_for_a_while_and_shared_by_all_who_ask() -> None:
    taken: list[int] = []
    look = Look(lambda: taken.append(len(taken)) or len(taken), fresh_s=600)
    for _ in range(5):
        seen = look.newest(time.monotonic() + 30)
        assert seen is not None
        assert seen.found == 1
    assert taken == [0]


def test_a_look_that_fails_is_taken_again() -> None:
    answers = iter([ZeroDivisionError, 3])

    def take() -> int:
        answer = next(answers)
        if isinstance(answer, int):
            return answer
        raise answer

    look = Look(take, fresh_s=600)
    assert look.newest(time.monotonic() + 30) is None
    seen = look.newest(time.monotonic() + 30)
    assert seen is not None
    assert seen.found == 3


# -- /ready


def test_ready_where_all_parts_work_and_a_killed_worker_is_no_longer_one(app: Flask) -> None:
    listening(app, CONTROL)
    gpu = listening(app, GPU)
    answer = app.test_client().get("/ready")
    assert (answer.status_code, answer.get_json()) == (200, {"status": "READY", "faults": {}})

    schedule = serving(app).service.schedule
    schedule.connection.delete(gpu.key)  # as its registration runs out: it has not signed off
    assert schedule.listening(GPU) == 0
    answer = create_app(serving(app).service.settings).test_client().get("/ready")
    assert answer.status_code == 503
    told = "No gpu worker listens. Start one: nextslice worker gpu."
    assert answer.get_json() == {"status": "NOT READY", "faults": {"gpu": told}}
    assert app.test_client().get("/health").get_json()["status"] == "UP"


def test_neither_ready_nor_counted_where_workers_of_another_deployment_listen(app: Flask) -> None:
    """They would drop our jobs, and ours do not start beside them."""
    register_other(serving(app).service.schedule.queue(GPU))
    listening(app, CONTROL)
    client = app.test_client()
    answer = client.get("/ready")
    assert answer.status_code == 503
    faults = answer.get_json()["faults"]
    assert set(faults) == {"control", "gpu"}
    for said in faults.values():
        assert f"works for the Label Studio {OTHER}" in said
        assert "NEXTSLICE_QUEUE_PREFIX" in said
    found = scraped(client)
    assert (found["nextslice_workers", "gpu"], found["nextslice_workers", "control"]) == (0, 1)


def test_what_may_be_away_is_not_asked_for(app: Flask) -> None:
    client = app.test_client()
    assert client.get("/ready?exclude=gpu").get_json()["faults"].keys() == {"control"}
    assert client.get("/ready?exclude=gpu&exclude=control").status_code == 200
    answer = client.get("/ready?exclude=workers")
    assert answer.status_code == 400
    assert answer.get_json()["error"] == (
        "exclude: found workers, expected some of redis, store, control, gpu"
    )


def test_not_ready_says_why_of_each_part(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    store = tmp_path / "file" / "store"
    settings = make_settings(
        REDIS_URL=f"redis://ann:secret@127.0.0.1:{free_port()}/0", NEXTSLICE_STORE=store
    )
    client = create_app(settings).test_client()
    answer = client.get("/ready")
    assert answer.status_code == 503
    faults = answer.get_json()["faults"]
    assert faults.keys() == {"redis", "store", "control", "gpu"}
    assert faults["redis"].startswith("Redis does not answer (")
    assert faults["store"].startswith(f"The store's {store}/")
    assert "Not a directory" in faults["store"]
    assert faults["gpu"] == "Whether a gpu worker listens is not known: Redis does not answer."
    assert "secret" not in answer.text
    assert client.get("/health").status_code == 200


def test_both_ask_for_the_same_credentials_as_the_rest(
    make_settings: Callable[..., Settings], redis_url: str
) -> None:
    settings = make_settings(REDIS_URL=redis_url, BASIC_AUTH_USER="ls", BASIC_AUTH_PASS="pass")
    client = create_app(settings).test_client()
    for path in ("/metrics", "/ready"):
        assert client.get(path).status_code == 401
        assert client.get(path, auth=("ls", "wrong")).status_code == 401
        assert client.get(path, auth=("ls", "pass")).status_code != 401
    elsewhere = {"REMOTE_ADDR": "192.0.2.1"}
    open_app = create_app(make_settings(REDIS_URL=redis_url)).test_client()
    assert open_app.get("/metrics", environ_base=elsewhere).status_code == 403
    assert open_app.get("/ready", environ_base=elsewhere).status_code == 403
