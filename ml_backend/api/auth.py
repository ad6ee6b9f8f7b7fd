"""Who may call: basic auth for Label Studio, a secret header for its webhook.

Label Studio sends the basic auth of an ML backend with every call but the automatic webhook; that
one carries the secret header that adopt gave it. Without basic auth in the settings everything is
open, as with any ML backend.
"""

from __future__ import annotations

import hmac

from flask import Request, Response

from ml_backend.rounds.service import WEBHOOK_HEADER, webhook_secret
from ml_backend.settings import Settings

__all__ = ["refuse"]


def _equal(found: str | None, expected: str) -> bool:
    return hmac.compare_digest((found or "").encode(), expected.encode())


def refuse(settings: Settings, request: Request) -> Response | None:
    """None for a request that may go on; the 401 for one that may not."""
    expected = settings.basic_auth
    if expected is None:
        return None
    given = request.authorization
    if given is not None and given.type == "basic":
        user = _equal(given.username, expected[0])
        if _equal(given.password, expected[1]) and user:
            return None
    if request.path.rstrip("/") == "/webhook" and _equal(
        request.headers.get(WEBHOOK_HEADER), webhook_secret(settings)
    ):
        return None
    return Response(
        "nextslice: user or password is missing or wrong (BASIC_AUTH_USER, BASIC_AUTH_PASS)\n",
        401,
        {"WWW-Authenticate": 'Basic realm="nextslice"'},
        mimetype="text/plain",
    )
