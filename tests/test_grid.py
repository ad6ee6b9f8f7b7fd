"""Volumes that a browser can hold: how many voxels, where they lie, which slices they show."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from ml_backend.api.dashboard.grid import MOST_VOXELS, Grid, chosen_slices, scan_planes, small_masks
from ml_backend.volumes.opening import open_volume
from ml_backend.volumes.window import Window


@pytest.mark.parametrize(
    ("whole", "steps", "says"),
    [
        ((256, 256, 256), (1, 1, 1), ""),
        ((512, 512, 512), (2, 2, 2), "1/2"),
        ((1024, 1024, 700), (4, 4, 4), "1/4"),
        ((50, 4096, 4096), (1, 8, 8), "1/8 along y and x"),
        ((1, 1, 1 << 20), (1, 1, 1), ""),
        ((2048, 2048, 400), (8, 8, 2), "1/8 along z and y, 1/2 along x"),
    ],
)
def test_the_longest_axes_are_halved_until_it_fits(
    whole: tuple[int, int, int], steps: tuple[int, int, int], says: str
) -> None:
    grid = Grid.of(whole)
    assert (grid.steps, grid.says) == (steps, says)
    assert math.prod(grid.shape) <= MOST_VOXELS


def test_a_voxel_lies_in_the_middle_of_those_it_stands_for() -> None:
    affine = ((0.0, 0.0, 2.0, 10.0), (0.0, -3.0, 0.0, 0.0), (5.0, 0.0, 0.0, -1.0))
    small = np.array(Grid((8, 8, 8), (4, 2, 1)).affine(affine))
    first = small @ (0, 0, 0, 1)
    every = [np.array(affine) @ (z, y, 0, 1) for z in range(4) for y in range(2)]
    np.testing.assert_allclose(first, np.mean(every, axis=0))
    np.testing.assert_allclose(small @ (1, 1, 1, 1) - first, [2, -6, 20])


def test_of_several_slices_the_one_nearest_to_the_middle_is_shown() -> None:
    grid = Grid((10, 4, 4), (4, 1, 1))
    assert grid.shape == (3, 4, 4)
    assert list(grid.middles(0)) == [2, 6, 9]
    assert chosen_slices(grid, "z", [0, 3, 4, 8, 9]) == {0: 3, 1: 4, 2: 9}
    assert chosen_slices(grid, "y", [0, 3]) == {0: 0, 3: 3}


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_masks_lie_where_their_slices_were_cut(axis: str) -> None:
    grid = Grid((4, 6, 8), (1, 2, 4))
    along = "zyx".index(axis)
    whole = np.random.default_rng(0).integers(0, 3, grid.whole).astype(np.uint8)
    place = 1
    index = int(grid.middles(along)[place])
    found = small_masks(grid, axis, [(place, np.take(whole, index, along))])
    expected = np.full(grid.shape, 255, np.uint8)
    picked = whole[np.ix_(*(grid.middles(i) for i in range(3)))]
    where = [slice(None)] * 3
    where[along] = slice(place, place + 1)
    expected[tuple(where)] = picked[tuple(where)]
    np.testing.assert_array_equal(found, expected)


def test_the_scan_is_seen_through_its_window_and_averaged(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4000, (5, 7, 9)).astype(np.uint16)
    np.save(tmp_path / "a.npy", values)
    grid = Grid(values.shape, (2, 3, 2))
    asked: list[int] = []
    with open_volume(tmp_path / "a.npy") as volume:
        planes = scan_planes(volume, Window(0, 4000), grid, lambda: asked.append(1))
        found = np.stack(list(planes))
    assert found.shape == grid.shape == (3, 3, 5)
    assert len(asked) == 3
    seen = np.rint(values[1, :3, :2] / 4000 * 255)
    assert found[0, 0, 0] == pytest.approx(seen.mean(), abs=1)
    assert found[2, 2, 4] == pytest.approx(values[4, 6, 8] / 4000 * 255, abs=1)
