"""A round as files: masks bit for bit, the record, Label Studio's JSON, the curve, the scripts."""

from __future__ import annotations

import csv
import io
import json
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from al_strategies.evidence import Position
from ml_backend.cli.rounds_list import rounds_table
from ml_backend.experiment.canvas import new_figure, plain
from ml_backend.export import (
    MASK_FORMATS,
    ExportError,
    export_learning_curve,
    export_masks,
    export_record,
    export_round,
    export_studio_json,
    find_project,
    find_round,
    learning_curve,
    round_record,
    round_tasks,
    source_finder,
    studio_tasks,
)
from ml_backend.export.curve_picture import draw
from ml_backend.export.files import whole
from ml_backend.rounds.artefacts import DATASET, MASKS
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import TaskRecord
from ml_backend.rounds.service import slice_keys
from ml_backend.rounds.store import StoreError
from ml_backend.settings import Settings, load_settings
from ml_backend.studio.annotations import label_map
from ml_backend.studio.client import StudioError
from ml_backend.studio.label_config import bitmask_config, brush_config, parse_label_config
from ml_backend.volumes.address import SliceAddress
from ml_backend.volumes.folder import FolderSource
from ml_backend.volumes.opening import ReadOptions, open_volume, write_volume
from ml_backend.volumes.volume import VolumeSpec
from tests.export_store import CLASSES, CONFIG, KEY, SHAPE, ExportStore, Mask, a_mask, tasks_of
from tests.memory_studio import MemoryStudio
from tests.test_cli import nextslice

ROOT = Path(__file__).resolve().parents[1]
DEPTH, HEIGHT, WIDTH = SHAPE
VOLUME_FORMATS = sorted(set(MASK_FORMATS) - {"png"})
SIZES = {"z": (HEIGHT, WIDTH), "y": (DEPTH, WIDTH), "x": (DEPTH, HEIGHT)}
LENGTHS = {"z": DEPTH, "y": HEIGHT, "x": WIDTH}


@pytest.fixture
def make_settings(make_settings: Callable[..., Settings]) -> Callable[..., Settings]:
    """Nothing listens at Label Studio's address, whatever runs on this machine."""
    return lambda **given: make_settings(**{"LABEL_STUDIO_URL": "http://127.0.0.1:9", **given})


@pytest.fixture
def store(make_settings: Callable[..., Settings]) -> ExportStore:
    return ExportStore.of(make_settings())


def one_volume(store: ExportStore, axis: str = "z", places: tuple[int, ...] = (1, 4)) -> None:
    """Round 1: volume "bone" cut along ``axis``, labelled at ``places``."""
    masks = {100 + place: a_mask(place, SIZES[axis]) for place in places}
    cost = {100 + place: 40 for place in places}
    store.add_round(1, tasks_of("bone", axis, LENGTHS[axis], 100), masks, cost=cost)


def read(path: Path) -> Mask:
    with open_volume(path) as volume:
        return np.stack(list(volume))


def index(out: Path) -> Any:
    return json.loads((out / "labels.json").read_text())


# -- masks


@pytest.mark.parametrize("format", VOLUME_FORMATS)
def test_a_label_volume_holds_the_label_maps_and_255_elsewhere(
    store: ExportStore, tmp_path: Path, format: str
) -> None:
    one_volume(store)
    expected = np.full(SHAPE, 255, np.uint8)
    expected[1], expected[4] = store.masks[101], store.masks[104]

    report = export_masks(store.folder.round(1), tmp_path / "out", format)

    file = tmp_path / "out" / f"bone-z{MASK_FORMATS[format]}"
    np.testing.assert_array_equal(read(file), expected)
    assert read(file).dtype == np.uint8
    assert report.labels == 2
    assert report.volumes[0].shape == SHAPE


@pytest.mark.parametrize("format", VOLUME_FORMATS)
@pytest.mark.parametrize("axis", ["y", "x"])
def test_slices_go_back_along_the_axis_they_were_cut_along(
    store: ExportStore, tmp_path: Path, axis: str, format: str
) -> None:
    places = (0, 7, LENGTHS[axis] - 1)
    one_volume(store, axis, places)
    expected = np.full(SHAPE, 255, np.uint8)
    for place in places:
        at: tuple[Any, ...] = (slice(None), place) if axis == "y" else (..., place)
        expected[at] = store.masks[100 + place]

    export_masks(store.folder.round(1), tmp_path / "out", format)

    file = tmp_path / "out" / f"bone-{axis}{MASK_FORMATS[format]}"
    np.testing.assert_array_equal(read(file), expected)
    with open_volume(file) as volume:
        np.testing.assert_array_equal(volume.along(axis)[7], store.masks[107])


def test_as_png_the_bytes_of_the_store_are_copied(store: ExportStore, tmp_path: Path) -> None:
    one_volume(store, "y", (3, 11))

    export_masks(store.folder.round(1), tmp_path / "out", "png")

    files = sorted(path.name for path in (tmp_path / "out" / "bone").iterdir())
    assert files == ["y03.png", "y11.png"]
    written = (tmp_path / "out" / "bone" / "y11.png").read_bytes()
    assert written == store.folder.read_at("round-0001/masks/111.png")
    with Image.open(io.BytesIO(written)) as image:
        np.testing.assert_array_equal(np.asarray(image), store.masks[111])


def test_a_volume_cut_along_two_axes_gives_a_file_for_each(
    store: ExportStore, tmp_path: Path
) -> None:
    tasks = tasks_of("bone", "z", DEPTH, 100) + tasks_of("bone", "x", WIDTH, 200)
    masks = {102: a_mask(0, SIZES["z"]), 209: a_mask(1, SIZES["x"])}
    store.add_round(1, tasks, masks)

    export_masks(store.folder.round(1), tmp_path / "out", "numpy")

    along_z, along_x = (read(tmp_path / "out" / f"bone-{axis}.npy") for axis in "zx")
    np.testing.assert_array_equal(along_z[2], masks[102])
    np.testing.assert_array_equal(along_x[..., 9], masks[209])
    assert along_z.shape == along_x.shape == SHAPE


