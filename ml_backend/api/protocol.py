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
from ml_backend.rounds.service import project_id
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
    key = str(body.get("project") or "")
    serving = _serving()
    try:
        project_id(key)
    except ValueError as error:
        return _bad(str(error))
    try:
        welcome(serving, key, str(body.get("schema") or ""), request.host_url)
    except LabelConfigError as error:
        return _bad(f"this labelling config cannot be segmented: {error}")
    return jsonify(model_version=serving.version(key))


@protocol.post("/predict")
def predict() -> Response | tuple[Response, int]:
    """One result per task, always."""
    body = _body()
    tasks = body.get("tasks")
    if not isinstance(tasks, list):
        return _bad(f"tasks: found {type(tasks).__name__}, expected a list of tasks")
    key = str(body.get("project") or "")
    try:
        project_id(key)
    except ValueError as error:
        return _bad(str(error))
    return jsonify(results=_serving().predict(key, tasks, str(body.get("label_config") or "")))


@protocol.get("/versions")
def versions() -> Response:
    """Versions of the committed rounds, newest first: of the project that is named, else of all.

    Label Studio 1.23 names none: it drops the body of a GET and adds no query.
    """
    serving = _serving()
    named = str(request.args.get("project") or _body().get("project") or "")
    keys = [named] if named else serving.service.project_keys()
    try:
        found = [version for key in keys if project_id(key) for version in serving.versions(key)]
    except ValueError:
        found = []
    return jsonify(versions=found or [PENDING_VERSION])


@protocol.post("/webhook")
def webhook() -> Response | tuple[Response, int]:
    """Enqueue a look at the project, and nothing else."""
    body = _body()
    key = _project_key(body.get("project"))
    if key is None:
        return _bad("project: expected an object with id and created_at")
    if not hear(_serving().service.schedule, key, body.get("action")):
        return jsonify(error="the queue cannot be reached"), 503
    return jsonify(status="ok")


def _project_key(project: Any) -> str | None:
    try:
        created = datetime.fromisoformat(str(project["created_at"]))
        return f"{int(project['id'])}.{int(created.timestamp())}"
    except (KeyError, TypeError, ValueError):
        return None
