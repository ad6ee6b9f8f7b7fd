"""Slices that lie in a file as they are: read without the process that parsed it."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import olefile
import pytest
import tifffile

from ml_backend.volumes.apart import open_apart
from ml_backend.volumes.readers import Readers
from ml_backend.volumes.runs import Runs
from ml_backend.volumes.volume import ReadOptions, Volume, VolumeError
from tests import test_edf, test_txm
from tests.compound_file import write_compound
from tests.test_formats import assert_holds, values

GREY = values("u2", (6, 20, 24))
LARGE = values("u2", (6, 70, 80))
"""Slices beyond what the mini stream of an OLE file holds."""


@pytest.fixture
def readers() -> Iterator[Readers]:
    made = Readers(most=2)
    yield made
    made.close()


def hdf5(path: Path, array: np.ndarray = GREY, **form: Any) -> Path:
    with h5py.File(path.with_suffix(".h5"), "w", **form) as file:
        file["data"] = array
    return path.with_suffix(".h5")


def linked(path: Path) -> Path:
    hdf5(path.with_name("b"))
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file["data"] = h5py.ExternalLink("b.h5", "data")
    return path.with_suffix(".h5")


def tiff(path: Path, **form: Any) -> Path:
    tifffile.imwrite(path.with_suffix(".tif"), GREY, photometric="minisblack", **form)
    return path.with_suffix(".tif")


def edf(path: Path, array: np.ndarray = GREY) -> Path:
    return test_edf.many(path.with_suffix(".edf"), array)


def edf_block(path: Path, array: np.ndarray = GREY, *lines: str) -> Path:
    path.with_suffix(".edf").write_bytes(test_edf.block(array, *lines))
    return path.with_suffix(".edf")


def edf_elsewhere(path: Path) -> Path:
    where = [
        "EDF_BinaryFileName = a.bin ;",
        "EDF_BinaryFilePosition = 100 ;",
        f"EDF_BinaryFileSize = {GREY.nbytes} ;",
    ]
    path.with_suffix(".bin").write_bytes(bytes(100) + GREY.tobytes())
    edf_block(path, GREY, *where)
    os.truncate(path.with_suffix(".edf"), 1024)
    return path.with_suffix(".edf")


def txm(path: Path, array: np.ndarray = LARGE) -> Path:
    return write_compound(path.with_suffix(".txm"), test_txm.streams(array))


def txm_scattered(path: Path) -> Path:
    """The second sector of the fourth image changes places with the last one of the fifth."""
    txm(path)
    with olefile.OleFileIO(path.with_suffix(".txm")) as file:
        begins = [file.direntries[file._find(f"ImageData1/Image{z}")].isectStart for z in (4, 5)]
        fat = [*file.fat]
        table = file.sectorsize * (1 + fat.index(olefile.FATSECT))
    a, b = begins[0] + 1, begins[1] + 1
    data = bytearray(path.with_suffix(".txm").read_bytes())
    one, other = (slice(4096 * (n + 1), 4096 * (n + 2)) for n in (a, b))
    data[one], data[other] = data[other], data[one]
    fat[a], fat[b] = fat[b], fat[a]
    fat[begins[0]], fat[begins[1]] = b, a
    struct.pack_into(f"<{len(fat)}I", data, table, *fat)
    path.with_suffix(".txm").write_bytes(data)
    return path.with_suffix(".txm")


DIRECT: dict[str, Callable[[Path], Path]] = {
    "hdf5": hdf5,
    "hdf5, swapped": lambda path: hdf5(path, GREY.astype(">u2")),
    "hdf5 behind a block": lambda path: hdf5(path, userblock_size=512),
    "hdf5 with axes of 1": lambda path: hdf5(path, GREY[None, ..., None]),
    "hdf5 in another file": linked,
    "tiff": tiff,
    "tiff page by page": lambda path: tiff(path, metadata=None),
    "tiff, swapped": lambda path: tiff(path, metadata=None, byteorder=">"),
    "tiff in strips": lambda path: tiff(path, metadata=None, rowsperstrip=3),
    "edf": edf,
    "edf in one block": edf_block,
    "edf in one block, swapped": lambda path: edf_block(path, GREY.astype(">u2")),
    "edf in another file": edf_elsewhere,
    "txm": lambda path: txm(path, LARGE),
}


def part_of_bits(path: Path) -> Path:
    """Values of 12 bits in two bytes, which HDF5 converts."""
    kind = h5py.h5t.STD_U16LE.copy()
    kind.set_precision(12)
    kind.set_offset(4)
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        space = h5py.h5s.create_simple(GREY.shape)
        data = h5py.h5d.create(file.id, b"data", kind, space)
        data.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(GREY % 4096))
    return path.with_suffix(".h5")


PARSED: dict[str, Callable[[Path], Path]] = {
    "hdf5 of 12 bits": part_of_bits,
    "tiff, packed": lambda path: tiff(path, metadata=None, compression="zlib"),
    "txm of small images": lambda path: txm(path, GREY),
    "txm, large, scattered": txm_scattered,
}


def read_often(path: Path, readers: Readers) -> Volume:
    volume = open_apart(path, ReadOptions(), readers)
    for z in range(4):
        volume[z]
    return volume


@pytest.mark.parametrize("kind", DIRECT)
def test_they_are_read_by_us(tmp_path: Path, readers: Readers, kind: str) -> None:
    volume = read_often(DIRECT[kind](tmp_path / "a"), readers)
    readers.close()
    array = LARGE if kind == "txm" else GREY
    for z, expected in enumerate(array):
        found = volume[z]
        assert found.dtype == array.dtype
        assert np.array_equal(found, expected)
    assert readers.processes() == [], "nobody was asked"
    assert_holds(volume, array)


@pytest.mark.parametrize("kind", PARSED)
def test_what_has_to_be_unpacked_is_not(tmp_path: Path, readers: Readers, kind: str) -> None:
    path = PARSED[kind](tmp_path / "a")
    array = GREY % 4096 if "12" in kind else LARGE if "large" in kind else GREY
    volume = read_often(path, readers)
    assert_holds(volume, array)
    readers.close()
    assert np.array_equal(volume[5], array[5])
    assert len(readers.processes()) == 1


@pytest.mark.parametrize("kind", ["hdf5", "tiff page by page", "edf", "edf in one block", "txm"])
def test_a_file_that_is_another_now_is_parsed_again(
    tmp_path: Path, readers: Readers, kind: str
) -> None:
    path = DIRECT[kind](tmp_path / "a")
    volume = read_often(path, readers)
    before = path.stat()
    if kind == "hdf5":
        with h5py.File(path, "r+") as file:
            file["data"][5] = 9
        assert (volume[5] == 9).all()
    os.truncate(path, before.st_size // 4)
    with pytest.raises(VolumeError, match=r"cannot be read|replaced|ends at byte|cut off"):
        volume[5]


class Lying(Readers):
    """Whose processes were taken over by a file."""

    place = Path("/etc/passwd")

    def ask(self, *request: Any, **more: Any) -> dict[str, Any]:
        found = super().ask(*request, **more)
        if "runs" in found:
            found["runs"]["path"] = str(self.place)
        return found


def test_a_process_that_was_taken_over_leads_nowhere_else(tmp_path: Path) -> None:
    readers = Lying(most=2)
    volume = open_apart(hdf5(tmp_path / "a"), ReadOptions(), readers)
    assert np.array_equal([volume[0], volume[1]], GREY[:2])
    with pytest.raises(VolumeError, match=r"/etc/passwd is opened for .*leads out of"):
        volume[2]
    readers.close()


@pytest.mark.parametrize("starts", [[-1] * 6, [0, 1, 2, 3, 4, 1000], [0] * 5])
def test_runs_lie_in_the_file(starts: list[int]) -> None:
    said = {
        "path": "a.h5",
        "dtype": "<u2",
        "starts": starts,
        "step": None,
        "state": [0, 0, 0, 1900],
    }
    with pytest.raises(VolumeError, match="slices beyond them"):
        Runs.from_json(said, GREY.shape)