def test_an_older_round_exports_what_it_saw(store: ExportStore, tmp_path: Path) -> None:
    tasks = tasks_of("bone", "z", DEPTH, 100)
    before, after = a_mask(1, SIZES["z"]), a_mask(2, SIZES["z"])
    store.add_round(1, tasks, {103: before})
    store.add_round(2, tasks, {103: after, 104: before})

    export_masks(store.folder.round(1), tmp_path / "out", "numpy")

    found = read(tmp_path / "out" / "bone-z.npy")
    np.testing.assert_array_equal(found[3], before)
    assert (found[4] == 255).all()


def test_volumes_without_labels_are_named_and_not_written(
    store: ExportStore, tmp_path: Path
) -> None:
    tasks = tasks_of("bone", "z", DEPTH, 100) + tasks_of("other", "z", 4, 200)
    store.add_round(1, tasks, {102: a_mask(0, SIZES["z"])})

    export_masks(store.folder.round(1), tmp_path / "out")

    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["bone-z.tif", "labels.csv", "labels.json"]
    other = index(tmp_path / "out")["volumes"][1]
    assert (other["volume"], other["file"], other["labelled"], other["slices"]) == (
        "other", None, 0, 4,
    )  # fmt: skip


def test_the_index_says_who_labelled_what_when(store: ExportStore, tmp_path: Path) -> None:
    one_volume(store)

    export_masks(store.folder.round(1), tmp_path / "out")

    found = index(tmp_path / "out")
    assert found["classes"] == list(CLASSES)
    assert (found["round"], found["unlabelled"]) == (1, 255)
    row = {
        "task": 101, "volume": "bone", "axis": "z", "slice": 1, "file": "bone-z.tif",
        "annotation": 1101, "completed_by": 2, "updated_at": "2026-11-02T09:00:00+00:00",
        "hash": f"{101:032x}", "model_version": "nextslice-r000-abcdef", "corrected": 40,
        "boundary": 20, "dragged": 0, "seconds": 101.0,
    }  # fmt: skip
    assert found["labels"][0] == row
    with (tmp_path / "out" / "labels.csv").open(newline="") as stream:
        assert next(csv.DictReader(stream)) == {name: str(value) for name, value in row.items()}


def test_without_a_z_slices_come_in_task_order(store: ExportStore, tmp_path: Path) -> None:
    tasks = [TaskRecord(id=i, image="i") for i in (30, 10, 20)]
    store.add_round(1, tasks, {20: a_mask(0, (8, 8))})

    export_masks(store.folder.round(1), tmp_path / "volume", "numpy")
    export_masks(store.folder.round(1), tmp_path / "png", "png")

    found = read(tmp_path / "volume" / "project-z.npy")
    assert found.shape == (3, 8, 8)
    np.testing.assert_array_equal(found[1], store.masks[20])
    assert (tmp_path / "png" / "project" / "task-20.png").exists()


@pytest.mark.parametrize(
    "heights", [(7.5, -2.5, 2.5), (1763865228, 1763865028, 1763865128), (1 << 20, 0, 5)]
)
def test_heights_that_are_no_slice_numbers_give_the_order(
    store: ExportStore, tmp_path: Path, heights: tuple[float, ...]
) -> None:
    """No volume has more than 1,048,576 slices."""
    tasks = [TaskRecord(id=i, image="i", volume="v", z=z) for i, z in enumerate(heights, start=1)]
    store.add_round(1, tasks, {i: a_mask(i, (8, 8)) for i in (1, 2)})

    export_masks(store.folder.round(1), tmp_path / "out", "numpy")

    found = read(tmp_path / "out" / "v-z.npy")
    np.testing.assert_array_equal(found[0], store.masks[2])
    assert (found[1] == 255).all()
    np.testing.assert_array_equal(found[2], store.masks[1])


def test_slices_of_unequal_sizes_are_refused_as_a_volume_and_written_as_png(
    store: ExportStore, tmp_path: Path
) -> None:
    tasks = [TaskRecord(id=i, image="i") for i in (1, 2)]
    store.add_round(1, tasks, {1: a_mask(1, (8, 10)), 2: a_mask(2, (12, 10))})

    with pytest.raises(ExportError, match=r"10 × 8 pixels in task 1, 10 × 12 in task 2.*as png"):
        export_masks(store.folder.round(1), tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))

    export_masks(store.folder.round(1), tmp_path / "out", "png")
    files = sorted(path.name for path in (tmp_path / "out" / "project").iterdir())
    assert files == ["task-1.png", "task-2.png"]


def test_one_slice_labelled_in_two_tasks_is_refused_as_a_volume_and_written_as_png(
    store: ExportStore, tmp_path: Path
) -> None:
    tasks = [TaskRecord(id=i, image="i", volume="v", z=4.0) for i in (1, 2)]
    store.add_round(1, tasks, {i: a_mask(i, (8, 8)) for i in (1, 2)})

    with pytest.raises(ExportError, match="tasks 1 and 2 are both slice 4"):
        export_masks(store.folder.round(1), tmp_path / "out")

    export_masks(store.folder.round(1), tmp_path / "out", "png")
    assert {path.name for path in (tmp_path / "out" / "v").iterdir()} == {
        "task-1.png",
        "task-2.png",
    }


