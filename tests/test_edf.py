"""EDF as fabio writes it, and with a volume in one block as the ESRF's programs do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fabio.edfimage import EdfImage

from ml_backend.volumes.opening import ReadOptions, open_volume
from ml_backend.volumes.volume import Bounds, VolumeError
from tests.test_formats import assert_holds, values

GREY = values("u2", (5, 16, 32))
SIZES = {"PSize_1": "1e-06", "PSize_2": "2e-06", "PSize_3": "4e-06"}


def many(path: Path, array: np.ndarray) -> Path:
    image = EdfImage(data=array[0], header=dict(SIZES))
    for page in array[1:]:
        image.append_frame(data=page)
    image.write(str(path))
    return path


def block(array: np.ndarray, *lines: str, length: int = 1024) -> bytes:
    """A header as ID19's reconstructions have it, and ``array`` in one block."""
    kinds = {"uint16": "UnsignedShort", "float32": "FloatValue", "uint8": "UnsignedByte"}
    order = "HighByteFirst" if array.dtype.byteorder == ">" else "LowByteFirst"
    sizes = [f"Dim_{n} = {d} ;" for n, d in enumerate(array.shape[::-1], 1)]
    text = "\n".join(
        [
            "{", "HeaderID = EH:000001:000000:000000 ;", "Image = 1 ;", f"ByteOrder = {order} ;",
            f"DataType = {kinds[array.dtype.name]} ;", *sizes, f"Size = {array.nbytes} ;", *lines,
        ]
    )  # fmt: skip
    return text.encode().ljust(length - 2) + b"}\n" + array.tobytes()


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_many_images_in_a_file(tmp_path: Path, dtype: str) -> None:
    array = values(dtype)
    with open_volume(many(tmp_path / "a.edf", array)) as volume:
        assert_holds(volume, array)
        assert volume.voxel_size == pytest.approx((4e-6, 2e-6, 1e-6))
        assert volume.unit == "m"


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<f4", ">f4"])
def test_a_volume_in_one_block(tmp_path: Path, dtype: str) -> None:
    array = values(dtype)
    (tmp_path / "a.edf").write_bytes(block(array))
    with open_volume(tmp_path / "a.edf") as volume:
        assert_holds(volume, array)
        assert volume.voxel_size is None


def test_volumes_one_behind_the_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.edf").write_bytes(block(GREY) + block(GREY))
    with pytest.raises(VolumeError, match=r"image 0, is uint16 of shape \(5, 16, 32\), expected"):
        open_volume(tmp_path / "a.edf")


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    array = values("f4", (12, 7, 6))
    for z, page in enumerate(array):
        EdfImage(data=page, header=dict(SIZES)).write(str(tmp_path / f"scan_{z}.edf"))
    with open_volume(tmp_path) as volume:
        assert_holds(volume, array)
        assert volume.voxel_size == pytest.approx((4e-6, 2e-6, 1e-6))


def test_images_of_differing_shape_are_refused(tmp_path: Path) -> None:
    image = EdfImage(data=GREY[0])
    image.append_frame(data=GREY[1, :8])
    image.write(str(tmp_path / "a.edf"))
    with pytest.raises(VolumeError, match=r"image 1, is uint16 of shape \(8, 32\), expected"):
        open_volume(tmp_path / "a.edf")


@pytest.mark.parametrize("packed", ["GZIP", "Z", "BZIP2", "BYTE_OFFSET"])
def test_packed_values_are_refused(tmp_path: Path, packed: str) -> None:
    (tmp_path / "a.edf").write_bytes(block(GREY, f"Compression = {packed} ;"))
    with pytest.raises(VolumeError, match=f"packed by {packed}, expected none: `fabio-convert`"):
        open_volume(tmp_path / "a.edf")


@pytest.mark.parametrize("said", ["Unsigned1Bit", "Unsigned12Bit", "FloatIEEE128"])
def test_types_that_numpy_does_not_have_are_refused(tmp_path: Path, said: str) -> None:
    data = block(GREY.astype("u1").repeat(16, 0))
    line = b"DataType = UnsignedByte ;"
    new = f"DataType = {said} ;".encode().ljust(len(line))
    (tmp_path / "a.edf").write_bytes(data.replace(line, new))
    with pytest.raises(VolumeError, match=rf"a\.edf .*({said}|float128)"):
        open_volume(tmp_path / "a.edf")


def test_values_of_an_unsaid_type_are_refused(tmp_path: Path) -> None:
    line = b"DataType = UnsignedShort ;"
    (tmp_path / "a.edf").write_bytes(block(GREY).replace(line, b" " * len(line)))
    with pytest.raises(VolumeError, match=r"does not say the type .*expected DataType: `fabio-con"):
        open_volume(tmp_path / "a.edf")


@pytest.mark.parametrize("lost", [1, 500, 1023])
@pytest.mark.parametrize("kind", ["many", "block", "folder"])
def test_a_file_that_is_cut_off_is_no_volume_of_zeros(tmp_path: Path, lost: int, kind: str) -> None:
    path = tmp_path / "4.edf"
    if kind == "many":
        many(path, GREY)
    elif kind == "block":
        path.write_bytes(block(GREY))
    else:
        for z, page in enumerate(GREY):
            EdfImage(data=page).write(str(tmp_path / f"{z}.edf"))
    data = path.read_bytes()
    path.write_bytes(data[:-lost])
    message = rf"4\.edf has {len(data) - lost} bytes, expected {len(data)}"
    with pytest.raises(VolumeError, match=message):
        open_volume(tmp_path if kind == "folder" else path)


def test_bytes_of_something_else_are_refused(tmp_path: Path) -> None:
    for data in (b"", b"{\n", np.random.default_rng(0).bytes(4096)):
        (tmp_path / "a.edf").write_bytes(data)
        with pytest.raises(VolumeError, match=r"a\.edf .*expected an EDF file"):
            open_volume(tmp_path / "a.edf")


def test_values_elsewhere_stay_within_the_roots(tmp_path: Path) -> None:
    root = tmp_path / "scans"
    root.mkdir()
    (tmp_path / "a.bin").write_bytes(GREY.tobytes())
    where = [
        "EDF_BinaryFileName = a.bin ;", "EDF_BinaryFilePosition = 0 ;",
        f"EDF_BinaryFileSize = {GREY.nbytes} ;",
    ]  # fmt: skip
    (root / "a.edf").write_bytes(block(GREY, *where)[:1024])
    with pytest.raises(VolumeError, match=r"a\.edf has its values in a\.bin, which is not there"):
        open_volume(root / "a.edf")
    (root / "a.bin").symlink_to(tmp_path / "a.bin")
    with pytest.raises(VolumeError, match=r"a\.bin is opened for .*a\.edf, but leads out of"):
        open_volume(root / "a.edf")
    with open_volume(root / "a.edf", ReadOptions(bounds=Bounds((tmp_path,)))) as volume:
        assert_holds(volume, GREY)
