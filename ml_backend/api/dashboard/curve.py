"""The learning curve as shapes of an SVG: labels along x, IoU from 0 to 1 along y."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ml_backend.rounds.overview import RoundSummary
from ml_backend.studio.label_config import label_colour

__all__ = ["Curve", "Line", "Mark", "learning_curve"]

WIDTH, HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 24, 12, 40
_DASHES = 7
"""After so many classes, the patterns of the sheet come again: `.line.c0` and so on."""


@dataclass(frozen=True)
class Mark:
    """A round on a line. ``flagged``: its checkpoint is not served."""

    x: float
    y: float
    says: str
    flagged: bool = False


@dataclass(frozen=True)
class Line:
    """One class, or the mean. ``kind``: ``mean``, ``background``, or how it is dashed. ``colour``:
    that of the class; None: as the sheet has it for the kind. ``path``: the d of an SVG path."""

    name: str
    kind: str
    colour: str | None
    path: str
    marks: list[Mark]


@dataclass(frozen=True)
class Curve:
    """All of it. ``x_ticks``, ``y_ticks``: place and text."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def learning_curve(rounds: Sequence[RoundSummary], classes: Sequence[str]) -> Curve | None:
    """IoU of each class and their mean over the rounds that were measured; None where none was."""
    measured = [one for one in rounds if one.miou is not None]
    if not measured:
        return None
    most = max(one.labels for one in measured)
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM

    def across(labels: float) -> float:
        return round(_LEFT + (right - _LEFT) * labels / max(most, 1), 1)

    def up(iou: float) -> float:
        return round(bottom - (bottom - _TOP) * iou, 1)

    def line(name: str, index: int | None, iou: Callable[[RoundSummary], float | None]) -> Line:
        marks = [
            Mark(across(one.labels), up(value), _says(one, name, value), one.flagged is not None)
            for one in measured
            if (value := iou(one)) is not None
        ]
        steps = (f"{'L' if place else 'M'}{m.x} {m.y}" for place, m in enumerate(marks))
        kind, colour = "mean" if index is None else "background", None
        if index:
            kind, colour = f"c{(index - 1) % _DASHES}", label_colour(index - 1)
        return Line(name, kind, colour, " ".join(steps), marks)

    named = [
        line(name, index, lambda one, name=name: one.iou.get(name))  # type: ignore[misc]
        for index, name in enumerate(classes)
    ]
    lines = [*(one for one in named if one.marks), line("mean", None, lambda one: one.miou)]
    step = max(1, round(most / 6))
    x_ticks = [(across(n), str(n)) for n in range(0, most + 1, step)]
    y_ticks = [(up(tenth / 10), f"{tenth / 10:.1f}") for tenth in range(0, 11, 2)]
    return Curve(WIDTH, HEIGHT, _LEFT, right, _TOP, bottom, lines, x_ticks, y_ticks)


def _says(one: RoundSummary, name: str, value: float) -> str:
    flagged = f", not served: {one.flagged}" if one.flagged else ""
    labels = f"{one.labels} {'label' if one.labels == 1 else 'labels'}"
    return f"Round {one.round}, {labels}: {name} {value:.3f}{flagged}"
