"""The pictures of a report, as PNG bytes: curves, dots with intervals, and what was picked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ml_backend.experiment.canvas import (
    BLUE,
    CONTROL,
    CONTROL_LINES,
    FULL_LINE,
    GREEN,
    ORANGE,
    OTHERS,
    REFERENCE,
    SMALL,
    VERMILLION,
    clean,
    colour_of,
    legend,
    new_figure,
    panels_of,
    plain,
    to_png,
)
from ml_backend.experiment.comparison import needs_truth
from ml_backend.experiment.notation import count
from ml_backend.experiment.record import FULLY_SUPERVISED, Experiment, RoundLine
from ml_backend.experiment.summary import CurvePoint, Difference, Runs, Standing, Summary
from ml_backend.experiment.tables import label

__all__ = ["class_curves", "final_dots", "highlights", "learning_curves", "picks", "picks_seed"]


def learning_curves(summary: Summary) -> bytes:
    """Test mIoU over annotated slices: a panel a strategy, all the others in light grey."""
    standings = summary.standings
    figure, panels = panels_of(len(standings), columns=5, height=1.9, sharex=True, sharey=True)
    for axes, standing in zip(panels, standings, strict=True):
        _level(axes, summary)
        for other in standings:
            if other is not standing:
                axes.plot(*_xy(other.curve), color=OTHERS, linewidth=0.8, zorder=1)
        if standing.strategy != "random":
            for random in (s for s in standings if s.strategy == "random"):
                axes.plot(*_xy(random.curve), zorder=2, **REFERENCE)
        _band(axes, standing.curve, colour_of(standing.strategy))
        _title(axes, standing, usual=max(len(s.finals) for s in standings))
        axes.set_xticks(_label_ticks(summary))
    figure.supxlabel("annotated slices", fontsize=9)
    figure.supylabel("test mIoU", fontsize=9)
    kinds = {BLUE: "strategy", CONTROL: "control", VERMILLION: "oracle"}
    present = {colour_of(standing.strategy) for standing in standings}
    legend(
        figure,
        [
            *(_curve_handle(text, colour) for colour, text in kinds.items() if colour in present),
            *_other_handles([s.strategy for s in standings]),
            *_level_handles(summary),
        ],
    )
    return to_png(figure)


def final_dots(summary: Summary) -> bytes:
    """Area and final mIoU of every strategy, and how the area differs from `random`'s."""
    standings = [s for s in summary.standings if s.areas][::-1]
    widths = (3, 2) if summary.paired else (1,)
    figure = new_figure(0.9 + 0.3 * max(len(standings), 2))
    panels = figure.subplots(1, len(widths), sharey=True, width_ratios=widths, squeeze=False)[0]
    _measured(panels[0], standings, summary)
    if summary.paired:
        _differences(panels[1], standings)
    for axes in panels:
        axes.set_axisbelow(True)
        axes.grid(axis="y", color="#eeeeee", linewidth=0.8)
        clean(axes)
    legend(
        figure,
        [
            _dot_handle("area under the curve", filled=True),
            _dot_handle("after the last round", filled=False),
            *_level_handles(summary),
        ],
    )
    return to_png(figure)


def _measured(axes: Axes, standings: Sequence[Standing], summary: Summary) -> None:
    for row, standing in enumerate(standings):
        colour = colour_of(standing.strategy)
        _dots(axes, row + 0.14, standing.areas, colour, filled=True)
        _dots(axes, row - 0.14, standing.finals, colour, filled=False)
    _level(axes, summary, vertical=True)
    axes.set_yticks(range(len(standings)), [label(s.strategy) for s in standings])
    axes.set_ylim(-0.6, len(standings) - 0.4)
    axes.set_xlabel("test mIoU, mean ± SD over seeds (ticks: each seed)")


def _differences(axes: Axes, standings: Sequence[Standing]) -> None:
    for row, standing in enumerate(standings):
        if standing.area_to_random:
            _interval(axes, row, standing.area_to_random, colour_of(standing.strategy))
        elif standing.strategy == "random":
            axes.text(0, row, " reference", fontsize=SMALL, color=CONTROL, va="center")
    axes.axvline(0, zorder=1, **REFERENCE)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("area − random, paired by seed, 95 % interval")
    axes.tick_params(left=False)


