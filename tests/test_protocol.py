"""The wire protocol, as Label Studio 1.23 speaks it. Real Redis; no Label Studio needed."""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64encode
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient
from rq import Queue

from ml_backend.api.auth import check_address
from ml_backend.api.server import PREDICTIONS, SLICES, gunicorn_argv
from ml_backend.api.serving import Serving
from ml_backend.app import create_app
from ml_backend.embedded.processes import ProcessGroup, free_port, wait_until
from ml_backend.rounds.artefacts import DATASET, ROUND
from ml_backend.rounds.records import Published, RoundRecord
from ml_backend.rounds.schedule import ADOPTIONS
from ml_backend.rounds.service import WEBHOOK_HEADER, slice_keys, webhook_secret
from ml_backend.settings import Settings, SettingsError
from ml_backend.studio.label_config import bitmask_config, parse_label_config
from ml_backend.studio.task_order import LIVE_SCORE, PENDING_VERSION
from ml_backend.volumes.address import SliceAddress
from tests.conftest import REPOSITORY

KEY = "7.1763865028"
CONFIG = bitmask_config(["bone", "implant"])
PROJECT = {"id": 7, "created_at": "2025-11-23T02:30:28.893829Z", "title": "p"}
"""As a webhook carries it; the timestamp is the key's."""


@pytest.fixture
def settings(make_settings: Callable[..., Settings], redis_url: str) -> Settings:
    return make_settings(REDIS_URL=redis_url, NEXTSLICE_PUBLISHED_TTL_S="0.0001")


@pytest.fixture
def app(settings: Settings) -> Flask:
    return create_app(settings)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def serving(app: Flask) -> Serving:
    found: Serving = app.extensions["nextslice"]
    return found


def control(app: Flask) -> Queue:
    return serving(app).service.schedule.queue("control")


def publish(app: Flask, **fields: object) -> Published:
    config = parse_label_config(CONFIG)
    published = Published(
        round=0,
        model_version="nextslice-r000-abcdef",
        classes=list(config.classes),
        fingerprint=config.fingerprint,
        **fields,  # type: ignore[arg-type]
    )
    serving(app).project(KEY).folder.published = published
    return published


def setup_body(**fields: object) -> dict[str, object]:
    body = {"project": KEY, "schema": CONFIG, "hostname": "http://ls", "access_token": "t"}
    return {**body, "extra_params": None, **fields}


def test_health_is_up(client: FlaskClient) -> None:
    assert client.get("/health").get_json()["status"] == "UP"


def test_setup_of_an_unknown_project_adopts_it_once(app: Flask, client: FlaskClient) -> None:
    for _ in range(3):
        answer = client.post("/setup", json=setup_body())
        assert answer.get_json() == {"model_version": PENDING_VERSION}
    (job,) = control(app).jobs
    assert job.func_name == "ml_backend.rounds.jobs.adopt"
    assert list(job.args) == [KEY, "http://localhost"]


@pytest.mark.parametrize("extra", [None, {}, '{"a": 1}', "text"])
def test_setup_answers_the_published_version(
    app: Flask, client: FlaskClient, extra: object
) -> None:
    publish(app)
    answer = client.post("/setup", json=setup_body(extra_params=extra))
    assert answer.get_json() == {"model_version": "nextslice-r000-abcdef"}
    assert control(app).jobs == []


def test_setup_refuses_a_config_without_masks(client: FlaskClient) -> None:
    text = '<View><Text name="t" value="$t"/><Choices name="c" toName="t"/></View>'
    answer = client.post("/setup", json=setup_body(schema=text))
    assert answer.status_code == 400
    assert "cannot be segmented" in answer.get_json()["error"]


@pytest.mark.parametrize("key", ["", "seven", "7.x", None])
def test_setup_refuses_a_project_of_another_form(client: FlaskClient, key: object) -> None:
    answer = client.post("/setup", json=setup_body(project=key))
    assert answer.status_code == 400
    assert "expected <id>.<created timestamp>" in answer.get_json()["error"]


def predict_body(tasks: object) -> dict[str, object]:
    params = {"login": "", "password": "", "context": None}
    return {"tasks": tasks, "project": KEY, "label_config": CONFIG, "params": params}


def test_predict_answers_every_task_before_there_is_a_model(
    app: Flask, client: FlaskClient
) -> None:
    publish(app)
    tasks = [{"id": i, "data": {"image": f"/data/upload/7/{i}.png"}} for i in range(5)]
    results = client.post("/predict", json=predict_body(tasks)).get_json()["results"]
    empty = {"result": [], "score": LIVE_SCORE, "model_version": "nextslice-r000-abcdef"}
    assert results == [empty] * 5


