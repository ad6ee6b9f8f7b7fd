"""`nextslice up`: the backend and its workers on one machine, for a Label Studio that is there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from ml_backend.api.server import gunicorn_argv
from ml_backend.cli import app, console
from ml_backend.embedded.processes import ProcessGroup, StartError, stop_on_sigterm
from ml_backend.embedded.redis_server import redis_answers, start_redis
from ml_backend.embedded.stack import start_worker
from ml_backend.rounds.service import Service
from ml_backend.settings import load_settings

__all__ = ["up"]


@app.command()
def up(
    bind: Annotated[
        str | None,
        typer.Option(help="Address and port to listen on; default: NEXTSLICE_BACKEND_URL's."),
    ] = None,
    gpu_workers: Annotated[int, typer.Option(min=0, help="How many gpu workers.")] = 1,
    control_workers: Annotated[int, typer.Option(min=0, help="How many control workers.")] = 1,
    data: Annotated[Path, typer.Option(help="Logs, and Redis' file if none is running.")] = Path(
        ".nextslice"
    ),
) -> None:
    """Start the backend and its workers; Ctrl-C stops them.

    Label Studio is your own (LABEL_STUDIO_URL, LABEL_STUDIO_API_KEY). Redis is REDIS_URL's when it
    answers, else a private one is started.
    """
    stop_on_sigterm()
    settings = load_settings()
    service = Service(settings)
    service.studio.call("look for projects", service.studio.sdk.projects.list)
    address = bind or f"127.0.0.1:{urlsplit(settings.backend_url).port or 80}"
    env: dict[str, str] = {}
    with ProcessGroup(data / "logs") as group:
        if not redis_answers(settings.redis_url):
            console.print(f"No Redis at {settings.redis_url}: starting a private one.")
            env["REDIS_URL"] = start_redis(group, (data / "redis").resolve())
        group.start("backend", gunicorn_argv(address), env=env)
        for kind, count in (("control", control_workers), ("gpu", gpu_workers)):
            for _ in range(count):
                start_worker(group, kind, env)
        console.print(f"nextslice listens on http://{address}. Logs: {data / 'logs'}. Ctrl-C ends.")
        console.print(
            "In Label Studio: Settings → Model → Connect Model, and give "
            f"[bold]{settings.backend_url}[/]."
        )
        try:
            while (ended := group.ended()) is None:
                time.sleep(1)
        except KeyboardInterrupt:
            console.print("Stopping.")
            return
    raise StartError(ended)
