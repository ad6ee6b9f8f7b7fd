"""Headers that claim more than a volume may have: refused before memory or disk is taken for it."""

from __future__ import annotations

import gzip
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from ml_backend.volumes.limits import CHUNK_BYTES, HEADER_BYTES, LONGEST_AXIS, UNPACKED_BYTES
from ml_backend.volumes.opening import ReadOptions, open_volume
from ml_backend.volumes.volume import VolumeError
from tests.test_formats import assert_holds, values

HUGE = (4, 30_000, 30_000)
GREY = values("u1", (6, 20, 24))


def peak() -> int:
    """Bytes that this process has taken at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where .nii.gz files are unpacked."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def nifti_header(shape: tuple[int, int, int], offset: int = 352) -> bytes:
    header = nibabel.Nifti2Header() if max(shape) > 32_767 else nibabel.Nifti1Header()
    header.set_data_dtype("u1")
    header.set_data_shape(shape[::-1])
    header["vox_offset"] = offset
    return header.binaryblock + bytes(4)


def hole(path: Path, header: bytes) -> Path:
    """A file as long as `HUGE` asks for, which takes no place on the disk."""
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + int(np.prod(HUGE)))
    return path


def numpy_header() -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {HUGE}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def hdf5(folder: Path) -> Path:
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("data", HUGE, "u1", chunks=(1, 1000, 1000))
    return folder / "a.h5"


def zarr_array(folder: Path) -> Path:
    zarr.create_array(folder / "a.zarr", shape=HUGE, dtype="u1", chunks=(1, 1000, 1000))
    return folder / "a.zarr"


def tiff(folder: Path) -> Path:
    """A page of a few bytes that says it is compressed."""
    tifffile.imwrite(folder / "a.tif", GREY, metadata=None, compression="zlib")
    with tifffile.TiffFile(folder / "a.tif", mode="r+b") as tif:
        for page in list(tif.pages):
            for name in ("ImageLength", "ImageWidth", "RowsPerStrip"):
                page.tags[name].overwrite(30_000)
    return folder / "a.tif"


def packed(folder: Path) -> Path:
    (folder / "a.nii.gz").write_bytes(gzip.compress(nifti_header(HUGE)))
    return folder / "a.nii.gz"


WITHOUT_DATA: dict[str, Callable[[Path], Path]] = {
    "hdf5": hdf5,
    "zarr": zarr_array,
    "tiff": tiff,
    "raw": lambda folder: hole(folder / "a.raw", b""),
    "numpy": lambda folder: hole(folder / "a.npy", numpy_header()),
    "nifti": lambda folder: hole(folder / "a.nii", nifti_header(HUGE)),
    "packed nifti": packed,
}


@pytest.mark.parametrize("kind", WITHOUT_DATA)
def test_a_slice_of_30000_by_30000_takes_no_memory(
    tmp_path: Path, scratch: Path, kind: str
) -> None:
    path = WITHOUT_DATA[kind](tmp_path)
    before = peak()
    options = ReadOptions(shape=HUGE, dtype="u1")
    with open_volume(path, options) as volume, pytest.raises(VolumeError) as caught:
        volume[0]
    claimed = f"{path} has slices of (30000, 30000) voxels along z, expected at most 268435456"
    assert claimed in str(caught.value)
    assert peak() - before < 128 << 20
    assert list(scratch.iterdir()) == []


def test_an_image_of_30000_by_30000_takes_no_memory(tmp_path: Path) -> None:
    head = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(100))
    png = b"\x89PNG\r\n\x1a\n"
    for chunk in (head, data):
        png += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "a_png").mkdir()
    (tmp_path / "a_png" / "0000.png").write_bytes(png)
    before = peak()
    with pytest.raises(VolumeError, match=r"0000\.png cannot be read .*900000000 pixels"):
        open_volume(tmp_path / "a_png")
    assert peak() - before < 64 << 20


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_an_image_of_another_size_in_a_folder_is_not_decoded(tmp_path: Path, ending: str) -> None:
    """Its header says all that is needed: that its pixels are broken is not found out."""
    for z in range(3):
        shape = (200, 240) if z == 1 else (20, 24)
        path = tmp_path / f"{z}{ending}"
        if ending == ".png":
            Image.fromarray(np.zeros(shape, "u1")).save(path)
        else:
            tifffile.imwrite(path, np.zeros(shape, "u1"), compression="zlib")
    broken = tmp_path / f"1{ending}"
    content = bytearray(broken.read_bytes())
    start = content.index(b"\x78", 40)  # of what is compressed
    content[start + 2 : start + 12] = bytes(10)
    broken.write_bytes(content)
    volume = open_volume(tmp_path)
    with pytest.raises(VolumeError, match=rf"1{ending} is uint8 of shape \(200, 240\), expected"):
        volume[1]


class TestChunks:
    """A part of a chunk costs the whole of it."""

    def refused(self, path: Path, size: int) -> None:
        with pytest.raises(
            VolumeError, match=rf"{size} bytes each, expected at most {CHUNK_BYTES}"
        ):
            open_volume(path)[0]

    def test_of_hdf5(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            shape = (3000, 1000, 1000)
            file.create_dataset("data", shape, "u1", chunks=shape, compression="gzip")
        self.refused(tmp_path / "a.h5", 3_000_000_000)

    def test_of_zarr(self, tmp_path: Path) -> None:
        shape = (3000, 1000, 1000)
        zarr.create_array(tmp_path / "a.zarr", shape=shape, dtype="u1", chunks=shape)
        self.refused(tmp_path / "a.zarr", 3_000_000_000)

    def test_of_tiff(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, GREY, tile=(32, 32), compression="zlib", metadata=None)
        with tifffile.TiffFile(path, mode="r+b") as tif:
            for page in list(tif.pages):
                page.tags["TileWidth"].overwrite(65_520)
                page.tags["TileLength"].overwrite(65_520)
        self.refused(path, 65_520**2)


def test_an_axis_has_an_end(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", (2**40, 8, 8), "u1", chunks=(1, 8, 8))
    with pytest.raises(VolumeError, match=rf"expected at most {LONGEST_AXIS} slices along an axis"):
        open_volume(tmp_path / "a.h5")


def test_coordinates_of_another_length_are_not_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["g/data"] = GREY
        file["g"].attrs["axes"] = ["z", "y", "x"]
        for name in "zyx":
            file.create_dataset(f"g/{name}", (2**38,), "f8", chunks=(1024,)).attrs["units"] = "um"
    with open_volume(tmp_path / "a.h5") as volume:
        assert volume.voxel_size is None
        assert_holds(volume, GREY)


class TestPackedNifti:
    def test_what_is_packed_behind_the_values_is_left_packed(
        self, tmp_path: Path, scratch: Path
    ) -> None:
        content = nifti_header(GREY.shape) + GREY.tobytes()
        with gzip.open(tmp_path / "a.nii.gz", "wb", 1) as file:
            file.write(content)
            for _ in range(64):
                file.write(bytes(2**20))
        with open_volume(tmp_path / "a.nii.gz") as volume:
            assert_holds(volume, GREY)
            (unpacked,) = scratch.rglob("*.nii")
            assert unpacked.stat().st_size == len(content)

    def test_a_few_bytes_do_not_become_gigabytes(self, tmp_path: Path, scratch: Path) -> None:
        shape = (4000, 1000, 1000)
        (tmp_path / "a.nii.gz").write_bytes(gzip.compress(nifti_header(shape) + bytes(2**20)))
        with (
            open_volume(tmp_path / "a.nii.gz") as volume,
            pytest.raises(VolumeError, match=r"bytes, which never unpack to the 4000000352 that"),
        ):
            volume[0]
        assert list(scratch.iterdir()) == []

    def test_what_is_too_large_is_to_be_unpacked_by_a_person(
        self, tmp_path: Path, scratch: Path
    ) -> None:
        shape = (20_000, 1000, 1000)
        (tmp_path / "a.nii.gz").write_bytes(gzip.compress(nifti_header(shape)))
        with (
            open_volume(tmp_path / "a.nii.gz") as volume,
            pytest.raises(VolumeError, match=rf"expected at most {UNPACKED_BYTES}: gunzip it"),
        ):
            volume[0]
        assert list(scratch.iterdir()) == []

    @pytest.mark.parametrize("size", [200 << 20, -1])
    def test_an_extension_is_no_longer_than_what_is_before_the_values(
        self, tmp_path: Path, size: int
    ) -> None:
        header = nifti_header(GREY.shape, 384)[:-4] + bytes((1, 0, 0, 0))
        with gzip.open(tmp_path / "a.nii.gz", "wb", 1) as file:
            file.write(header + struct.pack("<ii", size, 6))
            for _ in range(200):
                file.write(bytes(2**20))
        before = peak()
        with pytest.raises(VolumeError, match=r"a\.nii\.gz cannot be read"):
            open_volume(tmp_path / "a.nii.gz")
        assert peak() - before < 64 << 20

    def test_values_begin_early(self, tmp_path: Path) -> None:
        header = nifti_header(GREY.shape, 2**30)
        (tmp_path / "a.nii").write_bytes(header + GREY.tobytes())
        with pytest.raises(VolumeError, match=rf"within the first {HEADER_BYTES}"):
            open_volume(tmp_path / "a.nii")
