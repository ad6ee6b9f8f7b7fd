"""Label Studio's ML backend protocol: /health, /setup, /predict, /webhook, /versions.

/setup and /webhook only look at what is on disk or in Redis and enqueue: Label Studio waits 3 s
for the first and 1 s for the second, inside an annotator's submit.
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

from flask import Blueprint, Response, current_app, jsonify, request

from ml_backend.api.auth import refuse
from ml_backend.api.hints import hear, welcome
from ml_backend.api.serving import Serving
from ml_backend.rounds.project import ConnectedProject, InvalidKey
from ml_backend.studio.label_config import LabelConfigError
from ml_backend.studio.task_order import PENDING_VERSION

__all__ = ["protocol"]

logger = logging.getLogger(__name__)

protocol = Blueprint("protocol", __name__)


def _serving() -> Serving:
    serving: Serving = current_app.extensions["nextslice"]
    return serving


@protocol.before_request
def _authorise() -> Response | None:
    return refuse(_serving().service.settings, request)


def _bad(message: str) -> tuple[Response, int]:
    logger.warning("%s %s: %s", request.method, request.path, message)
    return jsonify(error=message), 400


def _body() -> dict[str, Any]:
    body = request.get_json(silent=True)
    return body if isinstance(body, dict) else {}


@protocol.get("/")
@protocol.get("/health")
def health() -> Response:
    """Up."""
    return jsonify(status="UP", model_class="nextslice")


@protocol.post("/setup")
def setup() -> Response | tuple[Response, int]:
    """The version that is served. A project that we do not know is adopted by a job."""
    body = _body()
    serving = _serving()
    try:
        project = serving.project(str(body.get("project") or ""))
        welcome(serving, project, str(body.get("schema") or ""), request.host_url)
    except LabelConfigError as error:
        return _bad(f"this labelling config cannot be segmented: {error}")
    except InvalidKey as error:
        return _bad(str(error))
    return jsonify(model_version=serving.version(project.key))


@protocol.post("/predict")
def predict() -> Response | tuple[Response, int]:
    """One result per task, always."""
    body = _body()
    tasks = body.get("tasks")
    if not isinstance(tasks, list):
        return _bad(f"tasks: found {type(tasks).__name__}, expected a list of tasks")
    serving = _serving()
    try:
        project = serving.project(str(body.get("project") or ""))
    except InvalidKey as error:
        return _bad(str(error))
    config = str(body.get("label_config") or "")
    return jsonify(results=serving.predict(project.key, tasks, config))


@protocol.get("/versions")
def versions() -> Response:
    """Versions of the committed rounds, newest first: of the project that is named, else of all.

    Label Studio 1.23 names none: it drops the body of a GET and adds no query.
    """
    serving = _serving()
    named = str(request.args.get("project") or _body().get("project") or "")
    keys = [named] if named else serving.service.project_keys()
    try:
        found = [version for key in keys for version in serving.versions(key)]
    except InvalidKey:
        found = []
    return jsonify(versions=found or [PENDING_VERSION])


@protocol.post("/webhook")
def webhook() -> Response | tuple[Response, int]:
    """Enqueue a look at the project, and nothing else."""
    body = _body()
    project = _project(body.get("project"))
    if project is None:
        return _bad("project: expected an object with id and created_at")
    if not hear(project, body.get("action")):
        return jsonify(error="the queue cannot be reached"), 503
    return jsonify(status="ok")


def _project(said: Any) -> ConnectedProject | None:
    """The project of a webhook, which carries it whole."""
    try:
        created = datetime.fromisoformat(str(said["created_at"]))
        return _serving().project(f"{int(said['id'])}.{int(created.timestamp())}")
    except (KeyError, TypeError, ValueError):
        return None
