"""`nextslice connect`: register the backend in a Label Studio project and adopt the project."""

from __future__ import annotations

from typing import Annotated

import typer

from ml_backend.cli import app, console
from ml_backend.rounds import adopt
from ml_backend.rounds.service import Service
from ml_backend.settings import Settings, configure_logging, load_settings

__all__ = ["connect"]


@app.command()
def connect(
    project: Annotated[int, typer.Argument(help="Number of the Label Studio project.")],
    url: Annotated[
        str | None, typer.Option(help="Label Studio's address (default: LABEL_STUDIO_URL).")
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="Access token (default: LABEL_STUDIO_API_KEY).")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="This backend as Label Studio sees it (default: NEXTSLICE_BACKEND_URL)."),
    ] = None,
) -> None:
    """Connect a project: the same as adding the URL under Settings → Model, from a shell.

    Done again it changes nothing.
    """
    settings = load_settings()
    configure_logging(settings.log_level)
    settings = _with(
        settings, label_studio_url=url, label_studio_api_key=token, backend_url=backend
    )
    service = Service(settings)
    with console.status("adopting the project: sampling, webhook, round 0"):
        added = adopt.connect(service, project)
    published = service.folder(service.find_key(project)).published
    version = published.model_version if published else "none yet: the project has no tasks"
    state = "added" if added else "was there already"
    console.print(f"Project {project}: ML backend {settings.backend_url} {state}.")
    console.print(f"Model version: {version}. Press [bold]Label All Tasks[/] to follow the queue.")


def _with(settings: Settings, **given: str | None) -> Settings:
    """The settings with what was given on the command line, checked like the rest."""
    fields = settings.model_dump()
    fields.update({name: value for name, value in given.items() if value is not None})
    return Settings.model_validate(fields)
