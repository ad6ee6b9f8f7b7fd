"""What a correction costs, counted by hand on small label maps."""

from __future__ import annotations

import numpy as np
import pytest

from al_strategies.effort import Correction, correction
from al_strategies.learner import IGNORE

CLASSES = ("background", "bone", "marrow")


def _blank() -> np.ndarray:
    return np.zeros((20, 30), dtype=np.uint8)


def test_nothing_changed_costs_nothing() -> None:
    opened = _blank()
    opened[4:9, 5:11] = 1

    none = {"background": 0, "bone": 0, "marrow": 0}
    assert correction(opened, opened.copy(), CLASSES) == Correction(0, none, 0, 600)


def test_a_painted_rectangle_counts_its_pixels_and_its_outline() -> None:
    submitted = _blank()
    submitted[4:9, 5:11] = 1  # 5 × 6

    found = correction(_blank(), submitted, CLASSES)

    assert found.corrected == 30
    assert found.by_class == {"background": 30, "bone": 30, "marrow": 0}
    assert found.boundary == 2 * (5 + 6)


def test_an_outline_along_the_border_of_the_image_is_not_drawn() -> None:
    submitted = _blank()
    submitted[:5, :6] = 1

    assert correction(_blank(), submitted, CLASSES).boundary == 5 + 6


def test_erasing_counts_pixels_and_no_outline() -> None:
    opened = _blank()
    opened[4:9, 5:11] = 2

    found = correction(opened, _blank(), CLASSES)

    assert found.corrected == 30
    assert found.by_class == {"background": 30, "bone": 0, "marrow": 30}
    assert found.boundary == 0


def test_a_moved_edge_counts_the_new_one() -> None:
    opened, submitted = _blank(), _blank()
    opened[:, :10] = 1
    submitted[:, :12] = 1

    found = correction(opened, submitted, CLASSES)

    assert (found.corrected, found.boundary) == (40, 20)


def test_another_class_for_a_region_counts_under_both_and_is_drawn_again() -> None:
    opened, submitted = _blank(), _blank()
    opened[4:9, 5:11] = 1
    submitted[4:9, 5:11] = 2

    found = correction(opened, submitted, CLASSES)

    assert found.by_class == {"background": 0, "bone": 30, "marrow": 30}
    assert found.boundary == 22


def test_what_nobody_labelled_before_is_painted() -> None:
    opened = np.full((20, 30), IGNORE, dtype=np.uint8)
    submitted = opened.copy()
    submitted[4:9, 5:11] = 1

    found = correction(opened, submitted, CLASSES)

    assert found.corrected == 30
    assert found.by_class == {"background": 0, "bone": 30, "marrow": 0}
    assert found.boundary == 22


def test_maps_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(20, 30\) opened and \(20, 31\) submitted"):
        correction(_blank(), np.zeros((20, 31), dtype=np.uint8), CLASSES)
