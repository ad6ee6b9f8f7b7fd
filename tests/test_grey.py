"""The window's parts; what is made of it is in test_window.py and test_preprocessing.py."""

from __future__ import annotations

import numpy as np
import pytest

from ml_backend.grey import finite_sample, from_low, grey_window, middles


@pytest.mark.parametrize(
    ("length", "count", "expected"),
    [(100, 5, [10, 30, 50, 70, 90]), (3, 24, [0, 1, 2]), (1, 5, [0]), (0, 5, [])],
)
def test_slices_are_looked_at_in_the_middles_of_equal_parts(
    length: int, count: int, expected: list[int]
) -> None:
    assert middles(length, count) == expected


@pytest.mark.parametrize("length", range(1, 40))
def test_few_slices_are_all_looked_at_once(length: int) -> None:
    """As segment's check had it: as many parts as ever, each slice once."""
    whole = [length * part // 10 for part in range(1, 10, 2)]
    assert middles(length, 5) == list(dict.fromkeys(whole))


def test_a_sample_is_a_grid_of_the_finite_pixels() -> None:
    plane = np.arange(600 * 600, dtype=np.float32).reshape(600, 600)
    plane[0, 0] = np.nan
    found = finite_sample(plane)
    assert np.array_equal(found, plane[::3, ::3].ravel()[1:])
    assert found.dtype == np.float64


def test_without_contrast_the_window_falls_back() -> None:
    rare = np.zeros(10_000)
    rare[0] = 5
    assert grey_window(rare) == (0.0, 5.0)
    low, high = grey_window(np.full(10, 7))
    assert low == 7
    assert high >= 8


@pytest.mark.parametrize(
    ("dtype", "scaled"),
    [("u1", "f4"), ("i2", "f4"), ("f4", "f4"), ("i4", "f8"), ("f8", "f8"), ("f2", "f4")],
)
def test_values_are_scaled_as_narrow_as_they_fit(dtype: str, scaled: str) -> None:
    values = np.array([2, 3], dtype)
    found = from_low(values, 2, 0.5)
    assert found.dtype == np.dtype(scaled)
    assert found.tolist() == [0, 0.5]
    assert values.tolist() == [2, 3]
