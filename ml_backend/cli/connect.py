"""`nextslice connect`: register the backend in a Label Studio project and adopt the project."""

from __future__ import annotations

from typing import Annotated

import typer

from ml_backend.cli import app, as_written, console
from ml_backend.errors import OptionError
from ml_backend.rounds import adopt
from ml_backend.rounds.project import find_project
from ml_backend.rounds.service import Service
from ml_backend.settings import absolute_address, configure_logging, load_settings

__all__ = ["connect"]


@app.command()
def connect(
    project: Annotated[int, typer.Argument(help="Number of the Label Studio project.")],
    backend: Annotated[
        str | None,
        typer.Option(help="This backend as Label Studio sees it (default: NEXTSLICE_BACKEND_URL)."),
    ] = None,
) -> None:
    """Connect a project: the same as adding the URL under Settings → Model, from a shell.

    Needs the settings of the running service, and its Redis. Done again it changes nothing.
    """
    settings = load_settings()
    configure_logging(settings.log_level)
    if backend is not None:
        settings = settings.model_copy(update={"backend_url": _address(backend)})
    found = find_project(Service(settings), project)
    with console.status("adopting the project: sampling, webhook, round 0"):
        added = adopt.connect(found)
    published = found.published
    lacking = found.record.imageless
    none = "no task has an image" if lacking else "the project has no tasks"
    version = published.model_version if published else f"none yet: {none}"
    state = "added" if added else "was there already"
    console.print(f"Project {project}: ML backend {as_written(settings.backend_url)} {state}.")
    if lacking:
        console.print(as_written(lacking))
    console.print(f"Model version: {version}. Press [bold]Label All Tasks[/] to follow the queue.")


def _address(backend: str) -> str:
    try:
        return absolute_address(backend)
    except ValueError as error:
        raise OptionError(f"--backend is {backend!r}, {error}") from None
