"""The whole service on this machine: Redis, Label Studio, the backend and its two workers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import requests

from ml_backend.api.server import gunicorn_argv
from ml_backend.embedded.label_studio import (
    LabelStudioServer,
    find_label_studio,
    install_label_studio,
    start_label_studio,
)
from ml_backend.embedded.processes import ProcessGroup, free_port
from ml_backend.embedded.redis_server import start_redis
from ml_backend.settings import Settings, asked_log_level, default_home, read_settings

__all__ = [
    "Stack",
    "default_home",
    "start_backend",
    "start_stack",
    "start_worker",
    "wait_for_backend",
]


@dataclass
class Stack:
    """What runs, and the environment that points at it."""

    label_studio: LabelStudioServer
    redis_url: str
    backend_url: str
    env: dict[str, str] = field(default_factory=dict)

    def settings(self) -> Settings:
        """The settings that the backend and the workers of this stack have."""
        return settings_from(self.env)


def settings_from(env: dict[str, str]) -> Settings:
    """The settings that the environment ``env``, added to ours, stands for."""
    before = {name: os.environ.get(name) for name in env}
    os.environ.update(env)
    try:
        return read_settings()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def start_backend(group: ProcessGroup, port: int, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start the backend and wait until it answers."""
    level = env.get("NEXTSLICE_LOG_LEVEL", asked_log_level())
    argv = gunicorn_argv(f"127.0.0.1:{port}", log_level=level)
    process = group.start("backend", argv, env=env)
    wait_for_backend(group, f"127.0.0.1:{port}")
    return process


def wait_for_backend(group: ProcessGroup, address: str) -> None:
    """Wait until the backend of ``group`` answers at ``address`` (host:port), as asked from this
    machine. StartError with its log when it ends or does not."""
    host, _, port = address.rpartition(":")
    # what listens on every address of the machine does on this one
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # nosec B104
    url = f"http://{host}:{port}/health"

    def answers() -> bool:
        try:
            # 401 is an answer too: basic auth is on.
            return requests.get(url, timeout=2).status_code in (200, 401)
        except requests.RequestException:
            return False

    group.wait("backend", answers, timeout_s=60)


def start_worker(group: ProcessGroup, kind: str, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a ``control`` or ``gpu`` worker."""
    argv = [sys.executable, "-m", "ml_backend.cli", "worker", kind]
    return group.start(f"worker-{kind}", argv, env=env)


def start_stack(
    group: ProcessGroup,
    folder: Path,
    home: Path,
    *,
    env: dict[str, str] | None = None,
    step: Callable[[str], None] = lambda text: None,
    workers: tuple[str, ...] = ("control", "gpu"),
    database: Mapping[str, str] | None = None,
) -> Stack:
    """Start everything with its data in ``folder``; ``env`` overrides settings of the service.

    ``database``: of Label Studio, as `start_label_studio` takes it; None: SQLite.
    ``step`` is told what happens next. Processes belong to ``group``, which stops them.
    """
    if find_label_studio(home) is None:
        step("installing Label Studio into an environment of its own (once, a few minutes)")
    command = install_label_studio(home)
    step("starting Redis")
    redis_url = start_redis(group, folder / "redis")
    step("starting Label Studio")
    server = start_label_studio(group, command, folder / "label-studio", database=database)
    step("starting the backend and its workers")
    port = free_port()
    backend_url = f"http://127.0.0.1:{port}"
    service_env = {
        # The names that go before LABEL_STUDIO_URL, …: a shell that has them is set for another.
        "NEXTSLICE_LABEL_STUDIO_URL": server.url,
        "NEXTSLICE_LABEL_STUDIO_API_KEY": server.token,
        "NEXTSLICE_REDIS_URL": redis_url,
        "NEXTSLICE_PUBLIC_URL": backend_url,
        "NEXTSLICE_BACKEND_URL": backend_url,
        "NEXTSLICE_STORE": str(folder / "store"),
        "NEXTSLICE_CACHE_DIR": str(folder / "cache"),
        **(env or {}),
    }
    start_backend(group, port, service_env)
    for kind in workers:
        start_worker(group, kind, service_env)
    return Stack(server, redis_url, backend_url, service_env)
