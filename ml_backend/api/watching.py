"""For who watches the service: /metrics for Prometheus, /ready for what it is able to do.

/health says that the process answers, /ready that the service can work. All are behind the same
credentials as the rest (`auth`).
"""

from __future__ import annotations

import time
from contextvars import copy_context
from functools import partial
from typing import Any, get_args

from flask import Blueprint, Flask, Response, current_app, jsonify, request
from prometheus_client.exposition import choose_encoder

from ml_backend.api.auth import refuse
from ml_backend.api.look import Look
from ml_backend.api.metrics import Metrics
from ml_backend.api.outlook import Outlook
from ml_backend.rounds.readiness import PARTS, Part, fault
from ml_backend.rounds.service import Service
from ml_backend.settings import Settings

__all__ = ["Readiness", "watch"]

watching = Blueprint("watching", __name__)

_EXTENSION = "nextslice watching"
_BEGAN = "nextslice.began"
_FRESH_S = 2.0
_WAIT_S = 5.0
_FAILED_SLICE = (422, 500)


class Readiness:
    """What is wrong with each part of the service, looked at every two seconds at most."""

    def __init__(self, service: Service) -> None:
        self._looks = {
            part: Look(partial(fault, service, part), _FRESH_S) for part in get_args(Part)
        }

    def faults(self, parts: list[Part]) -> dict[Part, str]:
        """A sentence for each of ``parts`` that does not do its part, within `_WAIT_S` seconds."""
        until = time.monotonic() + _WAIT_S
        for part in parts:  # all at once
            self._looks[part].newest(0)
        found = {part: self._fault(part, until) for part in parts}
        return {part: said for part, said in found.items() if said is not None}

    def _fault(self, part: Part, until: float) -> str | None:
        look = self._looks[part]
        seen = look.newest(until)
        if look.over and seen is not None:
            return seen.found
        what = {"redis": "Redis", "store": "The store"}.get(
            part, f"Redis, asked for {part} workers,"
        )
        return f"{what} has not answered for {time.monotonic() - look.began:.0f} s."


class _Watch:
    """What one application is watched with."""

    def __init__(self, service: Service, metrics: Metrics) -> None:
        self.settings: Settings = service.settings
        self.metrics = metrics
        self.readiness = Readiness(service)
        metrics.registry.register(Outlook(service))


def watch(app: Flask, service: Service, metrics: Metrics) -> None:
    """Count the requests of ``app``, and add /metrics and /ready to it.

    What a request mentions in the log (`logs.mention`) ends with it.
    """
    app.extensions[_EXTENSION] = _Watch(service, metrics)
    inner = app.wsgi_app

    def begin(environ: dict[str, Any], start_response: Any) -> Any:
        environ[_BEGAN] = time.perf_counter()
        return copy_context().run(inner, environ, start_response)

    app.wsgi_app = begin  # type: ignore[method-assign]
    app.after_request(_count)
    app.register_blueprint(watching)


def _watch() -> _Watch:
    found: _Watch = current_app.extensions[_EXTENSION]
    return found


def _endpoint() -> str:
    """The first part of the path, of those that there are: anybody may ask for any."""
    rule = request.url_rule
    return "other" if rule is None else f"/{rule.rule.split('/')[1]}"


def _count(answer: Response) -> Response:
    metrics, endpoint = _watch().metrics, _endpoint()
    metrics.requests.labels(endpoint, answer.status_code).inc()
    took = time.perf_counter() - request.environ[_BEGAN]
    metrics.durations.labels(endpoint).observe(took)
    if endpoint == "/slices" and answer.status_code in _FAILED_SLICE:
        metrics.images_failed.labels(endpoint).inc()
    return answer


@watching.before_request
def _authorise() -> Response | None:
    return refuse(_watch().settings, request)


@watching.get("/metrics")
def metrics() -> Response:
    """In the format that Prometheus asks for."""
    encode, mimetype = choose_encoder(request.headers.get("Accept", ""))
    return Response(encode(_watch().metrics.registry), content_type=mimetype)


@watching.get("/ready")
def ready() -> Response | tuple[Response, int]:
    """200 where the service is able to work; 503 with a sentence for each part that is not.

    ``?exclude=gpu``, any number of times: not asked for that part.
    """
    excluded = request.args.getlist("exclude")
    if unknown := sorted({*excluded} - {*PARTS}):
        said = f"exclude: found {', '.join(unknown)}, expected some of {', '.join(PARTS)}"
        return jsonify(error=said), 400
    faults = _watch().readiness.faults([part for part in PARTS if part not in excluded])
    if faults:
        return jsonify(status="NOT READY", faults=faults), 503
    return jsonify(status="READY", faults={})
