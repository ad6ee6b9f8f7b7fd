"""When a new checkpoint is worse than the published one; `al_strategies.holdout` says which slices
judge it."""

from __future__ import annotations

import math

from al_strategies.holdout import Split, ZBlock, held_back, inside, split_validation
from al_strategies.learner import Metrics

__all__ = ["Split", "ZBlock", "held_back", "inside", "is_worse", "split_validation"]

TOLERANCE = 0.02
MINIMUM_COMPARED = 3


def is_worse(new: Metrics, published: Metrics, *, tolerance: float = TOLERANCE) -> bool:
    """Whether a new checkpoint is flagged: kept, but worse than the published one.

    Both metrics come from the same validation slices. The rule: the mean IoU over the classes that
    both know fell by more than ``tolerance`` = 0.02, about what a second training of the same
    slices with another seed differs by. Fewer than `MINIMUM_COMPARED` slices decide nothing: one
    slice alone differs by more from chance.

    Raises ValueError when the numbers of slices or the classes differ: then they do not compare.
    """
    if new.slices != published.slices or new.iou.keys() != published.iou.keys():
        raise ValueError(
            "Two checkpoints compare only on the same validation slices and classes: found "
            f"{new.slices} slices of {sorted(new.iou)} and {published.slices} of "
            f"{sorted(published.iou)}."
        )
    if new.slices < MINIMUM_COMPARED:
        return False
    both = [n for n in new.iou if not (math.isnan(new.iou[n]) or math.isnan(published.iou[n]))]
    if not both:
        return False
    drop = sum(published.iou[name] - new.iou[name] for name in both) / len(both)
    return drop > tolerance
