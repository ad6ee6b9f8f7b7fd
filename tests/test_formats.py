"""Every format holds the same contract: what is written is what is read, along every axis.

`TestContract` and the test of types run over every `Format` that `formats` finds, so a new one
needs no test but what is particular to it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from ml_backend.volumes.formats import ome_zarr
from ml_backend.volumes.formats.format import DTYPES, Format
from ml_backend.volumes.formats.registry import formats
from ml_backend.volumes.opening import FORMATS, ReadOptions, open_volume, write_volume
from ml_backend.volumes.volume import Volume, VolumeError, VolumeSpec

EXAMPLES: dict[str, Format] = {
    f"a{ending}": one
    for one in formats()
    if one.write is not None
    for ending in (one.endings[0], one.masks)
    if ending is not None
}
"""Every format by the names it is usually written under: ``a.nii`` and, as masks, ``a.nii.gz``."""
NAMES = tuple(EXAMPLES)
SHAPE = (5, 7, 6)
SIZE = (4.6, 2.3, 1.15)
CLASSES = ("background", "bone", "Knochenmark µ", "implant")

OME_TYPES = {"u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"}
TYPES = {
    "a.tif": OME_TYPES,
    "a.zarr": OME_TYPES | {"u8", "i8", "f2", "?"},
    "a.nii": OME_TYPES | {"u8", "i8"},
    "a.nii.gz": OME_TYPES | {"u8", "i8"},
    "a.npy": OME_TYPES | {"u8", "i8", "f2", "?"},
    "a_png": {"u1", "u2"},
    "a.h5": OME_TYPES | {"u8", "i8", "f2", "?"},
    "a.raw": OME_TYPES | {"u8", "i8", "f2", "?"},
    "a.mrc": {"u1", "i1", "u2", "i2", "f2", "f4"},
    "a.nrrd": OME_TYPES | {"u8", "i8"},
    "a.mha": OME_TYPES | {"u8", "i8"},
}
"""What our own formats hold."""
PAIRS = [(name, dtype) for name, one in EXAMPLES.items() for dtype in one.dtypes]
OTHERS = [(name, t) for name, one in EXAMPLES.items() for t in DTYPES if t not in one.dtypes]


def plain(name: str) -> str:
    """A type that the format holds, uint8 where it can."""
    return "uint8" if "uint8" in EXAMPLES[name].dtypes else EXAMPLES[name].dtypes[0]


def values(dtype: str, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Every bit pattern that the type has, NaN and infinity included."""
    rng = np.random.default_rng(3)
    if np.dtype(dtype) == np.bool_:
        return rng.random(shape) < 0.5
    return np.frombuffer(rng.bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype).reshape(
        shape
    )


def write(
    path: Path, array: np.ndarray, size: tuple[float, float, float] | None = SIZE
) -> np.ndarray:
    unit = "µm" if size else ""
    shape = (array.shape[0], array.shape[1], array.shape[2])
    write_volume(path, iter(array), VolumeSpec(shape, array.dtype, size, unit, CLASSES))
    return array


def assert_holds(volume: Volume, array: np.ndarray) -> None:
    assert volume.shape == array.shape
    assert volume.dtype == array.dtype.newbyteorder("=")
    for axis in range(3):
        along = volume.along(axis)
        for i in range(len(along)):
            expected = np.ascontiguousarray(array.take(i, axis), volume.dtype)
            assert along[i].tobytes() == expected.tobytes(), (axis, i)


@pytest.mark.parametrize(("name", "dtype"), PAIRS)
def test_values_come_back_bit_for_bit_along_every_axis(
    tmp_path: Path, name: str, dtype: str
) -> None:
    array = write(tmp_path / name, values(dtype))
    with open_volume(tmp_path / name) as volume:
        assert_holds(volume, array)


@pytest.mark.parametrize(("name", "dtype"), OTHERS)
def test_a_type_that_is_not_declared_is_refused(tmp_path: Path, name: str, dtype: str) -> None:
    with pytest.raises(VolumeError, match=rf"holds no {dtype}, expected one of "):
        write(tmp_path / name, values(dtype))
    assert list(tmp_path.iterdir()) == []


