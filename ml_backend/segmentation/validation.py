"""When a new checkpoint is worse than the published one; `al_strategies.holdout` says which slices
judge it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.stats

from al_strategies.holdout import MINIMUM_JUDGED, Split, ZBlock, inside, split_labelled
from al_strategies.learner import Metrics

__all__ = ["MINIMUM_JUDGED", "Split", "Verdict", "ZBlock", "compare", "inside", "split_labelled"]

TOLERANCE = 0.02
"""Of mIoU: about what a second training of the same slices with another seed differs by."""
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Verdict:
    """How a new checkpoint stands to the published one on ``slices`` held-out slices.

    ``drop``: of the mean IoU over the classes that both know, above 0 where the new one is worse.
    ``p``: how probable differences as these are, or ones further down, where neither is worse; None
    below `MINIMUM_JUDGED` slices.
    """

    slices: int
    drop: float
    p: float | None

    @property
    def worse(self) -> bool:
        """Whether the new one is flagged: kept, not served."""
        return self.p is not None and self.p < SIGNIFICANCE and self.drop > TOLERANCE


def compare(new: Metrics, published: Metrics) -> Verdict:
    """Both from the same held-out slices, which neither has learned.

    Two conditions, for two kinds of chance. A few slices differ by luck, so the differences of
    their mIoU are tested, slice by slice (Wilcoxon's signed ranks, one-sided). And two trainings of
    equal worth differ on any number of slices, so the mIoU over all of them together has to fall by
    more than `TOLERANCE`. Raises ValueError when slices or classes differ.
    """
    if new.slices != published.slices or new.iou.keys() != published.iou.keys():
        raise ValueError(
            "Two checkpoints compare only on the same validation slices and classes: found "
            f"{new.slices} slices of {sorted(new.iou)} and {published.slices} of "
            f"{sorted(published.iou)}."
        )
    both = [n for n in new.iou if not (math.isnan(new.iou[n]) or math.isnan(published.iou[n]))]
    drop = sum(published.iou[n] - new.iou[n] for n in both) / len(both) if both else 0.0
    return Verdict(new.slices, drop, _probability(new, published))


def _probability(new: Metrics, published: Metrics) -> float | None:
    """Of slices falling like this where neither is worse."""
    rises = np.array(new.by_slice) - np.array(published.by_slice)
    rises = rises[~np.isnan(rises)]
    if len(rises) < MINIMUM_JUDGED:
        return None
    if not rises.any():
        return 1.0
    return float(scipy.stats.wilcoxon(rises, alternative="less").pvalue)