def test_predict_of_an_unknown_project_is_pending(client: FlaskClient) -> None:
    results = client.post("/predict", json=predict_body([{"id": 1, "data": {}}])).get_json()
    assert [r["model_version"] for r in results["results"]] == [PENDING_VERSION]


def test_predict_with_no_tasks_is_no_error(client: FlaskClient) -> None:
    assert client.post("/predict", json=predict_body([])).get_json() == {"results": []}


def test_predict_refuses_what_is_not_a_list(client: FlaskClient) -> None:
    answer = client.post("/predict", json=predict_body("all"))
    assert answer.status_code == 400
    assert "expected a list of tasks" in answer.get_json()["error"]


def test_a_task_that_waits_for_the_network_is_left_out_when_the_time_is_up(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml_backend.api.serving._ANSWER_WITHIN_S", 0.5)
    tasks = [{"id": i, "data": {"image": f"/data/upload/7/{i}.png"}} for i in range(2)]
    with serving(app)._forward:  # another request's prediction, or weights that are loaded
        publish(app, weights="weights.safetensors")
        results = client.post("/predict", json=predict_body(tasks)).get_json()["results"]
        serving(app)._warmed.clear()
    assert results == [[], []]


def busy() -> Flask:
    """The backend while the network is at a task that takes for ever, and so are all renderers."""
    app = create_app()
    serving(app)._forward.acquire()
    publish(app, weights="weights.safetensors")
    renderers = app.extensions["nextslice slices"]._renderers
    while renderers.acquire(blocking=False):
        pass
    return app


def test_requests_that_wait_leave_threads_to_the_others(
    redis_url: str, make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """Over HTTP, as many predictions and slices as will ever be asked for, and none is done."""
    np.save(tmp_path / "scan.npy", np.zeros((200, 4, 4), np.uint8))
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    env = {
        "REDIS_URL": redis_url,
        "LABEL_STUDIO_API_KEY": "token",
        "NEXTSLICE_STORE": str(tmp_path / "store"),
        "NEXTSLICE_CACHE_DIR": str(tmp_path / "cache"),
        "NEXTSLICE_VOLUMES": f"all={tmp_path}",
        "NEXTSLICE_BACKEND_URL": base,
        "PYTHONPATH": str(REPOSITORY),
    }
    keys = slice_keys(make_settings(**env))
    urls = [SliceAddress("all/scan.npy", "z", z).url(base, keys) for z in range(100)]
    body = predict_body([{"id": 1, "data": {"image": "/1.png"}}])

    def statuses(found: list[Any]) -> list[int]:
        return [answer.result().status_code for answer in found if answer.done()]

    def refused(found: list[Any], most: int) -> bool:
        return len(statuses(found)) == len(found) - most

    with ThreadPoolExecutor(200) as browsers, ProcessGroup(tmp_path / "logs") as group:
        group.start(
            "backend", gunicorn_argv(f"127.0.0.1:{port}", "tests.test_protocol:busy()"), env=env
        )
        group.wait("backend", lambda: answers(base), timeout_s=120)
        predictions = [
            browsers.submit(requests.post, f"{base}/predict", json=body) for _ in range(60)
        ]
        slices = [browsers.submit(requests.get, url) for url in urls]
        wait_until(lambda: refused(predictions, PREDICTIONS), "predictions to be refused", 240)
        wait_until(lambda: refused(slices, SLICES), "slices to be refused", 240)

        event = {"action": "ANNOTATION_CREATED", "project": PROJECT}
        assert requests.post(f"{base}/webhook", json=event, timeout=20).status_code == 200
        assert requests.get(f"{base}/health", timeout=20).status_code == 200
        assert set(statuses(predictions)) == {200}
        assert set(statuses(slices)) == {503}


def answers(base: str) -> bool:
    try:
        return requests.get(f"{base}/health", timeout=10).ok
    except requests.RequestException:
        return False


ANNOTATED = {"id": 3, "task": 2, "result": [], "was_cancelled": False}


@pytest.mark.parametrize(
    "action",
    [
        "ANNOTATION_CREATED",
        "ANNOTATIONS_CREATED",
        "ANNOTATION_UPDATED",
        "ANNOTATIONS_DELETED",
        "TASKS_CREATED",
        "TASKS_DELETED",
        "PROJECT_UPDATED",
    ],
)
def test_a_webhook_storm_is_one_look_at_the_project(
    app: Flask, client: FlaskClient, action: str
) -> None:
    publish(app)
    for _ in range(20):
        body = {"action": action, "project": PROJECT, "annotation": ANNOTATED}
        assert client.post("/webhook", json=body).status_code == 200
    assert [job.func_name for job in control(app).jobs] == ["ml_backend.rounds.jobs.count"]
    assert list(control(app).jobs[0].args) == [KEY]
    assert serving(app).service.schedule.queue("gpu").jobs == []


def test_start_training_is_a_job_of_its_own(app: Flask, client: FlaskClient) -> None:
    publish(app)
    client.post("/webhook", json={"action": "START_TRAINING", "project": PROJECT})
    assert [job.func_name for job in control(app).jobs] == ["ml_backend.rounds.jobs.start"]


@pytest.mark.parametrize("action", ["ANNOTATION_CREATED", "TASKS_CREATED", "START_TRAINING"])
def test_a_webhook_of_a_project_that_was_never_connected_does_nothing(
    app: Flask, client: FlaskClient, action: str
) -> None:
    for number in range(300):
        body = {"action": action, "project": {**PROJECT, "id": number}}
        assert client.post("/webhook", json=body).status_code == 200
    assert control(app).jobs == []
    assert serving(app).service.project_keys() == []


def test_three_hundred_setups_leave_the_queue_to_those_that_are_connected(
    app: Flask, client: FlaskClient
) -> None:
    for number in range(300):
        body = setup_body(project=f"{number}.1763865028")
        assert client.post("/setup", json=body).get_json() == {"model_version": PENDING_VERSION}
    assert len(control(app).jobs) == ADOPTIONS


@pytest.mark.parametrize("action", [["START_TRAINING"], {}, 7, None])
def test_a_strange_action_does_nothing(app: Flask, client: FlaskClient, action: object) -> None:
    publish(app)
    body = {"action": action, "project": PROJECT}
    assert client.post("/webhook", json=body).status_code == 200
    assert control(app).jobs == []


ELSEWHERE = [
    ({"REMOTE_ADDR": "192.168.1.7"}, {}),
    ({"REMOTE_ADDR": "2001:db8::7"}, {}),
    ({}, {"X-Forwarded-For": "192.168.1.7"}),
    ({}, {"Forwarded": "for=192.168.1.7"}),
]


@pytest.mark.parametrize(("environ", "headers"), ELSEWHERE)
@pytest.mark.parametrize("path", ["/health", "/versions"])
def test_without_credentials_only_this_machine_is_answered(
    make_settings: Callable[..., Settings],
    environ: dict[str, str],
    headers: dict[str, str],
    path: str,
) -> None:
    client = create_app(make_settings()).test_client()
    answer = client.get(path, environ_overrides=environ, headers=headers)
    assert answer.status_code == 403
    assert "BASIC_AUTH_USER" in answer.text
    for here in ("127.0.0.1", "127.9.9.9", "::1"):
        assert client.get(path, environ_overrides={"REMOTE_ADDR": here}).status_code == 200

    told = create_app(make_settings(NEXTSLICE_ALLOW_ANYONE="true")).test_client()
    assert told.get(path, environ_overrides=environ, headers=headers).status_code == 200


def test_a_page_that_calls_this_machine_by_its_own_name_is_not_answered(
    make_settings: Callable[..., Settings],
) -> None:
    """A browser here takes it for that page's server (DNS rebinding), and shows it the answer."""
    client = create_app(
        make_settings(NEXTSLICE_BACKEND_URL="http://lab.example:9090")
    ).test_client()

    def status(host: str) -> int:
        return client.get("/versions", headers={"Host": host}).status_code

    for page in ("evil.example", "evil.example:9090", "127.0.0.1.evil.example", "[", "", "a b"):
        assert status(page) == 403, page
    for ours in ("localhost:9090", "127.0.0.1", "[::1]:9090", "a.localhost", "lab.example:9090"):
        assert status(ours) == 200, ours


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "", "192.168.1.7", "::", "lab.example"])
def test_an_address_beyond_this_machine_needs_credentials(
    make_settings: Callable[..., Settings], host: str
) -> None:
    with pytest.raises(SettingsError, match=r"does not listen on .*BASIC_AUTH_USER"):
        check_address(make_settings(), host)
    check_address(make_settings(BASIC_AUTH_USER="ls", BASIC_AUTH_PASS="secret"), host)
    check_address(make_settings(NEXTSLICE_ALLOW_ANYONE="true"), host)
    for here in ("127.0.0.1", "localhost", "[::1]"):
        check_address(make_settings(), here)


