"""VGI files as reconstruction programs write them for VGSTUDIO."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ml_backend.volumes.opening import ReadOptions, open_volume
from ml_backend.volumes.volume import Bounds, VolumeError
from tests.test_formats import assert_holds, values

GREY = values("u2", (5, 16, 32))
KINDS = {"u": "unsigned integer", "i": "integer", "f": "float"}
TEXT = """{{volume1}}
[representation]
size = {size}
datatype = {kind}
datarange = 0 -1
bitsperelement = {bits}
[file1]
SkipHeader = {skip}
FileFormat = raw
Size = {size}
Name = {name}
Datatype = {kind}
datarange = 0 -1
BitsPerElement = {bits}
{{volumeprimitive12}}
[geometry]
resolution = 0.0125 0.025 0.05
unit = mm
[volume]
volume = volume1
[description]
text = bone
"""


def saved(path: Path, array: np.ndarray, skip: int = 0, name: str = "scan.vol") -> Path:
    size = " ".join(map(str, array.shape[::-1]))
    kind, bits = KINDS[array.dtype.kind], 8 * array.dtype.itemsize
    text = TEXT.format(size=size, kind=kind, bits=bits, skip=skip, name=name)
    path.write_bytes(text.replace("\n", "\r\n").encode())
    (path.parent / "scan.vol").write_bytes(bytes(skip) + array.tobytes())
    return path


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "f4"])
@pytest.mark.parametrize("skip", [0, 100])
def test_types(tmp_path: Path, dtype: str, skip: int) -> None:
    array = values(dtype)
    with open_volume(saved(tmp_path / "a.vgi", array, skip)) as volume:
        assert_holds(volume, array)
        assert (volume.voxel_size, volume.unit) == ((0.05, 0.025, 0.0125), "mm")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_the_unit_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    path = saved(tmp_path / "a.vgi", GREY)
    path.write_bytes(path.read_text().replace("unit = mm", "unit = µm").encode(encoding))
    with open_volume(path) as volume:
        assert (volume.voxel_size, volume.unit) == ((0.05, 0.025, 0.0125), "µm")


def test_a_name_of_another_machine_is_looked_for_beside_it(tmp_path: Path) -> None:
    with open_volume(saved(tmp_path / "a.vgi", GREY, name=r"D:\Scans\bone\scan.vol")) as volume:
        assert_holds(volume, GREY)


def test_a_vol_by_itself_is_said_to_belong_to_its_vgi(tmp_path: Path) -> None:
    saved(tmp_path / "scan.vgi", GREY)
    with pytest.raises(VolumeError, match=r"says nothing of its shape.*scan\.vgi beside it does"):
        open_volume(tmp_path / "scan.vol")
    with open_volume(tmp_path / "scan.vol", ReadOptions(shape=GREY.shape, dtype="<u2")) as volume:
        assert_holds(volume, GREY)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("FileFormat = raw", "FileFormat = vgl", "in the format vgl, expected raw"),
        ("Name = scan.vol", "Name = gone.vol", r"gone\.vol, which is not there"),
        ("Name = scan.vol", "Name =", "names no file of values"),
        ("[file1]", "[file1]\r\n[file2]", "names 2 files of values, expected one"),
        ("BitsPerElement = 16", "BitsPerElement = 12", "values of 12 bits"),
        ("Datatype = unsigned integer", "Datatype = rgb", "16 bits, 'rgb'"),
        ("Size = 32 16 5", "Size = 32 16 6", r"scan\.vol has 5120 bytes, expected 6144"),
        ("Size = 32 16 5", "Size = 32 16", "expected three axes"),
        ("[", "(", "expected a VGI file"),
    ],
)
def test_what_is_no_volume_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = saved(tmp_path / "a.vgi", GREY)
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))
    with pytest.raises(VolumeError, match=message):
        open_volume(path)


def test_values_elsewhere_stay_within_the_roots(tmp_path: Path) -> None:
    root = tmp_path / "scans"
    root.mkdir()
    saved(root / "a.vgi", GREY)
    (root / "scan.vol").rename(tmp_path / "scan.vol")
    (root / "scan.vol").symlink_to(tmp_path / "scan.vol")
    with pytest.raises(VolumeError, match=r"scan\.vol is opened for .*a\.vgi, but leads out of"):
        open_volume(root / "a.vgi")
    (root / "scan.vol").unlink()
    outside = f"Name = {tmp_path / 'scan.vol'}".encode()
    text = (root / "a.vgi").read_bytes().replace(b"Name = scan.vol", outside)
    (root / "a.vgi").write_bytes(text)
    with pytest.raises(VolumeError, match=r"scan\.vol is opened for .*a\.vgi, but leads out of"):
        open_volume(root / "a.vgi")
    with open_volume(root / "a.vgi", ReadOptions(bounds=Bounds((tmp_path,)))) as volume:
        assert_holds(volume, GREY)
