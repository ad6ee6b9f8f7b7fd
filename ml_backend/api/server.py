"""How the web process is served, whoever starts it: gunicorn, one process, threads."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["gunicorn_argv"]

_THREADS = 8


def gunicorn_argv(bind: str, application: str = "ml_backend.app:create_app()") -> list[str]:
    """The command that serves ``application`` on ``bind`` (address:port).

    One process holds one copy of the weights and one lock around the forward; threads keep
    /webhook and /health quick while a prediction runs. No preload: weights are loaded after the
    fork. Heartbeat files live in memory, a slow disk must not look like a dead worker. The control
    socket has one path for all of a user's gunicorns, so it is off.
    """
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else "/tmp"
    return [
        sys.executable, "-m", "gunicorn", application, "--bind", bind, "--workers", "1",
        "--threads", str(_THREADS), "--timeout", "300", "--no-control-socket",
        "--worker-tmp-dir", memory,
    ]  # fmt: skip
