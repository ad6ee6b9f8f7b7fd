"""What one request may bring, checked before memory is taken for it. docs/operations.md lists it.

What is refused costs no label: hints are repeated by reconcile, and Label Studio asks for a
prediction again when a task is opened.
"""

from __future__ import annotations

import json
from typing import Any

from flask import Flask
from flask.json.provider import DefaultJSONProvider
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge

__all__ = ["BODY_BYTES", "CONTAINERS", "TASKS", "check_tasks", "limit_bodies", "read_json"]

BODY_BYTES = 32 << 20
"""Of a request. Bodies carry tasks with their annotations, or a project: a few MB at most."""
CONTAINERS = 1_000_000
"""Lists and objects in a body: an empty one is two bytes of JSON and some sixty of memory."""
TASKS = 10_000
"""Of a /predict: more than can be predicted before Label Studio stops waiting."""


class _LimitedJSON(DefaultJSONProvider):
    """Flask's JSON, of bounded size and depth. Raises ValueError for more."""

    def loads(self, s: str | bytes, **kwargs: Any) -> Any:
        text = s if isinstance(s, bytes) else s.encode()
        found = text.count(b"[") + text.count(b"{")
        if found > CONTAINERS:
            raise ValueError(f"found {found} lists and objects, expected at most {CONTAINERS}")
        try:
            return json.loads(text, **kwargs)
        except RecursionError:
            raise ValueError("lists and objects are nested too deeply") from None


def limit_bodies(app: Flask) -> None:
    """Refuse requests with more than `BODY_BYTES` (413), and JSON beyond reason (400)."""
    app.config["MAX_CONTENT_LENGTH"] = BODY_BYTES
    app.json = _LimitedJSON(app)


def read_json(app: Flask, body: bytes) -> dict[str, Any]:
    """The object in ``body``; an empty one for other JSON. BadRequest says what cannot be read."""
    if len(body) >= BODY_BYTES:  # Werkzeug cuts one that came without its length off
        raise RequestEntityTooLarge
    try:
        found = app.json.loads(body)
    except ValueError as error:
        raise BadRequest(f"the body is no JSON that can be read: {error}") from None
    return found if isinstance(found, dict) else {}


def check_tasks(tasks: object) -> list[dict[str, Any]]:
    """Those of a /predict. Raises BadRequest for no list, RequestEntityTooLarge for too many."""
    if not isinstance(tasks, list):
        raise BadRequest(f"tasks: found {type(tasks).__name__}, expected a list of tasks")
    if len(tasks) > TASKS:
        raise RequestEntityTooLarge(
            f"tasks: found {len(tasks)}, expected at most {TASKS} in one request: select fewer"
        )
    return tasks
