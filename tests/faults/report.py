"""docs/reliability.md: the fault matrix as it was measured.

    python -m tests.faults.report

writes the page from docs/results/faults/cells.jsonl, which `make faults` fills.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tests.faults.cells import Measured, measured_cells

__all__ = ["page"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"

_HEAD = """# What it survives

<!-- Made by `make faults` from docs/results/faults/cells.jsonl; do not edit. -->

Each row is a test that breaks something while a round is at work: real workers (`nextslice worker
gpu`, `nextslice worker control`), a real Redis and a store on a disk; Label Studio is a server of
the tests that speaks its HTTP and can be made to fail. {count} faults; {lost} labels were lost,
{twice} were trained twice.{missing}

After each fault that has figures, once its cause is gone and nobody does anything but start again
what was killed: the round ends by itself, the queue in Label Studio stands as it was selected,
every label that was submitted is in the round once, and no file stands half-written.

- **what the user sees**: what `nextslice rounds list` said while the fault lasted.
- **seconds**: from the end of the cause to the round being published, training included (here a
  training takes a second), of an early round to the last mask of its queue. Pauses are those of the
  default settings: a killed or failed attempt is made again after a minute, a job whose worker is
  gone is given to another after a minute, every project is looked at every 30 s, a claim that
  cannot be read holds for two minutes.

Measured as `make faults` does, four cells side by side, on a machine with {cores} cores whose load
was {load} at the end of the median cell. Most of the seconds are pauses. `make test` runs the
shortest cells with every change, without the pauses.

| fault | what the user sees | seconds | labels lost | trained twice | test |
| --- | --- | ---: | ---: | ---: | --- |
"""

_NOT_SHOWN = """
Not in the table: PostgreSQL or the network of a real Label Studio going away (`tests/integration`
holds what the real server does). Memory is that of the CPU, told of as CUDA tells it: no GPU was
there. The clock is that of our processes, not of Redis; RQ's own timestamps do not move with it.
"""
_WHAT_VARIES = (
    (re.compile(r"/(proc/\d+/root/)?tmp/\S*?/((?:disk/)?store/|(?=redis\.sock))"), "…/"),
    (re.compile(r"127\.0\.0\.1[:_]\d+|127\.0\.0\.1"), "HOST"),
    (re.compile(r"process \d+ on \S+"), "process N on MACHINE"),
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\+00:00)?"), "TIME"),
    (re.compile(r"nextslice-(r\d+)-[0-9a-f]{6}"), r"nextslice-\1-…"),
)


_MISSING = """ {} more have a test and **have not been measured yet** (`make faults`
measures them all), so nothing is claimed of them here."""


def page(cells: Sequence[Measured]) -> str:
    """The page that tells of ``cells``, in their order."""
    measured = [cell for cell in cells if cell.seconds is not None]
    missing = len(cells) - len(measured)
    head = _HEAD.format(
        count=len(measured),
        lost=sum(cell.lost for cell in measured),
        twice=sum(cell.twice for cell in measured),
        missing=_MISSING.format(missing) if missing else "",
        cores=max(cell.cores for cell in measured),
        load=f"{sorted(cell.load for cell in measured)[len(measured) // 2]:.0f}",
    )
    return head + "".join(map(_row, cells)) + _NOT_SHOWN


def _row(cell: Measured) -> str:
    sees = cell.sees
    for pattern, instead in _WHAT_VARIES:
        sees = pattern.sub(instead, sees)
    sees = sees.replace("|", "\\|").replace("\n", " ")
    file, _, test = cell.test.partition("::")
    where = f"`{file}` `{test}`"
    figures = (
        "– | – | –" if cell.seconds is None else f"{cell.seconds:.0f} | {cell.lost} | {cell.twice}"
    )
    return f"| {cell.fault} | {sees} | {figures} | {where} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(measured_cells()))