def picks(experiment: Experiment, runs: Runs, order: Sequence[str]) -> bytes:
    """Where along z each round's slices are, a panel a strategy in ``order``, for `picks_seed`."""
    seed = picks_seed(runs)
    shown = [name for name in order if (name, seed) in runs]
    volumes = sorted({volume for volume, _ in experiment.pool.values()})
    height = 0.5 + max(0.8, len(volumes) * min(0.3, 3 / len(volumes)))
    columns = 2 if len(shown) <= 4 else 3
    figure, panels = panels_of(len(shown), columns, height, sharex=True, sharey=True)
    # Without the yellow end, which fades on the grey of the pool.
    colours = colormaps["viridis"](np.linspace(0.85, 0, experiment.rounds))
    for axes, name in zip(panels, shown, strict=True):
        _pool(axes, experiment, volumes)
        _picked(axes, experiment, volumes, runs[name, seed], colours)
        axes.set_title(label(name), fontsize=9, loc="left", color=colour_of(name))
        axes.set_ylim(len(volumes) - 0.5, -0.5)
        axes.set_yticks(range(len(volumes)), volumes)
        axes.tick_params(left=False)
        clean(axes)
    figure.supxlabel("z", fontsize=9)
    _round_bar(figure, panels, colours)
    return to_png(figure)


def _pool(axes: Axes, experiment: Experiment, volumes: Sequence[str]) -> None:
    """The stretches of z that could be picked from, a bar a volume."""
    for row, name in enumerate(volumes):
        for low, high in _spans(z for volume, z in experiment.pool.values() if volume == name):
            axes.fill_between([low, high], row - 0.42, row + 0.42, color="#eeeeee", lw=0)


def _picked(
    axes: Axes,
    experiment: Experiment,
    volumes: Sequence[str],
    lines: Sequence[RoundLine],
    colours: npt.NDArray[np.float64],
) -> None:
    """A dot a slice; a volume's bar has a lane for each round, from top to bottom."""
    lanes = np.linspace(-0.35, 0.35, len(colours))
    for line in lines:
        places = [experiment.pool[i] for i in line.selected]
        rows = [volumes.index(volume) + lanes[line.round - 1] for volume, _ in places]
        axes.scatter([z for _, z in places], rows, s=10, color=colours[line.round - 1], lw=0)


def _round_bar(figure: Figure, panels: Sequence[Axes], colours: npt.NDArray[np.float64]) -> None:
    rounds = len(colours)
    norm = BoundaryNorm(np.arange(0.5, rounds + 1), rounds)
    bar = figure.colorbar(
        ScalarMappable(norm, ListedColormap(colours)),
        ax=list(panels),
        location="top",
        aspect=60,
        shrink=0.5,
        pad=0.01,
    )
    bar.set_label("annotated in round", fontsize=9)
    bar.set_ticks(list(range(1, rounds + 1)))
    bar.ax.tick_params(which="both", length=0, labelsize=SMALL)
    bar.ax.spines[:].set_visible(False)


def picks_seed(runs: Runs) -> int:
    """The seed that most strategies have a run of, the lowest of them."""
    seeds = [seed for strategy, seed in sorted(runs) if strategy != FULLY_SUPERVISED]
    return max(sorted(set(seeds)), key=seeds.count)


def class_curves(summary: Summary, default: str | None) -> bytes:
    """IoU of each class over annotated slices: the strategies worth comparing, others in grey."""
    classes = summary.measured
    coloured = highlights(summary, default)
    figure, panels = panels_of(len(classes), columns=4, height=2.6, sharex=True, sharey=False)
    for axes, name in zip(panels, classes, strict=True):
        for standing in summary.standings:
            if standing.strategy not in coloured:
                axes.plot(*_class_xy(standing.curve, name), color=OTHERS, linewidth=0.8, zorder=1)
        for strategy, style in coloured.items():
            axes.plot(*_class_xy(summary.standing(strategy).curve, name), zorder=3, **style)
        full = summary.full.iou.get(name) if summary.full else None
        if full is not None:
            axes.axhline(full, **FULL_LINE, zorder=2)
        axes.set_title(plain(name), fontsize=9, loc="left")
        axes.set_xticks(_label_ticks(summary))
        clean(axes)
    figure.supxlabel("annotated slices", fontsize=9)
    figure.supylabel("test IoU", fontsize=9)
    handles = [Line2D([], [], label=label(name), **style) for name, style in coloured.items()]
    if len(coloured) < len(summary.standings):
        handles.append(_others_handle())
    legend(figure, [*handles, *_level_handles(summary)])
    return to_png(figure)


def highlights(summary: Summary, default: str | None) -> dict[str, dict[str, Any]]:
    """Line styles of what `class_curves` colours: default, two largest other areas, `random`."""
    names = [s.strategy for s in summary.standings if s.strategy not in needs_truth()]
    names.sort(key=lambda name: name != default)
    chosen = [
        *[name for name in names if name != "random"][:3],
        *(n for n in names if n == "random"),
    ]
    colours = iter((BLUE, ORANGE, GREEN))
    styles: dict[str, dict[str, Any]] = {}
    for name in chosen:
        line = CONTROL_LINES.get(name)
        look = {"color": next(colours)} if line is None else {"color": CONTROL, "linestyle": line}
        styles[name] = {"linewidth": 1.6, "marker": "o", "markersize": 3, **look}
    return styles


