"""What the plots of a report have in common: size, colours, panels, legend, PNG.

Figure objects, not pyplot: nothing is shared between calls, processes or threads.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from math import ceil
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ml_backend.experiment.comparison import CONTROLS, needs_truth
from ml_backend.experiment.glyphs import give_glyphs

__all__ = [
    "BLUE",
    "CONTROL",
    "CONTROL_LINES",
    "FULL_LINE",
    "GREEN",
    "ORANGE",
    "OTHERS",
    "REFERENCE",
    "SMALL",
    "VERMILLION",
    "clean",
    "colour_of",
    "legend",
    "new_figure",
    "panels_of",
    "plain",
    "to_png",
]

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
"""Of Okabe and Ito: told apart by the colour-blind too."""
CONTROL, OTHERS = "#555555", "#d8d8d8"
CONTROL_LINES = {"random": (0, (1, 1)), "strided": "-", "foreground_random": (0, (5, 1, 1, 1))}
"""Controls are all grey: line styles tell them apart."""
REFERENCE: dict[str, Any] = {"color": "#777777", "linewidth": 1.1, "linestyle": (0, (1, 1))}
"""`random`, where others are compared with it."""
FULL_LINE: dict[str, Any] = {"color": "#000000", "linewidth": 1.0, "linestyle": (0, (4, 3))}
SMALL = 8.0
"""Points: tick labels and notes."""
_WIDTH, _DPI = 11.0, 150


def new_figure(height: float) -> Figure:
    """``height`` inches high, as wide as the page."""
    return Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")


def panels_of(
    count: int, columns: int, height: float, *, sharex: bool, sharey: bool
) -> tuple[Figure, list[Axes]]:
    """``count`` axes in rows of at most ``columns``, each ``height`` inches high."""
    columns = max(1, min(columns, count))
    rows = max(1, ceil(count / columns))
    figure = new_figure(0.9 + height * rows)
    grid = figure.subplots(rows, columns, sharex=sharex, sharey=sharey, squeeze=False)
    axes: list[Axes] = list(grid.flat)
    for spare in axes[count:]:
        spare.set_axis_off()
    for above in axes[max(0, count - columns) : count]:
        above.tick_params(labelbottom=True)  # the lowest of its column, also in a short last row
    return figure, axes[:count]


def colour_of(strategy: str) -> str:
    """By its kind: control, oracle, or neither."""
    if strategy in CONTROLS:
        return CONTROL
    return VERMILLION if strategy in needs_truth() else BLUE


def clean(axes: Axes) -> None:
    """No frame, thin grey axes, small tick labels."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL, length=2.5, color="#888888")
    axes.xaxis.label.set_fontsize(9)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#888888")


def legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """In one line above the panels, where it covers nothing."""
    figure.legend(
        handles=list(handles),
        loc="outside upper center",
        ncols=len(handles),
        frameon=False,
        fontsize=SMALL + 0.5,
        handlelength=2.2,
    )


def plain(text: str) -> str:
    """``text`` as it is: matplotlib takes what is between two dollar signs for a formula."""
    return text.replace("$", r"\$")


def to_png(figure: Figure) -> bytes:
    """The file's content."""
    give_glyphs(figure)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # which give_glyphs has said
        # Without matplotlib's own version in it, the same record gives the same file.
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
