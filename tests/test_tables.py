"""The tables of a report, in both of their forms."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_backend.experiment.summary import Summary, summarise
from ml_backend.experiment.tables import Table, class_table, effort_table, final_table, share_table
from tests.experiment_folder import write_experiment


@pytest.fixture
def summary(tmp_path: Path) -> Summary:
    curves = {
        "random": [[0.2, 0.4], [0.2, 0.5]],
        "coreset": [[0.2, 0.6], [0.2, 0.8]],
        "worst_iou": [[0.2, 0.3], [0.2]],
    }
    return summarise(write_experiment(tmp_path, curves, full=[0.7, 0.7], pool=100))


def row(table: Table, first: str) -> dict[str, str]:
    (cells,) = (cells for cells in table.rows if cells[0] == first)
    return dict(zip(table.head, cells, strict=True))


def test_the_final_table_has_every_strategy_and_full_supervision(summary: Summary) -> None:
    table = final_table(summary, "coreset")
    assert [cells[0] for cells in table.rows] == [
        "coreset",
        "random (control)",
        "worst_iou (oracle)",
        "fully supervised",
    ]
    # Areas 0.40 and 0.50; differences to random 0.10 and 0.15, so 0.125 ± 12.706 · 0.025.
    assert row(table, "coreset") == {
        "strategy": "coreset",
        "seeds": "2",
        "final mIoU": "0.700 ± 0.141",
        "area": "0.450 ± 0.071",
        "area − random": "+0.125 [−0.193, +0.443]",
        "final − random": "+0.250 [−0.385, +0.885]",
        "share of full": "100.0 %",
        "labels to 95 / 99 %": "8 / 8",
        "mean rank": "1.0",
    }
    assert row(table, "fully supervised")["final mIoU"] == "0.700 ± 0.000"


def test_what_cannot_be_said_is_a_dash(summary: Summary) -> None:
    oracle = row(final_table(summary, None), "worst_iou (oracle)")
    assert oracle["seeds"] == "1 of 2"
    assert oracle["final mIoU"] == "0.300"
    assert oracle["area − random"] == "–"
    assert oracle["mean rank"] == "–"
    assert oracle["labels to 95 / 99 %"] == "– / –"


def test_shares_stand_under_numbers_of_annotated_slices(summary: Summary) -> None:
    table = share_table(summary, None)
    assert table.head == ("strategy", "4", "8")
    assert table.rows[0] == ("coreset", "28.6 %", "100.0 %")


def test_a_strategy_that_has_not_come_so_far_has_dashes(tmp_path: Path) -> None:
    write_experiment(tmp_path, {"random": [[0.2, 0.4]], "coreset": [[0.2]]}, full=[0.8])
    assert row(share_table(summarise(tmp_path), None), "coreset")["8"] == "–"


def test_classes_are_as_after_the_last_round(summary: Summary) -> None:
    table = class_table(summary, None)
    assert table.head == ("strategy", "background", "bone")
    assert table.rows[0] == ("coreset", "0.800", "0.600")
    assert table.rows[-1] == ("fully supervised", "0.800", "0.600")


def test_markdown_marks_the_default_and_keeps_a_pipe_in_its_cell() -> None:
    table = Table(("strategy", "a|b"), (("x", "1"), ("y", "2")), marked="y")
    assert table.markdown() == "| strategy | a\\|b |\n| --- | ---: |\n| x | 1 |\n| **y** | 2 |\n"


def test_html_is_escaped() -> None:
    html = Table(("strategy", "<b>"), (("x & y", "1"),), marked="x & y").html()
    assert "<th>&lt;b&gt;</th>" in html
    assert '<tr class="marked"><td>x &amp; y</td><td>1</td></tr>' in html


def test_the_table_of_effort_has_the_best_for_its_effort_first(tmp_path: Path) -> None:
    curves = {"random": [[0.2, 0.4], [0.2, 0.4]], "coreset": [[0.2, 0.5], [0.2, 0.5]]}
    costs = {"random": [1000, 500], "coreset": [1000, 1500]}
    table = effort_table(summarise(write_experiment(tmp_path, curves, costs=costs, pool=100)), None)
    assert table is not None
    assert [cells[0] for cells in table.rows] == ["random (control)", "coreset"]
    assert row(table, "coreset") == {
        "strategy": "coreset",
        "corrected px": "2,500",
        "of all px": "312.5 %",
        "outline": "1,250",
        "final mIoU": "0.500 ± 0.000",
        "mIoU by effort": "0.250 ± 0.000",
        "rank by effort": "2.0",
        "rank by labels": "1.0",
    }


def test_records_without_costs_have_no_table_of_effort(summary: Summary) -> None:
    assert effort_table(summary, None) is None
