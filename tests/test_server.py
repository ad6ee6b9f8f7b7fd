"""How gunicorn is started; what it does then is in test_protocol.py."""

from __future__ import annotations

import pytest

from ml_backend.api import server
from ml_backend.api.server import gunicorn_argv
from ml_backend.settings import asked_log_level


def test_threads_are_left_whatever_is_asked_for() -> None:
    """The kinds of request that may wait for somebody else, at their most, and 16 for the rest."""
    kinds = (
        server.PREDICTIONS, server.DRAGS, server.SLICES, server.CHUNKS, server.VOLUMES,
        server.PICTURES, server.LOOKS,
    )  # fmt: skip
    argv = gunicorn_argv("127.0.0.1:9090")
    assert int(argv[argv.index("--threads") + 1]) == sum(kinds) + 16


def test_gunicorn_logs_as_the_service_does() -> None:
    quiet = gunicorn_argv("127.0.0.1:9090", log_level="WARNING")
    assert quiet[-2:] == ["--log-level", "warning"]
    assert quiet[:-2] == gunicorn_argv("127.0.0.1:9090")


@pytest.mark.parametrize(
    ("given", "asked"), [("debug", "DEBUG"), ("ERROR", "ERROR"), ("", None), ("chatty", None)]
)
def test_the_level_is_known_without_the_other_settings(
    monkeypatch: pytest.MonkeyPatch, given: str, asked: str | None
) -> None:
    monkeypatch.setenv("NEXTSLICE_LOG_LEVEL", given)
    assert asked_log_level() == asked
