"""Tables on standard output, as wide as they need to be: a cut-off figure cannot be copied."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

__all__ = ["whole"]


def whole(table: Table) -> str:
    """The table as text, no column cut or wrapped, however narrow the terminal is."""
    endless = Console(width=1000)
    fitting = Console(width=endless.measure(table).maximum)
    with fitting.capture() as text:
        fitting.print(table)
    return text.get().rstrip()
