"""MetaImage as SimpleITK (ITK) writes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from ml_backend.volumes.opening import ReadOptions, open_volume, write_volume
from ml_backend.volumes.volume import Bounds, VolumeError, VolumeSpec
from tests.test_formats import assert_holds, values

GREY = values("u2", (5, 16, 32))


def saved(path: Path, array: np.ndarray, packed: bool = False) -> Path:
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing((0.5, 0.25, 2.0))
    SimpleITK.WriteImage(image, str(path), packed)
    return path


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["a.mha", "a.mhd"])
def test_types_packed_and_not(tmp_path: Path, dtype: str, packed: bool, name: str) -> None:
    array = values(dtype)
    saved(tmp_path / name, array, packed)
    with open_volume(tmp_path / name) as volume:
        assert_holds(volume, array)
        assert volume.voxel_size == (2.0, 0.25, 0.5)


def changed(path: Path, *lines: str) -> Path:
    """The header with ``lines`` instead of those of the same names."""
    head, mark, data = path.read_bytes().partition(b"ElementDataFile = LOCAL\n")
    names = [line.partition(" =")[0] for line in lines]
    kept = [one for one in head.decode().splitlines() if one.partition(" =")[0] not in names]
    own = [] if "ElementDataFile" in names else ["ElementDataFile = LOCAL"]
    path.write_bytes("\n".join([*kept, *lines, *own]).encode() + b"\n" + (data if mark else b""))
    return path


@pytest.mark.parametrize("key", ["BinaryDataByteOrderMSB", "ElementByteOrderMSB"])
def test_big_endian(tmp_path: Path, key: str) -> None:
    path = changed(saved(tmp_path / "a.mha", GREY.byteswap()), f"{key} = True")
    with open_volume(path) as volume:
        assert_holds(volume, GREY)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_the_unit_in_either_encoding(tmp_path: Path, encoding: str) -> None:
    path = changed(saved(tmp_path / "a.mha", GREY), "DistanceUnits = ?m")
    path.write_bytes(path.read_bytes().replace(b"= ?m", "= µm".encode(encoding), 1))
    with open_volume(path) as volume:
        assert (volume.voxel_size, volume.unit) == ((2.0, 0.25, 0.5), "µm")


@pytest.mark.parametrize("many", [False, True])
def test_values_in_a_file_whose_name_is_not_english(tmp_path: Path, many: bool) -> None:
    path = changed(saved(tmp_path / "a.mhd", GREY), "ElementDataFile = größe.raw")
    if many:
        changed(path, "ElementDataFile = LIST\ngröße.raw")
    (tmp_path / "a.raw").rename(tmp_path / "größe.raw")
    with open_volume(path) as volume:
        assert_holds(volume, GREY)


def test_a_unit_and_an_unknown_size(tmp_path: Path) -> None:
    path = changed(saved(tmp_path / "a.mha", GREY), "DistanceUnits = um")
    with open_volume(path) as volume:
        assert (volume.voxel_size, volume.unit) == ((2.0, 0.25, 0.5), "µm")
    with open_volume(changed(path, "DistanceUnits = ?", "ElementSpacing = 1 1 1")) as volume:
        assert (volume.voxel_size, volume.unit) == (None, "")


@pytest.mark.parametrize("size", [12, -1])
def test_values_behind_a_header_of_their_own(tmp_path: Path, size: int) -> None:
    (tmp_path / "scan.raw").write_bytes(b"twelve bytes" + GREY.tobytes())
    (tmp_path / "a.mhd").write_text(
        f"NDims = 3\nDimSize = 32 16 5\nHeaderSize = {size}\nElementSize = 1 1 3\n"
        "ElementType = MET_USHORT\nElementDataFile = scan.raw\n"
    )
    with open_volume(tmp_path / "a.mhd") as volume:
        assert_holds(volume, GREY)
        assert volume.voxel_size == (3.0, 1.0, 1.0)


def test_itk_reads_what_is_written(tmp_path: Path) -> None:
    spec = VolumeSpec((5, 16, 32), GREY.dtype, (4.6, 2.3, 1.15), "µm", ("background", "Knochen µ"))
    write_volume(tmp_path / "a.mha", GREY, spec)
    image = SimpleITK.ReadImage(str(tmp_path / "a.mha"))
    assert np.array_equal(SimpleITK.GetArrayFromImage(image), GREY)
    assert image.GetSpacing() == pytest.approx((1.15, 2.3, 4.6))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["ElementNumberOfChannels = 3"], "z, y, x, channel of lengths .*--channel, 0 to 2"),
        (["ElementType = MET_FLOAT_ARRAY"], "MET_FLOAT_ARRAY, expected one number"),
        (["DimSize = 32 16"], r"the axes y, x of lengths \(16, 32\), expected z, y, x"),
        (["DimSize = 32 16 6"], r"has \d+ bytes, expected \d+: uint16 of shape \(6, 16, 32\)"),
        (["BinaryData = False"], "values as text, expected BinaryData = True: `SimpleITK"),
        (["ObjectType = Mesh"], "is a Mesh, expected an image"),
        (["ElementDataFile = gone.raw"], "gone.raw, which is not there"),
        (["ElementDataFile = a%03d.raw 1 5 1"], "a001.raw, which is not there"),
        (["ElementDataFile = a%03d.raw 1 6 1"], "in 6 files, expected as many as the 5 slices"),
        (["ElementDataFile = a%03s.raw 1 5 1"], "expected a pattern as part%03d.raw"),
        (["DimSize = 0 16 5"], "it is empty"),
        (["DimSize = a b c"], r"a\.mha cannot be read .*expected a MetaImage file"),
    ],
)
def test_what_is_no_volume_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    path = changed(saved(tmp_path / "a.mha", GREY), *lines)
    with pytest.raises(VolumeError, match=message):
        open_volume(path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("lost", [1, 40, 500])
def test_a_file_that_is_cut_off_is_refused_by_name(tmp_path: Path, packed: bool, lost: int) -> None:
    path = saved(tmp_path / "a.mha", GREY, packed)
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(VolumeError, match=r"a\.mha .*expected"), open_volume(path) as volume:
        list(volume)


def test_values_elsewhere_stay_within_the_roots(tmp_path: Path) -> None:
    root = tmp_path / "scans"
    root.mkdir()
    saved(root / "a.mhd", GREY)
    (root / "a.raw").rename(tmp_path / "a.raw")
    (root / "a.raw").symlink_to(tmp_path / "a.raw")
    with pytest.raises(VolumeError, match=r"a\.raw is opened for .*a\.mhd, but leads out of"):
        open_volume(root / "a.mhd")
    text = (root / "a.mhd").read_text()
    (root / "b.mhd").write_text(text.replace("a.raw", "../a.raw"))
    with pytest.raises(VolumeError, match=r"a\.raw is opened for .*b\.mhd, but leads out of"):
        open_volume(root / "b.mhd")
    with open_volume(root / "b.mhd", ReadOptions(bounds=Bounds((tmp_path,)))) as volume:
        assert_holds(volume, GREY)


@pytest.mark.parametrize("packed", [False, True])
def test_one_of_the_values_of_a_voxel(tmp_path: Path, packed: bool) -> None:
    array = values("f4", (5, 7, 6, 3))
    image = SimpleITK.GetImageFromArray(array, isVector=True)
    image.SetSpacing((0.5, 0.25, 2.0))
    SimpleITK.WriteImage(image, str(tmp_path / "a.mha"), packed)
    for channel in range(3):
        with open_volume(tmp_path / "a.mha", ReadOptions(channel=channel)) as volume:
            assert_holds(volume, array[..., channel])
            assert volume.voxel_size == (2.0, 0.25, 0.5)
    with pytest.raises(VolumeError, match="has 3 channels, asked for is --channel 3: expected 0"):
        open_volume(tmp_path / "a.mha", ReadOptions(channel=3))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_one_of_several_times(tmp_path: Path, packed: bool, several: bool) -> None:
    array = values("i2", (2, 5, 7, 6, 3) if several else (2, 5, 7, 6))
    image = SimpleITK.GetImageFromArray(array, isVector=several)
    image.SetSpacing((0.5, 0.25, 2.0, 9.0))
    SimpleITK.WriteImage(image, str(tmp_path / "a.mha"), packed)
    channel = 2 if several else None
    with open_volume(tmp_path / "a.mha", ReadOptions(time=1, channel=channel)) as volume:
        assert_holds(volume, array[1, ..., 2] if several else array[1])
        assert volume.voxel_size == (2.0, 0.25, 0.5)
    with pytest.raises(VolumeError, match=r"only one time: choose it with --time, 0 to 1"):
        open_volume(tmp_path / "a.mha", ReadOptions(channel=channel))


@pytest.mark.parametrize(
    ("how", "parts"),
    [("LIST", 6), ("LIST 2", 6), ("LIST 3", 2), ("part%02d.raw 0 5 1", 6)],
)
@pytest.mark.parametrize("size", [0, 7, -1])
def test_values_in_many_files(tmp_path: Path, how: str, parts: int, size: int) -> None:
    array = values("u2", (6, 7, 5))
    names = [f"part{number:02d}.raw" for number in range(parts)]
    for name, part in zip(names, np.array_split(array, parts), strict=True):
        (tmp_path / name).write_bytes(b"skipped" * bool(size) + part.tobytes())
    path = tmp_path / "a.mhd"
    listed = names if how.startswith("LIST") else []
    head = [
        "NDims = 3", "DimSize = 5 7 6", f"HeaderSize = {size}", "ElementType = MET_USHORT",
        f"ElementDataFile = {how}", *listed,
    ]  # fmt: skip
    path.write_text("\n".join(head) + "\n")
    if parts == 6 and size == 0:
        assert np.array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))), array)
    with open_volume(path) as volume:
        assert_holds(volume, array)
    path.write_text("CompressedData = True\n" + path.read_text())
    with pytest.raises(VolumeError, match=rf"packed values in {parts} files, expected one"):
        open_volume(path)
    path.write_text(path.read_text().replace("CompressedData = True\n", ""))
    (tmp_path / names[-1]).rename(tmp_path / "gone")
    with pytest.raises(VolumeError, match=rf"values in {names[-1]}, which is not there"):
        open_volume(path)
