"""Scanco ISQ, packed by the layout that ITK's ScancoImageIO and BoneJ read."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from ml_backend.volumes.opening import open_volume
from ml_backend.volumes.volume import VolumeError
from tests.test_formats import assert_holds, values

GREY = values("i2", (5, 16, 32))


def saved(
    path: Path, array: np.ndarray, *, kind: int = 3, blocks: int = 4, size: tuple = (384, 192, 60)
) -> Path:
    """``size``: of x, y, z in µm. As a µCT 40 writes it: ``blocks`` of header after the first."""
    head = struct.pack(
        "<16s5i8s3i3i6i", b"CTDATA-HEADER_V1", kind, array.nbytes, array.nbytes // 512, 2721, 4258,
        bytes(8), *array.shape[::-1], *size, 12, 12, 1000, -32768, 32767, 4096,
    )  # fmt: skip
    head = head.ljust(508, b"\0") + struct.pack("<i", blocks)
    path.write_bytes(head.ljust(512 * (blocks + 1), b"\0") + array.astype("<i2").tobytes())
    return path


@pytest.mark.parametrize("name", ["a.isq", "C0004711.ISQ", "C0004711.ISQ;1"])
@pytest.mark.parametrize("blocks", [0, 4])
def test_values_and_sizes(tmp_path: Path, name: str, blocks: int) -> None:
    with open_volume(saved(tmp_path / name, GREY, blocks=blocks)) as volume:
        assert_holds(volume, GREY)
        assert (volume.voxel_size, volume.unit) == ((12.0, 12.0, 12.0), "µm")


def test_sizes_are_not_rounded_to_micrometres(tmp_path: Path) -> None:
    with open_volume(saved(tmp_path / "a.isq", GREY, size=(336, 168, 52))) as volume:
        assert volume.voxel_size == pytest.approx((10.4, 10.5, 10.5))


@pytest.mark.parametrize("lost", [1, 5000, 7000, 7700])
def test_a_file_that_is_cut_off_is_refused_by_name(tmp_path: Path, lost: int) -> None:
    path = saved(tmp_path / "a.isq", GREY)
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(VolumeError, match=r"a\.isq .*expected"):
        open_volume(path)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"kind": 9}, "data of type 9, .*expected the slices of a reconstruction"),
        ({"size": (384, 192, 0)}, r"the size \[384, 192, 0\]"),
        ({"blocks": -3}, "-3 blocks of header"),
    ],
)
def test_projections_are_refused(tmp_path: Path, form: dict, message: str) -> None:
    path = saved(tmp_path / "a.isq", GREY)
    path.write_bytes(saved(tmp_path / "b", GREY, **form).read_bytes())
    with pytest.raises(VolumeError, match=message):
        open_volume(path)


def test_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.isq").write_bytes(b"AIMDATA_V030   ".ljust(4096))
    with pytest.raises(VolumeError, match=r"no ISQ file, .*CTDATA-HEADER_V1 .*writes \.mha"):
        open_volume(tmp_path / "a.isq")
