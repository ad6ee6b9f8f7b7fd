"""What dashboard and commands say in four troubles: docs/dashboard.md quotes their words."""

from __future__ import annotations

import errno
import html
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rq import Worker
from rq.serializers import JSONSerializer
from typer.testing import CliRunner

from ml_backend import cli
from ml_backend.app import create_app
from ml_backend.embedded.processes import free_port
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.schedule import CONTROL, GPU
from ml_backend.settings import Settings, load_settings
from tests.conftest import REPOSITORY
from tests.http_studio import HttpStudio, phantom_project, phantom_server

PAGE = REPOSITORY / "docs" / "dashboard.md"
PLACES = ("dashboard", "rounds list", "doctor", "connect")
TROUBLES = ("gpu worker stopped", "Redis stopped", "wrong token", "store full")


@pytest.fixture
def server() -> Iterator[HttpStudio]:
    with phantom_server() as server:
        yield server


@pytest.fixture
def project(
    server: HttpStudio,
    make_settings: Callable[..., Settings],
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[ConnectedProject]:
    """One that waits for its first training; its commands find it by the environment."""
    given: dict[str, Any] = {"REDIS_URL": redis_url, "NEXTSLICE_QUEUE_PREFIX": "troubles"}
    project = phantom_project(server, make_settings, **given)
    settings = project.service.settings
    given |= {"NEXTSLICE_STORE": settings.store, "LABEL_STUDIO_URL": server.url,
              "LABEL_STUDIO_API_KEY": server.key, "NEXTSLICE_EARLY_ROUNDS": "off"}  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, str(value))
    for kind in (CONTROL, GPU):
        queue = project.service.schedule.queue(kind)
        Worker([queue], connection=queue.connection, serializer=JSONSerializer).register_birth()
    project.schedule.round("3 new annotations", 1)
    yield project
    load_settings.cache_clear()


def trouble(
    name: str, project: ConnectedProject, server: HttpStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "gpu worker stopped":
        schedule = project.service.schedule
        for key in Worker.all_keys(queue=schedule.queue(GPU)):
            schedule.connection.delete(key)
    elif name == "Redis stopped":
        monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{free_port()}/0")
    elif name == "wrong token":
        server.renewable = False
        server.good.clear()
    else:

        def full(path: Path, *_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("ml_backend.rounds.store.write_whole", full)
    load_settings.cache_clear()


def said() -> dict[str, str]:
    """The words of each place, spaces run together."""
    cli.load_commands()
    runs = {
        "rounds list": ["rounds", "list", "7"],
        "doctor": ["doctor"],
        "connect": ["connect", "7"],
    }
    found = {}
    for place, arguments in runs.items():
        done = CliRunner().invoke(cli.app, arguments)
        error = done.exception
        told = cli._sentence(error) if isinstance(error, Exception) else ""
        found[place] = f"{done.output} {told}"
    asked = create_app(load_settings()).test_client()
    pages = [asked.get(path, headers={"Accept": "text/html"}).text for path in ("/", "/projects/7")]
    found["dashboard"] = html.unescape(re.sub(r"<[^>]+>", " ", " ".join(pages)))
    return {place: " ".join(text.split()) for place, text in found.items()}


def table() -> dict[str, dict[str, list[str]]]:
    """What docs/dashboard.md says that is said: by trouble and place, each quoted piece."""
    rows = {}
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in TROUBLES:
            quoted = [re.findall(r"\*([^*]+)\*", cell) for cell in cells[1:]]
            rows[cells[0]] = dict(zip(PLACES, quoted, strict=True))
    return rows


@pytest.mark.parametrize("name", TROUBLES)
def test_the_table_is_in_their_words(
    project: ConnectedProject, server: HttpStudio, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    written = table()[name]
    trouble(name, project, server, monkeypatch)
    found = said()
    for place in PLACES:
        assert written[place], f"nothing is quoted of {place}"
        for piece in written[place]:
            for part in piece.split("…"):
                assert part.strip() in found[place], (place, found[place])
