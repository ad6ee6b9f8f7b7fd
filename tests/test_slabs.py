"""Slices of chunked arrays: how often a row of chunks is read for all slices of it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from ml_backend.volumes.formats import slabs
from ml_backend.volumes.formats.slabs import Slabs

SHAPE = (10, 6, 8)
ARRAY = np.arange(480, dtype=np.uint16).reshape(SHAPE)


class Counted:
    """`Slabs` over an array in memory, and which parts of it were read."""

    def __init__(self, chunks: tuple[int, int, int] | None) -> None:
        self.parts: list[tuple[int, int, int]] = []
        self.slabs = Slabs(SHAPE, chunks, ARRAY.itemsize, self.block)

    def block(self, axis: int, start: int, stop: int) -> npt.NDArray[np.uint16]:
        self.parts.append((axis, start, stop))
        return np.moveaxis(np.moveaxis(ARRAY, axis, 0)[start:stop], 0, axis)


def kept(monkeypatch: pytest.MonkeyPatch, slices: float, axis: int = 0) -> None:
    """As many slices across ``axis`` as fit into what is kept."""
    size = ARRAY.nbytes // SHAPE[axis]
    monkeypatch.setattr(slabs, "_KEPT", int(slices * size))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("slices", [0.5, 1, 2, 3, 100])
@pytest.mark.parametrize("chunks", [None, (4, 4, 4), (10, 5, 7), (100, 100, 100)])
def test_slices_are_those_of_the_array(
    monkeypatch: pytest.MonkeyPatch, axis: int, slices: float, chunks: tuple[int, int, int] | None
) -> None:
    kept(monkeypatch, slices, axis)
    counted = Counted(chunks)
    for index in [*range(SHAPE[axis]), 0, 3, 1]:
        assert np.array_equal(counted.slabs.read(axis, index), ARRAY.take(index, axis))
    assert max(stop - start for _, start, stop in counted.parts) <= max(1, slices)


@pytest.mark.parametrize(
    ("slices", "parts"),
    [
        (100, [(0, 4), (4, 8), (8, 10)]),
        (3, [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]),
        (1, [(z, z + 1) for z in range(10)]),
    ],
    ids=["a row", "half a row", "a slice"],
)
def test_of_a_row_of_chunks_as_much_is_kept_as_fits(
    monkeypatch: pytest.MonkeyPatch, slices: int, parts: list[tuple[int, int]]
) -> None:
    kept(monkeypatch, slices)
    counted = Counted((4, 3, 3))
    for z in range(10):
        counted.slabs.read(0, z)
    assert counted.parts == [(0, *part) for part in parts]


def test_a_part_ends_where_its_chunk_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven slices a chunk, of which three fit, are three parts: another row is never read too."""
    kept(monkeypatch, 3)
    counted = Counted((7, 3, 3))
    for z in range(10):
        counted.slabs.read(0, z)
    assert counted.parts == [(0, 0, 3), (0, 3, 6), (0, 6, 7), (0, 7, 10)]
