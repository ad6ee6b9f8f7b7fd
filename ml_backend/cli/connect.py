"""`nextslice connect`: register the backend in a Label Studio project and adopt the project."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ml_backend.cli import app, as_written, console
from ml_backend.errors import OptionError

if TYPE_CHECKING:
    from ml_backend.rounds.project import ConnectedProject

__all__ = ["connect"]


@app.command()
def connect(
    project: Annotated[int, typer.Argument(help="Number of the Label Studio project.")],
    backend: Annotated[
        str | None,
        typer.Option(help="This backend as Label Studio sees it (default: NEXTSLICE_BACKEND_URL)."),
    ] = None,
    smart: Annotated[
        bool,
        typer.Option(
            "--smart",
            help="Put into the labelling config what dragging over wrong places needs: a rectangle "
            'that is a prompt, and smart="false" for the control that paints.',
        ),
    ] = False,
) -> None:
    """Connect a project: the same as adding the URL under Settings → Model, from a shell.

    Needs the settings of the running service, and its Redis. Done again it changes nothing.
    """
    from ml_backend.rounds import adopt
    from ml_backend.rounds.imageless import unreadable
    from ml_backend.rounds.project import find_project
    from ml_backend.rounds.service import Service
    from ml_backend.settings import configure_logging, load_settings
    from ml_backend.studio.label_config import parse_label_config

    settings = load_settings()
    configure_logging(settings.log_level)
    if backend is not None:
        settings = settings.model_copy(update={"backend_url": _address(backend)})
    found = find_project(Service(settings), project)
    if smart:
        put_drags(found)
    with console.status("adopting the project: sampling, webhook, round 0"):
        added = adopt.connect(found)
        config = parse_label_config(found.in_studio().label_config)
        dead = unreadable(found, config)
    state = "added" if added else "was there already"
    console.print(f"Project {project}: ML backend {as_written(settings.backend_url)} {state}.")
    for sentence in filter(None, (found.record.imageless, dead)):
        console.print(as_written(sentence))
    console.print(_next(found, dead))
    if not config.prompts:
        console.print(
            "Annotators cannot drag over what is wrong yet: the labelling config has no control "
            f"for it. [bold]nextslice connect {project} --smart[/] adds two lines."
        )


def put_drags(project: ConnectedProject) -> None:
    """Put into the project's labelling config what drags need, unless it has it.

    Raises LabelConfigError where it cannot be put there, StudioError when Label Studio refuses it.
    """
    from ml_backend.studio.label_config import with_drags

    before = project.in_studio().label_config
    after = with_drags(before)
    if after != before:
        project.studio.update_project(project.number, label_config=after)


def _next(project: ConnectedProject, dead: str) -> str:
    """What a person does now."""
    published = project.published
    if published is None:
        why = "no task has an image" if project.record.imageless else "the project has no tasks"
        return f"Model version: none yet, since {why}. Round 0 begins by itself when one has."
    version = f"Model version: {published.model_version}."
    if dead:
        return f"{version} There is nothing to annotate until the images can be read."
    return f"{version} Press [bold]Label All Tasks[/] to follow the queue."


def _address(backend: str) -> str:
    from ml_backend.settings import absolute_address

    try:
        return absolute_address(backend)
    except ValueError as error:
        raise OptionError(f"--backend is {backend!r}, {error}") from None
