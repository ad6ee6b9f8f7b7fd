"""`label-studio-ml start ml_backend/adapter`, for real: its answers are those of our own server."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient
from rq import Queue

from ml_backend.app import create_app
from ml_backend.embedded.processes import ProcessGroup, free_port
from ml_backend.embedded.stack import settings_from
from ml_backend.rounds.artefacts import ROUND
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import Published, RoundRecord
from ml_backend.rounds.service import WEBHOOK_HEADER, Service, webhook_secret
from ml_backend.settings import Settings
from ml_backend.studio.label_config import bitmask_config, parse_label_config
from ml_backend.studio.task_order import LIVE_SCORE, PENDING_VERSION

ADAPTER = Path(__file__).resolve().parents[1] / "ml_backend" / "adapter"


@pytest.mark.parametrize("path", sorted(ADAPTER.glob("*.py")), ids=lambda path: path.name)
def test_no_file_shadows_a_module(path: Path) -> None:
    """``label-studio-ml start`` puts the folder first on sys.path."""
    assert path.stem not in sys.stdlib_module_names
    if path.stem != "__init__":
        assert importlib.util.find_spec(path.stem) is None


@pytest.mark.parametrize("port", ["99999", "0", "http"])
def test_a_port_that_is_none_is_a_usage_error(port: str) -> None:
    argv = [sys.executable, "-m", "ml_backend.adapter._wsgi", "--port", port]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "argument -p/--port: " in done.stderr
    assert "Traceback" not in done.stderr


def test_basic_auth_holds_upstreams_own_routes(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a stand-in for upstream, which comes from git alone: what the others here skip without."""
    upstream = Flask("label_studio_ml.api")
    upstream.add_url_rule("/predict", view_func=lambda: "a mask", methods=["POST"])
    upstream.add_url_rule("/metrics", endpoint="metrics", view_func=dict)
    parts = {
        "": {},
        ".api": {"init_app": lambda model: upstream},
        ".exceptions": {"AnswerException": Exception},
        ".model": {"LabelStudioMLBase": object},
    }
    for name, content in parts.items():
        module = ModuleType(f"label_studio_ml{name}")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    settings = make_settings(BASIC_AUTH_USER="user", BASIC_AUTH_PASS="password")
    monkeypatch.setattr("ml_backend.settings.load_settings", lambda: settings)
    monkeypatch.setattr("ml_backend.settings.configure_logging", lambda level: None)
    monkeypatch.setenv("MODEL_DIR", "")  # which it may set
    for name in ("model", "_wsgi"):
        monkeypatch.delitem(sys.modules, f"ml_backend.adapter.{name}", raising=False)
    try:
        client = importlib.import_module("ml_backend.adapter._wsgi").app.test_client()
    finally:
        for name in ("model", "_wsgi"):
            sys.modules.pop(f"ml_backend.adapter.{name}", None)

    secret = {WEBHOOK_HEADER: webhook_secret(settings)}
    assert client.post("/predict").status_code == 401
    assert client.post("/predict", auth=("user", "wrong")).status_code == 401
    assert client.post("/predict", headers=secret).status_code == 401
    assert client.post("/predict", auth=("user", "password")).text == "a mask"
    assert client.get("/metrics").status_code == 401


KEY = "7.1763865028"
CONFIG = bitmask_config(["bone", "implant"])
CREATED = "2025-11-23T02:30:28.893829Z"
"""As a webhook carries it; the timestamp is the key's."""
PROJECT = {"id": 7, "created_at": CREATED, "title": "p", "label_config": CONFIG}
VERSION = "nextslice-r001-abcdef"


