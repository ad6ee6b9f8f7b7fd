"""`nextslice strategies`: the acquisition functions, what they need, where they come from."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from al_strategies import available_strategies
from ml_backend.cli import app
from ml_backend.settings import Settings

__all__ = ["strategies"]


@app.command()
def strategies() -> None:
    """List the acquisition functions, and which of them is the default."""
    table = Table()
    for column in ("name", "summary", "evidence", "source"):
        table.add_column(column, overflow="fold")
    for info in available_strategies():
        evidence = ", ".join(info.evidence) or "none"
        if info.needs_ground_truth:
            evidence += " (ground truth: simulation only)"
        table.add_row(info.name, info.summary, evidence, info.source)
    Console().print(table)
    default = {name: Settings.model_fields[name].default for name in ("strategy", "cold_start")}
    Console().print(
        f"Default: {default['strategy']} (NEXTSLICE_STRATEGY), and {default['cold_start']} before "
        "there is a model (NEXTSLICE_COLD_START)."
    )
