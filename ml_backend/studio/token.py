"""The token that Label Studio is shown with each request, and its renewal.

A personal access token is never shown itself: it buys access tokens that live for minutes. The SDK
takes one for good until its last instant and gives up on a 401, so a request in flight at that
moment is refused; therefore the token is ours, and the SDK's own is not used.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import jwt
from label_studio_sdk.core.api_error import ApiError

from ml_backend.studio.failures import StudioError

__all__ = ["StudioToken", "same_server"]

_LIFE_S = 300.0
"""Of an access token that does not say when it expires."""
_RENEWAL_S = 10.0
"""A renewal takes milliseconds; whoever waits for one longer is told so."""

_seconds = time.monotonic


def same_server(url: httpx.URL, server: httpx.URL) -> bool:
    """Whether ``url`` is of the ``server``: scheme, host and port (none: the scheme's own), or its
    change from http to https."""
    here, there = _origin(server), _origin(url)
    secured = ("https", server.host, None)
    return there == here or (here[0] == "http" and here[2] is None and there == secured)


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


@dataclass(frozen=True)
class _Access:
    """An access token, and the moments of `time.monotonic` from which on a new one is asked for,
    and until which it is good."""

    value: str
    renewed_at: float
    good_until: float


class StudioToken(httpx.Auth):
    """Shows Label Studio at ``server`` the token behind ``api_key``. Safe to use from many threads.

    ``api_key``: a personal access token, or a legacy token, which is shown as it is. An access
    token is renewed at half its life. A request that is refused with 401 is made once more with a
    new one; then the refusal stands. Only ``server`` is ever sent a token, and the personal one in
    no other request than for a renewal, which follows no redirect.

    Raises StudioError for a personal token that has expired. In use it raises `httpx.HTTPError`
    when Label Studio cannot be reached for a renewal and `ApiError` when it refuses one.
    """

    def __init__(self, server: str, api_key: str) -> None:
        self._server = httpx.URL(server)
        self._key = api_key
        claims = _claims(api_key)
        self._personal = claims is not None
        _check_expiry(claims or {})
        self._access: _Access | None = None
        self._renewing = threading.Lock()

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """`httpx.Auth`: the request with the token; once more after a 401 of Label Studio's."""
        if not self._personal:
            request.headers["Authorization"] = f"Token {self._key}"
            yield request
            return
        shown = self._good()
        request.headers["Authorization"] = f"Bearer {shown.value}"
        answer = yield request
        # Of somebody else, behind a redirect, it says nothing of the token.
        if answer.status_code == 401 and same_server(answer.request.url, self._server):
            shown = self._renewed(instead_of=shown)
            request.headers["Authorization"] = f"Bearer {shown.value}"
            yield request

    def _good(self) -> _Access:
        """A token with half its life before it; or the old one, where a new one cannot be had."""
        held = self._access
        if held is not None and _seconds() < held.renewed_at:
            return held
        try:
            return self._renewed(instead_of=held)
        except (httpx.HTTPError, ApiError):
            if held is None or _seconds() >= held.good_until:
                raise
            return held

    def _renewed(self, instead_of: _Access | None) -> _Access:
        """A new token; the one that another thread got in the meantime."""
        if not self._renewing.acquire(timeout=_RENEWAL_S):
            raise httpx.ConnectTimeout(f"a new access token was not to be had in {_RENEWAL_S:g} s")
        try:
            held = self._access
            if held is None or held is instead_of:
                held = self._access = self._ask()
            return held
        finally:
            self._renewing.release()

    def _ask(self) -> _Access:
        asked_at = _seconds()
        url = f"{str(self._server).rstrip('/')}/api/token/refresh/"
        answer = httpx.post(url, json={"refresh": self._key}, timeout=_RENEWAL_S)
        if answer.is_redirect:
            raise ApiError(
                status_code=answer.status_code,
                body=f"a redirect to {answer.headers.get('Location')}, which a token does not "
                "follow: set LABEL_STUDIO_URL to the address that Label Studio is at",
            )
        if answer.status_code != 200:
            raise ApiError(status_code=answer.status_code, body=answer.text)
        try:
            access = str(answer.json()["access"])
        except (ValueError, KeyError, TypeError):
            raise StudioError(
                f"{url} answered {answer.content[:60]!r}, expected an access token: is "
                "LABEL_STUDIO_URL the address of Label Studio?"
            ) from None
        life = _life(_claims(access) or {})
        return _Access(access, asked_at + life / 2, asked_at + life)


def _claims(token: str) -> dict[str, Any] | None:
    """What a JSON web token says of itself; None for another token. The signature is Label Studio's
    to check."""
    try:
        claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    except jwt.InvalidTokenError:
        return None
    return claims


def _life(claims: dict[str, Any]) -> float:
    """Seconds from issue to expiry, by the server's clock alone: ours may go wrong."""
    try:
        return max(0.0, float(claims["exp"]) - float(claims["iat"]))
    except (KeyError, TypeError, ValueError):
        return _LIFE_S


def _check_expiry(claims: dict[str, Any]) -> None:
    expires = claims.get("exp")
    if isinstance(expires, int | float) and expires < time.time():
        raise StudioError(
            f"LABEL_STUDIO_API_KEY is a personal access token that expired at "
            f"{datetime.fromtimestamp(expires, UTC):%Y-%m-%d %H:%M} UTC. Create another one in "
            "Label Studio under Account & Settings."
        )
