"""`nextslice strategies`: the acquisition functions, what they need, where they come from."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from al_strategies import available_strategies
from ml_backend.cli import app

__all__ = ["strategies"]


@app.command()
def strategies() -> None:
    """List the acquisition functions."""
    table = Table()
    for column in ("name", "summary", "evidence", "source"):
        table.add_column(column, overflow="fold")
    for info in available_strategies():
        evidence = ", ".join(info.evidence) or "none"
        if info.needs_ground_truth:
            evidence += " (ground truth: simulation only)"
        table.add_row(info.name, info.summary, evidence, info.source)
    Console().print(table)
