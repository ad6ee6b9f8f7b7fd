"""Slices of volumes as a browser shows them: ``GET /slices/<volume>/<axis>/<index>.png``.

Rendered on demand from the native data, so a scan needs no PNG copies. The address's signature is
the authorisation: browsers fetch slices for Label Studio's pages, without credentials of ours.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import quote, urlsplit

from flask import Blueprint, Flask, Response, current_app, request
from werkzeug.exceptions import HTTPException

from ml_backend.api.places import a_place
from ml_backend.api.server import SLICES
from ml_backend.disk_cache import DiskCache
from ml_backend.errors import TryAgainLater
from ml_backend.pictures import encode_png
from ml_backend.rounds.service import Service, slice_keys
from ml_backend.settings import Settings, SettingsError
from ml_backend.volumes.address import AddressRefused, SliceAddress
from ml_backend.volumes.formats.tiled import TiledUnavailable
from ml_backend.volumes.roots import NoSuchVolume
from ml_backend.volumes.volume import VolumeError
from ml_backend.volumes.window import render

__all__ = [
    "SliceServer", "for_browsers", "may_read", "refusal", "serve_slices", "slices", "status_of",
]  # fmt: skip

logger = logging.getLogger(__name__)

slices = Blueprint("slices", __name__)

_EXTENSION = "nextslice slices"
_YEAR = 365 * 86_400
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_FORM = 1
"""Raised whenever the same slice and window would give other bytes."""
_RENDERED_AT_ONCE = 8
"""Each takes memory of several times its slice, and a core while it has one."""


class TooManyRequests(TryAgainLater, RuntimeError):
    """More slices are asked for at once than have threads; the message says what to do."""


class SliceServer:
    """Finds, renders and keeps slices for one process. Safe to use from many threads.

    Raises SettingsError for settings of volumes or secrets that cannot be used.
    """

    def __init__(self, service: Service) -> None:
        settings = service.settings
        if settings.slice_secret.get_secret_value():
            slice_keys(settings)  # a secret that is too short must show at the start
        self._settings = settings
        self._volumes = service.volumes
        self._cache = DiskCache(settings.cache_dir, settings.cache_gib)
        self._origins = _origins(settings)
        self._rendering = tuple(threading.Lock() for _ in range(64))
        self._renderers = threading.BoundedSemaphore(_RENDERED_AT_ONCE)
        self._places = threading.BoundedSemaphore(SLICES)

    def place(self) -> AbstractContextManager[None]:
        """One of the `SLICES` places for requests. Raises TooManyRequests when all are taken."""
        full = TooManyRequests(f"{SLICES} slices are asked for at once: load it again")
        return a_place(self._places, full)

    def address(self, url: str) -> SliceAddress:
        """What ``url`` asks for. Raises AddressRefused; SettingsError without any secret."""
        return SliceAddress.parse(url, slice_keys(self._settings))

    def tag(self, address: SliceAddress) -> str:
        """The slice's ETag: another one when file or sidecar is replaced. Raises VolumeError."""
        state = self._volumes.state(address)
        shown = (_FORM, state, address.options, address.axis, address.index, address.window)
        return hashlib.sha256(repr(shown).encode()).hexdigest()[:32]

    def png(self, address: SliceAddress, tag: str) -> bytes:
        """The rendered slice. Raises IndexError for one that is not there, and VolumeError."""
        name = f"slices/{tag[:2]}/{tag}.png"
        data = self._cache.read(name)
        if data is not None:
            return data
        # whoever asks for a slice that is being rendered waits for it
        with self._rendering[int(tag, 16) % len(self._rendering)]:
            data = self._cache.read(name)
            if data is None:
                with self._renderers:
                    window = self._volumes.window(address)
                    data = encode_png(render(self._volumes.slice(address), window))
                self._cache.keep(name, data)
            return data

    def allowed(self, origin: str | None) -> str | None:
        """The Access-Control-Allow-Origin for a page of ``origin``; None: no such header."""
        if "*" in self._origins:
            return "*"
        try:
            return origin if origin and _origin(origin) in self._origins else None
        except ValueError:  # an Origin that is no address, as http://[
            return None


