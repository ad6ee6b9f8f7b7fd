"""GET /openapi.json: every route, what it takes and what it may answer (OpenAPI 3.1).

The description is ``openapi.json`` beside this module. `tests/fuzz/test_endpoints.py` holds the
service to it: that it names every route, and that no request is answered otherwise.
"""

from __future__ import annotations

from importlib.resources import files

from flask import Blueprint, Response, request

from ml_backend.api.auth import refuse
from ml_backend.settings import Settings

__all__ = ["description"]


def description(settings: Settings) -> Blueprint:
    """The blueprint, behind the credentials of ``settings`` as the rest."""
    blueprint = Blueprint("description", __name__)
    text = files("ml_backend.api").joinpath("openapi.json").read_text(encoding="utf-8")
    blueprint.before_request(lambda: refuse(settings, request))

    @blueprint.get("/openapi.json")
    def openapi() -> Response:
        return Response(text, mimetype="application/json")

    return blueprint
