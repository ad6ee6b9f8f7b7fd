"""`nextslice project`: what a project has of its own settings, and what holds for it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from ml_backend.cli import app, as_written, console
from ml_backend.errors import OptionError

if TYPE_CHECKING:
    from ml_backend.rounds.project import ConnectedProject

__all__ = ["project_app"]

project_app = typer.Typer(
    help="Show or change the settings of one project; the service's are their defaults.",
    no_args_is_help=True,
)
app.add_typer(project_app, name="project")

Number = Annotated[int, typer.Argument(help="Project number.")]


@project_app.command("show")
def show(
    project: Number,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output, for programs.")
    ] = False,
) -> None:
    """Show every setting of a project: what holds, and where it comes from."""
    from ml_backend.rounds.project import known_project
    from ml_backend.rounds.service import Service

    found = known_project(Service.from_environment(), project)
    _print(found, as_json=as_json)


@project_app.command("set")
def set_(
    project: Number,
    settings: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=VALUE...", help="k=4 strategy=badge pause=true …; k= takes it back."
        ),
    ],
) -> None:
    """Give a project settings of its own. The next round goes by them, and records them."""
    from ml_backend.rounds.project import ConnectedProject, known_project
    from ml_backend.rounds.service import Service

    found = known_project(Service.from_environment(), project)
    _change(found, dict(map(_pair, settings)))
    _print(ConnectedProject(found.service, found.key), as_json=False)  # as they are now


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise OptionError(f"found {text!r}, expected NAME=VALUE, as k=4; k= takes it back")
    return name, value


def _change(project: ConnectedProject, asked: dict[str, str]) -> None:
    from redis.exceptions import RedisError

    from ml_backend.rounds.project_settings import change_settings

    change_settings(project, asked)
    try:
        project.schedule.count()  # a smaller K may be reached, a pause be over
    except RedisError as error:
        said = f"It is looked at in the next half minute, not at once: Redis: {error}"
        console.print(as_written(said))


def _print(project: ConnectedProject, *, as_json: bool) -> None:
    from ml_backend.configuration import written
    from ml_backend.rounds.extra_params import faults_of
    from ml_backend.rounds.held_settings import held_settings

    rows = [{"setting": s.name, "value": s.value, "from": s.source} for s in held_settings(project)]
    warnings = faults_of(project)
    if as_json:
        typer.echo(json.dumps({"project": project.number, "settings": rows, "warnings": warnings}))
        return
    values = [written(row["value"]) or "–" for row in rows]
    names, width = max(len(str(row["setting"])) for row in rows), max(map(len, values))
    for row, value in zip(rows, values, strict=True):
        typer.echo(f"{row['setting']:{names}}  {value:{width}}  {row['from']}")
    for warning in warnings:
        console.print(as_written(warning))
