"""The web process in the tests of its pages and of their JSON."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flask.testing import FlaskClient
from werkzeug.serving import make_server

from ml_backend.api import status
from ml_backend.app import create_app
from ml_backend.embedded.stack import settings_from
from ml_backend.rounds.project import ConnectedProject
from ml_backend.settings import Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


def client(project: ConnectedProject, **changed: Any) -> FlaskClient:
    """Who asks the web process of ``project``, with settings ``changed``."""
    return create_app(project.service.settings.model_copy(update=changed)).test_client()


def look_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nothing answered from what was found a moment ago."""
    monkeypatch.setattr(status, "_FRESH_S", 0.0)
    monkeypatch.setattr(status, "_RESTS", 0.0)


@contextmanager
def web_process(app: WSGIApplication, port: int | None = None) -> Iterator[str]:
    """``app`` over HTTP, at the address that is yielded, until the end of the block."""
    serving = make_server("127.0.0.1", port or 0, app, threaded=True)
    thread = threading.Thread(target=serving.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{serving.server_port}"
    finally:
        serving.shutdown()
        thread.join()
        serving.server_close()


def settings_in(folder: Path) -> Callable[..., Settings]:
    """As the fixture `make_settings`, of a module: with store and cache in ``folder``."""

    def make(**variables: object) -> Settings:
        own = {"NEXTSLICE_STORE": folder / "store", "NEXTSLICE_CACHE_DIR": folder / "cache"}
        given = {**own, "NEXTSLICE_EARLY_ROUNDS": "off", **variables}
        return settings_from({name: str(value) for name, value in given.items()})

    return make
