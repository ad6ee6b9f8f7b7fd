"""Tables on standard output, as wide as they need to be: a cut-off figure cannot be copied.

On a terminal they have lines; in a pipe or a file they are values between tabs, for `cut`, `sort`
and spreadsheets.
"""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.table import Table

__all__ = ["whole"]


def whole(table: Table) -> str:
    """The table as text, no column cut or wrapped, however narrow the terminal is.

    Cells are shown as they are: names of classes and files may hold brackets.
    """
    if not sys.stdout.isatty():
        return _between_tabs(table)
    colours = None if os.environ.get("NO_COLOR") else "auto"
    endless = Console(width=1000, markup=False, emoji=False)
    width = endless.measure(table).maximum
    fitting = Console(width=width, markup=False, emoji=False, color_system=colours)  # type: ignore[arg-type]
    with fitting.capture() as text:
        fitting.print(table)
    return text.get().rstrip()


def _between_tabs(table: Table) -> str:
    """The title, the names of the columns and the rows, a line each."""
    columns = [[_plain(column.header), *map(_plain, column.cells)] for column in table.columns]
    lines = ["\t".join(row) for row in zip(*columns, strict=True)]
    return "\n".join([_plain(table.title), *lines] if table.title else lines)


def _plain(cell: object) -> str:
    return " ".join(str(cell).split())
