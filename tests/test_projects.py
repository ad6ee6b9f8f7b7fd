"""New projects on a Label Studio that fails half-way, as SQLite's does under load."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ml_backend.studio import projects
from ml_backend.studio.client import Studio, StudioError
from ml_backend.studio.projects import create_project


class Server(ThreadingHTTPServer):
    """Projects alone. ``failures``: (status, whether the project is made all the same) of the next
    requests for a new one."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.titles: list[str] = []
        self.asked = 0
        self.failures: list[tuple[int, bool]] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        rows = [self.project(number) for number in range(1, len(self.server.titles) + 1)]
        path = self.path.partition("?")[0].strip("/")
        one = path.removeprefix("api/projects").strip("/")
        listed = {"count": len(rows), "next": None, "previous": None, "results": rows}
        self.answer(200, rows[int(one) - 1] if one else listed)

    def do_POST(self) -> None:
        fields = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked += 1
        status, made = self.server.failures.pop(0) if self.server.failures else (201, True)
        if made:
            self.server.titles.append(fields["title"])
        good = status == 201
        self.answer(status, self.project(len(self.server.titles)) if good else {"detail": "locked"})

    def project(self, number: int) -> dict[str, Any]:
        title = self.server.titles[number - 1]
        return {"id": number, "title": title, "created_at": "2026-11-26T18:17:57Z"}

    def answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(projects, "_WAITS_S", (0.01, 0.01))
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def studio(server: Server) -> Studio:
    return Studio(f"http://127.0.0.1:{server.server_port}", "a-legacy-token")


def test_a_project_that_a_failed_request_made_is_not_made_twice(
    server: Server, studio: Studio
) -> None:
    server.titles = ["scan.tif"]
    server.failures = [(500, True)]

    assert create_project(studio, "scan.tif", "<View/>").id == 2

    assert server.titles == ["scan.tif", "scan.tif"]
    assert server.asked == 1


def test_a_request_that_made_nothing_is_made_again(server: Server, studio: Studio) -> None:
    server.failures = [(503, False), (500, False)]

    assert create_project(studio, "scan.tif", "<View/>").id == 1

    assert server.titles == ["scan.tif"]


@pytest.mark.parametrize(("status", "asked"), [(400, 1), (500, 3)])
def test_what_stays_refused_is_said(
    server: Server, studio: Studio, status: int, asked: int
) -> None:
    server.failures = [(status, False)] * 9

    with pytest.raises(StudioError, match=f"answered {status} to POST api/projects/"):
        create_project(studio, "scan.tif", "<View/>")

    assert (server.titles, server.asked) == ([], asked)
