"""`nextslice export`: a round as files for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ml_backend.cli import app, as_written, console
from ml_backend.cli.progress import round_progress
from ml_backend.cli.tables import whole
from ml_backend.volumes.formats.registry import mask_formats

__all__ = ["export"]


@app.command()
def export(
    project: Annotated[str, typer.Argument(help="Project number, or its key in the store.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder to write into.")],
    round_: Annotated[
        int | None,
        typer.Option("--round", min=0, help="Round number (default: the latest committed one)."),
    ] = None,
    what: Annotated[
        str, typer.Option(help="Any of masks, json, record, curve; comma-separated.")
    ] = "masks,json,record,curve",
    format: Annotated[
        str, typer.Option(help=f"Of the masks: {', '.join(mask_formats())}.")
    ] = "tiff",
    names: Annotated[
        bool, typer.Option("--names", help="Annotators' e-mail addresses in the record too.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier export at --out.")
    ] = False,
) -> None:
    """Write a round's masks, annotations, record and learning curve into a folder.

    Label Studio is asked only for `--names`, and for the annotations when no `--round` is given:
    then they are those that it holds now.
    """
    from ml_backend.export import annotators, export_round, find_project
    from ml_backend.rounds.service import Service
    from ml_backend.settings import configure_logging

    service = Service.from_environment()
    configure_logging(service.settings.log_level)
    found = find_project(service, project)
    people = annotators(service) if names else None
    parts = [part.strip() for part in what.split(",") if part.strip()]
    with round_progress(console) as progress:
        report = export_round(
            found, out, round=round_, parts=parts, format=format, names=people,
            overwrite=overwrite, progress=progress,
        )  # fmt: skip
    table = Table(title=f"Round {report.round} of project {found.key}, {report.model_version}")
    for column in ("file", "content"):
        table.add_column(column)
    for written in report.written:
        table.add_row(str(written.path), written.content)
    typer.echo(whole(table))
    for warning in report.warnings:
        console.print(f"[yellow]warning:[/] {as_written(warning)}", highlight=False)
