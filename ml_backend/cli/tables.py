"""Tables on standard output, as wide as they need to be: a cut-off figure cannot be copied."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

__all__ = ["whole"]


def whole(table: Table) -> str:
    """The table as text, no column cut or wrapped, however narrow the terminal is.

    Cells are shown as they are: names of classes and files may hold brackets.
    """
    endless = Console(width=1000, markup=False, emoji=False)
    fitting = Console(width=endless.measure(table).maximum, markup=False, emoji=False)
    with fitting.capture() as text:
        fitting.print(table)
    return text.get().rstrip()
