"""NRRD as pynrrd and SimpleITK (ITK, 3D Slicer) write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest
import SimpleITK

from ml_backend.volumes.opening import ReadOptions, open_volume, write_volume
from ml_backend.volumes.volume import Bounds, VolumeError, VolumeSpec
from tests.test_formats import assert_holds, values

GREY = values("u2", (5, 16, 32))


def saved(path: Path, array: np.ndarray, header: dict[str, Any] | None = None, **form: Any) -> Path:
    nrrd.write(str(path), np.ascontiguousarray(array), header, index_order="C", **form)
    return path


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr"])
def test_types_and_encodings(tmp_path: Path, dtype: str, encoding: str, name: str) -> None:
    array = values(dtype)
    header = {"encoding": encoding, "spacings": [1.5, 2.5, 4.25], "units": ["mm", "mm", "mm"]}
    saved(tmp_path / name, array, header)
    with open_volume(tmp_path / name) as volume:
        assert_holds(volume, array)
        assert (volume.voxel_size, volume.unit) == ((4.25, 2.5, 1.5), "mm")


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_big_endian(tmp_path: Path, encoding: str) -> None:
    array = GREY.astype(">u2")
    saved(tmp_path / "a.nrrd", array, {"encoding": encoding})
    assert b"endian: big" in (tmp_path / "a.nrrd").read_bytes()
    with open_volume(tmp_path / "a.nrrd") as volume:
        assert_holds(volume, array)
        assert volume.voxel_size is None


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr"])
def test_itk_says_the_spacing_as_directions(tmp_path: Path, packed: bool, name: str) -> None:
    image = SimpleITK.GetImageFromArray(GREY)
    image.SetSpacing((0.5, 0.25, 2.0))
    image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
    SimpleITK.WriteImage(image, str(tmp_path / name), packed)
    with open_volume(tmp_path / name, ReadOptions()) as volume:  # as it is stored
        assert_holds(volume, GREY)
        assert volume.voxel_size == (2.0, 0.25, 0.5)


def test_fields_of_older_files(tmp_path: Path) -> None:
    """What teem's own tools write: no unit, skipped lines and bytes, values that end the file."""
    head = (
        "NRRD0004\n# Complete NRRD file format specification at:\n# …\ntype: unsigned short\n"
        "dimension: 4\nsizes: 1 32 16 5\nthickness: NaN NaN NaN 3\nendian: little\n"
        'labels: "c" "x" "y" "z"\nkinds: stub space space space\nencoding: raw\n'
        "spacings: NaN 1.5 1.5 2\nkey:=a value: with colons\n"
    )
    (tmp_path / "a.nhdr").write_text(f"{head}line skip: 2\nbyte skip: 3\ndata file: values.bin\n")
    (tmp_path / "values.bin").write_bytes(b"first\nsecond\n123" + GREY.tobytes())
    with open_volume(tmp_path / "a.nhdr") as volume:
        assert_holds(volume, GREY)
        assert (volume.voxel_size, volume.unit) == ((2.0, 1.5, 1.5), "")
    (tmp_path / "b.nhdr").write_text(f"{head}byte skip: -1\ndata file: values.bin\n")
    with open_volume(tmp_path / "b.nhdr") as volume:
        assert_holds(volume, GREY)


def test_others_read_what_is_written(tmp_path: Path) -> None:
    spec = VolumeSpec((5, 16, 32), GREY.dtype, (4.6, 2.3, 1.15), "µm", ("background", "Knochen µ"))
    write_volume(tmp_path / "a.nrrd", GREY, spec)
    found, header = nrrd.read(str(tmp_path / "a.nrrd"), index_order="C")
    assert np.array_equal(found, GREY)
    assert header["space units"] == ["um", "um", "um"]
    image = SimpleITK.ReadImage(str(tmp_path / "a.nrrd"))
    assert np.array_equal(SimpleITK.GetArrayFromImage(image), GREY)
    assert image.GetSpacing() == pytest.approx((1.15, 2.3, 4.6))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("encoding: hex", "the encoding hex, expected raw, gzip or bzip2: `unu save"),
        ("encoding: ascii", "the encoding ascii, expected raw"),
        ("type: block", "values of type 'block'"),
        ("kinds: RGB-color domain domain", "axes of the kinds rgb-color, domain, domain"),
        ("sizes: 32 16 6", r"a\.nrrd has \d+ bytes, expected \d+: uint16 of shape \(6, 16, 32\)"),
        ("dimension: 4\nsizes: 2 16 16 5", r"shape \(5, 16, 16, 2\), expected three axes"),
        ("endian: medium", "medium endian"),
        ("data file: gone.raw", "gone.raw, which is not there"),
        ("data file: part%03d.raw 1 5 1", "values in many files"),
        ("data file: LIST", "values in many files"),
    ],
)
def test_what_is_no_volume_is_refused(tmp_path: Path, line: str, message: str) -> None:
    path = saved(tmp_path / "a.nrrd", GREY, {"encoding": "raw", "kinds": ["domain"] * 3})
    head, _, data = path.read_bytes().partition(b"\n\n")
    new = {one.partition(":")[0] for one in line.split("\n")}
    kept = [one for one in head.decode().split("\n") if one.partition(":")[0] not in new]
    path.write_bytes("\n".join([*kept, line]).encode() + b"\n\n" + data)
    with pytest.raises(VolumeError, match=message):
        open_volume(path)


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
@pytest.mark.parametrize("lost", [1, 40, 500])
def test_a_file_that_is_cut_off_is_refused_by_name(
    tmp_path: Path, encoding: str, lost: int
) -> None:
    path = saved(tmp_path / "a.nrrd", GREY, {"encoding": encoding})
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(VolumeError, match=r"a\.nrrd .*expected"), open_volume(path) as volume:
        list(volume)


def test_values_elsewhere_stay_within_the_roots(tmp_path: Path) -> None:
    root = tmp_path / "scans"
    root.mkdir()
    saved(root / "a.nhdr", GREY, {"encoding": "raw"})
    (root / "a.raw").rename(tmp_path / "a.raw")
    (root / "a.raw").symlink_to(tmp_path / "a.raw")
    with pytest.raises(VolumeError, match=r"a\.raw is opened for .*a\.nhdr, but leads out of"):
        open_volume(root / "a.nhdr")
    (root / "b.nhdr").write_text(
        (root / "a.nhdr").read_text().replace("a.raw", str(tmp_path / "a.raw"))
    )
    with pytest.raises(VolumeError, match=r"a\.raw is opened for .*b\.nhdr, but leads out of"):
        open_volume(root / "b.nhdr")
    with open_volume(root / "b.nhdr", ReadOptions(bounds=Bounds((tmp_path,)))) as volume:
        assert_holds(volume, GREY)


@pytest.mark.parametrize("note", ["[1]", "7", "[" * 100_000], ids=["list", "number", "deep"])
def test_a_note_that_is_none_of_ours_says_nothing(tmp_path: Path, note: str) -> None:
    path = tmp_path / "a.nrrd"
    head = (
        f"NRRD0005\ntype: uint8\ndimension: 3\nsizes: 2 2 2\nencoding: raw\nnextslice:={note}\n\n"
    )
    path.write_bytes(head.encode("ascii") + bytes(range(8)))
    with open_volume(path) as volume:
        assert volume.classes is None
        assert volume[0].tolist() == [[0, 1], [2, 3]]
