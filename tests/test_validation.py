"""A worse checkpoint is recognised, and luck is not taken for it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from al_strategies.learner import Metrics
from ml_backend.segmentation.validation import MINIMUM_JUDGED, compare


def metrics(*by_slice: float, **iou: float) -> Metrics:
    """Of slices with these mIoU each; ``iou``: by class, by default their mean, of bone alone."""
    iou = iou or {"bone": float(np.nanmean(by_slice))}
    known = [v for v in iou.values() if not math.isnan(v)]
    return Metrics(sum(known) / len(known), iou, 0.5, len(by_slice), by_slice)


BEFORE = (0.80, 0.70, 0.90, 0.85, 0.75, 0.80)


def lower(by: float) -> Metrics:
    """Each slice ``by`` and a little more below `BEFORE`, by another amount each."""
    return metrics(*(value - by - 0.001 * i for i, value in enumerate(BEFORE)))


def test_where_every_slice_falls_clearly_it_is_worse() -> None:
    verdict = compare(lower(0.06), metrics(*BEFORE))

    assert verdict.worse
    assert verdict.p == pytest.approx(1 / 2**6), "of six, all fall"
    assert verdict.drop == pytest.approx(0.0625)


def test_a_drop_that_a_second_training_may_have_is_none() -> None:
    verdict = compare(lower(0.04), metrics(*BEFORE))

    assert verdict.p is not None
    assert verdict.p < 0.05
    assert not verdict.worse


def test_a_drop_of_a_few_slices_is_luck() -> None:
    """The old rule, which asked for the mean alone, flagged this one."""
    new = (0.82, 0.71, 0.91, 0.87, 0.77, 0.40)

    verdict = compare(metrics(*new), metrics(*BEFORE))

    assert verdict.drop > 0.05
    assert not verdict.worse


def test_healthy_rounds_on_few_slices_are_hardly_ever_flagged() -> None:
    """Two checkpoints of equal worth, of which each slice says something else: the rule of before,
    a mean that fell by more than 0.02, flags more than a fifth of them."""
    rng = np.random.default_rng(0)
    before = old = new = 0
    for number in range(600):
        slices = 3 + number % 12
        first, second = (rng.normal(0.8, 0.06, slices) for _ in range(2))
        verdict = compare(metrics(*second), metrics(*first))
        old += verdict.drop > 0.02
        new += verdict.worse
        before += 1
    assert old / before > 0.2
    assert new / before < 0.05


def test_too_few_slices_decide_nothing() -> None:
    few = MINIMUM_JUDGED - 1
    verdict = compare(metrics(*[0.1] * few), metrics(*[0.9] * few))

    assert verdict.p is None
    assert not verdict.worse
    assert compare(metrics(*[0.1] * 5), metrics(0.9, 0.91, 0.92, 0.93, 0.94)).worse


def test_slices_without_a_labelled_pixel_are_not_counted() -> None:
    new, before = metrics(*[0.1] * 4, math.nan), metrics(*[0.9] * 4, math.nan)

    assert compare(new, before).p is None


def test_equal_ones_are_not_worse() -> None:
    assert compare(metrics(*BEFORE), metrics(*BEFORE)).p == 1.0


def test_classes_that_only_one_of_them_saw_are_left_out() -> None:
    # Predicting a class that is not there gives it IoU 0 where the other has none at all.
    new = metrics(*BEFORE, bone=0.8, implant=0.0)
    published = metrics(*BEFORE, bone=0.8, implant=math.nan)

    assert compare(new, published).drop == 0


def test_metrics_of_other_slices_do_not_compare() -> None:
    with pytest.raises(ValueError, match="same validation slices"):
        compare(metrics(*BEFORE), metrics(*BEFORE[1:]))
    with pytest.raises(ValueError, match="same validation slices"):
        compare(metrics(*BEFORE), metrics(*BEFORE, wood=0.5))
