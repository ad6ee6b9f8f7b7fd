"""What was measured of a cell of the fault matrix: one JSON line a cell."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

from ml_backend.embedded import processes

__all__ = ["RECORD", "Measured", "measured_cells", "note", "real_time", "wait_until"]

RECORD = Path(__file__).resolve().parents[2] / "docs" / "results" / "faults" / "cells.jsonl"
_ASKED = "NEXTSLICE_FAULTS"
_PATIENCE = 5


class Measured(BaseModel):
    """One cell. ``sees``: what ``rounds list`` said meanwhile. ``seconds``: from the end of the
    cause to the round being published."""

    fault: str
    sees: str
    seconds: float | None
    """None: not measured yet."""
    lost: int = 0
    twice: int = 0
    test: str
    load: float = 0.0
    """Processes that wanted a core, over the last minute."""
    cores: int = 0


def real_time() -> bool:
    """Whether pauses are waited for and figures kept (`make faults`), or both left out."""
    return bool(os.environ.get(_ASKED))


def wait_until(
    ready: Callable[[], bool], what: str, timeout_s: float, pause_s: float = 0.2
) -> None:
    """`processes.wait_until`, longer where cells are measured side by side: on a machine that is
    shared with others a training of a second may take minutes."""
    processes.wait_until(ready, what, timeout_s * (_PATIENCE if real_time() else 1), pause_s)


def note(cell: Measured) -> None:
    """Keep it, where figures are kept."""
    if not real_time():
        return
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    with RECORD.open("a") as lines:
        lines.write(f"{cell.model_dump_json()}\n")


def measured_cells(file: Path = RECORD) -> list[Measured]:
    """The last line of every test, in the order of the tests."""
    found: dict[str, Measured] = {}
    for line in file.read_text().splitlines():
        cell = Measured.model_validate_json(line)
        found[cell.test] = cell
    return [found[test] for test in sorted(found)]
