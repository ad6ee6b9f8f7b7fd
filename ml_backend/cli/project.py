"""`nextslice project`: what a project has of its own settings, and what holds for it."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from redis.exceptions import RedisError

from ml_backend.cli import app, console
from ml_backend.errors import OptionError
from ml_backend.rounds.project import ConnectedProject, known_project
from ml_backend.rounds.project_settings import change_settings
from ml_backend.rounds.service import Service
from ml_backend.settings import Settings, given_settings, own_fields

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
    found = known_project(Service.from_environment(), project)
    _print(found, found.settings, as_json=as_json)


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
    found = known_project(Service.from_environment(), project)
    held = change_settings(found, dict(map(_pair, settings)))
    try:
        found.schedule.count()  # a smaller K may be reached, a pause be over
    except RedisError as error:
        console.print(f"It is looked at in the next half minute, not at once: Redis: {error}")
    _print(found, held, as_json=False)


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise OptionError(f"found {text!r}, expected NAME=VALUE, as k=4; k= takes it back")
    return name, value


def _print(project: ConnectedProject, settings: Settings, *, as_json: bool) -> None:
    own, given = project.record.settings, given_settings()

    def source(name: str) -> str:
        if name in own:
            return "project"
        return given[name].place if name in given else "default"

    held: dict[str, Any] = settings.model_dump(mode="json", include=set(own_fields()))
    rows = [{"setting": name, "value": held[name], "from": source(name)} for name in own_fields()]
    if as_json:
        typer.echo(json.dumps({"project": project.number, "settings": rows}))
        return
    values = [_text(row["value"]) for row in rows]
    names, width = max(map(len, own_fields())), max(map(len, values))
    for row, value in zip(rows, values, strict=True):
        typer.echo(f"{row['setting']:{names}}  {value:{width}}  {row['from']}")


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return str(value).lower() if isinstance(value, bool) else str(value)