def _origins(settings: Settings) -> frozenset[str]:
    """Who may show slices: Label Studio (on loopback: under each name of it), and who is set."""
    given = [part.strip() for part in settings.cors_origins.split(",")]
    found = {_origin(settings.label_studio_url)} | {_origin(o) for o in given if o and o != "*"}
    parts = urlsplit(settings.label_studio_url)
    if parts.hostname in _LOOPBACK:
        hosts = (f"[{host}]" if ":" in host else host for host in _LOOPBACK)
        found |= {_origin(f"{parts.scheme}://{host}:{parts.port or ''}") for host in hosts}
    return frozenset(found | ({"*"} & set(given)))


def _origin(url: str) -> str:
    """``scheme://host[:port]`` as browsers send it: lower case, no default port."""
    parts = urlsplit(url.lower())
    host = parts.netloc.rpartition("@")[2].rstrip(":")
    default = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    return f"{parts.scheme}://{host.removesuffix(default) if default else host}"


def serve_slices(app: Flask, service: Service) -> None:
    """Add the slice server to ``app``. Raises SettingsError as `SliceServer` does."""
    app.extensions[_EXTENSION] = SliceServer(service)
    app.register_blueprint(slices)


def _server() -> SliceServer:
    server: SliceServer = current_app.extensions[_EXTENSION]
    return server


def may_read(origin: str) -> bool:
    """Whether pages of ``origin`` may read what the current application serves to browsers."""
    return _server().allowed(origin) is not None


@slices.get("/slices/<path:volume>/<axis>/<int:index>.png")
def slice_png(volume: str, axis: str, index: int) -> Response:
    """The slice of a signed address, or 304 for who has it already."""
    server = _server()
    address = server.address(f"{quote(request.path)}?{request.query_string.decode('latin-1')}")
    with server.place():
        tag = server.tag(address)
        if request.if_none_match.contains_weak(tag):
            answer = Response(status=304)
        else:
            answer = Response(server.png(address, tag), mimetype="image/png")
    age = _YEAR if address.expires is None else min(_YEAR, int(address.expires - time.time()))
    answer.headers["Cache-Control"] = f"private, max-age={max(0, age)}, immutable"
    answer.set_etag(tag)
    return answer


@slices.after_request
def for_browsers(answer: Response) -> Response:
    """What lets Label Studio's pages, and others that are allowed, read the answer, errors
    included."""
    answer.headers["X-Content-Type-Options"] = "nosniff"
    answer.headers["Cross-Origin-Resource-Policy"] = "cross-origin"
    answer.vary.add("Origin")
    allowed = _server().allowed(request.headers.get("Origin"))
    if allowed is not None:
        answer.headers["Access-Control-Allow-Origin"] = allowed
        answer.headers["Access-Control-Expose-Headers"] = "ETag"
        if request.method == "OPTIONS":
            answer.headers["Access-Control-Allow-Methods"] = "GET, HEAD, OPTIONS"
            answer.headers["Access-Control-Allow-Headers"] = "If-None-Match, Cache-Control, Range"
            answer.headers["Access-Control-Max-Age"] = "86400"
    return answer


@slices.errorhandler(Exception)
def _refuse(error: Exception) -> Any:
    """One line of text, never a traceback."""
    if isinstance(error, HTTPException):
        return error
    status = status_of(error)
    if status == 500:
        logger.exception("%s cannot be shown", request.path)
        text = f"the slice cannot be read ({type(error).__name__}): see the backend's log"
    else:
        logger.warning("%s: %d: %s", request.path, status, error)
        text = str(error)
    return refusal(error, status, text)


def refusal(error: Exception, status: int, text: str) -> Response:
    """``text`` for whom ``error`` refuses something, and when to ask again where that helps."""
    headers = {"Cache-Control": "no-store"}
    if isinstance(error, TryAgainLater):
        headers["Retry-After"] = "1"
    return Response(f"nextslice: {text}\n", status, headers, mimetype="text/plain")


def status_of(error: Exception) -> int:
    """403 not signed, 404 not there, 422 a broken file, 503 not set up or busy, 500 our fault."""
    kinds: tuple[tuple[type[Exception], int], ...] = (
        (AddressRefused, 403),
        (NoSuchVolume, 404),
        (IndexError, 404),
        (SettingsError, 503),
        (TryAgainLater, 503),
        (TiledUnavailable, 503),
        (VolumeError, 422),
    )
    return next((status for kind, status in kinds if isinstance(error, kind)), 500)
