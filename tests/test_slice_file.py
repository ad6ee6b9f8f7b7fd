"""What is written across one axis of a volume is read across any other, through any slab."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from ml_backend.volumes.slice_file import SliceFile
from ml_backend.volumes.volume import VolumeError

SHAPE = (7, 5, 6)


def values(channels: int, dtype: str) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (channels, *SHAPE)).astype(dtype)


@pytest.mark.parametrize("slab", [1, 200, 1 << 20])
@pytest.mark.parametrize(("written", "read"), list(product(range(3), range(3))))
def test_slices_come_back_across_any_axis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int, read: int, slab: int
) -> None:
    monkeypatch.setattr("ml_backend.volumes.slice_file._SLAB_BYTES", slab)
    for channels, dtype in ((1, "u2"), (3, "u1")):
        given = values(channels, dtype)
        path = tmp_path / dtype
        with SliceFile(
            path, SHAPE, written=written, read=read, channels=channels, dtype=dtype
        ) as file:
            for index in range(SHAPE[written]):
                file.write(index, np.take(given, index, 1 + written))
            last = SHAPE[read] - 1
            for index in (*range(last + 1), 3, 0, last, 2, 1):
                assert np.array_equal(file[index], np.take(given, index, 1 + read))
        assert path.stat().st_size == file.nbytes == given.nbytes


def test_what_is_there_stays_when_it_is_opened_again(tmp_path: Path) -> None:
    given = values(1, "u1")
    for index in range(SHAPE[0]):
        with SliceFile(tmp_path / "raw", SHAPE, written=0, read=0) as file:
            file.write(index, given[:, index])
            file.flush()

    with SliceFile(tmp_path / "raw", SHAPE, written=0, read=0) as file:
        assert all(np.array_equal(file[z], given[:, z]) for z in range(SHAPE[0]))


@pytest.mark.parametrize("left", [None, 0, 209])
def test_what_should_be_there_and_is_not_whole_is_refused(tmp_path: Path, left: int | None) -> None:
    path = tmp_path / "raw"
    if left is not None:
        path.write_bytes(bytes(left))

    with pytest.raises(VolumeError, match=r"raw is (gone|shorter).*Delete its folder"):
        SliceFile(path, SHAPE, written=0, read=0, there=True)
    assert path.exists() == (left is not None)


@pytest.mark.parametrize(
    "wrong", [np.zeros((1, 6, 5), np.uint8), np.zeros((1, 5, 6), np.uint16), np.zeros((2, 5, 6))]
)
def test_a_slice_of_another_shape_or_type_is_refused(tmp_path: Path, wrong: np.ndarray) -> None:
    with (
        SliceFile(tmp_path / "raw", SHAPE, written=0, read=0) as file,
        pytest.raises(ValueError, match=r"slice 3 for .*raw"),
    ):
        file.write(3, wrong)
