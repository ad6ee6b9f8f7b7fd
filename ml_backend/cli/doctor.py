"""`nextslice doctor`: look at all that the service stands on, and say what mends what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ml_backend.cli import app

if TYPE_CHECKING:
    from ml_backend.health.finding import Finding
    from ml_backend.rounds.service import Service

__all__ = ["doctor"]

_MARKS = {"good": "ok     ", "warning": "warning", "fault": "WRONG  ", "unknown": "?      "}


@app.command()
def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output, for programs.")
    ] = False,
    fix: Annotated[
        bool,
        typer.Option("--fix", help="First mend in the projects what needs nobody's decision."),
    ] = False,
) -> None:
    """Look at Label Studio, token, database, store, Redis, workers and projects, and say what
    mends them.

    Needs the settings of the running service. Ends with 1 where something is wrong; warnings, and
    what could not be looked at for want of something else, end with 0 by themselves.
    """
    from ml_backend.health.examination import examine
    from ml_backend.rounds.service import Service

    service = Service.from_environment()
    if fix:
        for said in _mended(service):
            typer.echo(said, err=as_json)
    found: list[Finding] = []
    for finding in examine(service):
        found.append(finding)
        if not as_json:
            typer.echo(_line(finding))
    well = all(finding.verdict != "fault" for finding in found)
    if as_json:
        typer.echo(json.dumps({"ok": well, "findings": [asdict(finding) for finding in found]}))
    if not well:
        raise typer.Exit(1)


def _mended(service: Service) -> Iterator[str]:
    from ml_backend.errors import NextsliceError
    from ml_backend.health.projects import mend

    try:
        yield from mend(service)
    except NextsliceError:
        return  # the examination says why


def _line(finding: Finding) -> str:
    """One line a finding; what mends it at its end, unless it is said already."""
    mend = "" if finding.mend in finding.says else f" To mend it: {finding.mend}"
    return f"{_MARKS[finding.verdict]}  {finding.check}: {finding.says}{mend}"
