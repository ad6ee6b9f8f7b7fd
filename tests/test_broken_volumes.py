"""Broken files give one VolumeError that names them, and a slice costs a slice."""

from __future__ import annotations

import gc
import gzip
import json
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import zarr

from ml_backend.volumes.opening import ReadOptions, open_volume
from ml_backend.volumes.volume import VolumeError
from tests.test_formats import NAMES, assert_holds, values, write

ROOT = Path(__file__).resolve().parents[1]
GREY = values("u2", (6, 20, 24))

Make = Callable[[Path], Path]
"""Writes a volume of `GREY` into a folder and says which file of it is to be broken."""


def write_zarr(path: Path, array: np.ndarray, fill: int | None) -> None:
    """Zarr v2, a chunk a slice."""
    form = {"chunks": (1, *array.shape[1:]), "dtype": array.dtype, "fill_value": fill}
    zarr.create_array(path, shape=array.shape, zarr_format=2, compressors=None, **form)[:] = array


def ours(name: str) -> Make:
    def make(folder: Path) -> Path:
        write(folder / name, GREY)
        path = folder / name
        if path.is_dir():  # a chunk or an image, not what describes them
            return sorted(p for p in path.rglob("*") if p.is_file() and p.suffix != ".json")[-1]
        return path

    return make


def theirs(**form: object) -> Make:
    def make(folder: Path) -> Path:
        tifffile.imwrite(folder / "a.tif", GREY, photometric="minisblack", **form)
        return folder / "a.tif"

    return make


MAKES = {name: ours(name) for name in NAMES} | {
    "lzw": theirs(compression="lzw", predictor=True),
    "tiles": theirs(tile=(16, 16), compression="zlib", metadata=None),
    "imagej": theirs(imagej=True),
    "shaped": theirs(),
    "page by page": theirs(metadata=None),
}


def opened(folder: Path) -> Path:
    """The volume in the folder, beside its sidecar."""
    (path,) = (path for path in folder.iterdir() if not path.name.endswith(".json"))
    return path


def read_all(path: Path) -> np.ndarray:
    with open_volume(path) as volume:
        for axis in "yx":
            assert volume.along(axis)[0].shape == volume.along(axis).slice_shape
        return np.stack(list(volume))


@pytest.mark.parametrize("kind", MAKES)
class TestCut:
    @pytest.mark.parametrize("part", [0.0, 0.001, 0.02, 0.5])
    def test_a_file_cut_off_is_refused(self, tmp_path: Path, kind: str, part: float) -> None:
        broken = MAKES[kind](tmp_path)
        os.truncate(broken, int(broken.stat().st_size * part))
        with pytest.raises(VolumeError) as caught:
            read_all(opened(tmp_path))
        assert str(opened(tmp_path)) in str(caught.value)
        assert "expected" in str(caught.value)

    def test_no_cut_loses_values_silently(self, tmp_path: Path, kind: str) -> None:
        broken = MAKES[kind](tmp_path)
        data = broken.read_bytes()
        for cut in (1, 2, 5, 9, 30, 100, 333, 700):
            broken.write_bytes(data[: max(0, len(data) - cut)])
            try:
                found = read_all(opened(tmp_path))
            except VolumeError:
                continue
            # the end of a TIFF or PNG may hold no values
            assert np.array_equal(found, GREY), cut

    def test_bytes_that_changed_raise_nothing_else(self, tmp_path: Path, kind: str) -> None:
        broken = MAKES[kind](tmp_path)
        data = broken.read_bytes()
        rng = random.Random(4)
        for _ in range(15):
            changed = bytearray(data)
            for _ in range(3):
                changed[rng.randrange(min(len(data), 600))] = rng.choice(
                    (0, 255, rng.randrange(256))
                )
            broken.write_bytes(changed)
            with suppress(VolumeError):
                read_all(opened(tmp_path))


