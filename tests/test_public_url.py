"""The address that browsers load slices from, as this machine sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ml_backend.health.public_url import public_url
from ml_backend.settings import Settings
from tests.http_server import serving


class Handler(BaseHTTPRequestHandler):
    said: tuple[int, Any] = (200, {"status": "UP", "model_class": "nextslice"})

    def do_GET(self) -> None:
        assert self.path == "/below/health"
        status, body = self.said
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


def server(status: int, body: Any) -> ThreadingHTTPServer:
    handler = type("One", (Handler,), {"said": (status, body)})
    return ThreadingHTTPServer(("127.0.0.1", 0), handler)


@pytest.mark.parametrize(
    ("status", "body", "verdict", "says"),
    [
        (200, {"status": "UP", "model_class": "nextslice"}, "good", "Browsers on this machine al"),
        (401, {"error": "who are you?"}, "good", "Browsers on this machine alone"),
        (200, {"status": "UP", "model_class": "other"}, "fault", "not as nextslice does"),
        (404, [], "fault", "answers 404, and not as nextslice does"),
    ],
)
def test_what_answers_there(
    make_settings: Callable[..., Settings], status: int, body: Any, verdict: str, says: str
) -> None:
    with serving(server(status, body)) as one:
        url = f"http://127.0.0.1:{one.server_address[1]}/below/"
        found = public_url(make_settings(PUBLIC_URL=url))
    assert (found.verdict, says in found.says) == (verdict, True), found
    assert found.mend == ("" if verdict == "good" else "PUBLIC_URL")


def test_nothing_answers_there(make_settings: Callable[..., Settings]) -> None:
    found = public_url(make_settings(PUBLIC_URL="http://somebody:secret@127.0.0.1:9"))
    assert found.verdict == "fault"
    assert found.says.startswith("Nothing answers at http://somebody:***@127.0.0.1:9 (")
    assert "nextslice up" in found.says


def test_what_another_machine_sees_is_not_claimed(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(server(200, Handler.said[1])) as one:
        # this machine by a name of its own, which is no loopback address to look at
        import socket

        real = socket.getaddrinfo
        monkeypatch.setattr(
            socket, "getaddrinfo",
            lambda host, *rest, **more: real("127.0.0.1" if b"lab.example" in (
                host if isinstance(host, bytes) else str(host).encode()) else host, *rest, **more),
        )  # fmt: skip
        found = public_url(
            make_settings(PUBLIC_URL=f"http://lab.example:{one.server_address[1]}/below")
        )
    assert found.verdict == "good"
    assert "cannot be seen from here" in found.says