# -- parts of a picture


def _xy(curve: Sequence[CurvePoint]) -> tuple[list[int], list[float]]:
    return [point.labelled for point in curve], [point.miou.mean for point in curve]


def _class_xy(curve: Sequence[CurvePoint], name: str) -> tuple[list[int], list[float]]:
    known = [(p.labelled, value) for p in curve if (value := p.iou.get(name)) is not None]
    return [labelled for labelled, _ in known], [value for _, value in known]


def _label_ticks(summary: Summary, most: int = 5) -> list[int]:
    """Numbers of annotated slices that were measured at: every one, or every n-th."""
    labels = sorted({point.labelled for s in summary.standings for point in s.curve})
    return labels[:: ceil(len(labels) / most)]


def _band(axes: Axes, curve: Sequence[CurvePoint], colour: str) -> None:
    x, y = _xy(curve)
    spread = np.array([point.miou.std or 0.0 for point in curve])
    axes.fill_between(x, y - spread, y + spread, color=colour, alpha=0.22, lw=0, zorder=2)
    axes.plot(x, y, color=colour, linewidth=1.6, marker="o", markersize=3, zorder=3)


def _level(axes: Axes, summary: Summary, *, vertical: bool = False) -> None:
    """Full supervision: a dashed line, with its spread."""
    full = summary.ceiling
    if full is None:
        return
    line, span = (axes.axvline, axes.axvspan) if vertical else (axes.axhline, axes.axhspan)
    line(full.mean, **FULL_LINE, zorder=2)
    if full.std:
        span(full.mean - full.std, full.mean + full.std, color="black", alpha=0.1, lw=0, zorder=0)


def _level_handles(summary: Summary) -> list[Line2D]:
    if summary.ceiling is None:
        return []
    text = "fully supervised"
    return [Line2D([], [], **FULL_LINE, label=text)]


def _other_handles(strategies: Sequence[str]) -> list[Line2D]:
    """Of the lines that stand for other strategies in a panel."""
    if len(strategies) < 2:
        return []
    random = [Line2D([], [], label="random", **REFERENCE)] if "random" in strategies else []
    return [*random, _others_handle()]


def _others_handle() -> Line2D:
    return Line2D([], [], color=OTHERS, label="all others")


def _dots(
    axes: Axes, row: float, values: Mapping[int, float], colour: str, *, filled: bool
) -> None:
    array = np.array(list(values.values()))
    axes.scatter(array, np.full(array.size, row), s=30, color=colour, marker="|", lw=1, zorder=3)
    spread = array.std(ddof=1) if array.size > 1 else 0.0
    mean = array.mean()
    axes.hlines(row, mean - spread, mean + spread, color=colour, linewidth=1.4, zorder=2)
    face = colour if filled else "white"
    axes.scatter(mean, row, s=34, facecolor=face, edgecolor=colour, linewidths=1.3, zorder=4)


def _curve_handle(text: str, colour: str) -> Line2D:
    return Line2D(
        [], [], color=colour, marker="o", markersize=3, linewidth=1.6, label=f"{text}, mean ± SD"
    )


def _dot_handle(text: str, *, filled: bool) -> Line2D:
    face = BLUE if filled else "white"
    return Line2D(
        [], [], color=BLUE, marker="o", markersize=6, markerfacecolor=face, lw=1.4, label=text
    )


def _interval(axes: Axes, row: float, difference: Difference, colour: str) -> None:
    axes.hlines(row, difference.low, difference.high, color=colour, linewidth=1.4, zorder=2)
    axes.scatter(difference.mean, row, s=34, color=colour, lw=0, zorder=3)


def _title(axes: Axes, standing: Standing, usual: int) -> None:
    """Its name; and how many seeds it rests on, where that is not the usual number."""
    colour, seeds = colour_of(standing.strategy), len(standing.finals)
    axes.set_title(label(standing.strategy), fontsize=9, loc="left", color=colour)
    note = count(seeds, "seed") if seeds else "unfinished"
    if seeds < max(usual, 1):
        axes.text(0.97, 0.05, note, transform=axes.transAxes, ha="right", fontsize=SMALL)
    clean(axes)


def _spans(values: Iterator[float]) -> list[tuple[float, float]]:
    """Stretches of z without a gap: the pool on both sides of the held-out block."""
    z = np.unique(np.fromiter(values, dtype=np.float64))
    if z.size < 2:
        return [(float(z[0]) - 0.5, float(z[0]) + 0.5)]
    steps = np.diff(z)
    usual = float(np.median(steps))
    parts = np.split(z, np.flatnonzero(steps > 1.5 * usual) + 1)
    return [(float(part[0]) - usual / 2, float(part[-1]) + usual / 2) for part in parts]