def test_an_unknown_action_does_nothing(app: Flask, client: FlaskClient) -> None:
    body = {"action": "LABEL_LINK_CREATED", "project": PROJECT}
    assert client.post("/webhook", json=body).status_code == 200
    assert control(app).jobs == []


@pytest.mark.parametrize("body", [{}, {"project": {}}, {"project": {"id": 7}}, [], "text"])
def test_a_webhook_without_a_project_is_refused(client: FlaskClient, body: object) -> None:
    assert client.post("/webhook", json=body).status_code == 400


def test_a_webhook_says_so_when_redis_is_gone(make_settings: Callable[..., Settings]) -> None:
    app = create_app(make_settings(REDIS_URL="redis://127.0.0.1:1/0"))
    publish(app)
    answer = app.test_client().post(
        "/webhook", json={"action": "ANNOTATION_CREATED", "project": PROJECT}
    )
    assert answer.status_code == 503


def test_versions_are_the_committed_rounds(app: Flask, client: FlaskClient) -> None:
    folder = serving(app).project(KEY).folder
    for number, version in enumerate(["nextslice-r000-a", "nextslice-r001-b"]):
        record = RoundRecord(round=number, model_version=version, classes=[], fingerprint="")
        folder.round(number).save(ROUND, record)
    folder.round(2).write(DATASET, b"{}")
    found = client.get("/versions", query_string={"project": KEY}).get_json()
    assert found == {"versions": ["nextslice-r001-b", "nextslice-r000-a"]}


