"""What correcting a prediction costs: pixels that change class, and outline that has to be drawn.

Pure: two label maps in, numbers out. The live loop compares what an annotator opened with what they
submitted, a simulation what the model predicted with the truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from al_strategies.learner import IGNORE

__all__ = ["Correction", "correction", "correction_of_truth", "total"]

Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Correction:
    """What turned one label map into another.

    ``corrected``: pixels whose class changed, of ``pixels`` in all. ``by_class``: class name →
    pixels that it gained or lost, so that a pixel that went from one class to another counts under
    both. ``boundary``: length of the outline drawn, in pixel edges: between two pixels that now
    differ, and one of which at least was corrected. What was only erased has none.
    """

    corrected: int
    by_class: dict[str, int]
    boundary: int
    pixels: int


def correction(opened: Mask, submitted: Mask, classes: Sequence[str]) -> Correction:
    """What turned ``opened`` into ``submitted``.

    Both (H, W) uint8: indices of ``classes``, or `al_strategies.learner.IGNORE` where nobody said
    anything, which counts as any other value: painting such a pixel is work too. Raises ValueError
    for maps of different shapes.
    """
    if opened.shape != submitted.shape:
        raise ValueError(
            f"expected two label maps of one size, found {opened.shape} opened and "
            f"{submitted.shape} submitted"
        )
    changed = opened != submitted
    before, after = opened[changed], submitted[changed]
    lost = np.bincount(before, minlength=256)
    gained = np.bincount(after, minlength=256)
    return Correction(
        corrected=int(np.count_nonzero(changed)),
        by_class={name: int(lost[i] + gained[i]) for i, name in enumerate(classes)},
        boundary=_drawn(changed, submitted, 0) + _drawn(changed, submitted, 1),
        pixels=int(changed.size),
    )


def correction_of_truth(predicted: Mask, truth: Mask, classes: Sequence[str]) -> Correction:
    """What an annotator who draws exactly ``truth`` changes of ``predicted``; pixels that the truth
    does not know (`IGNORE`) are left as they are."""
    return correction(np.where(truth == IGNORE, truth, predicted), truth, classes)


def total(corrections: Iterable[Correction]) -> Correction:
    """All of them together."""
    each = list(corrections)
    names = dict.fromkeys(name for one in each for name in one.by_class)
    return Correction(
        corrected=sum(one.corrected for one in each),
        by_class={name: sum(one.by_class.get(name, 0) for one in each) for name in names},
        boundary=sum(one.boundary for one in each),
        pixels=sum(one.pixels for one in each),
    )


def _drawn(changed: npt.NDArray[np.bool_], submitted: Mask, axis: int) -> int:
    """Edges between neighbours along ``axis`` that differ, with a changed pixel on a side."""
    first, second = (slice(None, -1), slice(1, None))
    here = (first,) if axis == 0 else (slice(None), first)
    there = (second,) if axis == 0 else (slice(None), second)
    border = submitted[here] != submitted[there]
    return int(np.count_nonzero(border & (changed[here] | changed[there])))
