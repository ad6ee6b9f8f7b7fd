"""Zipped OME-Zarr, as zarr's own store and a program that zips folders write it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import zarr

from ml_backend.volumes.formats.ome_zarr import write
from ml_backend.volumes.opening import ReadOptions, open_volume
from ml_backend.volumes.volume import VolumeError, VolumeSpec
from tests.test_formats import CLASSES, assert_holds, values

GREY = values("u2", (5, 40, 48))


def zipped(folder: Path, path: Path, root: str = "", packed: bool = False) -> Path:
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as file:
        for one in sorted(folder.rglob("*")):
            if one.is_file():
                file.write(one, root + one.relative_to(folder).as_posix())
    return path


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("root", ["", "bone.zarr/"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["a.ozx", "a.zarr.zip"])
def test_a_folder_that_was_zipped(
    tmp_path: Path, version: Literal[2, 3], root: str, packed: bool, name: str
) -> None:
    spec = VolumeSpec((5, 40, 48), GREY.dtype, (4.0, 2.0, 1.5), "µm", CLASSES)
    write(tmp_path / "a", GREY, spec, zarr_format=version)
    with open_volume(zipped(tmp_path / "a", tmp_path / name, root, packed)) as volume:
        assert_holds(volume, GREY)
        assert (volume.voxel_size, volume.unit) == ((4.0, 2.0, 1.5), "µm")
        assert volume.classes == CLASSES


def stored(path: Path) -> Path:
    """By zarr itself: an image and labels."""
    with zarr.storage.ZipStore(path, mode="w") as store:
        group = zarr.create_group(store)
        for name, array in (("grey", GREY), ("labels/bone", GREY // 2)):
            group.create_array(name, data=array, chunks=(2, 16, 48))
    return path


def test_one_of_several_arrays_is_named(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.ozx")
    with pytest.raises(VolumeError, match=r"2 arrays .*\n  grey uint16"):
        open_volume(path)
    with open_volume(path, ReadOptions(dataset="labels/bone")) as volume:
        assert_holds(volume, GREY // 2)


def test_a_zip_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.ozx", "w") as file:
        file.writestr("thesis.tex", "years")
    with pytest.raises(VolumeError, match=r"a zip file without zarr\.json, expected an OME-Zarr"):
        open_volume(tmp_path / "a.ozx")


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_refused_by_name(tmp_path: Path, kept: float) -> None:
    path = stored(tmp_path / "a.ozx")
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(VolumeError, match=r"a\.ozx cannot be read .*expected"):
        open_volume(path, ReadOptions(dataset="grey"))


def test_a_chunk_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.ozx")
    with zipfile.ZipFile(path) as file:
        place = file.getinfo("grey/c/1/1/0").header_offset + 120
    data = bytearray(path.read_bytes())
    data[place : place + 4] = bytes(255 - byte for byte in data[place : place + 4])
    path.write_bytes(data)
    with open_volume(path, ReadOptions(dataset="grey")) as volume:
        assert np.array_equal(volume[0], GREY[0])
        with pytest.raises(VolumeError, match=r"a\.ozx.* cannot be read .*expected whole chunks"):
            volume[2]


def test_a_chunk_that_is_nowhere_is_no_slice_of_zeros(tmp_path: Path) -> None:
    """As in a folder: without a fill value nothing says what its voxels are."""
    form = {"chunks": (1, 40, 48), "dtype": GREY.dtype, "fill_value": None}
    made = zarr.create_array(tmp_path / "a", shape=GREY.shape, zarr_format=2, **form)
    made[:] = GREY
    (tmp_path / "a" / "3.0.0").unlink()
    path = zipped(tmp_path / "a", tmp_path / "a.zarr.zip")
    with open_volume(path) as volume:
        assert np.array_equal(volume[2], GREY[2])
        for index, axis in ((3, "z"), (0, "y")):
            with pytest.raises(VolumeError, match=r"3\.0\.0 is not there.*or a fill_value"):
                volume.along(axis)[index]
