"""What is believed of opened slices is computed once, kept within bounds, and waited for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from al_strategies.learner import Beliefs
from ml_backend.api.opened import OpenedSlices, SliceName, StillComputing
from ml_backend.embedded.processes import wait_until

BYTES = 4 * 5 * (1 + 2 * 3)
"""Of one slice below."""


def slice_(task: int) -> SliceName:
    return SliceName("7.1", "round-001/weights.safetensors", task, f"/{task}.png")


class Computing:
    """Notes what it is asked for, and waits where it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bool]] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, name: SliceName, ahead: bool, within_s: float) -> Beliefs:
        self.asked.append((name.task, ahead))
        assert self.go.wait(240)
        if name.task == 13:
            raise OSError("404")
        mask = np.full((4, 5), name.task, np.uint8)
        return Beliefs(mask, np.zeros((3, 4, 5), np.float16))


def test_a_slice_is_computed_once_whoever_asks() -> None:
    computing = Computing()
    computing.go.clear()
    opened = OpenedSlices(computing, 10 * BYTES)
    with ThreadPoolExecutor(8) as people:
        answers = [people.submit(opened.get, slice_(1), 30) for _ in range(8)]
        wait_until(lambda: bool(computing.asked), "the computation to begin", 120)
        computing.go.set()
        masks = {int(answer.result().mask[0, 0]) for answer in answers}
    assert (masks, computing.asked) == ({1}, [(1, False)])


def test_the_least_recently_used_goes_first_beyond_the_limit() -> None:
    computing = Computing()
    opened = OpenedSlices(computing, 2 * BYTES)
    for task in (1, 2, 1, 3):
        opened.get(slice_(task), 30)
    assert [slice_(task) in opened for task in (1, 2, 3)] == [True, False, True]
    assert opened.bytes == 2 * BYTES


def test_what_is_larger_than_the_limit_is_not_kept() -> None:
    computing = Computing()
    opened = OpenedSlices(computing, BYTES - 1)
    for _ in range(2):
        opened.get(slice_(1), 30)
    assert (opened.bytes, len(computing.asked)) == (0, 2)


def test_keeping_a_slice_again_takes_its_room_once() -> None:
    opened = OpenedSlices(Computing(), 10 * BYTES)
    for _ in range(3):
        opened.keep(slice_(1), Computing()(slice_(1), False, 30))
    assert opened.bytes == BYTES


def test_what_takes_too_long_is_waited_for_no_longer() -> None:
    computing = Computing()
    computing.go.clear()
    opened = OpenedSlices(computing, 10 * BYTES)
    opened.prefetch(lambda: [slice_(1)])
    wait_until(lambda: bool(computing.asked), "the computation to begin", 120)
    with pytest.raises(StillComputing, match="task 1 is still being computed after 0 s"):
        opened.get(slice_(1), 0.05)
    computing.go.set()
    assert opened.get(slice_(1), 30).mask[0, 0] == 1


def test_a_slice_that_failed_is_tried_again() -> None:
    computing = Computing()
    opened = OpenedSlices(computing, 10 * BYTES)
    for _ in range(2):
        with pytest.raises(OSError, match="404"):
            opened.get(slice_(13), 30)
    assert len(computing.asked) == 2


def test_slices_ahead_are_computed_where_they_are_not_there_and_one_call_at_a_time() -> None:
    computing = Computing()
    opened = OpenedSlices(computing, 10 * BYTES)
    opened.get(slice_(1), 30)
    computing.go.clear()
    opened.prefetch(lambda: [slice_(1), slice_(2), slice_(3)])
    wait_until(lambda: len(computing.asked) == 2, "the second slice to begin", 120)
    opened.prefetch(lambda: [slice_(4)])
    computing.go.set()
    wait_until(lambda: slice_(3) in opened, "the third slice", 120)
    assert computing.asked == [(1, False), (2, True), (3, True)]


def test_a_prefetch_that_failed_leaves_room_for_the_next() -> None:
    computing = Computing()
    opened = OpenedSlices(computing, 10 * BYTES)

    def torn() -> Iterator[SliceName]:
        yield slice_(13)
        yield slice_(1)

    opened.prefetch(torn)
    wait_until(lambda: not opened._busy, "the prefetch to end", 120)
    opened.prefetch(lambda: [slice_(2)])
    wait_until(lambda: slice_(2) in opened, "the next", 120)


def test_what_computes_a_slice_has_what_is_left_of_the_time() -> None:
    left: list[float] = []

    def compute(name: SliceName, ahead: bool, within_s: float) -> Beliefs:
        left.append(within_s)
        return Computing()(name, ahead, within_s)

    opened = OpenedSlices(compute, 10 * BYTES)
    opened.get(slice_(1), 5)
    opened.prefetch(lambda: [slice_(2)])
    wait_until(lambda: slice_(2) in opened, "the slice ahead", 120)
    assert 4 < left[0] <= 5
    assert 59 < left[1] <= 60
