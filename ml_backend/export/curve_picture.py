"""The learning curve of a project as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ml_backend.experiment.canvas import BLUE, SMALL, clean, new_figure, plain, to_png
from ml_backend.export.curve import CurvePoint, classes_of

__all__ = ["draw"]

_RING = "#222222"
_STYLES = ("-", (0, (5, 1.5)), (0, (1, 1)))
"""Of the classes' lines, once the colours are used up."""


def draw(points: Sequence[CurvePoint]) -> bytes:
    """The picture as PNG bytes: validation mIoU over annotated slices, a thin line a class."""
    measured = [point for point in points if point.miou is not None]
    figure = new_figure(4.6)
    axes = figure.subplots()
    handles = [
        *_draw_mean(axes, measured),
        *(
            _draw_class(axes, measured, name, place)
            for place, name in enumerate(classes_of(measured))
            if any(point.iou.get(name) is not None for point in measured)
        ),
    ]
    if not measured:
        note = "no round has a validation mIoU yet"
        axes.text(0.5, 0.5, note, ha="center", color="#777777", transform=axes.transAxes)
    axes.set_xlabel("annotated slices")
    axes.set_ylabel("IoU on the validation slices", fontsize=9)
    axes.set_xlim(0, 1.04 * max([1, *(point.annotated for point in measured)]))
    axes.set_ylim(-0.02, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#eeeeee", linewidth=0.8)
    clean(axes)
    if handles:
        figure.legend(
            handles=handles, loc="outside right upper", frameon=False, fontsize=SMALL + 0.5
        )
    return to_png(figure)


def _draw_mean(axes: Axes, points: Sequence[CurvePoint]) -> list[Line2D]:
    """mIoU, and a ring around the checkpoints that were not served."""
    if not points:
        return []
    look: dict[str, Any] = {"color": BLUE, "linewidth": 2.2, "marker": "o", "markersize": 4.5}
    handles = axes.plot(*_xy((p.annotated, p.miou) for p in points), **look, label="mIoU", zorder=2)
    flagged = [point for point in points if point.flagged is not None]
    if flagged:
        handles += axes.plot(
            *_xy((point.annotated, point.miou) for point in flagged),
            color=_RING, linestyle="", marker="o", markersize=10, markerfacecolor="none",
            label="flagged: not served", zorder=5,
        )  # fmt: skip
    return handles


def _draw_class(axes: Axes, points: Sequence[CurvePoint], name: str, place: int) -> Line2D:
    colours = colormaps["Dark2"]
    (line,) = axes.plot(
        *_xy((point.annotated, point.iou.get(name)) for point in points),
        color=colours(place % colours.N),
        linestyle=_STYLES[place // colours.N % len(_STYLES)],
        linewidth=1.0, zorder=3, marker=".", markersize=4, label=plain(name),
    )  # fmt: skip
    return line


def _xy(points: Iterable[tuple[int, float | None]]) -> tuple[list[int], list[float]]:
    """Where there is a value."""
    known = [(x, y) for x, y in points if y is not None]
    return [x for x, _ in known], [y for _, y in known]
