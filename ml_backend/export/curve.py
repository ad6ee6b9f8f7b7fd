"""The learning curve of a project: what each round reached with how many annotated slices."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ml_backend.export.files import whole
from ml_backend.rounds.artefacts import METRICS, ROUND
from ml_backend.rounds.effort import EffortTotals, totals_of
from ml_backend.rounds.records import MetricsRecord
from ml_backend.rounds.store import ProjectStore

__all__ = ["CurvePoint", "classes_of", "export_learning_curve", "learning_curve"]


@dataclass(frozen=True)
class CurvePoint:
    """One committed round. ``miou`` and ``iou`` (class → IoU) are those of the checkpoint that the
    round trained, on ``validation`` held-out slices: None where there were too few, or where no
    validation slice shows the class. A ``flagged`` checkpoint was kept and not served.

    ``measured``: labels that the round was the first to have and whose effort is known; of these, a
    slice has ``corrected`` pixels on average, ``dragged`` of them by drags, ``corrected_by_class``,
    ``boundary`` of outline drawn and ``lead_time`` seconds in the middle. None where there are
    none.
    """

    round: int
    model_version: str
    strategy: str
    annotated: int
    pseudo: int
    validation: int
    miou: float | None
    iou: dict[str, float | None] = field(default_factory=dict)
    committed_at: str = ""
    seconds: float = 0.0
    flagged: str | None = None
    measured: int = 0
    corrected: float | None = None
    corrected_share: float | None = None
    boundary: float | None = None
    dragged: float | None = None
    lead_time: float | None = None
    corrected_by_class: dict[str, float] = field(default_factory=dict)


_EMPTY = CurvePoint(0, "", "", 0, 0, 0, None)


def learning_curve(project: ProjectStore, until: int | None = None) -> list[CurvePoint]:
    """Every committed round in order, up to round ``until``."""
    points = []
    for number in project.rounds():
        record = project.round(number).load(ROUND)
        if record is None or (until is not None and number > until):
            continue
        metrics = project.round(number).load(METRICS) or MetricsRecord()
        points.append(
            CurvePoint(
                round=number,
                model_version=record.model_version,
                strategy=record.strategy,
                annotated=record.annotated,
                pseudo=len(record.pseudo),
                validation=len(metrics.validation),
                miou=metrics.miou,
                iou=metrics.iou,
                committed_at=record.committed_at,
                seconds=round(sum(record.seconds.values()), 2),
                flagged=record.flagged,
                **_effort(totals_of(metrics.effort)),
            )
        )
    return points


def _effort(totals: EffortTotals | None) -> dict[str, Any]:
    """The fields of a `CurvePoint` that say what its labels cost."""
    if totals is None:
        return {}
    slices = totals.slices
    return {
        "measured": slices,
        "corrected": round(totals.per_slice, 1),
        "corrected_share": round(totals.share, 5),
        "boundary": round(totals.boundary / slices, 1),
        "dragged": round(totals.dragged / slices, 1),
        "lead_time": totals.median_s,
        "corrected_by_class": {n: round(c / slices, 1) for n, c in totals.by_class.items()},
    }


def export_learning_curve(
    project: ProjectStore,
    csv_path: Path,
    png_path: Path | None = None,
    *,
    until: int | None = None,
    overwrite: bool = False,
) -> list[CurvePoint]:
    """Write the curve as a table and, if ``png_path`` is given, as a picture.

    Columns: those of `CurvePoint`, with a column ``iou <class>`` for each class that any round had,
    and ``corrected <class>`` for each that was corrected in any.
    Raises ExportError when a file is there already and ``overwrite`` is False.
    """
    points = learning_curve(project, until)
    corrected = list(dict.fromkeys(name for point in points for name in point.corrected_by_class))
    rows = [_row(point, classes_of(points), corrected) for point in points]
    columns = list(_row(_EMPTY, classes_of(points), corrected))
    with (
        whole(csv_path, overwrite=overwrite) as partial,
        partial.open("w", newline="", encoding="utf-8") as stream,
    ):
        table = csv.DictWriter(stream, columns)
        table.writeheader()
        table.writerows(rows)
    if png_path is not None:
        from ml_backend.export.curve_picture import draw  # with matplotlib

        with whole(png_path, overwrite=overwrite) as partial:
            partial.write_bytes(draw(points))
    return points


def classes_of(points: Sequence[CurvePoint]) -> list[str]:
    """The classes that any of the rounds had, in order."""
    return list(dict.fromkeys(name for point in points for name in point.iou))


def _row(point: CurvePoint, classes: Sequence[str], corrected: Sequence[str]) -> dict[str, Any]:
    values = asdict(point)
    iou, pixels = values.pop("iou"), values.pop("corrected_by_class")
    by_class = {f"iou {name}": iou.get(name) for name in classes}
    place = list(values).index("miou") + 1
    columns = list(values.items())
    by_cost = {f"corrected {name}": pixels.get(name) for name in corrected}
    return dict(columns[:place]) | by_class | dict(columns[place:]) | by_cost
