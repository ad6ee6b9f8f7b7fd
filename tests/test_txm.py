"""Zeiss TXM and TXRM: OLE files with the streams that Xradia's programs write."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import olefile
import pytest

from ml_backend.volumes.opening import open_volume
from ml_backend.volumes.volume import VolumeError
from tests.compound_file import write_compound
from tests.test_formats import assert_holds, values

GREY = values("u2", (105, 20, 24))
CODES = {"int8": 2, "uint8": 3, "int16": 4, "uint16": 5, "float32": 10}


def streams(array: np.ndarray, size: float | None = 0.7) -> dict[str, bytes]:
    info = {
        "ImageWidth": struct.pack("<I", array.shape[2]),
        "ImageHeight": struct.pack("<I", array.shape[1]),
        "NoOfImages": struct.pack("<I", len(array)),
        "ImagesTaken": struct.pack("<I", len(array)),
        "DataType": struct.pack("<I", CODES[array.dtype.name]),
        "Angles": struct.pack(f"<{len(array)}f", *range(len(array))),
    }
    if size is not None:
        info["PixelSize"] = struct.pack("<f", size)
    found = {f"ImageInfo/{name}": value for name, value in info.items()}
    # as by name: Image10 comes before Image2
    for n in sorted(range(1, len(array) + 1), key=str):
        found[f"ImageData{(n + 99) // 100}/Image{n}"] = array[n - 1].tobytes()
    return found


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("name", ["a.txm", "a.txrm"])
def test_types(tmp_path: Path, dtype: str, name: str) -> None:
    array = values(dtype, (5, 70, 80))  # beyond what the mini stream holds
    write_compound(tmp_path / name, streams(array))
    with olefile.OleFileIO(tmp_path / name) as ole:
        assert not ole.parsing_issues
        assert ole.openstream("ImageData1/Image3").read() == array[2].tobytes()
    with open_volume(tmp_path / name) as volume:
        assert_holds(volume, array)
        assert (volume.voxel_size, volume.unit) == ((0.7, 0.7, 0.7), "µm")


def test_images_lie_in_folders_of_a_hundred(tmp_path: Path) -> None:
    write_compound(tmp_path / "a.txm", streams(GREY, None))
    with open_volume(tmp_path / "a.txm") as volume:
        assert_holds(volume, GREY)
        assert volume.voxel_size is None


def test_a_scan_that_was_broken_off_has_the_images_that_were_taken(tmp_path: Path) -> None:
    planned = {"ImageInfo/NoOfImages": struct.pack("<I", 200)}
    write_compound(tmp_path / "a.txrm", streams(GREY) | planned)
    with open_volume(tmp_path / "a.txrm") as volume:
        assert volume.shape == GREY.shape


@pytest.mark.parametrize(
    ("stream", "value", "message"),
    [
        ("ImageInfo/ImagesTaken", 106, "has 105 images, expected 106 .*: image 106 is missing"),
        ("ImageInfo/ImagesTaken", 2**32 - 1, "expected 4294967295 .*: image 106 is missing"),
        ("ImageInfo/ImagesTaken", 0, "expected 0 as it says itself"),
        ("ImageInfo/DataType", 12, "values of type 12, expected one of 2, 3, 4"),
        ("ImageInfo/DataType", 10, r"960 bytes in ImageData1/Image1, expected 1920: float32"),
        ("ImageInfo/ImageWidth", 0, "expected 0"),
        ("ImageInfo/ImageHeight", None, "has no ImageInfo/ImageHeight"),
    ],
)
def test_what_is_no_volume_is_refused(
    tmp_path: Path, stream: str, value: int | None, message: str
) -> None:
    found = streams(GREY)
    del found[stream]
    if value is not None:
        found[stream] = struct.pack("<I", value)
    write_compound(tmp_path / "a.txm", found)
    with pytest.raises(VolumeError, match=message):
        open_volume(tmp_path / "a.txm")


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.1, 0.6, 0.95, 0.999])
def test_a_file_that_is_cut_off_is_refused_by_name(tmp_path: Path, kept: float) -> None:
    write_compound(tmp_path / "a.txm", streams(values("u2", (5, 70, 80))))
    data = (tmp_path / "a.txm").read_bytes()
    (tmp_path / "a.txm").write_bytes(data[: int(kept * len(data))])
    with (
        pytest.raises(VolumeError, match=r"a\.txm .*expected"),
        open_volume(tmp_path / "a.txm") as volume,
    ):
        list(volume)
