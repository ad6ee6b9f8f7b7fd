"""How good masks are: IoU by class, and the boundary F-score."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from al_strategies.learner import IGNORE

__all__ = ["TOLERANCE", "Scores", "boundary", "score"]

TOLERANCE = 2.0
"""Pixels that two boundaries may lie apart and still match."""

Mask = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Scores:
    """By class name, NaN for a class without a pixel (``iou``) or without a boundary
    (``boundary_f``) in the truth; ``miou`` and ``mean_boundary_f`` are the means of the others."""

    iou: dict[str, float]
    boundary_f: dict[str, float]

    @property
    def miou(self) -> float:
        return float(np.nanmean(list(self.iou.values())))

    @property
    def mean_boundary_f(self) -> float:
        values = list(self.boundary_f.values())
        return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def score(pairs: Iterable[tuple[Mask, Mask]], classes: tuple[str, ...]) -> Scores:
    """Scores of (truth, predicted) masks over all pixels of all slices together.

    IoU as `al_strategies.learner.Metrics` has it; unlabelled pixels are left out.

    Boundary F of a class (Csurka et al., BMVC 2013, pixels of all slices pooled): precision is the
    part of the predicted boundary's pixels (see `boundary`) within `TOLERANCE` of one of the true
    boundary of the class in the same slice, recall the reverse, F their harmonic mean. 0 where a
    class that has a boundary in the truth is never found.
    """
    number = len(classes)
    confusion = np.zeros((number, number), np.int64)
    matches = np.zeros((number, 4), np.int64)
    for truth, predicted in pairs:
        known = truth != IGNORE
        places = truth[known].astype(np.int64) * number + predicted[known]
        confusion += np.bincount(places, minlength=number**2).reshape(number, number)
        for index in range(number):
            lines = (boundary(mask, index, known) for mask in (truth, predicted))
            matches[index] += _matched(*lines)
    hits, labelled = np.diag(confusion), confusion.sum(1)
    iou = hits / np.maximum(confusion.sum(0) + labelled - hits, 1)
    iou = np.where(labelled > 0, iou, np.nan)
    return Scores(
        {name: float(v) for name, v in zip(classes, iou, strict=True)},
        {name: _f_score(*row) for name, row in zip(classes, matches.tolist(), strict=True)},
    )


def boundary(mask: Mask, index: int, known: Flags) -> Flags:
    """(H, W): the labelled pixels of class ``index`` beside a labelled pixel of another class,
    left, right, above or below. The edge of the slice is no boundary, nor is that of a gap."""
    inside, outside = (mask == index) & known, (mask != index) & known
    found: Flags = inside & ndimage.binary_dilation(outside)
    return found


def _matched(truth: Flags, predicted: Flags) -> tuple[int, int, int, int]:
    """(true boundary pixels, those found, predicted ones, those that are right)."""
    return (
        int(truth.sum()),
        int((truth & _near(predicted)).sum()),
        int(predicted.sum()),
        int((predicted & _near(truth)).sum()),
    )


def _near(line: Flags) -> Flags:
    if not line.any():
        return np.zeros_like(line)
    near: Flags = ndimage.distance_transform_edt(~line) <= TOLERANCE
    return near


def _f_score(true: int, found: int, predicted: int, right: int) -> float:
    if not true:
        return float("nan")
    precision, recall = right / max(predicted, 1), found / true
    return 2 * precision * recall / max(precision + recall, 1e-12)
