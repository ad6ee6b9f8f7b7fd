"""`nextslice rounds`: what each round did, running one now, and freeing space."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated

import typer

from ml_backend.cli import app, console, new_console
from ml_backend.errors import OptionError

__all__ = ["rounds_app"]

rounds_app = typer.Typer(
    help="List a project's rounds, run one now, or free space.", no_args_is_help=True
)
app.add_typer(rounds_app, name="rounds")

_LOOK_S = 5.0
"""Between two looks of --watch."""


@rounds_app.command("list")
def list_rounds(
    project: Annotated[int | None, typer.Argument(help="Project number; empty: all.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output, for programs.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Look again every few seconds; Ctrl-C ends.")
    ] = False,
) -> None:
    """Show every round of a project, what is under way, how far it is to the next, and what that
    will probably bring.

    Titles and labels are Label Studio's; where it does not answer, what the store knows is shown.
    """
    from ml_backend.rounds.project import known_project, known_projects, stored_projects
    from ml_backend.rounds.service import Service

    if watch and as_json:
        raise OptionError("--watch cannot be given with --json: ask again for another look")
    service = Service.from_environment()
    while True:
        if project is not None:
            found = [known_project(service, project)]
        else:
            found = stored_projects(service) if as_json else known_projects(service)
        from ml_backend.cli.rounds_list import show
        from ml_backend.rounds.overview import project_overview

        seen = [project_overview(one) for one in found]
        if as_json:
            rows = [overview.model_dump(mode="json") for overview in seen]
            typer.echo(json.dumps({"projects": rows}))
            return
        if watch and sys.stdout.isatty():
            new_console().clear()
        for one, overview in zip(found, seen, strict=True):
            show(one, overview)
        if not watch:
            return
        time.sleep(_LOOK_S)


@rounds_app.command("run")
def run(
    project: Annotated[int, typer.Argument(help="Project number.")],
    here: Annotated[
        bool, typer.Option("--here", help="Run it in this process instead of a gpu worker.")
    ] = False,
) -> None:
    """Run a round now, without waiting for K annotations."""
    from ml_backend.rounds.project import known_project
    from ml_backend.rounds.service import Service
    from ml_backend.settings import configure_logging

    service = Service.from_environment()
    configure_logging(service.settings.log_level)
    found = known_project(service, project)
    found.in_studio()  # it may be deleted, or another have its number now
    if not here:
        found.schedule.start()
        console.print(f"Project {project}: asked for a round. Watch it: nextslice rounds list")
        return
    from ml_backend.cli.progress import round_progress
    from ml_backend.rounds.attempt import attempt

    before, earlier = found.published, found.record.start_requested_at
    moment = found.request_start()  # so that it is a whole one
    with round_progress(console) as progress:
        record = attempt(found, "nextslice rounds run", progress)
    if record is not None:
        console.print(f"Project {project}: {record.model_version} is published.")
        return
    published = found.published
    if published is not None and published != before:
        console.print(
            f"Project {project}: another worker has published {published.model_version} in this "
            "moment; the round that was asked for follows it."
        )
        return
    if earlier is None:  # else it stands for the earlier request too
        found.update(lambda record: record.request_met(moment))
    why = "it has no slices yet" if published is None else "nobody has annotated a slice yet"
    console.print(f"Project {project}: nothing to train on: {why}.")
    raise typer.Exit(1)


@rounds_app.command("prune")
def prune(project: Annotated[int, typer.Argument(help="Project number.")]) -> None:
    """Delete weights and evidence of rounds before the published one, but for what is served.

    Labels, records and metrics of every round are kept.
    """
    from ml_backend.rounds.project import known_project
    from ml_backend.rounds.service import Service

    deleted = known_project(Service.from_environment(), project).folder.prune()
    console.print(f"Project {project}: {deleted} files of earlier rounds are deleted.")
