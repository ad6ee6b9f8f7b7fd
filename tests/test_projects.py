"""New projects on a Label Studio that fails half-way, as SQLite's does under load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ml_backend.studio.client import Studio, StudioError
from ml_backend.studio.projects import create_project
from tests.http_server import serving

CONFIG = "<View/>"


@dataclass
class Row:
    """A project: its creator, and what it holds."""

    title: str = "scan.tif"
    config: str = CONFIG
    creator: int = 1
    tasks: list[dict[str, Any]] = field(default_factory=list)


class Server(ThreadingHTTPServer):
    """Projects alone. ``failures``: (status, whether the project is made all the same) of the next
    attempts; ``patient``: the server repeats an attempt that failed, as on a locked SQLite.
    ``beside``: a project that somebody else makes during the next attempt."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.rows: dict[int, Row] = {}
        self.asked = 0
        self.failures: list[tuple[int, bool]] = []
        self.patient = False
        self.beside: Row | None = None

    def add(self, row: Row) -> int:
        number = max(self.rows, default=0) + 1
        self.rows[number] = row
        return number

    def attempt(self, fields: dict[str, Any]) -> tuple[int, int]:
        """Status and number of the project."""
        if self.beside is not None:
            self.add(self.beside)
            self.beside = None
        status, made = self.failures.pop(0) if self.failures else (201, True)
        number = self.add(Row(fields["title"], fields["label_config"])) if made else 0
        return self.attempt(fields) if self.patient and status == 500 else (status, number)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path.strip("/") == "api/tasks":
            number = int(query.partition("project=")[2].partition("&")[0])
            tasks = self.server.rows[number].tasks
            self.answer(200, {"tasks": tasks, "total": len(tasks), "total_annotations": 0})
            return
        one = path.strip("/").removeprefix("api/projects").strip("/")
        rows = [self.project(number) for number in self.server.rows]
        listed = {"count": len(rows), "next": None, "previous": None, "results": rows}
        self.answer(200, self.project(int(one)) if one else listed)

    def do_POST(self) -> None:
        fields = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked += 1
        status, number = self.server.attempt(fields)
        self.answer(status, self.project(number) if status == 201 else {"detail": "locked"})

    def do_DELETE(self) -> None:
        del self.server.rows[int(self.path.strip("/").rpartition("/")[2])]
        self.answer(200, {})

    def project(self, number: int) -> dict[str, Any]:
        row = self.server.rows[number]
        return {
            "id": number, "title": row.title, "label_config": row.config,
            "created_by": {"id": row.creator}, "created_at": "2026-11-26T18:17:57Z",
        }  # fmt: skip

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
def server() -> Iterator[Server]:
    with serving(Server()) as running:
        yield running


@pytest.fixture
def studio(server: Server) -> Studio:
    return Studio(f"http://127.0.0.1:{server.server_port}", "a-legacy-token")


@pytest.mark.parametrize("patient", [False, True], ids=["the SDK repeats", "the server repeats"])
def test_what_failed_attempts_left_is_deleted(
    server: Server, studio: Studio, patient: bool
) -> None:
    server.add(Row())  # one of that title was there before
    server.failures, server.patient = [(500, True), (500, True)], patient

    assert create_project(studio, "scan.tif", CONFIG).id == 4

    assert sorted(server.rows) == [1, 4]
    assert server.asked == (1 if patient else 3)


@pytest.mark.parametrize(
    "beside", [Row(creator=2), Row(config="<View> </View>"), Row(tasks=[{"id": 1}]), Row("other")]
)
def test_what_others_make_at_that_moment_stays(server: Server, studio: Studio, beside: Row) -> None:
    for task in beside.tasks:
        task |= {"data": {}, "updated_at": "2026-11-26T18:17:57Z"}
    server.beside = beside

    assert create_project(studio, "scan.tif", CONFIG).id == 2

    assert sorted(server.rows) == [1, 2]


def test_a_request_that_made_nothing_is_made_again(server: Server, studio: Studio) -> None:
    server.failures = [(503, False), (500, False)]

    assert create_project(studio, "scan.tif", CONFIG).id == 1

    assert list(server.rows) == [1]


@pytest.mark.parametrize(("status", "asked"), [(400, 1), (500, 3)])
def test_what_stays_refused_is_said(
    server: Server, studio: Studio, status: int, asked: int
) -> None:
    server.failures = [(status, False)] * 9

    with pytest.raises(StudioError, match=f"answered {status} to POST api/projects/"):
        create_project(studio, "scan.tif", CONFIG)

    assert (server.rows, server.asked) == ({}, asked)
