"""When a new checkpoint is worse than the published one; `al_strategies.holdout` says which slices
judge it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.stats

from al_strategies.holdout import MINIMUM_JUDGED, Split, ZBlock, inside, split_labelled
from al_strategies.learner import Metrics

__all__ = [
    "MINIMUM_JUDGED",
    "TOLERANCE",
    "Split",
    "Verdict",
    "ZBlock",
    "compare",
    "drop",
    "inside",
    "split_labelled",
]

TOLERANCE = 0.05
"""Of mIoU: healthy rounds fall by more in fewer than one of twenty, in each of the experiments that
`python -m benchmarks.flags docs/results/*` replays."""
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
    return Verdict(new.slices, drop(new.iou, published.iou), _probability(new, published))


def drop(new: Mapping[str, float], published: Mapping[str, float]) -> float:
    """By how much the mean IoU falls, over the classes that both know (NaN: not known)."""
    both = [n for n in new if not (math.isnan(new[n]) or math.isnan(published[n]))]
    return sum(published[n] - new[n] for n in both) / len(both) if both else 0.0


def _probability(new: Metrics, published: Metrics) -> float | None:
    """Of slices falling like this where neither is worse."""
    rises = np.array(new.by_slice) - np.array(published.by_slice)
    rises = rises[~np.isnan(rises)]
    if len(rises) < MINIMUM_JUDGED:
        return None
    if not rises.any():
        return 1.0
    return float(scipy.stats.wilcoxon(rises, alternative="less").pvalue)
