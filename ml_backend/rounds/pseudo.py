"""CEAL's pseudo-labels: slices that the published model labels for the next training alone.

The published round's selection names them. They are made anew for each training and kept in its
round's folder for replay; they never reach Label Studio and never count as annotations.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from al_strategies.evidence import Position, SliceId
from al_strategies.learner import Learner, Progress, SliceSource, Unreadable, UnreadableSlice
from ml_backend.rounds.records import DatasetRecord
from ml_backend.segmentation.validation import ZBlock, inside

__all__ = ["Mask", "pseudo_labels", "pseudo_slices"]

logger = logging.getLogger(__name__)

Mask = npt.NDArray[np.uint8]


def pseudo_slices(
    wanted: Sequence[int],
    dataset: DatasetRecord,
    places: Mapping[int, Position],
    blocks: Collection[ZBlock],
) -> list[int]:
    """Those of ``wanted`` that may be pseudo-labelled now, in their order.

    Left out: slices that a person has looked at since (labelled, skipped, drafted) or that are
    gone, and slices inside a held-out block of ``blocks``, whose near-copies judge the checkpoint.
    """
    untouched = {task.id for task in dataset.tasks if task.state == "pool"}
    open_ = [task for task in wanted if task in untouched]
    held = inside(open_, places, blocks)  # type: ignore[arg-type]  # int is a SliceId
    return [task for task in open_ if task not in held]


def pseudo_labels(
    learner: Learner,
    source: SliceSource,
    ids: Sequence[SliceId],
    progress: Progress | None = None,
    unreadable: Unreadable | None = None,
) -> dict[SliceId, Mask]:
    """``learner``'s own mask of each slice, (H, W) uint8 class indices, in the order of ``ids``.

    ``unreadable``: is given each slice that cannot be read, which is left out; without it, it is
    named in the log. ``progress("pseudo-label", done, total)`` after every slice.
    """
    masks: dict[SliceId, Mask] = {}
    predictions = learner.predict(source, ids, unreadable=unreadable or _name)
    for slice_id, prediction in predictions:
        masks[slice_id] = prediction.mask
        if progress is not None:
            progress("pseudo-label", len(masks), len(ids))
    return masks


def _name(error: UnreadableSlice) -> None:
    logger.warning("not pseudo-labelled: %s", error)
