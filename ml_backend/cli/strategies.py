"""`nextslice strategies`: the acquisition functions, what they need, where they come from."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from al_strategies import available_strategies
from ml_backend.cli import app
from ml_backend.cli.tables import whole
from ml_backend.settings import Settings

__all__ = ["strategies"]

_SHOWN = ("name", "summary", "evidence", "needs_ground_truth", "source")


@app.command()
def strategies(
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output, for programs.")
    ] = False,
) -> None:
    """List the acquisition functions, and which of them is the default."""
    default = {name: Settings.model_fields[name].default for name in ("strategy", "cold_start")}
    if as_json:
        rows = [{name: getattr(info, name) for name in _SHOWN} for info in available_strategies()]
        typer.echo(json.dumps({"default": default, "strategies": rows}))
        return
    table = Table()
    for column in ("name", "summary", "evidence", "source"):
        table.add_column(column)
    for info in available_strategies():
        evidence = ", ".join(info.evidence) or "none"
        if info.needs_ground_truth:
            evidence += " (ground truth: simulation only)"
        table.add_row(info.name, info.summary, evidence, info.source)
    typer.echo(whole(table))
    typer.echo(
        f"Default: {default['strategy']} (NEXTSLICE_STRATEGY), and {default['cold_start']} before "
        "there is a model (NEXTSLICE_COLD_START)."
    )
