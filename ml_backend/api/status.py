"""For people and programs that watch the loop: /api/status, and /api/projects/N for one project.

Both are looks that are kept for some seconds and taken apart from who asks (`look`): many
browsers, or a Label Studio that hangs, cost no more than one. The dashboard shows the same.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, TypeVar

from flask import Blueprint, Flask, Response, current_app, jsonify, request
from pydantic import BaseModel, Field
from redis.exceptions import RedisError

from ml_backend import __version__
from ml_backend.api.auth import refuse
from ml_backend.api.look import Look
from ml_backend.api.server import LOOKS
from ml_backend.errors import NextsliceError, TryAgainLater
from ml_backend.health.examination import examine_parts
from ml_backend.logs import without_passwords
from ml_backend.rounds.overview import (
    ProjectOverview,
    ProjectSummary,
    project_overview,
    project_summary,
)
from ml_backend.rounds.project import ConnectedProject, stored_project, stored_projects
from ml_backend.rounds.service import Service
from ml_backend.studio.client import Project

__all__ = ["CANNOT_LOOK", "ServiceStatus", "StatusLooks", "looks", "serve_status"]

logger = logging.getLogger(__name__)

_EXTENSION = "nextslice status"
_FRESH_S = 3.0
_RESTS = 3.0
"""Looking takes a quarter of the time at most, however long it takes."""
_WAIT_S = 10.0
_LOOKS_KEPT = 64

CANNOT_LOOK = (NextsliceError, OSError, RedisError)
"""What a look meets, of Label Studio, store and Redis, that says why there is nothing to see."""
Overview = ProjectOverview | NextsliceError | OSError | RedisError
T = TypeVar("T")

status = Blueprint("status", __name__)


class ServiceStatus(BaseModel):
    """What the service stands on, and its projects. ``seen_at``: seconds since 1970."""

    version: str = __version__
    ok: bool
    findings: list[dict[str, str]]
    public_url: str
    """Where browsers fetch slices."""
    label_studio: str
    projects: list[ProjectSummary] = Field(default_factory=list)
    unreadable: dict[str, str] = Field(default_factory=dict)
    """Why a project is not among them, by its key."""
    seen_at: float


class StatusLooks:
    """Looks at the service and at its projects. Safe to use from many threads."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._whole: Look[ServiceStatus] = Look(self._service_status, _FRESH_S, rests=_RESTS)
        self._projects: dict[str, Look[Overview]] = {}
        self._lock = threading.Lock()
        self._waiting = threading.BoundedSemaphore(LOOKS)

    def service_status(self) -> ServiceStatus:
        """The newest. Raises TryAgainLater where the first look has not ended within `_WAIT_S`."""
        return self._newest(self._whole, "the service")

    def project(self, number: int) -> ProjectOverview | None:
        """Project ``number``; None where the store has none.

        Raises one of `CANNOT_LOOK` where it cannot be looked at, TryAgainLater as `service_status`.
        """
        found = stored_project(self.service, number)
        if found is None:
            return None
        overview = self._newest(self._look(found.key), f"project {number}")
        if isinstance(overview, Exception):
            raise overview
        return overview

    def _newest(self, look: Look[T], what: str) -> T:
        waits = self._waiting.acquire(blocking=False)
        try:
            seen = look.newest(time.monotonic() + (_WAIT_S if waits else 0.0))
        finally:
            if waits:
                self._waiting.release()
        if seen is None:
            raise TryAgainLater(f"The first look at {what} has not ended yet: ask again.")
        return seen.found

    def forget(self, key: str) -> None:
        """Something was changed: look anew."""
        with self._lock:
            self._projects.pop(key, None)

    def _look(self, key: str) -> Look[Overview]:
        with self._lock:
            if key not in self._projects:
                while len(self._projects) >= _LOOKS_KEPT:
                    self._projects.pop(next(iter(self._projects)))
                self._projects[key] = Look(lambda: self._overview(key), _FRESH_S, rests=_RESTS)
            return self._projects[key]

    def _overview(self, key: str) -> Overview:
        try:
            return project_overview(ConnectedProject(self.service, key))
        except CANNOT_LOOK as error:
            return error

    def _service_status(self) -> ServiceStatus:
        findings = list(examine_parts(self.service))
        verdicts = {finding.check: finding.verdict for finding in findings}
        found = ServiceStatus(
            ok="fault" not in verdicts.values(),
            findings=[asdict(finding) for finding in findings],
            public_url=self.service.settings.slices_url,
            label_studio=self.service.settings.label_studio_url,
            seen_at=time.time(),
        )
        there = self._in_studio() if verdicts["token"] == "good" else None
        for key, summary in self._summaries(there, redis=verdicts["Redis"] == "good"):
            if isinstance(summary, ProjectSummary):
                found.projects.append(summary)
            else:
                found.unreadable[key] = summary
        return found

    def _in_studio(self) -> dict[str, Project] | None:
        """Its projects by key; None where it does not tell."""
        try:
            return {project.key: project for project in self.service.studio.projects()}
        except NextsliceError as error:
            logger.warning("the projects' titles are not known: %s", error)
            return None

    def _summaries(
        self, there: dict[str, Project] | None, *, redis: bool
    ) -> Iterator[tuple[str, ProjectSummary | str]]:
        try:
            projects = stored_projects(self.service)
        except (NextsliceError, OSError) as error:
            yield "", without_passwords(str(error))
            return
        for project in projects:
            if there is not None and project.key not in there:
                continue  # deleted, or of a server that was set up afresh
            try:
                seen = None if there is None else there[project.key]
                yield project.key, project_summary(project, seen, redis=redis)
            except CANNOT_LOOK as error:
                yield project.key, without_passwords(str(error))


def serve_status(app: Flask, service: Service) -> StatusLooks:
    """Add the two addresses to ``app``; the looks behind them."""
    found = app.extensions[_EXTENSION] = StatusLooks(service)
    app.register_blueprint(status)
    return found


def looks() -> StatusLooks:
    """Those of the application that answers."""
    found: StatusLooks = current_app.extensions[_EXTENSION]
    return found


@status.before_request
def _authorise() -> Response | None:
    return refuse(looks().service.settings, request)


@status.get("/api/status")
def service_status() -> Response:
    """The health of each part, and where every project stands."""
    try:
        return _json(looks().service_status())
    except TryAgainLater as error:
        return _not_now(error)


@status.get("/api/projects/<int:number>")
def project_status_(number: int) -> Response | tuple[Response, int]:
    """One project: labels, queue, rounds, settings, warnings."""
    try:
        found = looks().project(number)
    except CANNOT_LOOK as error:
        return _not_now(error)
    if found is None:
        return jsonify(error=f"project {number} is not known here"), 404
    return _json(found)


def _json(found: BaseModel) -> Response:
    answer: dict[str, Any] = found.model_dump(mode="json")
    return jsonify(answer)


def _not_now(error: Exception) -> Response:
    answer = jsonify(error=without_passwords(str(error)))
    answer.status_code = 503
    if isinstance(error, TryAgainLater):
        answer.headers["Retry-After"] = "2"
    return answer