def test_our_formats_hold_these_types() -> None:
    for name, types in TYPES.items():
        assert set(EXAMPLES[name].dtypes) == {np.dtype(dtype).name for dtype in types}, name


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    def test_voxel_size_unit_and_classes_come_back(self, tmp_path: Path, name: str) -> None:
        write(tmp_path / name, values(plain(name)))
        keeps = EXAMPLES[name].keeps
        with open_volume(tmp_path / name) as volume:
            if "voxel_size" in keeps:
                assert volume.voxel_size == pytest.approx(SIZE, rel=1e-12)
            else:
                assert volume.voxel_size is None
            assert volume.unit == ("µm" if "unit" in keeps else "")
            assert volume.classes == (CLASSES if "classes" in keeps else None)

    def test_what_is_not_known_is_not_made_up(self, tmp_path: Path, name: str) -> None:
        array = values(plain(name))
        write_volume(tmp_path / name, array, VolumeSpec(SHAPE, array.dtype))
        with open_volume(tmp_path / name) as volume:
            assert (volume.voxel_size, volume.unit, volume.classes) == (None, "", None)

    def test_voxels_of_one_millimetre_are_known(self, tmp_path: Path, name: str) -> None:
        array, keeps = values(plain(name)), EXAMPLES[name].keeps
        write_volume(tmp_path / name, array, VolumeSpec(SHAPE, array.dtype, (1.0, 1.0, 1.0), "mm"))
        with open_volume(tmp_path / name) as volume:
            assert volume.voxel_size == ((1.0, 1.0, 1.0) if "voxel_size" in keeps else None)
            assert volume.unit == ("mm" if "unit" in keeps else "")

    def test_slices_are_the_readers_own(self, tmp_path: Path, name: str) -> None:
        array = write(tmp_path / name, values(plain(name)))
        with open_volume(tmp_path / name) as volume:
            for axis in range(3):
                volume.along(axis)[2][:] = 0
                assert volume.along(axis)[2].tobytes() == array.take(2, axis).tobytes()

    def test_threads_read_at_once(self, tmp_path: Path, name: str) -> None:
        array = write(tmp_path / name, values(plain(name), (20, 33, 18)))
        with open_volume(tmp_path / name) as volume, ThreadPoolExecutor(4) as pool:
            places = [(axis, i) for i in range(18) for axis in (0, 1, 2, 0)]
            found = pool.map(lambda place: volume.along(place[0])[place[1]], places)
            for (axis, i), one in zip(places, found, strict=True):
                assert one.tobytes() == array.take(i, axis).tobytes(), (axis, i)

    def test_there_is_nothing_outside(self, tmp_path: Path, name: str) -> None:
        write(tmp_path / name, values(plain(name)))
        with open_volume(tmp_path / name) as volume:
            for axis, index in (("z", 5), ("y", 7), ("x", 6), ("z", -1)):
                with pytest.raises(IndexError, match=f"no slice {index} along {axis}"):
                    volume.along(axis)[index]

    def test_a_single_slice_is_a_volume(self, tmp_path: Path, name: str) -> None:
        array = write(tmp_path / name, values(plain(name), (1, 7, 6)))
        with open_volume(tmp_path / name) as volume:
            assert_holds(volume, array)
            if "voxel_size" in EXAMPLES[name].keeps:
                assert volume.voxel_size == pytest.approx(SIZE)

    def test_thin_volumes_keep_their_axes(self, tmp_path: Path, name: str) -> None:
        array = write(tmp_path / name, values(plain(name), (4, 1, 6)), None)
        with open_volume(tmp_path / name) as volume:
            assert_holds(volume, array)

    def test_big_endian_slices_are_written_as_their_values(self, tmp_path: Path, name: str) -> None:
        array = values(max(EXAMPLES[name].dtypes, key=lambda t: (t == "uint16", "int" in t)))
        other = array.astype(array.dtype.newbyteorder(">"))
        write_volume(tmp_path / name, other, VolumeSpec(SHAPE, other.dtype))
        with open_volume(tmp_path / name) as volume:
            assert_holds(volume, array)

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ((4, 7, 6), "there are 4 slices, expected 5"),
            ((6, 7, 6), "more slices than the 5 expected"),
            ((5, 6, 7), r"slice 0 is {0} of shape \(6, 7\), expected .*\(7, 6\)"),
        ],
        ids=["few", "many", "shape"],
    )
    def test_other_slices_than_said_leave_nothing(
        self, tmp_path: Path, name: str, shape: tuple[int, int, int], message: str
    ) -> None:
        slices, spec = values(plain(name), shape), VolumeSpec(SHAPE, np.dtype(plain(name)))
        with pytest.raises(VolumeError, match=message.format(plain(name))):
            write_volume(tmp_path / name, iter(slices), spec)
        assert list(tmp_path.iterdir()) == []

    def test_slices_of_another_type_leave_nothing(self, tmp_path: Path, name: str) -> None:
        said = plain(name)
        other = "uint16" if said != "uint16" else "uint8"
        with pytest.raises(VolumeError, match=f"slice 0 is {other} .* expected {said}"):
            write_volume(tmp_path / name, values(other), VolumeSpec(SHAPE, np.dtype(said)))
        assert list(tmp_path.iterdir()) == []

    def test_an_interrupted_writer_leaves_what_was_there(self, tmp_path: Path, name: str) -> None:
        array = write(tmp_path / name, values(plain(name)))
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(KeyboardInterrupt):
            write_volume(
                tmp_path / name, interrupted(array), VolumeSpec(SHAPE, array.dtype), overwrite=True
            )
        assert sorted(tmp_path.rglob("*")) == before
        with open_volume(tmp_path / name) as volume:
            assert_holds(volume, array)

    def test_an_interrupted_writer_leaves_nothing(self, tmp_path: Path, name: str) -> None:
        array = values(plain(name))
        with pytest.raises(KeyboardInterrupt):
            write_volume(tmp_path / name, interrupted(array), VolumeSpec(SHAPE, array.dtype))
        assert list(tmp_path.iterdir()) == []

    def test_it_overwrites_only_when_told_to(self, tmp_path: Path, name: str) -> None:
        write(tmp_path / name, values(EXAMPLES[name].dtypes[-1]))
        array = values(plain(name), (3, 4, 5))
        spec = VolumeSpec((3, 4, 5), array.dtype)
        with pytest.raises(VolumeError, match="exists already"):
            write_volume(tmp_path / name, array, spec)
        write_volume(tmp_path / name, array, spec, overwrite=True)
        with open_volume(tmp_path / name) as volume:
            assert_holds(volume, array)
            assert volume.classes is None

    def test_progress_counts_slices(self, tmp_path: Path, name: str) -> None:
        seen: list[tuple[str, int, int]] = []
        array = values(plain(name))
        spec = VolumeSpec(SHAPE, array.dtype)
        write_volume(tmp_path / name, array, spec, lambda *step: seen.append(step))
        assert seen == [("write volume", i, 5) for i in range(1, 6)]

    @pytest.mark.parametrize("kept", [0.0, 0.5], ids=["nothing", "half"])
    def test_a_file_that_is_cut_off_is_refused(
        self, tmp_path: Path, name: str, kept: float
    ) -> None:
        write(tmp_path / name, values(plain(name), (9, 40, 30)))
        cut = largest_file(tmp_path / name)
        data = cut.read_bytes()
        cut.write_bytes(data[: int(kept * len(data))])
        with pytest.raises(VolumeError, match=r"a\b"):
            read_all(tmp_path / name)

    def test_a_file_without_its_last_byte_is_refused_or_whole(
        self, tmp_path: Path, name: str
    ) -> None:
        array = write(tmp_path / name, values(plain(name), (9, 40, 30)))
        cut = largest_file(tmp_path / name)
        cut.write_bytes(cut.read_bytes()[:-1])
        with suppress(VolumeError), open_volume(tmp_path / name) as volume:
            assert_holds(volume, array)

    def test_bytes_of_something_else_are_refused(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(np.random.default_rng(0).bytes(4096))
        with pytest.raises(VolumeError, match=r"a\b"):
            read_all(tmp_path / name)

    def test_an_empty_file_is_refused(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(VolumeError, match=r"a\b"):
            read_all(tmp_path / name)

    def test_a_folder_of_something_else_is_refused(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("years")
        with pytest.raises(VolumeError, match=r"a\b"):
            read_all(tmp_path / name)

    def test_slices_are_read_one_by_one(self, tmp_path: Path, name: str) -> None:
        array = values(plain(name), (512, 128, 128))
        write(tmp_path / name, array, None)
        with open_volume(tmp_path / name) as volume:
            assert volume[1].tobytes() == array[1].tobytes()  # imports what it needs
        tracemalloc.start()
        with open_volume(tmp_path / name) as volume:
            assert volume[200].tobytes() == array[200].tobytes()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < array.nbytes / 2

    def test_the_same_volume_is_the_same_bytes(self, tmp_path: Path, name: str) -> None:
        for folder in ("first", "second"):
            write(tmp_path / folder / name, values(plain(name)))
        first, second = (contents(tmp_path / folder) for folder in ("first", "second"))
        assert first.keys() == second.keys()
        assert first == second or not EXAMPLES[name].repeatable

    def test_it_says_what_it_writes(self, tmp_path: Path, name: str) -> None:
        write(tmp_path / name, values(plain(name)))
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {name, f"{name}.json"} if EXAMPLES[name].sidecar else names == {name}
        assert (tmp_path / name).is_dir() == EXAMPLES[name].folder


def interrupted(array: np.ndarray) -> Iterator[np.ndarray]:
    yield array[0]
    raise KeyboardInterrupt


def largest_file(path: Path) -> Path:
    """The file itself, or the largest of a folder."""
    files = [one for one in (path, *path.rglob("*")) if one.is_file()]
    return max(files, key=lambda one: one.stat().st_size)


def read_all(path: Path) -> None:
    with open_volume(path) as volume:
        for _ in volume:
            pass


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_formats_are_declared_without_their_libraries() -> None:
    code = (
        "import sys, numpy; before = set(sys.modules);"
        "from ml_backend.volumes.formats.registry import formats; formats();"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(*sorted(new - sys.stdlib_module_names - {'al_strategies', 'ml_backend', 'numpy'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("name", "dtype"), [("a.tif", "f2"), ("a.tif", "?"), ("a.nii", "f2"), ("a_png", "f4")]
)
def test_a_type_that_a_format_lacks_is_refused(tmp_path: Path, name: str, dtype: str) -> None:
    with pytest.raises(VolumeError, match="expected one of uint8"):
        write(tmp_path / name, values(dtype))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["c8", "O", "S3", "M8[s]", [("r", "u1"), ("g", "u1")]])
def test_what_is_no_number_is_not_written(tmp_path: Path, dtype: object) -> None:
    spec = VolumeSpec((1, 2, 2), np.dtype(dtype))
    with pytest.raises(VolumeError, match="expected bool, integer or float"):
        write_volume(tmp_path / "a.npy", np.zeros((1, 2, 2), dtype), spec)


@pytest.mark.parametrize("size", [(1.0, 0.0, 1.0), (1.0, float("nan"), 1.0), (-1.0, 1.0, 1.0)])
def test_a_voxel_without_extent_is_not_written(tmp_path: Path, size: tuple) -> None:
    with pytest.raises(VolumeError, match="voxel size is"):
        write(tmp_path / "a.tif", values("u1"), size)


def test_the_names_of_the_formats_are_endings_to_write_under(tmp_path: Path) -> None:
    assert set(FORMATS) >= {"tiff", "ome-zarr", "nifti", "numpy", "png", "hdf5", "raw"}
    for ending in FORMATS.values():
        array = write(tmp_path / f"scan_0.5um{ending}", values("u1"))
        with open_volume(tmp_path / f"scan_0.5um{ending}") as volume:
            assert_holds(volume, array)


def test_a_name_without_an_ending_is_a_folder_of_png(tmp_path: Path) -> None:
    write(tmp_path / "labels", values("u1"))
    names = sorted(path.name for path in (tmp_path / "labels").iterdir())
    assert names == ["0000.png", "0001.png", "0002.png", "0003.png", "0004.png", "volume.json"]


def test_an_ending_that_names_no_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match=r"names no format .*\.nii.*_png"):
        write(tmp_path / "a.czi", values("u1"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a_png", r"something else \(thesis\.tex\), expected png that nextslice has written"),
        ("a.zarr", r"something else \(thesis\.tex\), expected ome-zarr that"),
        ("a.tif", "is a folder, expected a file"),
    ],
)
def test_a_folder_of_something_else_is_not_overwritten(
    tmp_path: Path, name: str, says: str
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").write_text("years")
    refuse_to_overwrite(tmp_path / name, says)


@pytest.mark.parametrize("name", ["a_png", "a.zarr"])
def test_what_was_added_to_a_volume_is_not_removed_with_it(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, values("u1"))
    (tmp_path / name / "labels").mkdir()
    refuse_to_overwrite(tmp_path / name, r"holds something else \(labels\)")


@pytest.mark.parametrize("added", ["0/notes.txt", "0/c/0/mine.npy", "7/zarr.json", "0/1/0"])
def test_what_was_added_inside_an_ome_zarr_is_not_removed_with_it(
    tmp_path: Path, added: str
) -> None:
    write(tmp_path / "a.zarr", values("u1"))
    (tmp_path / "a.zarr" / added).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "a.zarr" / added).write_text("hours of work")
    refuse_to_overwrite(tmp_path / "a.zarr", "holds something else")


def foreign_zarr(path: Path, kind: str) -> None:
    """As zarr itself, or another program on top of it, lays out what is read from such a folder."""
    if kind.startswith("array"):
        keys: Any = {"name": "v2" if "v2" in kind else "default", "separator": "/"}
        zarr.create_array(path, data=values("u2"), chunks=(2, 7, 6), chunk_key_encoding=keys)
        return
    group = zarr.create_group(path)
    group.create_array("0", data=values("u2"), chunks=(2, 7, 6))
    scale = {"type": "scale", "scale": [1, 1, 1]}
    image = {
        "axes": [{"name": name, "type": "space"} for name in "zyx"],
        "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
    }
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    if kind == "image with a note by hand":
        group.attrs["nextslice"] = {"looked at": True}


@pytest.mark.parametrize(
    "kind", ["image", "image with a note by hand", "array", "array with keys of v2"]
)
def test_an_ome_zarr_of_another_program_is_not_overwritten(tmp_path: Path, kind: str) -> None:
    foreign_zarr(tmp_path / "a.zarr", kind)
    refuse_to_overwrite(tmp_path / "a.zarr", "holds something else")
    with open_volume(tmp_path / "a.zarr") as volume:
        assert_holds(volume, values("u2"))


NOTES = {"voxel_size": None, "unit": "", "classes": None}


@pytest.mark.parametrize(
    "content",
    [
        {"bone 1.png": ""},
        {"0000.png": "", "0001.png": ""},
        {"0000.png": "", "volume.json": json.dumps({"voxel_size": [1, 1, 1]})},
        {"0000-corrected.png": "", "volume.json": json.dumps(NOTES)},
        {"0000.png": "", "volume.json": "no JSON"},
    ],
    ids=["names", "numbers", "a note by hand", "another name", "damaged"],
)
def test_masks_drawn_by_hand_are_not_overwritten(tmp_path: Path, content: dict[str, str]) -> None:
    folder = tmp_path / "masks"
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text)
    refuse_to_overwrite(folder, "holds something else|cannot be read")


def refuse_to_overwrite(path: Path, says: str) -> None:
    before = {one: one.is_file() and one.read_bytes() for one in path.rglob("*")}
    spec = VolumeSpec(SHAPE, np.dtype("u1"))
    with pytest.raises(VolumeError, match=says):
        write_volume(path, values("u1"), spec, overwrite=True)
    assert {one: one.is_file() and one.read_bytes() for one in path.rglob("*")} == before


def test_a_folder_of_ten_thousand_slices_is_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "a_png", values("u1"))
    (tmp_path / "a_png" / "0000.png").rename(tmp_path / "a_png" / "10000.png")
    spec = VolumeSpec(SHAPE, np.dtype("u1"))
    write_volume(tmp_path / "a_png", values("u1"), spec, overwrite=True)
    assert not (tmp_path / "a_png" / "10000.png").exists()


KILLED = """
import os, signal, sys
import numpy as np
from ml_backend.volumes.opening import write_volume
from ml_backend.volumes.volume import VolumeSpec

def slices():
    yield np.zeros((7, 6), np.uint8)
    os.kill(os.getpid(), signal.SIGKILL)

write_volume(sys.argv[1], slices(), VolumeSpec((5, 7, 6), np.dtype("u1")))
"""


@pytest.mark.parametrize("name", ["a.npy", "a_png"])
def test_a_killed_writer_leaves_nothing_for_good(tmp_path: Path, name: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / name], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / name).exists()

    array = write(tmp_path / name, values("u1"))

    assert list(tmp_path.glob(".*")) == []
    with open_volume(tmp_path / name) as volume:
        assert_holds(volume, array)


def test_one_volume_is_not_written_twice_at_once(tmp_path: Path) -> None:
    def slices() -> Iterator[np.ndarray]:
        with pytest.raises(VolumeError, match=r"another process is writing .*a\.npy"):
            write(tmp_path / "a.npy", values("u1"))
        yield from values("u1")

    write_volume(tmp_path / "a.npy", slices(), VolumeSpec(SHAPE, np.dtype("u1")))
    with open_volume(tmp_path / "a.npy") as volume:
        assert_holds(volume, values("u1"))


def test_a_file_is_not_overwritten_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").write_text("mine")
    spec = VolumeSpec(SHAPE, np.dtype("u1"))
    with pytest.raises(VolumeError, match="is a file, expected a folder"):
        write_volume(tmp_path / "a.zarr", values("u1"), spec, overwrite=True)
    assert (tmp_path / "a.zarr").read_text() == "mine"


def test_a_folder_that_is_not_there_is_made(tmp_path: Path) -> None:
    array = write(tmp_path / "new" / "a.npy", values("u1"))
    assert_holds(open_volume(str(tmp_path / "new" / "a.npy")), array)


class TestOpening:
    def test_what_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(VolumeError, match=r"nothing\.tif does not exist"):
            open_volume(tmp_path / "nothing.tif")

    def test_what_is_no_volume_gets_a_list_of_what_can_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "a.docx").write_text("x")
        with pytest.raises(VolumeError, match=r"a\.docx is no volume .*TIFF.*HDF5.*OME-Zarr.*raw"):
            open_volume(tmp_path / "a.docx")

    def test_one_image_is_no_volume(self, tmp_path: Path) -> None:
        write(tmp_path / "a_png", values("u1"))
        with pytest.raises(VolumeError, match="give its folder"):
            open_volume(tmp_path / "a_png" / "0000.png")

    def test_an_empty_folder_is_no_volume(self, tmp_path: Path) -> None:
        with pytest.raises(VolumeError, match="folder of 0 files"):
            open_volume(tmp_path)

    def test_a_folder_of_two_kinds_is_counted(self, tmp_path: Path) -> None:
        for name in ("1.tif", "2.tif", "3.TIFF", "1.png"):
            (tmp_path / name).write_bytes(b"")
        with pytest.raises(VolumeError, match="3 TIFF and 1 PNG files"):
            open_volume(tmp_path)

    def test_endings_are_read_in_capitals(self, tmp_path: Path) -> None:
        array = write(tmp_path / "A.TIF", values("u1"))
        assert_holds(open_volume(tmp_path / "A.TIF"), array)

    def test_any_name_is_raw_where_the_shape_is_given(self, tmp_path: Path) -> None:
        array = values("u2")
        (tmp_path / "scan_7x6.dat").write_bytes(b"head" + array.astype(">u2").tobytes())
        options = ReadOptions(shape=SHAPE, dtype=">u2", offset=4)
        assert_holds(open_volume(tmp_path / "scan_7x6.dat", options), array)

    def test_a_sidecar_says_what_raw_values_are(self, tmp_path: Path) -> None:
        array = values("f4")
        (tmp_path / "a.dat").write_bytes(array.tobytes())
        sidecar = {"shape": SHAPE, "dtype": "<f4", "voxel_size": [1, 2, 3], "unit": "micron"}
        (tmp_path / "a.dat.json").write_text(json.dumps(sidecar))
        volume = open_volume(tmp_path / "a.dat")
        assert_holds(volume, array)
        assert (volume.voxel_size, volume.unit) == ((1.0, 2.0, 3.0), "µm")

    @pytest.mark.parametrize("offset", [None, 0, 4])
    def test_an_offset_that_is_given_comes_before_the_sidecar(
        self, tmp_path: Path, offset: int | None
    ) -> None:
        array = values("u2")
        (tmp_path / "a.raw").write_bytes(bytes(offset or 0) + array.astype("<u2").tobytes())
        said = {"shape": SHAPE, "dtype": "<u2", "offset": 0 if offset is None else 8}
        (tmp_path / "a.raw.json").write_text(json.dumps(said))
        options = ReadOptions(shape=SHAPE, dtype="<u2", offset=offset)
        with open_volume(tmp_path / "a.raw", options) as volume:
            assert_holds(volume, array)


def test_ngff_is_written_on_zarr_2_as_well(tmp_path: Path) -> None:
    array = values("u2")
    spec = VolumeSpec(SHAPE, array.dtype, SIZE, "µm", CLASSES)
    ome_zarr.write(tmp_path / "a.zarr", array, spec, zarr_format=2)
    attributes = json.loads((tmp_path / "a.zarr" / ".zattrs").read_text())
    assert attributes["multiscales"][0]["version"] == "0.4"
    assert attributes["image-label"]["properties"][1] == {"label-value": 1, "name": "bone"}
    with open_volume(tmp_path / "a.zarr") as volume:
        assert_holds(volume, array)
        assert (volume.voxel_size, volume.unit, volume.classes) == (SIZE, "µm", CLASSES)


def test_chunked_formats_are_written_slab_by_slab(tmp_path: Path) -> None:
    array = values("u1", (150, 40, 30))
    for name in ("a.h5", "a.zarr"):
        write(tmp_path / name, array)
        with open_volume(tmp_path / name) as volume:
            assert_holds(volume, array)