@pytest.fixture
def guarded(make_settings: Callable[..., Settings], redis_url: str) -> Flask:
    return create_app(
        make_settings(REDIS_URL=redis_url, BASIC_AUTH_USER="ls", BASIC_AUTH_PASS="secret")
    )


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"}


@pytest.mark.parametrize("path", ["/health", "/versions"])
def test_basic_auth_guards_everything(guarded: Flask, path: str) -> None:
    client = guarded.test_client()
    assert client.get(path).status_code == 401
    assert client.get(path, headers=basic("ls", "wrong")).status_code == 401
    assert client.get(path, headers=basic("other", "secret")).status_code == 401
    assert client.get(path, headers=basic("ls", "secret")).status_code == 200


@pytest.mark.parametrize("password", ["plain", "Schlüssel", "with:colon"])
def test_a_password_is_good_as_label_studio_and_as_browsers_write_it(
    make_settings: Callable[..., Settings], password: str
) -> None:
    """Label Studio's requests writes Latin-1, browsers write UTF-8."""
    client = create_app(
        make_settings(BASIC_AUTH_USER="jürgen", BASIC_AUTH_PASS=password)
    ).test_client()

    def by_requests(password: str) -> Mapping[str, Any]:
        asked = requests.Request("GET", "http://localhost/", auth=("jürgen", password))
        return asked.prepare().headers

    for headers in (basic("jürgen", password), by_requests(password)):
        assert client.get("/health", headers=headers).status_code == 200
    for headers in (basic("jürgen", f"{password}é"), by_requests(f"{password}é")):
        assert client.get("/health", headers=headers).status_code == 401


@pytest.mark.parametrize("header", ["Basic", "Basic é", "Basic bHM", "Bearer bHM6c2VjcmV0", "é"])
def test_what_is_no_basic_auth_lets_nobody_in(guarded: Flask, header: str) -> None:
    answer = guarded.test_client().get("/health", headers={"Authorization": header})
    assert answer.status_code == 401


def test_a_webhook_without_a_secret_of_anybody_needs_user_and_password(
    make_settings: Callable[..., Settings], redis_url: str
) -> None:
    """What is derived from an API key that is not set is known to everybody."""
    login = {"BASIC_AUTH_USER": "ls", "BASIC_AUTH_PASS": "secret"}
    keyless = make_settings(REDIS_URL=redis_url, LABEL_STUDIO_API_KEY="", **login)
    client = create_app(keyless).test_client()
    body = {"action": "LABEL_LINK_CREATED", "project": PROJECT}
    known = hmac.new(b"", b"nextslice webhook", hashlib.sha256).hexdigest()
    for headers in ({WEBHOOK_HEADER: known}, {WEBHOOK_HEADER: ""}, {}):
        answer = client.post("/webhook", json=body, headers=headers)
        assert answer.status_code == 401
        assert "NEXTSLICE_WEBHOOK_SECRET" in answer.text
    assert client.post("/webhook", json=body, headers=basic("ls", "secret")).status_code == 200
    with pytest.raises(SettingsError, match="NEXTSLICE_WEBHOOK_SECRET"):
        webhook_secret(keyless)
    told = make_settings(LABEL_STUDIO_API_KEY="", NEXTSLICE_WEBHOOK_SECRET="said", **login)
    assert webhook_secret(told) == "said"


def test_the_webhook_may_come_with_its_secret_instead(guarded: Flask) -> None:
    client = guarded.test_client()
    body = {"action": "LABEL_LINK_CREATED", "project": PROJECT}
    secret = webhook_secret(serving(guarded).service.settings)
    assert client.post("/webhook", json=body).status_code == 401
    assert client.post("/webhook", json=body, headers={WEBHOOK_HEADER: "x"}).status_code == 401
    assert client.post("/webhook", json=body, headers={WEBHOOK_HEADER: secret}).status_code == 200
    assert client.post("/webhook", json=body, headers=basic("ls", "secret")).status_code == 200
    assert client.get("/health", headers={WEBHOOK_HEADER: secret}).status_code == 401
