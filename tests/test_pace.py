"""What is known of how long the network takes for a slice."""

from __future__ import annotations

import pytest

from ml_backend.api.pace import Pace


@pytest.fixture
def clock() -> list[float]:
    return [0.0]


@pytest.fixture
def pace(clock: list[float]) -> Pace:
    return Pace(lambda: clock[0])


def test_a_slice_takes_what_one_of_no_more_pixels_took(pace: Pace) -> None:
    pace.note("a", 100, 3.0)
    pace.note("a", 400, 9.0)
    assert [pace.expected("a", pixels) for pixels in (99, 100, 399, 400, 10**9)] == [0, 3, 3, 9, 9]
    assert pace.expected("b", 400) == 0


def test_the_last_time_counts(pace: Pace) -> None:
    pace.note("a", 100, 90.0)
    pace.note("a", 100, 3.0)
    assert pace.expected("a", 100) == 3


def test_it_is_forgotten_after_ten_minutes(pace: Pace, clock: list[float]) -> None:
    pace.note("a", 100, 90.0)
    clock[0] = 600.0
    assert pace.expected("a", 100) == 90
    clock[0] = 601.0
    assert pace.expected("a", 100) == 0


def test_no_more_sizes_are_kept_than_a_few(pace: Pace) -> None:
    for pixels in range(1000):
        pace.note("a", pixels, 1.0)
    assert len(pace._took) == 64
