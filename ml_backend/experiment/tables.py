"""The tables of a report, once for its page (HTML) and once for the documentation (Markdown)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from ml_backend.experiment.comparison import CONTROLS, needs_truth
from ml_backend.experiment.notation import NOTHING, percent
from ml_backend.experiment.record import FULLY_SUPERVISED
from ml_backend.experiment.summary import Standing, Summary

__all__ = ["Table", "class_table", "effort_table", "final_table", "label", "share_table"]


@dataclass(frozen=True)
class Table:
    """``rows`` of cells under ``head``; the first column is text, the others numbers.

    ``marked``: the first cell of the row that stands out.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marked: str | None = None

    def markdown(self) -> str:
        """A GitHub table that ends in a newline."""
        rows = ((f"**{row[0]}**", *row[1:]) if row[0] == self.marked else row for row in self.rows)
        lines = [self.head, ("---", *("---:" for _ in self.head[1:])), *rows]
        return "".join(f"| {' | '.join(map(_without_pipe, line))} |\n" for line in lines)

    def html(self) -> str:
        """A ``<table>``, every cell escaped."""
        body = "\n".join(_row("td", row, marked=row[0] == self.marked) for row in self.rows)
        head = _row("th", self.head)
        return f"<table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def label(strategy: str) -> str:
    """What a strategy is called in tables and plots: what it is, where that limits its use."""
    if strategy == FULLY_SUPERVISED:
        return "fully supervised"
    if strategy in CONTROLS:
        return f"{strategy} (control)"
    return f"{strategy} (oracle)" if strategy in needs_truth() else strategy


def final_table(summary: Summary, default: str | None) -> Table:
    """Every strategy, the best area first, and full supervision; ``default`` stands out."""
    head = (
        "strategy",
        "seeds",
        "final mIoU",
        "area",
        "area − random",
        "final − random",
        "share of full",
        "labels to 95 / 99 %",
        "mean rank",
    )
    return _table(head, (_final_row(standing) for standing in summary.every), default)


def share_table(summary: Summary, default: str | None) -> Table:
    """Share of full supervision after each round; the columns are numbers of labelled slices."""
    curves = [standing.curve for standing in summary.standings]
    longest = max(curves, key=len, default=())
    rows = (
        (
            label(standing.strategy),
            *(percent(point.share) for point in standing.curve),
            *(NOTHING for _ in longest[len(standing.curve) :]),
        )
        for standing in summary.standings
    )
    return _table(("strategy", *(str(point.labelled) for point in longest)), rows, default)


def effort_table(summary: Summary, default: str | None) -> Table | None:
    """What the labels of each strategy cost, the best for its effort first; None where no run that
    has ended says so."""
    known = [standing for standing in summary.standings if standing.efforts]
    if not known:
        return None
    known.sort(key=lambda s: (s.effort_area is None, -(s.effort_area.mean if s.effort_area else 0)))
    head = (
        "strategy",
        "corrected px",
        "of all px",
        "outline",
        "final mIoU",
        "mIoU by effort",
        "rank by effort",
        "rank by labels",
    )
    return _table(head, map(_effort_row, known), default)


def _effort_row(standing: Standing) -> tuple[str, ...]:
    efforts = standing.efforts.values()
    corrected, pixels = (sum(e.corrected for e in efforts), sum(e.pixels for e in efforts))
    return (
        label(standing.strategy),
        f"{corrected / len(efforts):,.0f}",
        percent(corrected / pixels) if pixels else NOTHING,
        f"{sum(e.boundary for e in efforts) / len(efforts):,.0f}",
        _text(standing.final),
        _text(standing.effort_area),
        _rank(standing.effort_rank),
        _rank(standing.rank),
    )


def class_table(summary: Summary, default: str | None) -> Table:
    """IoU after the last round of each class that is measured."""
    classes = summary.measured
    rows = (
        (label(standing.strategy), *(_number(standing.iou.get(name)) for name in classes))
        for standing in summary.every
        if standing.finals
    )
    return _table(("strategy", *classes), rows, default)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]], default: str | None) -> Table:
    return Table(head, tuple(rows), None if default is None else label(default))


def _final_row(standing: Standing) -> tuple[str, ...]:
    seeds = str(len(standing.finals))
    if standing.unfinished:
        seeds += f" of {len(standing.finals) + len(standing.unfinished)}"
    beginning = (label(standing.strategy), seeds, _text(standing.final))
    if standing.strategy == FULLY_SUPERVISED:
        # One round has no curve: its area would be its mIoU again.
        return (*beginning, *[NOTHING] * 3, percent(standing.share), *[NOTHING] * 2)
    return (
        *beginning,
        _text(standing.area),
        _text(standing.area_to_random),
        _text(standing.final_to_random),
        percent(standing.share),
        f"{_labels(standing, 0.95)} / {_labels(standing, 0.99)}",
        _rank(standing.rank),
    )


def _rank(rank: float | None) -> str:
    return NOTHING if rank is None else f"{rank:.1f}"


def _labels(standing: Standing, share: float) -> str:
    point = standing.reaching(share) if standing.finals else None
    return NOTHING if point is None else str(point.labelled)


def _text(value: object | None) -> str:
    return NOTHING if value is None else str(value)


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def _row(tag: str, cells: tuple[str, ...], *, marked: bool = False) -> str:
    inner = "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells)
    opening = '<tr class="marked">' if marked else "<tr>"
    return f"{opening}{inner}</tr>"


def _without_pipe(cell: str) -> str:
    return cell.replace("|", r"\|")
