"""nextslice as a model of label-studio-ml 2.x: the class that its Flask routes call.

Upstream's routes make a new instance for every request, tell it the project's number without the
creation time that makes it unique, and keep what a model remembers in an SQLite file of their own.
Here an instance lives for one request and remembers nothing: versions and weights come from the
same `Serving`, and jobs go into the same queues, as in the application of `ml_backend.app`.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from flask import abort, current_app, jsonify, make_response, request
from label_studio_ml.exceptions import AnswerException
from label_studio_ml.model import LabelStudioMLBase
from werkzeug.exceptions import HTTPException

from ml_backend.api.drags import Drags, is_drag
from ml_backend.api.hints import hear, project_key, welcome
from ml_backend.api.limits import check_tasks
from ml_backend.api.serving import Serving
from ml_backend.logs import mention
from ml_backend.rounds.project import ConnectedProject
from ml_backend.studio.label_config import LabelConfigError
from ml_backend.studio.task_order import LIVE_SCORE, PENDING_VERSION

__all__ = ["NextsliceModel"]


class NextsliceModel(LabelStudioMLBase):  # type: ignore[misc]
    """The model behind /setup, /predict and /webhook, inside a request of upstream's server."""

    def __init__(self, project_id: str | None = None, label_config: str | None = None) -> None:
        self._values: dict[str, Any] = {}
        super().__init__(project_id, label_config)

    @cached_property
    def project(self) -> ConnectedProject:
        """The project, from the request's own words."""
        try:  # a webhook carries the whole project
            project = self.serving.project(project_key(request.get_json().get("project")))
        except ValueError as error:
            raise _refused(str(error)) from None
        mention(project=project.key)
        return project

    @property
    def serving(self) -> Serving:
        """What is published, and the service behind it."""
        found: Serving = current_app.extensions["nextslice"]
        return found

    # -- what upstream keeps in its cache

    def get(self, key: str) -> Any:
        """The published version as ``model_version``; else what this request has set, or None."""
        return (
            self.serving.version(self.project.key)
            if key == "model_version"
            else self._values.get(key)
        )

    def set(self, key: str, value: Any) -> None:
        """Keep a value for the rest of this request."""
        self._values[key] = value

    def has(self, key: str) -> bool:
        """Whether `get` has an answer."""
        return key == "model_version" or key in self._values

    def use_label_config(self, label_config: str) -> None:
        """Keep the text. It is parsed where it is used: a webhook needs no labelling config."""
        self.set("label_config", label_config)

    @property
    def model_version(self) -> str:
        """The published version. Pending on /webhook, which needs none: the store may be far away,
        and upstream asks this of every new instance."""
        version: str = PENDING_VERSION if _asked("/webhook") else self.get("model_version")
        return version

    # -- what upstream's routes call

    def setup(self) -> None:
        """On /setup: refuse a config that cannot be segmented, adopt a project we do not know."""
        if not _asked("/setup"):  # upstream calls this for every request
            return
        try:
            config = self.get("label_config") or ""
            welcome(self.serving, self.project, config, request.host_url)
        except LabelConfigError as error:
            raise _refused(f"this labelling config cannot be segmented: {error}") from None

    def predict(
        self, tasks: list[dict[str, Any]], context: dict[str, Any] | None = None, **params: Any
    ) -> list[dict[str, Any]]:
        """One ``{"result", "score", "model_version"}`` per task, always, in the tasks' order.

        ``context``: of a drag on the page, which is answered with what it repairs. ``params`` (the
        project's login and password for its images) are not used.
        """
        try:
            check_tasks(tasks)
        except HTTPException as error:
            raise _refused(error.description or error.name) from None
        config = self.get("label_config") or ""
        if is_drag(context):
            drags: Drags = current_app.extensions["nextslice drags"]
            return drags.predict(self.project.key, tasks, config, context)
        found = self.serving.predict(self.project.key, tasks, config)
        nothing = {
            "result": [],
            "score": LIVE_SCORE,
            "model_version": self.serving.version(self.project.key),
        }
        # upstream's server knows one prediction per task, not none
        return [answer if isinstance(answer, dict) else nothing for answer in found]

    def fit(self, event: str, data: dict[str, Any], **params: Any) -> None:
        """Enqueue a look at the project, or a training when a person asked for one.

        Training itself is done by ``nextslice worker gpu``.
        """
        if not hear(self.serving, self.project, event):
            abort(make_response(jsonify(error="the queue cannot be reached"), 503))


def _asked(path: str) -> bool:
    return request.path.rstrip("/") == path


def _refused(message: str) -> AnswerException:
    """Status 400 in the form of upstream's error answers; they print the traceback otherwise."""
    return AnswerException(400, message, {"traceback": None})