@dataclass
class Adapter:
    """A running adapter and its settings."""

    url: str
    settings: Settings

    def call(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        return requests.request(method, f"{self.url}{path}", timeout=60, **kwargs)


def start(group: ProcessGroup, name: str, argv: list[str], env: dict[str, str]) -> Adapter:
    """Start ``argv``, which is told its port, and wait until it answers."""
    port = free_port()
    # Upstream runs the first `python` on PATH: let that be ours.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    argv = [word.format(port=port) for word in argv]
    group.start(name, argv, env={**env, "PATH": path}, cwd=group.logs)

    def answers() -> bool:
        try:
            found = requests.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code
        except requests.RequestException:
            return False
        return found in (200, 401)

    group.wait(name, answers, timeout_s=120)
    return Adapter(f"http://127.0.0.1:{port}", settings_from(env))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, redis_server: str) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("adapter")
    return {
        "REDIS_URL": redis_server,
        "LABEL_STUDIO_API_KEY": "token",
        "NEXTSLICE_STORE": str(folder / "store"),
        "NEXTSLICE_CACHE_DIR": str(folder / "cache"),
        "NEXTSLICE_PUBLISHED_TTL_S": "0.0001",
    }


@pytest.fixture(scope="module")
def adapters(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Adapter, Adapter]]:
    """An open one as `label-studio-ml start` runs it, and one that a person's own gunicorn runs,
    with basic auth and no Redis."""
    pytest.importorskip(
        "label_studio_ml",
        minversion="2.0",
        reason="label-studio-ml 2.x is not installed (it exists in git only)",
    )
    command = shutil.which("label-studio-ml", path=str(Path(sys.executable).parent))
    assert command is not None, "label-studio-ml is installed, but not its command"
    typed = [command, "start", str(ADAPTER), "--host", "127.0.0.1", "--port", "{port}"]
    served = [sys.executable, "-m", "gunicorn", "ml_backend.adapter._wsgi:app"]
    served += ["--bind", "127.0.0.1:{port}"]
    guarded = {"BASIC_AUTH_USER": "ls", "BASIC_AUTH_PASS": "secret"}
    gone = {"REDIS_URL": "redis://127.0.0.1:1/0"}
    with ProcessGroup(tmp_path_factory.mktemp("logs")) as group:
        yield (
            start(group, "label-studio-ml", typed, environment),
            start(group, "gunicorn", served, {**environment, **guarded, **gone}),
        )


@pytest.fixture
def adapter(adapters: tuple[Adapter, Adapter]) -> Iterator[Adapter]:
    found = adapters[0]
    yield found
    Service(found.settings).schedule.connection.flushall()
    shutil.rmtree(found.settings.store, ignore_errors=True)


@pytest.fixture
def guarded(adapters: tuple[Adapter, Adapter]) -> Adapter:
    return adapters[1]


@pytest.fixture
def app(adapter: Adapter) -> FlaskClient:
    """Our own server over the same store and Redis."""
    return create_app(adapter.settings).test_client()


def queue(adapter: Adapter, kind: str = "control") -> Queue:
    return Service(adapter.settings).schedule.queue(kind)


def publish(adapter: Adapter) -> None:
    config = parse_label_config(CONFIG)
    fields = {"classes": list(config.classes), "fingerprint": config.fingerprint}
    folder = ConnectedProject(Service(adapter.settings), KEY).folder
    folder.published = Published(round=1, model_version=VERSION, **fields)
    for number, version in enumerate(["nextslice-r000-123456", VERSION]):
        record = RoundRecord(round=number, model_version=version, **fields)
        folder.round(number).save(ROUND, record)


def setup_body(**fields: object) -> dict[str, object]:
    body = {"project": KEY, "schema": CONFIG, "hostname": "http://ls", "access_token": "t"}
    return {**body, "extra_params": None, **fields}


def predict_body(tasks: object) -> dict[str, object]:
    params = {"login": "", "password": "", "context": None}
    return {"tasks": tasks, "project": KEY, "label_config": CONFIG, "params": params}


def drag_body() -> dict[str, object]:
    """Of a page that shows one region, before there is a network."""
    stands = {"id": "r1", "type": "bitmasklabels", "from_name": "label", "to_name": "image"}
    value = {"x": 10, "y": 10, "width": 5, "height": 5, "rotation": 0}
    box = {"id": "p", "type": "rectangle", "from_name": "fix", "to_name": "image", "value": value}
    task = {"id": 1, "data": {"image": "/1.png"}, "predictions": [{"id": 2, "result": [stands]}]}
    params = {"login": "", "password": "", "context": {"result": [box]}}
    return {**predict_body([task]), "params": params}


