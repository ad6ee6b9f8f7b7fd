"""Who may call: basic auth for Label Studio, a secret header for its webhook.

Label Studio sends the basic auth of an ML backend with every call but the automatic webhook; that
one carries the secret header that adopt gave it. Without basic auth in the settings only this
machine is answered, unless NEXTSLICE_ALLOW_ANYONE says otherwise.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
from urllib.parse import urlsplit

from flask import Request, Response

from ml_backend.rounds.service import WEBHOOK_HEADER, webhook_secret
from ml_backend.settings import Settings, SettingsError

__all__ = ["check_address", "refuse"]

_MISSING = (
    "without BASIC_AUTH_USER and BASIC_AUTH_PASS (give Label Studio the same, under Settings → "
    "Model) nextslice serves this machine alone. NEXTSLICE_ALLOW_ANYONE=true lets everybody in."
)


def check_address(settings: Settings, host: str) -> None:
    """Raise SettingsError where listening on ``host`` would let everybody in, untold."""
    if settings.basic_auth is None and not settings.allow_anyone and not _loopback(host):
        raise SettingsError(f"nextslice does not listen on {host or 'every address'}: {_MISSING}")


def _loopback(host: str | None) -> bool:
    host = (host or "").strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _from_here(settings: Settings, request: Request) -> bool:
    """Whether who asks is on this machine; not where a proxy here passes on for somebody else, nor
    a browser here for a page that had its own name stand for this machine (DNS rebinding)."""
    passed_on = {"Forwarded", "X-Forwarded-For", "X-Real-Ip"} & {
        name for name, _ in request.headers
    }
    return _loopback(request.remote_addr) and not passed_on and _is_ours(settings, request)


def _is_ours(settings: Settings, request: Request) -> bool:
    """Whether the request is made to a name of this machine, or to one that the settings give us;
    programs that name nobody are no browsers."""
    if "Host" not in request.headers:
        return True
    name = _hostname(f"//{request.headers['Host']}")
    ours = {_hostname(settings.backend_url), _hostname(settings.slices_url)}
    return name is not None and (_loopback(name) or name.endswith(".localhost") or name in ours)


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _equal(found: str | None, expected: str) -> bool:
    return hmac.compare_digest((found or "").encode(), expected.encode())


def _presented(request: Request) -> bytes:
    """User and password as the request has them, `user:password`; empty without any.

    As bytes: browsers write UTF-8, Label Studio (requests) Latin-1, and Werkzeug reads no Latin-1.
    """
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(token)
    except ValueError:  # not ASCII, or not base64
        return b""


def _is(expected: tuple[str, str], presented: bytes) -> bool:
    text = ":".join(expected)
    return any(hmac.compare_digest(presented, text.encode(way)) for way in ("utf-8", "latin-1"))


def refuse(settings: Settings, request: Request) -> Response | None:
    """None for a request that may go on; the 401 for one that may not."""
    expected = settings.basic_auth
    if expected is None:
        if settings.allow_anyone or _from_here(settings, request):
            return None
        return Response(f"nextslice: {_MISSING}\n", 403, mimetype="text/plain")
    if _is(expected, _presented(request)):
        return None
    wrong = "user or password is missing or wrong (BASIC_AUTH_USER, BASIC_AUTH_PASS)"
    if request.path.rstrip("/") == "/webhook":
        try:
            if _equal(request.headers.get(WEBHOOK_HEADER), webhook_secret(settings)):
                return None
        except SettingsError as error:
            wrong = f"{wrong}. {error}"
    return Response(
        f"nextslice: {wrong}\n",
        401,
        {"WWW-Authenticate": 'Basic realm="nextslice"'},
        mimetype="text/plain",
    )
