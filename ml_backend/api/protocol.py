"""Label Studio's ML backend protocol: /health, /setup, /predict, /webhook, /versions.

/setup and /webhook only look at what is on disk or in Redis and enqueue: Label Studio waits 3 s
for the first and 1 s for the second, inside an annotator's submit.
"""

from __future__ import annotations

import logging
from typing import Any

from flask import Blueprint, Response, current_app, jsonify, request
from werkzeug.exceptions import HTTPException

from ml_backend.api.auth import refuse
from ml_backend.api.drags import Drags, is_drag
from ml_backend.api.hints import hear, project_key, welcome
from ml_backend.api.limits import BODY_BYTES, check_tasks, read_json
from ml_backend.api.serving import Serving
from ml_backend.logs import mention
from ml_backend.rounds.project import InvalidKey
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
    return read_json(current_app, request.get_data()) if request.is_json else {}


@protocol.errorhandler(400)
@protocol.errorhandler(413)
def _refused(error: HTTPException) -> tuple[Response, int]:
    code = error.code or 400
    message = error.description or error.name
    if code == 413 and not message.startswith("tasks"):
        message = f"found a body of {request.content_length or 'more'} bytes, expected {BODY_BYTES}"
    logger.warning("%s %s: %s", request.method, request.path, message)
    return jsonify(error=message), code


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
        project = serving.project(project_key(body.get("project")))
        mention(project=project.key)
        schema = str(body.get("schema") or "")
        welcome(serving, project, schema, request.host_url)
    except LabelConfigError as error:
        return _bad(f"this labelling config cannot be segmented: {error}")
    except InvalidKey as error:
        return _bad(str(error))
    version = serving.version(project.key)
    return jsonify(model_version=version)


@protocol.post("/predict")
def predict() -> Response | tuple[Response, int]:
    """One result per task, always: its mask, or what a drag on the page makes of it."""
    body = _body()
    tasks = check_tasks(body.get("tasks"))
    serving = _serving()
    try:
        project = serving.project(project_key(body.get("project")))
        mention(project=project.key)
    except InvalidKey as error:
        return _bad(str(error))
    config = str(body.get("label_config") or "")
    params = body.get("params")
    if isinstance(params, dict) and is_drag(params.get("context")):
        drags: Drags = current_app.extensions["nextslice drags"]
        return jsonify(results=drags.predict(project.key, tasks, config, params["context"]))
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
    said = body.get("project")
    if not isinstance(said, dict):
        return _bad(f"project: found {type(said).__name__}, expected an object")
    serving = _serving()
    try:
        project = serving.project(project_key(said))
        mention(project=project.key)
    except InvalidKey as error:
        return _bad(str(error))
    if not hear(serving, project, body.get("action")):
        return jsonify(error="the queue cannot be reached"), 503
    return jsonify(status="ok")