def test_volume_names_become_file_names_that_stay_apart(store: ExportStore, tmp_path: Path) -> None:
    names = ("scans/a b.nii.gz", "scans_a_b", "../Knochen µ", "SCANS_A_B")
    tasks = [TaskRecord(id=i, image="i", volume=v, z=0.0) for i, v in enumerate(names)]
    store.add_round(1, tasks, {i: a_mask(i, (8, 8)) for i in range(len(names))})

    export_masks(store.folder.round(1), tmp_path / "out", "numpy")

    found = {v["volume"]: v["file"] for v in index(tmp_path / "out")["volumes"]}
    assert len({file.lower() for file in found.values()}) == len(names)
    assert found["../Knochen µ"] == "_Knochen_µ-z.npy"
    for i, name in enumerate(names):
        np.testing.assert_array_equal(read(tmp_path / "out" / found[name])[0], store.masks[i])


@pytest.mark.parametrize("format", ["numpy", "png"])
def test_volume_names_that_no_file_can_have_become_others(
    store: ExportStore, tmp_path: Path, format: str
) -> None:
    names = ("骨" * 100 + "甲", "骨" * 100 + "乙", "labels.json", "labels.csv")
    tasks = [TaskRecord(id=i, image="i", volume=v, z=0.0) for i, v in enumerate(names)]
    store.add_round(1, tasks, {i: a_mask(i, (8, 8)) for i in range(len(names))})

    export_masks(store.folder.round(1), tmp_path / "out", format)

    found = {v["volume"]: v["file"] for v in index(tmp_path / "out")["volumes"]}
    assert set(found) == set(names)
    assert len({*found.values(), "labels.json", "labels.csv"}) == len(names) + 2
    assert all((tmp_path / "out" / file).exists() for file in found.values())


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"format": "jpeg"}, ExportError, "format is 'jpeg', expected one of tiff"),
        ({"number": 9}, StoreError, "round-0009/round.json is missing"),
    ],
)
def test_masks_that_cannot_be_had_are_named(
    store: ExportStore, tmp_path: Path, change: dict[str, Any], error: type[Exception], says: str
) -> None:
    one_volume(store)
    with pytest.raises(error, match=says):
        export_masks(
            store.folder.round(change.get("number", 1)),
            tmp_path / "out",
            change.get("format", "tiff"),
        )
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("format", ["tiff", "png"])
@pytest.mark.parametrize(
    ("damage", "says"), [(b"\x89PNG\r\n\x1a\nhalf", "damaged"), (None, "missing")]
)
def test_a_damaged_label_map_stops_the_export_and_leaves_nothing(
    store: ExportStore, tmp_path: Path, format: str, damage: bytes | None, says: str
) -> None:
    one_volume(store)
    if damage is None:
        store.folder.round(1).remove(MASKS[104])
    else:
        store.folder.round(1).write(MASKS[104], damage)
    with pytest.raises(StoreError, match=rf"masks/104\.png.*{says}"):
        export_masks(store.folder.round(1), tmp_path / "out", format)
    assert not list(tmp_path.glob("*out*"))


# -- the source volume


@pytest.fixture
def imported(make_settings: Callable[..., Settings], tmp_path: Path) -> Iterator[ExportStore]:
    """Tasks whose images are addresses of slices of a real file, in every second slice along y."""
    size = (3.0, 2.0, 1.0)
    (tmp_path / "scans").mkdir()
    spec = VolumeSpec(SHAPE, np.dtype(np.uint8), voxel_size=size, unit="µm")
    planes = (np.full((HEIGHT, WIDTH), z, np.uint8) for z in range(DEPTH))
    write_volume(tmp_path / "scans" / "bone.tif", planes, spec)
    store = ExportStore.of(make_settings(NEXTSLICE_VOLUMES=tmp_path / "scans"))
    keys = slice_keys(store.service.settings)
    tasks = [
        TaskRecord(
            id=y,
            image=SliceAddress("scans/bone.tif", "y", y).url("http://backend", keys),
            volume="scans/bone.tif",
            axis="y",
            z=float(y),
        )
        for y in range(0, HEIGHT - 4, 2)
    ]
    store.add_round(1, tasks, {y: a_mask(y, SIZES["y"]) for y in (2, 8)})
    yield store
    store.service.volumes.close()


@pytest.mark.parametrize("format", ["tiff", "ome-zarr", "nifti", "hdf5"])
def test_the_label_volume_lies_on_its_source(
    imported: ExportStore, tmp_path: Path, format: str
) -> None:
    finder = source_finder(imported.service)

    report = export_masks(imported.folder.round(1), tmp_path / "o", format, find_source=finder)

    (written,) = report.volumes
    assert written.shape == SHAPE  # the tasks end before the volume does
    assert written.source == "scans/bone.tif"
    assert (written.voxel_size, written.unit) == ((3.0, 2.0, 1.0), "µm")
    with open_volume(tmp_path / "o" / str(written.file)) as volume:
        assert volume.shape == SHAPE
        assert volume.unit == "µm"
        assert volume.voxel_size == pytest.approx((3.0, 2.0, 1.0))
        np.testing.assert_array_equal(volume.along("y")[8], imported.masks[8])
        if format != "nifti":
            assert volume.classes == CLASSES


@pytest.mark.parametrize("flip", ["z", "y", "x", "zyx"])
@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_slices_that_were_turned_over_go_back(
    make_settings: Callable[..., Settings], tmp_path: Path, flip: str, axis: str
) -> None:
    """By the file's own order, whatever format it is written in."""
    (tmp_path / "scans").mkdir()
    scan = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    np.save(tmp_path / "scans" / "bone.npy", scan)
    store = ExportStore.of(make_settings(NEXTSLICE_VOLUMES=tmp_path / "scans"))
    address = SliceAddress("scans/bone.npy", axis, 2, options=ReadOptions(flip=flip))
    image = address.url("http://backend", slice_keys(store.service.settings))
    with store.service.volumes.volume("scans/bone.npy", address.options) as volume:
        drawn = (volume.along(axis)[2] % 3).astype(np.uint8)
    task = TaskRecord(id=1, image=image, volume="scans/bone.npy", z=2.0, axis=axis)
    store.add_round(1, [task], {1: drawn})

    find = source_finder(store.service)
    report = export_masks(store.folder.round(1), tmp_path / "o", "numpy", find_source=find)
    store.service.volumes.close()

    labels = np.load(tmp_path / "o" / str(report.volumes[0].file))
    assert (labels != 255).sum() == drawn.size
    assert np.array_equal(labels[labels != 255], scan[labels != 255] % 3)