class TestLies:
    """Headers that say something else than the file holds."""

    @pytest.mark.parametrize(("shape", "size"), [((7, 20, 24), 6848), ((5, 20, 24), 4928)])
    def test_numpy_says_both_sizes(self, tmp_path: Path, shape: tuple, size: int) -> None:
        np.save(tmp_path / "a.npy", GREY)
        data = (tmp_path / "a.npy").read_bytes()
        lie = data.replace(b"(6, 20, 24)", str(shape).encode())
        (tmp_path / "a.npy").write_bytes(lie)
        with pytest.raises(VolumeError, match=rf"has 5888 bytes, expected {size}: uint16 of shape"):
            open_volume(tmp_path / "a.npy")

    def test_numpy_shapes_that_overflow(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", GREY)
        data = (tmp_path / "a.npy").read_bytes()
        place = data.index(b"(6, 20, 24)")
        lie = b"(6, 2000000000, 2400000000), }"
        (tmp_path / "a.npy").write_bytes(data[:place] + lie + data[place + len(lie) :])
        with pytest.raises(VolumeError, match="has 5888 bytes, expected 57600000000000000128"):
            open_volume(tmp_path / "a.npy")

    def test_nifti_says_both_sizes(self, tmp_path: Path) -> None:
        write(tmp_path / "a.nii", GREY)
        found = (tmp_path / "a.nii").stat().st_size
        with (tmp_path / "a.nii").open("r+b") as file:
            file.seek(46)
            file.write(struct.pack("<h", 600))
        with pytest.raises(VolumeError, match=rf"has {found} bytes, expected 57\d\d\d\d: uint16"):
            open_volume(tmp_path / "a.nii")

    def test_packed_nifti_says_both_sizes(self, tmp_path: Path) -> None:
        write(tmp_path / "a.nii.gz", GREY)
        content = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
        (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content[:-7]))
        with pytest.raises(VolumeError, match=rf"unpacks to {len(content) - 7} bytes, expected"):
            open_volume(tmp_path / "a.nii.gz")[0]

    def test_packed_nifti_leaves_nothing_when_it_is_broken(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path / "a.nii.gz", GREY)
        packed = (tmp_path / "a.nii.gz").read_bytes()
        (tmp_path / "a.nii.gz").write_bytes(packed[: len(packed) // 2])
        (tmp_path / "unpacked").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "unpacked"))
        volume = open_volume(tmp_path / "a.nii.gz")
        for _ in range(3):
            with pytest.raises(VolumeError):
                volume[0]
        assert list((tmp_path / "unpacked").iterdir()) == []

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (ReadOptions(shape=(6, 20, 24), dtype="u1"), "has 5760 bytes, expected 2880"),
            (ReadOptions(shape=(6, 20, 25), dtype="u2"), "has 5760 bytes, expected 6000"),
            (ReadOptions(shape=(6, 20, 24), dtype="u2", offset=1), "expected 5761"),
            (ReadOptions(shape=(6, 20, 24), dtype="u2", offset=-2), "offset is -2"),
            (ReadOptions(shape=(0, 20, 24), dtype="u2"), "all above 0"),
            (ReadOptions(shape=(6, 20, 24)), "the dtype is None"),
            (ReadOptions(shape=(6, 20, 24), dtype="grey"), "the dtype is 'grey'"),
            (ReadOptions(shape=(6, 20, 24), dtype="c8"), "one number a voxel"),
            (ReadOptions(), r"says nothing of its shape.*a\.raw\.json"),
        ],
    )
    def test_raw_needs_what_fits(self, tmp_path: Path, options: ReadOptions, message: str) -> None:
        (tmp_path / "a.raw").write_bytes(GREY.tobytes())
        with pytest.raises(VolumeError, match=message):
            open_volume(tmp_path / "a.raw", options)

    @pytest.mark.parametrize(
        ("sidecar", "message"),
        [
            ("{", "expected JSON"),
            ("[]", "no JSON object"),
            ('{"shape": [6, 20], "dtype": "u2"}', "shape is"),
            ('{"shape": [6, 20, "24"], "dtype": "u2"}', "shape is"),
            ('{"shape": [6, 20, 24], "dtype": "u2", "offset": "0"}', "offset is '0'"),
            pytest.param(
                "[" * 100_000, r"a\.raw\.json cannot be read .*expected JSON", id="nested"
            ),
            pytest.param("1" * (1 + (16 << 20)), "more than the 16777216 bytes", id="long"),
            ('{"shape": [6, 20, 24], "dtype": "(2,"}', r"dtype is '\(2,'"),
            ('{"shape": [6, 20, 24], "dtype": "\\ud800"}', r"dtype is '\\ud800'"),
            ('{"shape": [6, 20, 24], "dtype": "(99999999999,)u2"}', "dtype is"),
            ('{"shape": [6, 20, 24], "dtype": "u2", "voxel_size": [1, 2]}', "voxel_size"),
            (f'{{"shape": [6, 20, 24], "dtype": "u2", "voxel_size": [1, 2, {"9" * 400}]}}', "size"),
            ('{"shape": [6, 20, 24], "dtype": "u2", "classes": {"0": "a"}}', "classes"),
        ],
    )
    def test_sidecars_are_checked(self, tmp_path: Path, sidecar: str, message: str) -> None:
        (tmp_path / "a.raw").write_bytes(GREY.tobytes())
        (tmp_path / "a.raw.json").write_text(sidecar)
        with pytest.raises(VolumeError, match=message):
            open_volume(tmp_path / "a.raw")

    @pytest.mark.parametrize("kind", ["ImageJ", "OME"])
    def test_a_description_of_more_pages_than_there_are(self, tmp_path: Path, kind: str) -> None:
        if kind == "OME":
            tifffile.imwrite(tmp_path / "a.tif", GREY, ome=True, metadata={"axes": "ZYX"})
            before, lie = b'SizeZ="6"', b'SizeZ="9"'
        else:
            tifffile.imwrite(tmp_path / "a.tif", GREY, imagej=True)
            before, lie = b"images=6", b"images=9"
        data = (tmp_path / "a.tif").read_bytes()
        assert before in data
        (tmp_path / "a.tif").write_bytes(data.replace(before, lie))
        with pytest.raises(VolumeError, match=f"has 6 pages, expected 9 as its {kind} description"):
            open_volume(tmp_path / "a.tif")

    def test_many_images_behind_one_page_must_be_there(self, tmp_path: Path) -> None:
        text = "ImageJ=1.53t\nimages=500\nslices=500\nloop=false\n"
        tifffile.imwrite(tmp_path / "a.tif", GREY[0], description=text, metadata=None)
        with pytest.raises(VolumeError, match=r"bytes, expected 480\d\d\d: uint16 of shape \(500"):
            open_volume(tmp_path / "a.tif")

    def test_a_page_of_another_size_inside_a_stack(self, tmp_path: Path) -> None:
        with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
            for z, page in enumerate(GREY):
                tif.write(page[: 20 - (z == 3)], metadata=None)
        volume = open_volume(tmp_path / "a.tif")
        assert np.array_equal(volume[2], GREY[2])
        for one, index in ((volume, 3), (volume.along("x"), 0)):
            with pytest.raises(VolumeError, match=r"page 3, is uint16 of shape \(19, 24\)"):
                one[index]

    def test_pages_that_go_in_a_circle(self, tmp_path: Path) -> None:
        tifffile.imwrite(tmp_path / "a.tif", GREY, metadata=None)
        with tifffile.TiffFile(tmp_path / "a.tif") as tif:
            place, first = tif.pages.next_page_offset, tif.pages[0].offset
        with (tmp_path / "a.tif").open("r+b") as file:
            file.seek(place)
            file.write(struct.pack("<I", first))
        with pytest.raises(VolumeError, match="page table is broken"):
            open_volume(tmp_path / "a.tif")

    def test_a_strip_that_was_never_written(self, tmp_path: Path) -> None:
        tifffile.imwrite(tmp_path / "a.tif", GREY, metadata=None, compression="zlib")
        with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tif:
            tif.pages[2].tags["StripByteCounts"].overwrite([0])
        volume = open_volume(tmp_path / "a.tif")
        with pytest.raises(VolumeError, match="page 2, has a strip or tile that was never written"):
            volume[2]
        assert np.array_equal(volume[3], GREY[3])

    @pytest.mark.parametrize("compression", [None, "zlib"])
    def test_a_strip_that_was_never_written_is_missing_along_every_axis(
        self, tmp_path: Path, compression: str | None
    ) -> None:
        tifffile.imwrite(tmp_path / "a.tif", GREY, metadata=None, compression=compression)
        with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tif:
            for name in ("StripOffsets", "StripByteCounts"):
                tif.pages[2].tags[name].overwrite([0])
        volume = open_volume(tmp_path / "a.tif")
        for axis in "zyx":
            with pytest.raises(VolumeError, match="strip or tile that was never written"):
                volume.along(axis)[2]

    @pytest.mark.parametrize("fill", [None, 7])
    def test_a_chunk_that_is_not_there_is_what_the_array_says(
        self, tmp_path: Path, fill: int | None
    ) -> None:
        write_zarr(tmp_path / "a.zarr", GREY, fill)
        (tmp_path / "a.zarr" / "2.0.0").unlink()
        with open_volume(tmp_path / "a.zarr") as volume:
            assert np.array_equal(volume[1], GREY[1])
            if fill is not None:
                assert (volume[2] == fill).all()
                return
            for axis in "zyx":
                with pytest.raises(VolumeError, match=r"2\.0\.0 is not there, and its array says"):
                    volume.along(axis)[2]

    def test_a_broken_chunk_spoils_only_its_slices(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            data = file.create_dataset("data", data=GREY, chunks=(2, 20, 24), compression="gzip")
            place, size = data.id.get_chunk_info(1).byte_offset, data.id.get_chunk_info(1).size
        with (tmp_path / "a.h5").open("r+b") as raw:
            raw.seek(place)
            raw.write(bytes(size))
        with open_volume(tmp_path / "a.h5") as volume:
            assert np.array_equal(volume[1], GREY[1])
            with pytest.raises(VolumeError, match=r"a\.h5:/data cannot be read"):
                volume[2]

    @pytest.mark.parametrize(
        "metadata",
        ["", "{}", "[]", '{"zarr_format": 9}', '{"zarr_format": 3, "node_type": "group"}'],
    )
    def test_a_folder_called_zarr_that_is_none(self, tmp_path: Path, metadata: str) -> None:
        (tmp_path / "a.zarr").mkdir()
        (tmp_path / "a.zarr" / "zarr.json").write_text(metadata)
        with pytest.raises(VolumeError, match=r"a\.zarr"):
            open_volume(tmp_path / "a.zarr")

    @pytest.mark.parametrize(
        "content",
        [
            {"multiscales": [{}]},
            {"multiscales": [{"datasets": []}]},
            {"multiscales": [{"axes": ["z", "y", "x"], "datasets": [{"path": "gone"}]}]},
            {"multiscales": [{"axes": ["z", "y"], "datasets": [{"path": "0"}]}]},
            {"multiscales": "none"},
        ],
    )
    def test_metadata_of_an_image_that_fits_nothing(self, tmp_path: Path, content: dict) -> None:
        write(tmp_path / "a.zarr", GREY)
        described = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
        described["attributes"]["ome"] = content
        (tmp_path / "a.zarr" / "zarr.json").write_text(json.dumps(described))
        with pytest.raises(VolumeError, match=r"a\.zarr"):
            open_volume(tmp_path / "a.zarr")


def test_a_file_that_shrinks_while_it_is_open_does_not_end_the_process(tmp_path: Path) -> None:
    code = """
import os, sys
from ml_backend.volumes.opening import open_volume
for path in sys.argv[1:]:
    volume = open_volume(path)
    os.truncate(path, 3000)
    for axis, index in (("z", 5), ("y", 19), ("x", 23)):
        try:
            volume.along(axis)[index]
        except ValueError as error:
            print(axis, type(error).__name__)
"""
    paths = [tmp_path / name for name in ("a.raw", "a.npy", "a.nii", "a.tif")]
    for path in paths:
        write(path, GREY)
    run = subprocess.run(
        [sys.executable, "-c", code, *paths], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, "a map beyond the end of a file raises SIGBUS"
    assert run.stdout == "z VolumeError\ny VolumeError\nx VolumeError\n" * 4


class TestLaziness:
    @pytest.mark.parametrize("name", ["a.raw", "a.npy"])
    def test_a_slice_of_20_gib_takes_no_memory(self, tmp_path: Path, name: str) -> None:
        shape = (5120, 2048, 1024)  # uint16: 20 GiB, a hole on disk
        path = tmp_path / name
        with path.open("wb") as file:
            if name == "a.npy":
                header = {"descr": "<u2", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            start = file.tell()
            file.truncate(start + 20 * 2**30)
            file.seek(start + 5000 * 2048 * 1024 * 2)
            file.write(np.full((2048, 1024), 7, "u2").tobytes())
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        volume = open_volume(path, ReadOptions(shape=shape, dtype="<u2"))
        assert (volume[5000] == 7).all()
        assert not volume[0].any()
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 2**10

    def test_a_page_is_read_without_the_others(self, tmp_path: Path) -> None:
        array = values("u2", (400, 8, 8))
        tifffile.imwrite(tmp_path / "a.tif", array, metadata=None, compression="zlib")
        with tifffile.TiffFile(tmp_path / "a.tif") as tif:
            places = [(page.dataoffsets[0], page.databytecounts[0]) for page in tif.pages]
        with (tmp_path / "a.tif").open("r+b") as file:
            for z, (start, count) in enumerate(places):
                if z != 300:
                    file.seek(start)
                    file.write(bytes(count))
        volume = open_volume(tmp_path / "a.tif")
        assert np.array_equal(volume[300], array[300])
        with pytest.raises(VolumeError, match="page 299 is broken"):
            volume[299]

    def test_an_image_of_a_folder_is_read_without_the_others(self, tmp_path: Path) -> None:
        path = tmp_path / "a_png"
        write(path, GREY)
        for z in (1, 2, 4):
            (path / f"000{z}.png").write_bytes(b"")
        volume = open_volume(path)
        assert np.array_equal(volume[3], GREY[3])
        with pytest.raises(VolumeError, match=r"0004|0001\.png"):
            volume[1]

    @pytest.mark.parametrize("name", NAMES)
    def test_a_volume_that_is_forgotten_leaves_nothing_open(
        self, tmp_path: Path, name: str
    ) -> None:
        write(tmp_path / name, GREY)
        volume = open_volume(tmp_path / name)
        volume.along("y")[3]
        del volume
        gc.collect()
        links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        assert not [link for link in links if str(tmp_path) in str(link.readlink())]

    def test_what_packed_nifti_unpacks_is_gone_when_closed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "scratch").mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
        write(tmp_path / "a.nii.gz", GREY)
        with open_volume(tmp_path / "a.nii.gz") as volume:
            assert list((tmp_path / "scratch").iterdir()) == []
            assert_holds(volume, GREY)
            assert len(list((tmp_path / "scratch").iterdir())) == 1
        assert list((tmp_path / "scratch").iterdir()) == []
