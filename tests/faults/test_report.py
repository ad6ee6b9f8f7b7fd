"""docs/reliability.md: what its rows say, and that it is made of the committed record."""

from __future__ import annotations

from pathlib import Path

from tests.faults.cells import Measured, measured_cells
from tests.faults.report import PAGE, page


def measured(test: str, **fields: object) -> Measured:
    said = "Round 1 is held by process 12 on lab7 (token 1) since 2026-11-28 23:00:00."
    given = {"fault": "gpu worker killed", "sees": said, "seconds": 61.7, "lost": 0, "twice": 0}
    return Measured.model_validate({**given, "test": test, "load": 3.2, "cores": 2, **fields})


def test_a_row_says_what_happened_without_what_changes_from_run_to_run() -> None:
    text = page([measured("test_kills.py::test_a[train]"), measured("test_redis.py::test_b")])
    row = (
        "| gpu worker killed | Round 1 is held by process N on MACHINE (token 1) since TIME. | 62 "
        "| 0 | 0 | `test_kills.py` `test_a[train]` |"
    )
    assert row in text.splitlines()
    assert "2 faults; 0 labels were lost, 0 were trained twice" in " ".join(text.split())


def test_lost_labels_are_summed_up() -> None:
    text = page([measured("a::b", lost=2), measured("a::c", lost=1, twice=4)])
    assert "2 faults; 3 labels were lost, 4 were trained twice" in " ".join(text.split())


def test_what_has_not_been_measured_is_said() -> None:
    text = page([measured("a::b", lost=2), measured("a::c", seconds=None, sees="")])
    assert "1 faults; 2 labels were lost" in " ".join(text.split())
    assert "1 more have a test and **have not been measured yet**" in " ".join(text.split())
    assert "| gpu worker killed |  | – | – | – | `a` `c` |" in text.splitlines()


def test_the_last_line_of_a_test_counts(tmp_path: Path) -> None:
    lines = [measured("b"), measured("a", seconds=1), measured("a", seconds=2)]
    file = tmp_path / "cells.jsonl"
    file.write_text("".join(f"{line.model_dump_json()}\n" for line in lines))
    assert [(cell.test, cell.seconds) for cell in measured_cells(file)] == [("a", 2), ("b", 61.7)]


def test_the_committed_page_is_that_of_the_committed_record() -> None:
    assert PAGE.read_text() == page(measured_cells())