@pytest.mark.parametrize("lacking", ["the file", "its shape", "a look", "a z"])
@pytest.mark.parametrize("flip", ["y", "zyx"])
@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_slices_that_were_turned_over_go_back_without_the_source(
    make_settings: Callable[..., Settings], tmp_path: Path, axis: str, flip: str, lacking: str
) -> None:
    """But for their order, where it is not known how many there are."""
    (tmp_path / "scans").mkdir()
    file = tmp_path / "scans" / "bone.npy"
    scan = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    np.save(file, scan)
    store = ExportStore.of(make_settings(NEXTSLICE_VOLUMES=tmp_path / "scans"))
    options = ReadOptions(flip=flip)
    image = SliceAddress("scans/bone.npy", axis, 0, options=options).url(
        "http://backend", slice_keys(store.service.settings)
    )
    with store.service.volumes.volume("scans/bone.npy", options) as volume:
        drawn = (volume.along(axis)[0] % 3).astype(np.uint8)
    z = None if lacking == "a z" else 0.0
    task = TaskRecord(id=1, image=image, volume="scans/bone.npy", z=z, axis=axis)
    store.add_round(1, [task], {1: drawn})
    if lacking == "the file":
        file.unlink()
    elif lacking == "its shape":
        np.save(file, np.zeros((9, 9, 9), np.uint8))

    find = None if lacking == "a look" else source_finder(store.service)
    report = export_masks(store.folder.round(1), tmp_path / "o", "numpy", find_source=find)
    store.service.volumes.close()

    labels = np.load(tmp_path / "o" / str(report.volumes[0].file))
    here = np.take(scan, -1 if axis in flip else 0, "zyx".index(axis))
    assert np.array_equal(labels.squeeze(), here % 3)
    told = f"counted from the file's other end (--flip {axis})" in " ".join(report.warnings)
    assert told == (axis in flip)


