"""What a submitted slice cost its annotator: pixels corrected, outline drawn, seconds.

Measured when a sync first reads the annotation, against the prediction that its annotator was
shown. That prediction is deleted after a while; what was measured stays in the records.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from al_strategies.effort import Correction, correction
from ml_backend.rounds.records import EffortRecord, LabelRecord
from ml_backend.studio.annotations import Annotation, label_map
from ml_backend.studio.interactive import dragged, drawn_at, moment_of
from ml_backend.studio.label_config import LabelConfig, Policy
from ml_backend.studio.task_order import PENDING_VERSION, VERSION_PREFIX

__all__ = [
    "EffortTotals",
    "corrected_again",
    "effort_of",
    "new_effort",
    "opened_with_mask",
    "shown",
    "totals_of",
]

logger = logging.getLogger(__name__)

Mask = npt.NDArray[np.uint8]
_BARE = (f"{VERSION_PREFIX}r000-", PENDING_VERSION)
"""What the versions begin with that have an order and no masks."""


def shown(
    predictions: Iterable[Mapping[str, Any]], annotation: Annotation
) -> Mapping[str, Any] | None:
    """The prediction, as JSON, that whoever submitted ``annotation`` was shown; None: none was.

    ``predictions``: those stored of its task. It is the one that the page began the annotation as;
    where that is not said, as by a script, the newest of ours that was there before it.
    """
    newest: tuple[datetime, Mapping[str, Any]] | None = None
    for prediction in predictions:
        if annotation.parent_prediction is not None:
            if prediction.get("id") == annotation.parent_prediction:
                return prediction
            continue
        made = moment_of(prediction.get("created_at"))
        if (
            str(prediction.get("model_version") or "").startswith(VERSION_PREFIX)
            and made is not None
            and (annotation.created_at is None or made <= annotation.created_at)
            and (newest is None or made >= newest[0])
        ):
            newest = made, prediction
    return newest[1] if newest else None


def _drawn_later(prediction: Mapping[str, Any], annotation: Annotation) -> bool:
    """Whether the slice was open already when ``prediction`` got its regions."""
    drawn, seconds, submitted = drawn_at(prediction), annotation.lead_time, annotation.created_at
    if drawn is None or seconds is None or submitted is None:
        return False
    return 0 <= (submitted - drawn).total_seconds() < seconds


def effort_of(
    task: int,
    annotation: Annotation,
    mask: Mask,
    predictions: Iterable[Mapping[str, Any]],
    config: LabelConfig,
    policy: Policy,
) -> EffortRecord | None:
    """What ``annotation``, rendered as ``mask`` (H, W) under ``policy``, cost; None where the
    prediction that was shown cannot be read.

    ``predictions``: those stored of the task, as JSON. A slice without one was opened blank.
    """
    found = shown(predictions, annotation)
    result = () if found is None or _drawn_later(found, annotation) else found.get("result") or ()
    height, width = mask.shape
    try:
        opened = label_map(result, config, height, width, policy).mask
    except Exception as error:  # of another model, or of a script: anything may be in it
        logger.warning("task %s: its effort is not measured: its prediction: %s", task, error)
        return None
    return _record(
        task,
        annotation,
        (found or {}).get("model_version"),
        correction(opened, mask, config.classes),
        _by_drags(annotation, opened != mask, config),
        blank=not result,
    )


def corrected_again(
    before: EffortRecord, annotation: Annotation, earlier: Mask, mask: Mask, config: LabelConfig
) -> EffortRecord:
    """What an annotation cost that was submitted again: what changed since comes on top.

    ``before``: what it had cost; ``earlier``, ``mask``: (H, W), as it was submitted then and now.
    """
    more = correction(earlier, mask, config.classes)
    names = dict.fromkeys([*before.by_class, *more.by_class])
    both = Correction(
        corrected=before.corrected + more.corrected,
        by_class={n: before.by_class.get(n, 0) + more.by_class.get(n, 0) for n in names},
        boundary=before.boundary + more.boundary,
        pixels=more.pixels,
    )
    dragged = before.dragged + _by_drags(annotation, earlier != mask, config)
    return _record(before.task, annotation, before.model_version, both, dragged, blank=before.blank)


def _by_drags(annotation: Annotation, changed: npt.NDArray[np.bool_], config: LabelConfig) -> int:
    shape = (changed.shape[0], changed.shape[1])
    return int(np.count_nonzero(changed & dragged(annotation.result, config, shape)))


def new_effort(labels: Iterable[LabelRecord], known: Iterable[LabelRecord]) -> list[EffortRecord]:
    """What those of ``labels`` cost that are not among ``known``: new ones, and changed ones."""
    before = {(label.annotation, label.updated_at) for label in known}
    return [
        label.effort
        for label in labels
        if label.effort is not None and (label.annotation, label.updated_at) not in before
    ]


def opened_with_mask(efforts: Iterable[EffortRecord]) -> list[EffortRecord]:
    """Those of ``efforts`` whose annotator was shown what a training had learned."""
    return [
        one
        for one in efforts
        if one.model_version and not one.blank and not one.model_version.startswith(_BARE)
    ]


@dataclass(frozen=True)
class EffortTotals:
    """What ``slices`` submitted slices cost together. ``corrected`` of ``pixels``, ``boundary`` in
    pixel edges; ``dragged``: of ``corrected``, by drags; ``median_s``: the median seconds of those
    that were timed."""

    slices: int
    pixels: int
    corrected: int
    by_class: dict[str, int]
    boundary: int
    dragged: int
    median_s: float | None

    @property
    def share(self) -> float:
        """Of their pixels that were corrected, in [0, 1]."""
        return self.corrected / self.pixels if self.pixels else 0.0

    @property
    def per_slice(self) -> float:
        """Corrected pixels of a slice, on average."""
        return self.corrected / self.slices


def totals_of(efforts: Sequence[EffortRecord]) -> EffortTotals | None:
    """What ``efforts`` come to; None for none."""
    if not efforts:
        return None
    seconds = [effort.seconds for effort in efforts if effort.seconds is not None]
    names = dict.fromkeys(name for effort in efforts for name in effort.by_class)
    return EffortTotals(
        slices=len(efforts),
        pixels=sum(effort.pixels for effort in efforts),
        corrected=sum(effort.corrected for effort in efforts),
        by_class={name: sum(e.by_class.get(name, 0) for e in efforts) for name in names},
        boundary=sum(effort.boundary for effort in efforts),
        dragged=sum(effort.dragged for effort in efforts),
        median_s=statistics.median(seconds) if seconds else None,
    )


def _record(
    task: int,
    annotation: Annotation,
    version: object,
    found: Correction,
    by_drags: int,
    *,
    blank: bool,
) -> EffortRecord:
    seconds = annotation.lead_time
    known = seconds is not None and math.isfinite(seconds) and seconds >= 0
    return EffortRecord(
        task=task,
        annotation=annotation.id,
        completed_by=annotation.completed_by,
        model_version=version if isinstance(version, str) else None,
        blank=blank,
        pixels=found.pixels,
        corrected=found.corrected,
        by_class=found.by_class,
        boundary=found.boundary,
        dragged=by_drags,
        seconds=seconds if known else None,
    )
