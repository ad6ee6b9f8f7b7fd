"""How the web process is served, whoever starts it: gunicorn, one process, threads, slow clients
apart (`buffering`)."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = [
    "CHUNKS", "DRAGS", "LOG", "LOOKS", "PICTURES", "PREDICTIONS", "SLICES", "VOLUMES", "WORKER",
    "gunicorn_argv",
]  # fmt: skip

WORKER = "ml_backend.api.buffering.BufferingWorker"
"""Which holds no thread for a client that is slow to send or to take."""
LOG = "ml_backend.api.server_log.ServerLog"
"""Whose lines are JSON where ours are."""
PREDICTIONS = 16
"""How many /predict requests have a thread at once, waiting or at work."""
DRAGS = 8
"""How many drags have a thread at once; they wait for no other prediction."""
SLICES = 32
"""How many /slices requests have a thread at once, waiting or at work."""
CHUNKS = 16
"""How many /zarr requests have a thread at once: browsers ask for six at a time, zarr for ten."""
VOLUMES = 8
"""How many volumes of the dashboard have a thread at once, waiting or at work."""
PICTURES = 8
"""How many of its small pictures have one that are not kept already."""
LOOKS = 8
"""How many requests wait at once for a look at the service or at a project."""
_OTHERS = 16
_THREADS = PREDICTIONS + DRAGS + SLICES + CHUNKS + VOLUMES + PICTURES + LOOKS + _OTHERS


def gunicorn_argv(
    bind: str, application: str = "ml_backend.app:create_app()", log_level: str | None = None
) -> list[str]:
    """The command that serves ``application`` on ``bind`` (address:port). ``log_level``: of
    gunicorn's own messages, as `Settings.log_level`; None: gunicorn's default, INFO.

    One process holds one copy of the weights and one lock around the forward; threads keep
    /webhook and /health quick while predictions run. A request that waits holds its thread, so the
    slow kinds have bounds, and `_OTHERS` of the threads are left to the rest, whatever is asked
    for.
    Beyond `PREDICTIONS` the tasks are answered with no mask at once, as those that come too late
    are: with one forward at a time the wait would be long, and Label Studio asks again when a task
    is opened. Beyond `SLICES`, `CHUNKS`, `VOLUMES` and `PICTURES` the answer is 503: a browser asks
    for six at a time, and in Label Studio's pages does not ask again by itself, so the bound of
    slices is well above what a few annotators need. Beyond `LOOKS` it is what was seen last.

    No preload: weights are loaded after the fork. Heartbeat files live in memory, a slow disk must
    not look like a dead worker. The control socket has one path for all of a user's gunicorns, so
    it is off.
    """
    # gunicorn makes a file of its own there, with a random name, and unlinks it
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else "/tmp"  # nosec B108
    return [
        sys.executable, "-m", "gunicorn", application, "--bind", bind, "--workers", "1",
        "--threads", str(_THREADS), "--timeout", "300", "--no-control-socket",
        "--worker-class", WORKER, "--logger-class", LOG,
        "--worker-tmp-dir", memory,
        *(() if log_level is None else ("--log-level", log_level.lower())),
    ]  # fmt: skip