def test_the_label_volume_lies_where_its_source_lies(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """A scan whose axes are swapped and reversed, and that begins somewhere."""
    affine = np.array([[0, 0, -2.0, 9], [0.5, 0, 0, -4], [0, -3.0, 0, 5], [0, 0, 0, 1]])
    (tmp_path / "scans").mkdir()
    scan = nib.Nifti1Image(np.arange(60, dtype=np.uint8).reshape(3, 4, 5), affine)
    nib.save(scan, tmp_path / "scans" / "bone.nii")
    store = ExportStore.of(make_settings(NEXTSLICE_VOLUMES=tmp_path / "scans"))
    address = SliceAddress("scans/bone.nii", "z", 2, options=ReadOptions(oriented=True))
    image = address.url("http://backend", slice_keys(store.service.settings))
    with store.service.volumes.volume("scans/bone.nii", address.options) as volume:
        drawn = (volume[2] % 3).astype(np.uint8)
    store.add_round(1, [TaskRecord(id=1, image=image, volume="scans/bone.nii", z=2.0)], {1: drawn})

    find = source_finder(store.service)
    report = export_masks(store.folder.round(1), tmp_path / "o", "nifti", find_source=find)
    store.service.volumes.close()

    written = nib.load(tmp_path / "o" / str(report.volumes[0].file))
    labels = np.asarray(written.dataobj)
    to_scan = np.linalg.inv(affine) @ written.affine
    labelled = np.argwhere(labels != 255)
    assert len(labelled) == drawn.size
    for place in labelled:
        x, y, z = np.rint(nib.affines.apply_affine(to_scan, place)).astype(int)
        assert labels[tuple(place)] == np.asarray(scan.dataobj)[x, y, z] % 3


def test_without_the_source_file_the_tasks_say_the_shape(
    imported: ExportStore, tmp_path: Path
) -> None:
    (tmp_path / "scans" / "bone.tif").unlink()

    report = export_masks(
        imported.folder.round(1), tmp_path / "o", find_source=source_finder(imported.service)
    )

    assert report.volumes[0].shape == (DEPTH, 15, WIDTH)  # the last task is slice 14
    assert report.volumes[0].voxel_size is None
    (warning,) = report.warnings
    assert "shape and voxel size are not known" in warning
    assert "bone.tif" in warning


def test_a_source_of_another_shape_is_not_used(imported: ExportStore, tmp_path: Path) -> None:
    spec = VolumeSpec((3, 9, 9), np.dtype(np.uint8))
    planes = (np.zeros((9, 9), np.uint8) for _ in range(3))
    write_volume(tmp_path / "scans" / "bone.tif", planes, spec, overwrite=True)

    report = export_masks(
        imported.folder.round(1), tmp_path / "o", find_source=source_finder(imported.service)
    )

    assert report.volumes[0].shape == (DEPTH, 15, WIDTH)
    assert "has 9 slices of 9 × 3 pixels, the labels have 30 × 6" in report.warnings[0]


def test_an_address_that_expired_for_browsers_still_says_the_volume(imported: ExportStore) -> None:
    expired = SliceAddress("scans/bone.tif", "y", 2, expires=1)
    url = expired.url("http://backend", slice_keys(imported.service.settings))

    source = source_finder(imported.service)(url)

    assert source is not None
    assert source.shape == SHAPE


# -- Label Studio's JSON


@pytest.mark.parametrize("config", [CONFIG, brush_config(CLASSES[1:]), bitmask_config(CLASSES)])
def test_an_older_rounds_annotations_render_to_its_label_maps(
    store: ExportStore, tmp_path: Path, config: str
) -> None:
    parsed = parse_label_config(config)
    mask = a_mask(3, SIZES["z"])
    if not parsed.has_background_label:
        mask = np.where(mask == 255, 0, mask).astype(np.uint8)
    tasks = tasks_of("bone", "z", DEPTH, 100)
    store.add_round(1, tasks, {102: mask}, config=config)
    store.add_round(2, tasks, {102: a_mask(4, SIZES["z"])}, config=config)

    count = export_studio_json(store, tmp_path / "a.json", round=1)

    (task,) = json.loads((tmp_path / "a.json").read_text())
    assert count == 1
    assert task["id"] == 102
    assert task["data"] == {"image": "/bone/2.png", "volume": "bone", "z": 2, "axis": "z"}
    (annotation,) = task["annotations"]
    assert annotation["completed_by"] == 1
    assert annotation["updated_at"] == "2026-11-02T09:00:00+00:00"
    found, warnings = label_map(annotation["result"], parsed, HEIGHT, WIDTH)
    np.testing.assert_array_equal(found, mask)
    assert not warnings


def test_a_task_says_which_slice_it_is(store: ExportStore) -> None:
    half = TaskRecord(id=1, image="/h.png", volume="bone", axis="x", z=2.5)
    nameless = TaskRecord(id=2, image="/n.png")
    store.add_round(1, [half, nameless], {i: np.zeros((4, 4), np.uint8) for i in (1, 2)})

    found = [task["data"] for task in round_tasks(store.folder.round(1))]

    assert found == [
        {"image": "/h.png", "volume": "bone", "z": 2.5, "axis": "x"},
        {"image": "/n.png"},
    ]


# -- the record


def test_what_label_studio_has_not_counted_is_exported_and_no_skip() -> None:
    studio: Any = MemoryStudio(bitmask_config(["bone"]), 4, lambda _: np.zeros((8, 9)))
    for task in (0, 1):
        studio.submit(task, [])
    studio.lose_count(0)
    studio.submit(2, [], was_cancelled=True)
    project: Any = SimpleNamespace(studio=studio, number=7, in_studio=lambda: None)

    assert [task["id"] for task in studio_tasks(project)] == [0, 1]


def test_the_record_holds_all_that_the_round_left(store: ExportStore, tmp_path: Path) -> None:
    tasks = tasks_of("bone", "z", DEPTH, 100)
    store.add_round(0, tasks, {})
    store.add_round(1, tasks, {101: a_mask(1, SIZES["z"])}, miou=0.75, cost={101: 30})
    store.add_round(2, tasks, {101: a_mask(1, SIZES["z"])}, flagged="worse")

    export_record(store.folder.round(1), tmp_path / "r.json", names={2: "ada@example.org"})

    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["format"], found["version"]) == ("nextslice round", 1)
    assert found["project"]["number"] == 7
    assert found["round"]["model_version"] == "nextslice-r001-abcdef"
    assert found["round"]["settings"] == {"seed": 40, "k": 2}
    assert found["seeds"] == {"project": 40, "round": 41}
    effort = {
        "task": 101, "annotation": 1101, "completed_by": 2, "blank": False,
        "boundary": 15, "dragged": 0,
        "seconds": 101.0,
        "model_version": "nextslice-r000-abcdef", "pixels": int(np.prod(SIZES["z"])),
        "corrected": 30, "by_class": {"bone": 30},
    }  # fmt: skip
    assert found["dataset"]["labels"] == [
        {
            "task": 101, "annotation": 1101, "updated_at": "2026-11-02T09:00:00+00:00",
            "completed_by": 2, "hash": f"{101:032x}", "mask": "round-0001/masks/101.png",
            "effort": effort,
        }
    ]  # fmt: skip
    assert found["metrics"]["effort"] == [effort]
    assert [line["effort"] for line in found["rounds"]][::2] == [None, None]
    assert found["rounds"][1]["effort"]["corrected"] == 30
    assert len(found["dataset"]["tasks"]) == DEPTH
    assert found["selection"]["chosen"] == [4, 5]
    assert found["selection"]["scores"] == {"4": 0.5, "5": 0.25}
    assert found["metrics"]["miou"] == 0.75
    assert found["queue"]["entries"] == [{"task": 4, "score": 0.0001, "kind": "chosen"}]
    assert found["published"]["round"] == 2
    lines = [(line["round"], line["published"], line["flagged"]) for line in found["rounds"]]
    assert lines == [(0, False, None), (1, False, None), (2, True, "worse")]
    assert found["annotators"] == {"2": "ada@example.org"}


def test_round_0_has_no_metrics(store: ExportStore) -> None:
    store.add_round(0, tasks_of("bone", "z", DEPTH, 100), {})

    found = round_record(store.folder.round(0))

    assert found["metrics"] is None
    assert "annotators" not in found


def test_a_record_gives_nobody_the_right_to_fetch_slices(imported: ExportStore) -> None:
    keys = slice_keys(imported.service.settings)
    images = [task["image"] for task in round_record(imported.folder.round(1))["dataset"]["tasks"]]

    assert images[1].startswith("http://backend/slices/scans/bone.tif/y/2.png?")
    for image in images:
        with pytest.raises(ValueError, match="not signed"):
            SliceAddress.parse(image, keys)


