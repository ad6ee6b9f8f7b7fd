"""Folders as SkyScan's NRecon leaves them: slices, the log, and a preview beside them."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from ml_backend.volumes.opening import ReadOptions, open_volume
from ml_backend.volumes.volume import Bounds, VolumeError
from tests.test_formats import assert_holds, values

GREY = values("u2", (5, 40, 48))
BYTES = values("u1", (5, 40, 48))
LOG = """[System]
Scanner=SkyScan1172
[Acquisition]
Image Pixel Size (um)=    4.97
[Reconstruction]
Reconstruction Program=NRecon
Result Image Width (pixels)=48
Pixel Size (um)=9.94000
Smoothing=0
"""
ENDINGS = {"jp2": "jp2", "j2k": "j2k"}


def encoded(page: np.ndarray, ending: str) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(page, level=0, codecformat=ENDINGS[ending]))


def jpeg2000(folder: Path, array: np.ndarray, ending: str = "jp2") -> Path:
    folder.mkdir()
    for z, page in enumerate(array):
        (folder / f"bone_rec{z:08d}.{ending}").write_bytes(encoded(page, ending))
    (folder / "bone_rec.log").write_text(LOG, encoding="latin-1", newline="\r\n")
    return folder


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("array", [GREY, BYTES], ids=["u2", "u1"])
def test_jpeg_2000(tmp_path: Path, ending: str, array: np.ndarray) -> None:
    folder = jpeg2000(tmp_path / "rec", array, ending)
    for preview in ("bone_rec_spr.jp2", "bone_rec_spr.bmp"):
        Image.fromarray(BYTES[0, :20, :30]).save(folder / preview)
    with open_volume(folder) as volume:
        assert_holds(volume, array)
        assert (volume.voxel_size, volume.unit) == ((9.94, 9.94, 9.94), "µm")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_the_log_in_either_encoding(tmp_path: Path, encoding: str) -> None:
    folder = jpeg2000(tmp_path / "rec", BYTES)
    (folder / "bone_rec.log").write_text(LOG.replace("(um)", "(µm)"), encoding=encoding)
    with open_volume(folder) as volume:
        assert (volume.voxel_size, volume.unit) == ((9.94, 9.94, 9.94), "µm")


def test_pillow_writes_jpeg_2000_too(tmp_path: Path) -> None:
    for z, page in enumerate(BYTES):
        Image.fromarray(page).save(tmp_path / f"{z}.jp2", irreversible=False)
    with open_volume(tmp_path) as volume:
        assert_holds(volume, BYTES)
        assert volume.voxel_size is None


@pytest.mark.parametrize("ending", ["bmp", "png", "tif"])
def test_other_images_have_the_size_of_the_log_too(tmp_path: Path, ending: str) -> None:
    for z, page in enumerate(BYTES):
        name = tmp_path / f"bone_rec{z:04d}.{ending}"
        if ending == "tif":
            tifffile.imwrite(name, page)
        else:
            Image.fromarray(page).save(name)
    preview = tmp_path / f"bone_rec_spr.{ending}"
    Image.fromarray(BYTES[0, :20, :30]).save(preview)
    (tmp_path / "bone_rec.log").write_text(LOG)
    (tmp_path / "bone_.log").write_text("[Acquisition]\nImage Pixel Size (um)=1.5\n")
    with open_volume(tmp_path) as volume:
        assert_holds(volume, BYTES)
        assert (volume.voxel_size, volume.unit) == ((9.94, 9.94, 9.94), "µm")


def test_a_note_of_our_own_comes_before_the_log(tmp_path: Path) -> None:
    folder = jpeg2000(tmp_path / "rec", GREY)
    (folder / "volume.json").write_text('{"voxel_size": [3, 2, 1], "unit": "mm"}')
    with open_volume(folder) as volume:
        assert (volume.voxel_size, volume.unit) == ((3, 2, 1), "mm")


def test_logs_that_contradict_each_other_are_no_voxel_size(tmp_path: Path) -> None:
    folder = jpeg2000(tmp_path / "rec", GREY)
    (folder / "other_rec.log").write_text("[Reconstruction]\nPixel Size (um)=5\n")
    with open_volume(folder) as volume:
        assert volume.voxel_size is None


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_an_image_that_is_cut_off_is_no_slice_of_zeros(
    tmp_path: Path, ending: str, kept: float
) -> None:
    path = jpeg2000(tmp_path / "rec", GREY, ending) / f"bone_rec00000002.{ending}"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with (
        open_volume(tmp_path / "rec") as volume,
        pytest.raises(VolumeError, match=rf"bone_rec00000002\.{ending} .*expected a whole"),
    ):
        volume[2]


def test_colour_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "0.jp2")
    with pytest.raises(VolumeError, match=r"0\.jp2 is a colour image \(RGB\)"):
        open_volume(tmp_path)


def test_one_image_is_no_volume(tmp_path: Path) -> None:
    path = jpeg2000(tmp_path / "rec", GREY) / "bone_rec00000002.jp2"
    with pytest.raises(VolumeError, match="is one image, expected its folder"):
        open_volume(path)


@pytest.mark.parametrize("name", ["bone_rec00000002.jp2", "bone_rec.log"])
def test_links_out_of_the_roots_are_refused(tmp_path: Path, name: str) -> None:
    path = jpeg2000(tmp_path / "rec", GREY) / name
    path.rename(tmp_path / name)
    path.symlink_to(tmp_path / name)
    with pytest.raises(VolumeError, match=rf"{name} is opened for .*leads out of"):
        open_volume(tmp_path / "rec")
    with open_volume(tmp_path / "rec", ReadOptions(bounds=Bounds((tmp_path,)))) as volume:
        assert_holds(volume, GREY)
