"""MRC as mrcfile writes it, and as IMOD and older programs do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest

from ml_backend.volumes.opening import ReadOptions, open_volume, write_volume
from ml_backend.volumes.volume import VolumeError, VolumeSpec
from tests.test_formats import assert_holds, values

GREY = values("u2", (5, 16, 32))


def saved(path: Path, array: np.ndarray, size: float | tuple = 0.0, **fields: Any) -> Path:
    with mrcfile.new(path) as mrc:
        mrc.set_data(array)
        mrc.set_volume()
        if size:
            mrc.voxel_size = size
        for name, value in fields.items():
            mrc.header[name] = value
    return path


@pytest.mark.parametrize("name", ["a.mrc", "a.rec", "a.map", "A.MRC"])
@pytest.mark.parametrize("dtype", ["i1", "i2", "u2", "f2", "f4"])
def test_types(tmp_path: Path, name: str, dtype: str) -> None:
    array = np.nan_to_num(values(dtype))
    saved(tmp_path / name, array, (1.5, 2.5, 4.25), dmax=100)
    with open_volume(tmp_path / name) as volume:
        assert_holds(volume, array)
        assert (volume.voxel_size, volume.unit) == ((4.25, 2.5, 1.5), "Å")


@pytest.mark.parametrize("dtype", ["i2", "u2", "f4"])
def test_big_endian(tmp_path: Path, dtype: str) -> None:
    array = np.nan_to_num(values(dtype)).astype(f">{dtype}")
    saved(tmp_path / "a.mrc", array, 2.0)
    assert (tmp_path / "a.mrc").read_bytes()[:4] == (6).to_bytes(4, "big")
    with open_volume(tmp_path / "a.mrc") as volume:
        assert_holds(volume, array)
        assert volume.voxel_size == (2.0, 2.0, 2.0)


def test_values_come_after_an_extended_header(tmp_path: Path) -> None:
    with mrcfile.new(tmp_path / "a.mrc") as mrc:
        mrc.set_data(GREY)
        mrc.set_extended_header(np.frombuffer(bytes(range(200)), "V100"))
    with open_volume(tmp_path / "a.mrc") as volume:
        assert_holds(volume, GREY)


def test_sections_of_a_stack_of_images_are_slices(tmp_path: Path) -> None:
    with mrcfile.new(tmp_path / "a.mrc") as mrc:
        mrc.set_data(GREY)
        mrc.set_image_stack()
    with open_volume(tmp_path / "a.mrc") as volume:
        assert_holds(volume, GREY)
        assert volume.voxel_size is None


def test_bytes_are_unsigned_where_imod_or_the_maximum_says_so(tmp_path: Path) -> None:
    array = values("u1")
    path = saved(tmp_path / "a.mrc", array.view("i1"), dmin=0, dmax=array.max())
    with open_volume(path) as volume:
        assert_holds(volume, array)
    data = bytearray(path.read_bytes())
    data[152:160] = (1146047817).to_bytes(4, "little") + bytes(4)
    data[80:84] = np.float32(9).tobytes()
    path.write_bytes(data)
    with open_volume(path) as volume:
        assert_holds(volume, array)
    data[156] = 1
    path.write_bytes(data)
    with open_volume(path) as volume:
        assert_holds(volume, array.view("i1"))


def test_one_of_a_stack_of_volumes(tmp_path: Path) -> None:
    array = values("i2", (3, 4, 5, 6))
    with mrcfile.new(tmp_path / "a.mrc") as mrc:
        mrc.set_data(array)
        assert mrc.is_volume_stack()
        mrc.voxel_size = 2.5
    for time in range(3):
        with open_volume(tmp_path / "a.mrc", ReadOptions(time=time)) as volume:
            assert_holds(volume, array[time])
            assert volume.voxel_size == (2.5, 2.5, 2.5)
    for options, found in (
        (ReadOptions(), r"time \(volume\), z, y, x of lengths \(3, 4, 5, 6\).*--time, 0 to 2"),
        (ReadOptions(time=3), r"has 3 times, asked for is --time 3: expected 0 to 2"),
        (ReadOptions(time=0, channel=1), "has no axis of several channels"),
    ):
        with pytest.raises(VolumeError, match=found):
            open_volume(tmp_path / "a.mrc", options)
    data = (tmp_path / "a.mrc").read_bytes()
    (tmp_path / "a.mrc").write_bytes(data[:-1])
    with pytest.raises(VolumeError, match=r"a\.mrc has \d+ bytes, expected"):
        open_volume(tmp_path / "a.mrc", ReadOptions(time=0))


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "f2", "f4"])
def test_mrcfile_reads_what_is_written(tmp_path: Path, dtype: str) -> None:
    array = np.nan_to_num(values(dtype, (5, 7, 6)))
    spec = VolumeSpec(array.shape, array.dtype, (4.6, 2.3, 1.15), "µm")
    write_volume(tmp_path / "a.mrc", array, spec)
    assert mrcfile.validate(tmp_path / "a.mrc") or dtype == "f2"  # statistics are not determined
    with mrcfile.open(tmp_path / "a.mrc") as mrc:
        assert np.array_equal(mrc.data, array)
        assert mrc.is_volume()
        found = [float(mrc.voxel_size[axis]) for axis in "zyx"]
        assert found == pytest.approx([46000, 23000, 11500])
        assert (mrc.header.dmin, mrc.header.dmax) == (array.min(), array.max())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": 4}, "values of mode 4, expected one of 0, 1, 2, 6, 12"),
        ({"mode": 101}, "values of mode 101"),
        ({"mapc": 3, "maps": 1}, r"along the axes \(3, 2, 1\), expected \(1, 2, 3\)"),
        ({"ispg": 401, "mz": 1}, r"time \(volume\), z, .*5, 1, 16, 32\), .*--time, 0 to 4"),
        ({"ispg": 401, "mz": 2}, "volumes of 2 sections each, and has 5: expected whole volumes"),
        ({"nz": 0}, r"has the shape \(0, 16, 32\)"),
        ({"nz": 6}, r"a\.mrc has 6144 bytes, expected 7168: uint16 of shape \(6, 16, 32\)"),
        ({"mapc": 7}, r"expected 1, 2 and 3: it is no MRC file .*--shape, --dtype and --offset"),
    ],
)
def test_what_is_no_volume_is_refused(tmp_path: Path, fields: dict[str, int], message: str) -> None:
    saved(tmp_path / "a.mrc", GREY, 0.0, **fields)
    with pytest.raises(VolumeError, match=message):
        open_volume(tmp_path / "a.mrc")
