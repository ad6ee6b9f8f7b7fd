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


def test_values_as_text_are_refused_for_that(tmp_path: Path) -> None:
    """pynrrd says no byte order of them."""
    nrrd.write(str(tmp_path / "a.nrrd"), np.ones((4, 5, 6), "u2"), {"encoding": "ascii"})
    with pytest.raises(VolumeError, match="has the encoding ascii, expected raw, gzip or bzip2"):
        open_volume(tmp_path / "a.nrrd")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize("field", ["units", "space units"])
def test_the_unit_in_either_encoding(tmp_path: Path, encoding: str, field: str) -> None:
    """pynrrd drops what is not ASCII: metres were read for micrometres."""
    lines = [
        "NRRD0005", "type: uint16", "dimension: 3", "sizes: 32 16 5", "encoding: raw",
        "endian: little", f'{field}: "µm" "µm" "µm"',
    ]  # fmt: skip
    lines += (
        ["spacings: 1.5 2.5 4"]
        if field == "units"
        else ["space dimension: 3", "space directions: (1.5,0,0) (0,2.5,0) (0,0,4)"]
    )
    text = "\n".join(lines) + "\n\n"
    (tmp_path / "a.nrrd").write_bytes(text.encode(encoding) + GREY.astype("<u2").tobytes())
    with open_volume(tmp_path / "a.nrrd") as volume:
        assert_holds(volume, GREY)
        assert (volume.voxel_size, volume.unit) == ((4.0, 2.5, 1.5), "µm")


def test_values_in_a_file_whose_name_is_not_english(tmp_path: Path) -> None:
    saved(tmp_path / "a.nhdr", GREY, {"encoding": "raw"})
    (tmp_path / "a.raw").rename(tmp_path / "größe.raw")
    text = (tmp_path / "a.nhdr").read_text().replace("a.raw", "größe.raw")
    (tmp_path / "a.nhdr").write_text(text, encoding="utf-8")
    with open_volume(tmp_path / "a.nhdr") as volume:
        assert_holds(volume, GREY)


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
        (
            "kinds: RGB-color domain domain",
            r"the axes \?, \?, channel \(RGB-color\) .*expected z, y, x",
        ),
        ("sizes: 32 16 6", r"a\.nrrd has \d+ bytes, expected \d+: uint16 of shape \(6, 16, 32\)"),
        ("dimension: 4\nsizes: 2 16 16 5", r"shape \(5, 16, 16, 2\), expected three axes"),
        ("endian: medium", "medium endian"),
        ("data file: gone.raw", "gone.raw, which is not there"),
        ("data file: part%03d.raw 1 5 1", "part001.raw, which is not there"),
        ("data file: part%03d.raw 1 4 1", "in 4 files, expected as many as the 5 slices"),
        ("data file: part%03s.raw 1 5 1", "expected a pattern as part%03d.raw and its first"),
        ("data file: part%999999999d.raw 1 5 1", "expected a pattern"),
        ("data file: part%d.raw 1 5 0", "expected a pattern"),
        ("data file: part%d.raw 1 9999999 1", "in 9999999 files, expected one a slice at most"),
        ("data file: part%03d.raw", "expected a pattern"),
        ("data file: LIST", "in 0 files, expected as many as the 5 slices"),
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


@pytest.mark.parametrize("packed", [False, True])
def test_one_of_the_values_of_a_voxel_as_itk_writes_them(tmp_path: Path, packed: bool) -> None:
    array = values("f4", (5, 7, 6, 3))
    path = tmp_path / "a.nrrd"
    image = SimpleITK.GetImageFromArray(array, isVector=True)
    image.SetSpacing((0.5, 0.25, 2.0))
    SimpleITK.WriteImage(image, str(path), packed)
    for channel in range(3):
        with open_volume(path, ReadOptions(channel=channel)) as volume:
            assert_holds(volume, array[..., channel])
            assert volume.voxel_size == (2.0, 0.25, 0.5)
    with pytest.raises(VolumeError, match=r"channel \(\w+\) .*choose it with --channel, 0 to 2"):
        open_volume(path)
    with pytest.raises(VolumeError, match="has 3 channels, asked for is --channel 3: expected 0"):
        open_volume(path, ReadOptions(channel=3))