@pytest.mark.parametrize(
    "warning",
    ["its slice {} cannot be read: gone", "The image of task 2 ({}): found 7 bytes", "{}#a, '{}'"],
)
def test_nor_do_the_warnings_of_a_record(imported: ExportStore, warning: str) -> None:
    folder = imported.folder.round(1)
    dataset = folder.need(DATASET)
    image = dataset.tasks[0].image
    assert "&sig=" in image
    said = warning.format(image, image)
    folder.save(DATASET, dataset.model_copy(update={"warnings": [said]}))

    found = round_record(folder)

    unsigned = image.partition("&sig=")[0]
    assert found["dataset"]["warnings"] == [warning.format(unsigned, unsigned)]
    assert "sig=" not in json.dumps(found)


# -- the curve


def curve_rounds(store: ExportStore) -> None:
    tasks = tasks_of("bone", "z", DEPTH, 100)
    masks = {100 + z: a_mask(z, SIZES["z"]) for z in range(DEPTH)}
    store.add_round(0, tasks, {})
    store.add_round(1, tasks, dict(list(masks.items())[:2]), cost={100: 100, 101: 50})
    store.add_round(2, tasks, dict(list(masks.items())[:4]), miou=0.5, pseudo=[105])
    store.add_round(3, tasks, masks, miou=0.25, flagged="worse than round 2")
    store.folder.round(4).write(DATASET, b"{}")  # in progress


def test_the_curve_has_a_row_for_each_committed_round(store: ExportStore, tmp_path: Path) -> None:
    curve_rounds(store)

    points = export_learning_curve(store.folder, tmp_path / "c.csv", tmp_path / "c.png")

    with (tmp_path / "c.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [point.round for point in points] == [0, 1, 2, 3]
    assert list(rows[0]) == [
        "round", "model_version", "strategy", "annotated", "pseudo", "validation", "miou",
        "iou background", "iou bone", "iou implant", "committed_at", "seconds", "flagged",
        "measured", "corrected", "corrected_share", "boundary", "dragged", "lead_time",
        "corrected bone",
    ]  # fmt: skip
    cost = [(row["measured"], row["corrected"], row["lead_time"]) for row in rows]
    assert cost == [("0", "", ""), ("2", "75.0", "100.5"), ("0", "", ""), ("0", "", "")]
    assert rows[1]["corrected bone"] == "75.0"
    assert float(rows[1]["corrected_share"]) == pytest.approx(
        150 / (2 * np.prod(SIZES["z"])), abs=1e-5
    )
    assert [row["miou"] for row in rows] == ["", "", "0.5", "0.25"]
    assert [row["annotated"] for row in rows] == ["0", "2", "4", "6"]
    assert rows[2]["pseudo"] == "1"
    assert rows[2]["iou implant"] == "0.5"
    assert rows[3]["flagged"] == "worse than round 2"
    assert rows[3]["seconds"] == "62.5"
    with Image.open(tmp_path / "c.png") as image:
        assert image.width > 1000


def test_the_list_of_rounds_says_what_the_labels_cost(store: ExportStore) -> None:
    curve_rounds(store)

    table = rounds_table(store.folder)

    cells = {str(column.header): list(column.cells) for column in table.columns}
    share = 150 / (2 * np.prod(SIZES["z"]))
    assert cells["corrected px"] == ["–", f"75 ({share:.1%})", "–", "–", ""]
    assert cells["s/slice"] == ["–", "100", "–", "–", ""]


@pytest.mark.parametrize("name", ["a $x_{$", r"$\frac$", "a$b$c", r"a\$b$"])
def test_class_names_that_look_like_formulas_are_drawn_as_they_are(
    store: ExportStore, name: str
) -> None:
    curve_rounds(store)
    points = [replace(point, iou={name: 0.5}) for point in learning_curve(store.folder)]

    assert draw(points).startswith(b"\x89PNG")
    figure = new_figure(2)
    text = figure.text(0, 0, plain(name))
    assert text._preprocess_math(text.get_text()) == (name, False)


def test_the_curve_of_a_round_ends_with_it(store: ExportStore) -> None:
    curve_rounds(store)
    assert [point.round for point in learning_curve(store.folder, until=2)] == [0, 1, 2]


def test_a_project_without_metrics_has_a_curve_all_the_same(
    store: ExportStore, tmp_path: Path
) -> None:
    store.add_round(0, tasks_of("bone", "z", DEPTH, 100), {})

    export_learning_curve(store.folder, tmp_path / "c.csv", tmp_path / "c.png")

    assert (tmp_path / "c.csv").read_text().splitlines()[1].startswith("0,nextslice-r000-abcdef")
    with Image.open(tmp_path / "c.png") as image:
        assert image.width > 1000


# -- all of it


def test_a_round_is_written_into_one_folder(store: ExportStore, tmp_path: Path) -> None:
    curve_rounds(store)
    steps: list[tuple[str, int, int]] = []

    report = export_round(
        store, tmp_path / "out", round=2, format="nifti",
        progress=lambda *step: steps.append(step),
    )  # fmt: skip

    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "annotations.json", "export.json", "learning_curve.csv", "learning_curve.png", "masks",
        "record.json",
    ]  # fmt: skip
    assert {written.part for written in report.written} == {"masks", "json", "record", "curve"}
    assert all(written.path.exists() for written in report.written)
    assert json.loads((tmp_path / "out" / "export.json").read_text())["round"] == 2
    assert json.loads((tmp_path / "out" / "record.json").read_text())["round"]["round"] == 2
    assert len((tmp_path / "out" / "learning_curve.csv").read_text().splitlines()) == 4
    assert len(json.loads((tmp_path / "out" / "annotations.json").read_text())) == 4
    np.testing.assert_array_equal(
        read(tmp_path / "out" / "masks" / "bone-z.nii.gz")[3], store.masks[103]
    )
    assert ("masks", 4, 4) in steps
    assert ("annotations", 4, 4) in steps


def test_the_latest_round_needs_no_label_studio_without_its_json(
    store: ExportStore, tmp_path: Path
) -> None:
    curve_rounds(store)
    parts = ("masks", "record", "curve")

    assert export_round(store, tmp_path / "out", parts=parts).round == 3


