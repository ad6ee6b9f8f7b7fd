"""The volume type: axes, indices, and what a reader may give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ml_backend.volumes.volume import Volume, VolumeError, axis_index

VALUES = np.arange(2 * 3 * 4, dtype=np.uint16).reshape(2, 3, 4)


def volume(
    read: Callable[[int, int], np.ndarray] = lambda axis, index: VALUES.take(index, axis),
) -> Volume:
    return Volume(Path("scan.tif"), (2, 3, 4), np.dtype(np.uint16), read)


@pytest.mark.parametrize(("axis", "place"), [("z", 0), ("y", 1), ("x", 2), ("2", 2), (1, 1)])
def test_an_axis_is_a_letter_or_a_number(axis: int | str, place: int) -> None:
    assert axis_index(axis) == place


@pytest.mark.parametrize("axis", ["t", 3, -1, ""])
def test_there_is_no_fourth_axis(axis: int | str) -> None:
    with pytest.raises(VolumeError, match="expected one of z, y, x"):
        axis_index(axis)


@pytest.mark.parametrize(("axis", "size"), [("z", (3, 4)), ("y", (2, 4)), ("x", (2, 3))])
def test_slices_lie_across_the_axis(axis: str, size: tuple[int, int]) -> None:
    along = volume().along(axis)
    assert along.slice_shape == size
    assert len(along) == VALUES.shape[axis_index(axis)]
    assert all(np.array_equal(one, VALUES.take(i, axis_index(axis))) for i, one in enumerate(along))


@pytest.mark.parametrize("index", [-1, 2, 10**12])
def test_an_index_outside_is_refused(index: int) -> None:
    with pytest.raises(IndexError, match=r"scan\.tif has no slice .* expected 0 to 1"):
        volume()[index]


@pytest.mark.parametrize("found", [np.zeros((3, 3), np.uint16), np.zeros((3, 4), np.float32)])
def test_a_slice_unlike_the_others_is_refused(found: np.ndarray) -> None:
    with pytest.raises(VolumeError, match=r"slice 1 along z, is .* expected uint16"):
        volume(lambda axis, index: found)[1]


def test_it_closes_what_its_reader_opened() -> None:
    closed: list[bool] = []
    opened = Volume(
        Path("a"), (1, 1, 1), np.dtype("u1"), lambda a, i: VALUES, close=lambda: closed.append(True)
    )
    with opened.along("x"):
        assert not closed
    assert closed
