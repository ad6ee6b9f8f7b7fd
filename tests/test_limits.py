"""What one request may bring: refused with a sentence before memory is taken for it."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Callable

import pytest
from flask.testing import FlaskClient

from ml_backend.api.limits import BODY_BYTES, CONTAINERS, TASKS
from ml_backend.app import create_app
from ml_backend.settings import Settings
from ml_backend.studio.label_config import bitmask_config

KEY = "7.1763865028"
CREATED = "2025-11-23T02:30:28.893829Z"
POSTED = ["/setup", "/predict", "/webhook"]


@pytest.fixture
def client(make_settings: Callable[..., Settings], redis_url: str) -> FlaskClient:
    return create_app(make_settings(REDIS_URL=redis_url)).test_client()


class Endless(io.RawIOBase):
    """Zeros for ever; ``given``: how many were asked for."""

    given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self.given += len(buffer)
        return len(buffer)


@pytest.mark.parametrize("path", POSTED)
@pytest.mark.parametrize("length", [300_000_000, None], ids=["300 MB", "no length"])
def test_a_large_body_is_refused_unread(client: FlaskClient, path: str, length: int | None) -> None:
    body = Endless()
    known = {"CONTENT_LENGTH": str(length)} if length else {"wsgi.input_terminated": True}
    tracemalloc.start()
    try:
        answer = client.post(
            path,
            content_type="application/json",
            environ_overrides={"wsgi.input": io.BufferedReader(body), **known},
        )
        assert tracemalloc.get_traced_memory()[1] < 4 * BODY_BYTES
    finally:
        tracemalloc.stop()
    assert answer.status_code == 413
    assert f"expected {BODY_BYTES}" in answer.get_json()["error"]
    assert body.given <= (0 if length else 2 * BODY_BYTES)


NESTED = b"[" * 200_000 + b"]" * 200_000
MANY = b"[" + b"[]," * CONTAINERS + b"[]]"


@pytest.mark.parametrize("path", POSTED)
@pytest.mark.parametrize(
    ("body", "why"),
    [
        (NESTED, "nested too deeply"),
        (b'{"project": ' + NESTED + b"}", "nested too deeply"),
        (MANY, f"found {CONTAINERS + 2} lists and objects, expected at most {CONTAINERS}"),
        (b'{"project": ' + b"9" * 5000 + b"}", "no JSON that can be read"),
        (b'{"project"', "no JSON that can be read"),
        (b"\xff\xfe\xfd", "no JSON that can be read"),
    ],
    ids=["nested", "nested value", "many", "digits", "cut", "bytes"],
)
def test_json_beyond_reason_is_named(client: FlaskClient, path: str, body: bytes, why: str) -> None:
    answer = client.post(path, data=body, content_type="application/json")
    assert answer.status_code == 400
    assert why in answer.get_json()["error"]


def test_too_many_tasks_are_refused_at_once(client: FlaskClient) -> None:
    body = {"project": KEY, "label_config": bitmask_config(["bone"])}
    for number, status in ((TASKS, 200), (TASKS + 1, 413)):
        answer = client.post("/predict", json={**body, "tasks": [{"id": 1}] * number})
        assert answer.status_code == status
    assert f"found {TASKS + 1}, expected at most {TASKS}" in answer.get_json()["error"]


STRANGE_IDS = ["1e999", "-1e999", "NaN", "9" * 400, "-7", '"7"', "[7]", "{}", "null", "7.5", "1e40"]


@pytest.mark.parametrize("number", STRANGE_IDS, ids=lambda text: text[:6])
def test_a_webhook_of_a_strange_project_is_refused(client: FlaskClient, number: str) -> None:
    body = (
        f'{{"action": "START_TRAINING", "project": {{"id": {number}, "created_at": "{CREATED}"}}}}'
    )
    answer = client.post("/webhook", data=body, content_type="application/json")
    assert answer.status_code == (200 if number == '"7"' else 400)
    assert number == '"7"' or answer.get_json()["error"]


@pytest.mark.parametrize(
    "created", ["0001-01-01T00:00:00", "1e999", 1e300, None, [], "9" * 400, ""]
)
def test_a_webhook_of_a_strange_time_is_refused(client: FlaskClient, created: object) -> None:
    body = {"action": "START_TRAINING", "project": {"id": 7, "created_at": created}}
    assert client.post("/webhook", json=body).status_code == 400


@pytest.mark.parametrize(
    "key", ["9" * 400, "7." + "9" * 400, "²", "7.²", "٧", "1e999", "-7", "7.1.1"]
)
@pytest.mark.parametrize("path", ["/setup", "/predict"])
def test_a_key_of_another_form_is_refused(client: FlaskClient, path: str, key: str) -> None:
    body = {"project": key, "schema": bitmask_config(["bone"]), "tasks": []}
    answer = client.post(path, json=body)
    assert answer.status_code == 400
    assert "expected <id>.<created timestamp>" in answer.get_json()["error"]
    assert len(answer.get_json()["error"]) < 200
    assert client.get("/versions", query_string={"project": key}).status_code == 200


@pytest.mark.parametrize("number", ["1e999", "NaN", "9" * 400, "[]", '"x"'], ids=lambda t: t[:6])
def test_a_task_of_a_strange_id_gets_its_answer(client: FlaskClient, number: str) -> None:
    tasks = f'[{{"id": {number}, "data": {{"image": 7}}}}, [], 7, null]'
    config = json.dumps(bitmask_config(["bone"]))
    body = f'{{"project": "{KEY}", "label_config": {config}, "tasks": {tasks}}}'
    answer = client.post("/predict", data=body, content_type="application/json")
    assert answer.status_code == 200
    assert len(answer.get_json()["results"]) == 4