def test_when_label_studio_is_away_nothing_is_left(store: ExportStore, tmp_path: Path) -> None:
    curve_rounds(store)

    with pytest.raises(StudioError, match="cannot be reached"):
        export_round(store, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_only_an_earlier_export_is_overwritten(store: ExportStore, tmp_path: Path) -> None:
    curve_rounds(store)
    out = tmp_path / "out"
    export_round(store, out, round=2)
    before = (out / "export.json").read_bytes()

    with pytest.raises(ExportError, match="is there already"):
        export_round(store, out, round=1)
    assert (out / "export.json").read_bytes() == before

    export_round(store, out, round=1, parts=["record"], overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["export.json", "record.json"]

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(ExportError, match="a folder with other things in it"):
        export_round(store, mine, round=1, overwrite=True)
    assert (mine / "thesis.tex").read_text() == "years of work"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("format", sorted(MASK_FORMATS))
def test_earlier_masks_are_overwritten(store: ExportStore, tmp_path: Path, format: str) -> None:
    curve_rounds(store)
    for number in (2, 1):
        export_masks(store.folder.round(number), tmp_path / "out", format, overwrite=True)
        assert index(tmp_path / "out")["round"] == number
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.json", '{"labels": ["cat", "dog"]}'),
        ("labels.json", '{"format": "nextslice masks", "vol'),
        ("export.json", "[]"),
        ("export.json", '{"format": "another tool", "files": [{"file": "thesis.tex"}]}'),
    ],
)
def test_a_folder_with_another_tools_index_is_kept(
    store: ExportStore, tmp_path: Path, name: str, content: str
) -> None:
    curve_rounds(store)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    (mine / name).write_text(content)

    with pytest.raises(ExportError, match="a folder with other things in it"):
        export_round(store, mine, round=1, overwrite=True)
    with pytest.raises(ExportError, match="a folder with other things in it"):
        export_masks(store.folder.round(1), mine, overwrite=True)
    assert (mine / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("added", ["notes.txt", "masks/corrected.tif"])
def test_an_earlier_export_with_something_added_is_kept(
    store: ExportStore, tmp_path: Path, added: str
) -> None:
    curve_rounds(store)
    export_round(store, tmp_path / "out", round=2)
    (tmp_path / "out" / added).write_text("hours of work")

    with pytest.raises(ExportError, match=rf"other things in it .*{added}"):
        export_round(store, tmp_path / "out", round=1, overwrite=True)
    assert (tmp_path / "out" / added).read_text() == "hours of work"


@pytest.mark.parametrize(
    ("format", "added"),
    [
        ("png", "bone/my-corrected.png"),
        ("png", "bone/z2.png"),
        ("png", "bone/mine/z0.png"),
        ("ome-zarr", "bone-z.zarr/notes.txt"),
        ("ome-zarr", "bone-z.zarr/0/mine.npy"),
    ],
)
def test_what_was_added_to_earlier_masks_is_kept(
    store: ExportStore, tmp_path: Path, format: str, added: str
) -> None:
    curve_rounds(store)
    export_round(store, tmp_path / "out", round=1, parts=["masks"], format=format)
    mine = tmp_path / "out" / "masks" / added
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("hours of work")

    with pytest.raises(ExportError, match="other things in it"):
        export_round(store, tmp_path / "out", round=2, overwrite=True)
    with pytest.raises(ExportError, match="other things in it"):
        export_masks(store.folder.round(2), tmp_path / "out" / "masks", overwrite=True)
    assert mine.read_text() == "hours of work"


@pytest.mark.parametrize("name", ["record.json", "masks/labels.csv", "masks/bone-z.tif"])
def test_a_folder_in_the_place_of_a_file_is_kept(
    store: ExportStore, tmp_path: Path, name: str
) -> None:
    curve_rounds(store)
    export_round(store, tmp_path / "out", round=2)
    (tmp_path / "out" / name).unlink()
    (tmp_path / "out" / name).mkdir()
    (tmp_path / "out" / name / "thesis.tex").write_text("years of work")

    with pytest.raises(ExportError, match=r"other things in it .*thesis\.tex"):
        export_round(store, tmp_path / "out", round=1, overwrite=True)
    assert (tmp_path / "out" / name / "thesis.tex").read_text() == "years of work"


def test_what_is_added_while_an_export_is_written_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with (  # noqa: PT012  (what is refused happens at the end of the block)
        pytest.raises(ExportError, match="other things in it"),
        whole(out, overwrite=True) as partial,
    ):
        partial.mkdir()
        (out / "thesis.tex").write_text("years of work")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis.tex"]


KILLED = """
import os, signal, sys
from pathlib import Path
from ml_backend.export.files import whole

with whole(Path(sys.argv[1])) as partial:
    partial.mkdir()
    (partial / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_export_leaves_nothing_for_good(store: ExportStore, tmp_path: Path) -> None:
    one_volume(store)
    out = tmp_path / "new" / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, out], check=False)
    assert done.returncode == -signal.SIGKILL

    export_masks(store.folder.round(1), out)

    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("out", [".", "..", "/", "{}", "{}/here", "here/.."])
def test_the_folder_that_the_command_runs_in_is_kept(
    store: ExportStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    """It may be empty, but a shell stands in it."""
    one_volume(store)
    here = tmp_path / "out" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    for overwrite in (False, True):
        with pytest.raises(ExportError, match=r"runs in, or above it.*Give a name in it"):
            export_masks(store.folder.round(1), Path(out.format(here.parent)), overwrite=overwrite)
    assert Path.cwd() == here
    assert not list(Path().iterdir())
    export_masks(store.folder.round(1), Path("new"))
    assert (here / "new" / "bone-z.tif").exists()


def test_an_empty_folder_may_be_filled(store: ExportStore, tmp_path: Path) -> None:
    one_volume(store)
    (tmp_path / "out").mkdir()
    export_masks(store.folder.round(1), tmp_path / "out")
    assert (tmp_path / "out" / "bone-z.tif").exists()


def test_projects_and_rounds_are_found_or_named(store: ExportStore) -> None:
    with pytest.raises(ExportError, match="no round that committed"):
        find_round(store.folder)
    curve_rounds(store)

    assert find_project(store.service, 7).key == find_project(store.service, KEY).key == KEY
    assert find_round(store.folder).number == 3
    assert find_round(store.folder, 1).number == 1
    with pytest.raises(ExportError, match=rf"project 8 is not in .*it has {KEY}"):
        find_project(store.service, 8)
    with pytest.raises(ExportError, match="no committed round 4: it has 0 to 3"):
        find_round(store.folder, 4)


def test_of_two_projects_with_one_number_the_younger_is_meant(store: ExportStore) -> None:
    record = store.folder.record
    for key in ("7.999", "7.1863865028"):
        ConnectedProject(store.service, key).folder.record = record
    assert find_project(store.service, 7).key == "7.1863865028"
    assert find_project(store.service, "7.999").key == "7.999"


# -- the command and the scripts


@pytest.fixture
def env(store: ExportStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The environment of a service with that store, and no Label Studio; it is this process's."""
    curve_rounds(store)
    variables = {
        "NEXTSLICE_STORE": store.service.settings.store,
        "LABEL_STUDIO_API_KEY": "token",
        "LABEL_STUDIO_URL": "http://127.0.0.1:9",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    load_settings.cache_clear()
    yield variables
    load_settings.cache_clear()


def test_the_command_writes_a_round(env: dict[str, str], tmp_path: Path) -> None:
    out = str(tmp_path / "out")

    done = nextslice("export", "7", "-o", out, "--round", "2", "--format", "numpy", **env)

    assert done.returncode == 0, done.stderr
    assert "labelled slices: 4, of 1 volume, numpy" in done.stdout
    assert "4 annotated tasks as round 2 saw them" in done.stdout
    assert (tmp_path / "out" / "masks" / "bone-z.npy").exists()
    again = nextslice("export", "7", "-o", out, "--round", "2", **env)
    assert again.returncode == 1
    assert "out is there already" in " ".join(again.stderr.split())
    assert "Traceback" not in again.stderr


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (["8"], ExportError, "project 8 is not in"),
        (["7", "--round", "9"], ExportError, "no committed round 9: it has 0 to 3"),
        (["7", "--what", "masks,movie"], ExportError, "some of masks, json, record, curve"),
        (["7", "--what", ","], ExportError, "some of masks, json, record, curve"),
        (["7", "--round", "1", "--format", "jpeg"], ExportError, "format is 'jpeg'"),
        (["7"], StudioError, "cannot be reached"),
        (["7", "--round", "1", "--names"], StudioError, "cannot be reached"),
    ],
)
@pytest.mark.usefixtures("env")
def test_the_command_says_what_is_wrong_and_leaves_nothing(
    tmp_path: Path, arguments: list[str], error: type[Exception], says: str
) -> None:
    from ml_backend.cli import app, export, strategies  # noqa: F401

    done = CliRunner().invoke(app, ["export", *arguments, "-o", str(tmp_path / "out")])

    assert type(done.exception) is error
    assert says in str(done.exception)
    assert not list(tmp_path.glob("*out*"))


