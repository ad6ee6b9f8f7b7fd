"""Which format a path is, and what is said of a path that is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_backend.volumes.formats.registry import formats
from ml_backend.volumes.opening import ReadOptions, open_volume
from ml_backend.volumes.volume import VolumeError
from tests.test_formats import assert_holds, values


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("a.czi", r"`bfconvert` of Bio-Formats, to \.ome\.tif, makes a file that is"),
        ("A.LIF", r"`bfconvert` of Bio-Formats"),
        ("a.aim", r"ITK's ScancoImageIO .*to \.mha, makes"),
        ("a.img", r"nibabel, to \.nii, makes"),
        ("a.mrc.gz", "unpacking it makes a file that is"),
        ("a.vgl", r"VGSTUDIO .*to \.vgi with a \.vol, makes"),
        ("a.dat", "what holds raw values is read with --shape, --dtype and --offset"),
        ("scan", "what holds raw values is read with --shape, --dtype and --offset"),
    ],
)
def test_what_is_not_read_is_refused_with_the_nearest_way(
    tmp_path: Path, name: str, way: str
) -> None:
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(VolumeError, match=rf"{name} is no volume that can be read, .*; {way}"):
        open_volume(tmp_path / name)


def test_the_way_of_raw_values_is_one(tmp_path: Path) -> None:
    array = values("u2")
    (tmp_path / "a.dat").write_bytes(b"header" + array.tobytes())
    options = ReadOptions(shape=array.shape, dtype="<u2", offset=6)
    with open_volume(tmp_path / "a.dat", options) as volume:
        assert_holds(volume, array)


@pytest.mark.parametrize(
    ("option", "value"), [("dataset", "a/b"), ("shape", (5, 7, 6)), ("dtype", "<u2"), ("offset", 5)]
)
def test_what_a_format_does_not_look_at_is_refused_where_asked(
    tmp_path: Path, option: str, value: Any
) -> None:
    array = values("u2")
    np.save(tmp_path / "a.npy", array)
    options = ReadOptions(**{option: value})
    with pytest.raises(VolumeError, match=rf"a\.npy is read as .*does not look at --{option} "):
        open_volume(tmp_path / "a.npy", options, strict=True)
    with open_volume(tmp_path / "a.npy", options) as volume:  # as in addresses
        assert_holds(volume, array)


@pytest.mark.parametrize(
    ("name", "looked_at"),
    [
        ("a.h5", {"dataset"}), ("a.zarr", {"dataset"}), ("a.ozx", {"dataset"}),
        ("a.am", {"dataset"}), ("a.dcm", {"dataset"}), ("a.raw", {"shape", "dtype", "offset"}),
        ("a.tif", set()), ("a.vgi", set()),
    ],
)  # fmt: skip
def test_what_formats_look_at(name: str, looked_at: set[str]) -> None:
    kind = next(one for one in formats() if one.reading_of(name))
    said = {"dataset"} if kind.datasets else set()
    assert said | ({"shape", "dtype", "offset"} if kind.described else set()) == looked_at


def test_options_of_raw_values_make_no_file_of_a_folder(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", values("u2"))
    with pytest.raises(VolumeError, match="is a folder of 1 files and folders"):
        open_volume(tmp_path, ReadOptions(shape=(5, 7, 6), dtype="<u2"))
