"""The arithmetic of `benchmarks.load`; what it starts is real, and takes a quarter of an hour."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote_plus

import pytest

from benchmarks.load import people
from benchmarks.load.people import Deeds, Pace, call_webhooks
from benchmarks.load.watch import listed, within
from ml_backend.rounds.service import WEBHOOK_HEADER
from ml_backend.studio.client import Filter, changed_since, ids_after
from tests.http_server import serving
from tests.memory_studio import FIRST_MOMENT

LINE = '[2026-11-28 23:30:{s:02d},787] [django.server] [INFO] "{asked} HTTP/1.1" 200 66\n'
PAGE = (
    "GET /api/tasks/?project=1&fields=task_only&page={page}&page_size=500"
    "&query=%7B%22ordering%22%3A+%5B%22tasks%3Aid%22%5D{filters}%7D"
)


def filters(*items: Filter) -> str:
    """What stands behind the ordering where there are filters."""
    return quote_plus(f', "filters": {json.dumps({"conjunction": "and", "items": items})}')


def test_pages_of_all_tasks_are_told_from_other_requests(tmp_path: Path) -> None:
    asked = [
        PAGE.format(page=1, filters=""),
        PAGE.format(page=1, filters=filters(ids_after(500))),
        PAGE.format(page=1, filters=filters(changed_since(FIRST_MOMENT))),
        PAGE.format(page=1, filters=filters(changed_since(FIRST_MOMENT), ids_after(500))),
        PAGE.replace("page_size=500", "page_size=1").format(page=1, filters=""),  # totals
        "POST /api/tasks/7/annotations/?project=1",
    ]
    before = LINE.format(s=0, asked=asked[0])
    lines = [LINE.format(s=s, asked=line) for s, line in enumerate(asked, 1)]
    log = tmp_path / "label-studio.log"
    log.write_text(before + "".join(2 * line for line in lines))  # Label Studio logs each twice
    assert listed(log, len(before)) == {"pages": 2, "requests": 6}


@pytest.mark.parametrize(
    ("counts", "p50", "p99"),
    [([90, 99, 100, 100], 5, 10), ([0, 98, 99, 100], 10, 100), ([0, 0, 0, 0], 0, 0)],
)
def test_bounds_of_a_histogram(counts: list[float], p50: float, p99: float) -> None:
    buckets = dict(zip([0.005, 0.01, 0.1, float("inf")], map(float, counts), strict=True))
    assert within(buckets) == {"n": counts[-1], "p50_below_ms": p50, "p99_below_ms": p99}


class Clock:
    """Time as it passes for who sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_pace_is_kept_and_caught_up_with(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(people, "time", clock)
    pace, moments = Pace(rate=10, seconds=1), []
    while pace.wait():
        moments.append(round(clock.now - 100, 6))
        if len(moments) == 3:
            clock.sleep(0.35)  # busy with something else
    assert moments == [0.0, 0.1, 0.2, 0.55, 0.55, 0.55, 0.6, 0.7, 0.8, 0.9]


def test_submissions_of_one_task_by_two_people_are_counted() -> None:
    deeds = Deeds()
    for task, annotation in [(1, 10), (2, 11), (1, 12), (1, 13)]:
        deeds.submit(task, annotation, live=False)
    assert deeds.twice == 2
    assert deeds.figures()["submitted"] == 4


class Answers(BaseHTTPRequestHandler):
    """200 with the secret, else 401."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200 if self.headers[WEBHOOK_HEADER] == "secret" else 401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize(("secret", "refused"), [("secret", False), ("other", True)])
def test_every_webhook_is_timed_and_a_refused_one_is_a_failure(secret: str, refused: bool) -> None:
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Answers)) as server:
        url = f"http://127.0.0.1:{server.server_port}/webhook"
        payload = {"action": "ANNOTATION_CREATED", "task": {"id": 1}}
        deeds = call_webhooks(url, payload, secret, rate=20, seconds=2)
    times = deeds.figures()["times"]["webhook"]
    assert 1 <= times["n"] <= 40
    assert deeds.failed == ({"401": times["n"]} if refused else {})