TASKS = [{"id": i, "data": {"image": f"/data/upload/7/{i}.png"}} for i in range(5)]
CHOICES = '<View><Text name="t" value="$t"/><Choices name="c" toName="t"/></View>'


def test_health_names_the_model(adapter: Adapter) -> None:
    answer = adapter.call("GET", "/health").json()
    assert answer == {"status": "UP", "model_class": "NextsliceModel"}


@pytest.mark.parametrize("published", [False, True], ids=["pending", "published"])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/setup", setup_body()),
        ("POST", "/setup", setup_body(extra_params={"a": 1})),
        ("POST", "/setup", setup_body(extra_params='{"a": 1}')),
        ("POST", "/predict", predict_body(TASKS)),
        ("POST", "/predict", drag_body()),
        ("POST", "/predict", predict_body([])),
        ("POST", "/predict", predict_body([{"id": 1, "data": {}}, {}, {"id": "x"}])),
        ("GET", f"/versions?project={KEY}", None),
        ("GET", "/versions", {"project": KEY}),
        ("GET", "/versions", None),
    ],
)
def test_answers_are_those_of_our_own_server(
    adapter: Adapter, app: FlaskClient, method: str, path: str, body: Any, published: bool
) -> None:
    if published:
        publish(adapter)
    ours = app.open(path, method=method, json=body)
    theirs = adapter.call(method, path, json=body)
    assert (theirs.status_code, theirs.json()) == (200, ours.get_json())


def test_a_drag_is_answered_with_the_region_that_stands_where_nothing_is_known(
    adapter: Adapter,
) -> None:
    (found,) = adapter.call("POST", "/predict", json=drag_body()).json()["results"]
    assert [region["id"] for region in found["result"]] == ["r1"]


def test_nothing_is_kept_beside_the_store(adapter: Adapter) -> None:
    """Upstream's cache is an SQLite file: it is out of the way, and empty."""
    publish(adapter)
    adapter.call("POST", "/setup", json=setup_body(extra_params={"a": 1}))
    with sqlite3.connect(adapter.settings.cache_dir / "cache.db") as cache:
        assert cache.execute("SELECT * FROM cache").fetchall() == []


def test_every_task_has_a_result_with_the_version(adapter: Adapter) -> None:
    publish(adapter)
    results = adapter.call("POST", "/predict", json=predict_body(TASKS)).json()["results"]
    assert results == [{"result": [], "score": LIVE_SCORE, "model_version": VERSION}] * len(TASKS)


def test_a_publication_is_seen_by_the_next_setup(adapter: Adapter) -> None:
    """Upstream's own cache would go on with the version of its first answer."""
    first = adapter.call("POST", "/setup", json=setup_body()).json()
    publish(adapter)
    second = adapter.call("POST", "/setup", json=setup_body()).json()
    assert [first["model_version"], second["model_version"]] == [PENDING_VERSION, VERSION]


def test_setup_of_an_unknown_project_adopts_it_once(adapter: Adapter) -> None:
    adapter.call("POST", "/predict", json=predict_body(TASKS))
    assert queue(adapter).jobs == []
    for _ in range(3):
        adapter.call("POST", "/setup", json=setup_body())
    (job,) = queue(adapter).jobs
    assert job.func_name == "ml_backend.rounds.jobs.adopt"
    assert list(job.args) == [KEY, adapter.url]