RunScript = Callable[..., str]


@pytest.fixture
def run_script(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> RunScript:
    """Runs a script of the docs as a program; returns what it said."""

    def run(name: str, *arguments: str) -> str:
        path = str(ROOT / "docs" / "scripts" / name)
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    return run


def test_the_masks_script(run_script: RunScript, store: ExportStore, tmp_path: Path) -> None:
    said = run_script("export_masks.py", "7", str(tmp_path / "m"), "ome-zarr")

    labelled = np.stack(list(store.masks.values()))
    share = np.mean(labelled[labelled != 255] == 2)
    assert f"bone-z.zarr: class 2, {share:.1%} of what is labelled" in said


def test_the_record_script(run_script: RunScript, tmp_path: Path) -> None:
    said = run_script("export_record.py", "7", str(tmp_path / "r.json"), "2")

    assert "user 1: 2 slices\nuser 2: 2 slices" in said
    assert "coreset, seed 42, chose [4, 5]" in said


def test_the_curve_script(run_script: RunScript, tmp_path: Path) -> None:
    said = run_script("learning_curve.py", "7", str(tmp_path / "c"))

    assert said == "2 more slices: mIoU -0.250, now 0.250\n"
    assert (tmp_path / "c" / "curve.png").exists()


def test_the_script_for_another_framework(
    imported: ExportStore, tmp_path: Path, run_script: RunScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXTSLICE_VOLUMES", str(tmp_path / "scans"))
    load_settings.cache_clear()
    imported.add_round(9, imported.tasks, imported.masks)

    said = run_script("train_elsewhere.py", "7", str(tmp_path / "pairs"))

    pairs = FolderSource(tmp_path / "pairs")
    assert said == "2 slices of background, bone, implant; 255: nobody labelled it\n"
    assert list(pairs.ids) == ["volume1_task_000002_z00002", "volume1_task_000008_z00008"]
    assert [pairs.position(i) for i in pairs.ids] == [
        Position("volume1", 2),
        Position("volume1", 8),
    ]
    np.testing.assert_array_equal(pairs.mask(pairs.ids[1]), imported.masks[8])
    with open_volume(tmp_path / "scans" / "bone.tif") as volume:
        np.testing.assert_array_equal(pairs.image(pairs.ids[1]), volume.along("y")[8])
