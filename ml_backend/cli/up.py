"""`nextslice up`: the backend and its workers on one machine, for a Label Studio that is there."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from ml_backend.cli import app, as_written, console
from ml_backend.embedded.processes import (
    ProcessGroup,
    StartError,
    check_free,
    split_address,
)

if TYPE_CHECKING:
    from ml_backend.rounds.service import Service

__all__ = ["up"]

_PORT = 9090
_ENDS = "It ends with that one; jobs wait from then on, until that one is started again."


@app.command()
def up(
    bind: Annotated[
        str | None,
        typer.Option(
            help="Address and port to listen on; default: 127.0.0.1 and the port of "
            f"NEXTSLICE_BACKEND_URL ({_PORT} where it names none). For a Label Studio on another "
            f"machine: 0.0.0.0:{_PORT}."
        ),
    ] = None,
    gpu_workers: Annotated[int, typer.Option(min=0, help="How many gpu workers.")] = 1,
    control_workers: Annotated[int, typer.Option(min=0, help="How many control workers.")] = 1,
    data: Annotated[
        Path, typer.Option(help="Logs, and the file of a Redis that is started.")
    ] = Path(".nextslice"),
) -> None:
    """Start the backend and its workers; Ctrl-C stops them.

    Label Studio is your own (LABEL_STUDIO_URL, LABEL_STUDIO_API_KEY). Redis is REDIS_URL's. Where
    that is not set, or a Unix socket, and nothing listens there, one is started on a Unix socket,
    for this user alone; other commands find it.
    """
    from ml_backend.api.auth import check_address
    from ml_backend.api.server import gunicorn_argv
    from ml_backend.embedded.redis_server import provide_redis
    from ml_backend.embedded.stack import start_worker, wait_for_backend
    from ml_backend.rounds.deployment import check_queues
    from ml_backend.rounds.service import Service
    from ml_backend.settings import load_settings, own_redis_socket, socket_url

    os.umask(0o077)  # logs, Redis' file, store and cache are this user's own
    settings = load_settings()
    address = bind or f"127.0.0.1:{urlsplit(settings.backend_url).port or _PORT}"
    host, _ = split_address(address)
    check_address(settings, host)
    check_free(address)
    service = Service(settings)
    _check_store(service)
    service.studio.call("a list of the projects", service.studio.sdk.projects.list)
    with ProcessGroup(data / "logs") as group:
        url = settings.redis_address
        own = None if "redis_url" in settings.model_fields_set else own_redis_socket()
        started = provide_redis(group, url, (data / "redis").resolve(), own)
        if started:
            there = "there" if started == url else f"at {started}"
            console.print(as_written(f"No Redis listened at {url}: one is started {there}."))
        elif own is not None and url == socket_url(own):
            console.print(as_written(f"The Redis at {url} is another nextslice up's. {_ENDS}"))
        if not started:
            check_queues(service.schedule, settings)
        env = {"NEXTSLICE_REDIS_URL": started or url}
        group.start("backend", gunicorn_argv(address, log_level=settings.log_level), env=env)
        with console.status("starting the backend"):
            wait_for_backend(group, address)
        for kind, count in (("control", control_workers), ("gpu", gpu_workers)):
            for _ in range(count):
                start_worker(group, kind, env)
        said = f"nextslice listens on http://{address}. Logs: {data / 'logs'}. Ctrl-C ends."
        console.print(as_written(said))
        console.print(
            "In Label Studio: Settings → Model → Connect Model, and give "
            f"[bold]{as_written(settings.backend_url)}[/]."
        )
        try:
            while (ended := group.ended()) is None:
                time.sleep(1)
        except KeyboardInterrupt:
            console.print("Stopping.")
            return
    raise StartError(ended)


def _check_store(service: Service) -> None:
    """Raise StoreFault that names the setting where the store cannot be written."""
    from ml_backend.rounds.store import StoreFault

    try:
        service.store.check_writable(service.settings.label_studio_host)
    except OSError as error:  # StoreFault is one
        raise StoreFault(f"{str(error).rstrip('.')}. It is given by NEXTSLICE_STORE.") from None