@pytest.mark.parametrize(
    ("path", "body", "complaint"),
    [
        ("/setup", setup_body(schema=CHOICES), "this labelling config cannot be segmented"),
        ("/setup", setup_body(project="seven"), "expected <id>.<created timestamp>"),
        ("/predict", predict_body("all"), "expected a list of tasks"),
        ("/predict", {**predict_body([]), "project": "7.x"}, "expected <id>.<created timestamp>"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(
    adapter: Adapter, path: str, body: Any, complaint: str
) -> None:
    answer = adapter.call("POST", path, json=body)
    assert answer.status_code == 400
    assert complaint in answer.json()["detail"]
    assert "Traceback" not in answer.text


def annotation_event(action: str) -> dict[str, object]:
    annotation = {"id": 3, "task": 2, "result": [], "was_cancelled": False}
    return {"action": action, "project": PROJECT, "annotation": annotation}


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
def test_every_event_of_label_studio_is_one_look_at_the_project(
    adapter: Adapter, action: str
) -> None:
    publish(adapter)
    for _ in range(3):
        assert adapter.call("POST", "/webhook", json=annotation_event(action)).ok
    (job,) = queue(adapter).jobs
    assert (job.func_name, list(job.args)) == ("ml_backend.rounds.jobs.count", [KEY])
    assert queue(adapter, "gpu").jobs == []


def test_start_training_is_a_job_of_its_own(adapter: Adapter) -> None:
    publish(adapter)
    body = {"action": "START_TRAINING", "project": PROJECT}
    assert adapter.call("POST", "/webhook", json=body).ok
    (job,) = queue(adapter).jobs
    assert (job.func_name, list(job.args)) == ("ml_backend.rounds.jobs.start", [KEY])


def test_an_event_that_does_not_concern_us_does_nothing(adapter: Adapter) -> None:
    publish(adapter)
    assert adapter.call("POST", "/webhook", json=annotation_event("LABEL_LINK_CREATED")).ok
    assert queue(adapter).jobs == []


@pytest.mark.parametrize("action", ["ANNOTATION_CREATED", "START_TRAINING"])
def test_nothing_is_heard_of_a_project_that_was_never_connected(
    adapter: Adapter, action: str
) -> None:
    body = {**annotation_event(action), "project": {**PROJECT, "id": 8}}
    assert adapter.call("POST", "/webhook", json=body).ok
    assert queue(adapter).jobs == []


def test_a_config_that_cannot_be_segmented_does_not_break_the_webhook(adapter: Adapter) -> None:
    publish(adapter)
    project = {**PROJECT, "label_config": "<View><Choices"}
    body = {"action": "PROJECT_UPDATED", "project": project}
    assert adapter.call("POST", "/webhook", json=body).ok
    assert len(queue(adapter).jobs) == 1


def test_a_webhook_does_not_read_the_store(adapter: Adapter) -> None:
    """The store may be far away, and Label Studio waits a second: only the first looks there."""
    publish(adapter)
    assert adapter.call("POST", "/webhook", json=annotation_event("ANNOTATION_CREATED")).ok
    (published,) = Path(adapter.settings.store).rglob("published.json")
    published.write_text("damaged")
    assert adapter.call("POST", "/setup", json=setup_body()).status_code == 500
    assert adapter.call("POST", "/webhook", json=annotation_event("ANNOTATION_UPDATED")).ok
    assert len(queue(adapter).jobs) == 1


def test_basic_auth_guards_everything(guarded: Adapter) -> None:
    for path in ("/health", "/versions"):
        assert guarded.call("GET", path).status_code == 401
        assert guarded.call("GET", path, auth=("ls", "wrong")).status_code == 401
        bearer = {"Authorization": "Bearer secret"}
        assert guarded.call("GET", path, headers=bearer).status_code == 401
        assert guarded.call("GET", path, auth=("ls", "secret")).status_code == 200


def test_the_webhook_may_come_with_its_secret_instead(guarded: Adapter) -> None:
    secret = webhook_secret(guarded.settings)
    body = annotation_event("LABEL_LINK_CREATED")
    for header, status in ((None, 401), ("wrong", 401), (secret, 200)):
        headers = {WEBHOOK_HEADER: header} if header else {}
        found = guarded.call("POST", "/webhook", json=body, headers=headers)
        assert found.status_code == status


def test_a_webhook_says_so_when_redis_is_gone(guarded: Adapter) -> None:
    publish(guarded)
    body = annotation_event("ANNOTATION_CREATED")
    answer = guarded.call("POST", "/webhook", json=body, auth=("ls", "secret"))
    assert answer.status_code == 503
    assert answer.json() == {"error": "the queue cannot be reached"}