@pytest.mark.parametrize(
    ("kind", "label", "option"),
    [("time", "", "time"), ("list", "frame", "time"), ("list", "", "channel"),
     ("domain", "channel", "channel"), ("RGB-color", "", "channel")],
)  # fmt: skip
@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_one_of_several_wherever_their_axis_is(
    tmp_path: Path, kind: str, label: str, option: str, at: int, encoding: str
) -> None:
    """As 3D Slicer's sequences (`list`, labelled frame, the fastest axis) and others have it."""
    array = values("u2", (5, 7, 6, 3))
    stored = np.moveaxis(array, 3, at)
    kinds, labels = ["domain"] * 4, ["", "", "", ""]
    kinds[3 - at], labels[3 - at] = kind, label
    header: dict[str, Any] = {"encoding": encoding, "kinds": kinds}
    if label:
        header["labels"] = labels
    path = saved(tmp_path / "a.nrrd", stored, header)
    with open_volume(path, ReadOptions(**{option: 1})) as volume:
        assert_holds(volume, array[..., 1])
    with pytest.raises(VolumeError, match=rf"choose it with --{option}, 0 to 2"):
        open_volume(path)


def test_a_channel_and_a_time(tmp_path: Path) -> None:
    array = values("u2", (2, 5, 7, 6, 3))
    header = {"kinds": ["vector", "space", "space", "space", "time"], "encoding": "raw"}
    path = saved(tmp_path / "a.nrrd", array, header)
    with open_volume(path, ReadOptions(channel=2, time=1)) as volume:
        assert_holds(volume, array[1, ..., 2])
    with pytest.raises(VolumeError, match="choose it with --time, 0 to 1"):
        open_volume(path, ReadOptions(channel=2))


def in_files(folder: Path, how: str, array: np.ndarray, parts: int, *lines: str) -> Path:
    """A header, and ``array`` in files behind seven bytes that are none of it."""
    folder.mkdir(exist_ok=True)
    names = [f"part{number:02d}.raw" for number in range(parts)]
    for name, part in zip(names, np.array_split(array, parts), strict=True):
        (folder / name).write_bytes(b"skipped" + part.tobytes())
    sizes = " ".join(map(str, array.shape[::-1]))
    head = [
        "NRRD0005", "type: uint16", f"dimension: {array.ndim}", f"sizes: {sizes}",
        "endian: little", "encoding: raw", "byte skip: 7", *lines, f"data file: {how}",
    ]  # fmt: skip
    listed = names if how.startswith("LIST") else []
    (folder / "a.nhdr").write_text("\n".join([*head, *listed]) + "\n")
    return folder / "a.nhdr"


@pytest.mark.parametrize(
    ("how", "parts"),
    [("LIST", 6), ("LIST 2", 6), ("LIST 3", 2), ("part%02d.raw 0 5 1", 6),
     ("part%02d.raw 0 2 1 3", 3), ("./part%02d.raw 0 5 1", 6)],
)  # fmt: skip
def test_values_in_many_files(tmp_path: Path, how: str, parts: int) -> None:
    array = values("u2", (6, 7, 6))
    path = in_files(tmp_path, how, array, parts)
    assert np.array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))), array)
    with open_volume(path) as volume:
        assert_holds(volume, array)


def test_a_channel_of_values_in_many_files(tmp_path: Path) -> None:
    array = values("u2", (6, 7, 6, 3))
    path = in_files(tmp_path, "LIST 3", array, 6, "kinds: vector space space space")
    with open_volume(path, ReadOptions(channel=1)) as volume:
        assert_holds(volume, array[..., 1])
    array = values("u2", (2, 6, 7, 6))
    path = in_files(tmp_path / "b", "LIST", array, 2, "kinds: space space space time")
    with open_volume(path, ReadOptions(time=1)) as volume:
        assert_holds(volume, array[1])
    path = in_files(tmp_path / "c", "LIST", np.moveaxis(array, 0, 2), 6, "labels: x t y z")
    with open_volume(path, ReadOptions(time=1)) as volume:
        assert_holds(volume, array[1])


def test_files_of_a_list_are_all_looked_at(tmp_path: Path) -> None:
    path = in_files(tmp_path / "scans", "LIST", values("u2", (6, 7, 6)), 6)
    last = path.with_name("part05.raw")
    whole = last.read_bytes()
    last.write_bytes(whole[:-1])
    with pytest.raises(VolumeError, match=r"part05\.raw has 90 bytes, expected 91"):
        open_volume(path)
    last.rename(tmp_path / "part05.raw")
    with pytest.raises(VolumeError, match=r"values in part05\.raw, which is not there"):
        open_volume(path)
    (tmp_path / "part05.raw").write_bytes(whole)
    last.symlink_to(tmp_path / "part05.raw")
    with pytest.raises(VolumeError, match=r"part05\.raw is opened for .*a\.nhdr, but leads out"):
        open_volume(path)
    last.unlink()
    path.write_text(path.read_text().replace("encoding: raw", "encoding: gzip"))
    with pytest.raises(VolumeError, match=r"packed by gzip in 6 files, expected one: `unu save"):
        open_volume(path)
