"""A volume and its labels as slices: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import h5py
import mrcfile
import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK
import tifffile
import zarr
from PIL import Image

from al_strategies.evidence import Position
from ml_backend.experiment.data import DataSpec, load_data
from ml_backend.volumes.opening import write_volume
from ml_backend.volumes.pair import VolumePair
from ml_backend.volumes.volume import VolumeError, VolumeSpec

IMAGE = np.arange(5 * 4 * 6, dtype=np.int16).reshape(5, 4, 6) - 50
LABELS = (np.arange(5 * 4 * 6).reshape(5, 4, 6) % 3).astype(np.uint8)


def save(folder: Path, name: str, volume: np.ndarray, suffix: str = ".npy") -> Path:
    path = folder / f"{name}{suffix}"
    if suffix == ".npy":
        np.save(path, volume)
    else:
        pages = [Image.fromarray(page) for page in volume]
        pages[0].save(path, save_all=True, append_images=pages[1:])
    return path


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_numpy_volumes_are_cut_along_any_axis(tmp_path: Path, axis: int) -> None:
    pair = VolumePair(save(tmp_path, "a", IMAGE), save(tmp_path, "b", LABELS), axis=axis)
    assert len(pair.ids) == IMAGE.shape[axis]
    assert np.array_equal(pair.image("z0003"), IMAGE.take(3, axis))
    assert np.array_equal(pair.mask("z0003"), LABELS.take(3, axis))
    assert pair.image("z0003").dtype == np.int16
    assert pair.position("z0003") == Position("a", 3.0)
    assert pair.classes == ("background", "class 1", "class 2")


def test_tiff_stacks_are_read_page_by_page(tmp_path: Path) -> None:
    image = IMAGE.astype(np.uint8)
    pair = VolumePair(save(tmp_path, "a", image, ".tif"), save(tmp_path, "b", LABELS, ".tiff"))
    assert np.array_equal(pair.image("z0004"), image[4])
    assert np.array_equal(pair.mask("z0000"), LABELS[0])


@pytest.mark.parametrize("axis", ["z", "y", "x"])
@pytest.mark.parametrize(
    ("image", "labels"),
    [("a.tif", "b.tif"), ("a.h5", "b.nii.gz"), ("a.zarr", "b_png"), ("a.raw", "b.npy")],
)
def test_formats_and_axes_mix(tmp_path: Path, image: str, labels: str, axis: str) -> None:
    write_volume(tmp_path / image, IMAGE, VolumeSpec((5, 4, 6), IMAGE.dtype))
    write_volume(tmp_path / labels, LABELS, VolumeSpec((5, 4, 6), LABELS.dtype))
    pair = VolumePair(tmp_path / image, tmp_path / labels, axis=axis)
    place = "zyx".index(axis)
    assert len(pair.ids) == IMAGE.shape[place]
    for i, slice_id in enumerate(pair.ids):
        assert np.array_equal(pair.image(slice_id), IMAGE.take(i, place))
        assert np.array_equal(pair.mask(slice_id), LABELS.take(i, place))


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (("air", "bone", "screw", "unused"), ("air", "bone", "screw", "unused")),
        (("air", "bone"), ("background", "class 1", "class 2")),
    ],
    ids=["enough", "too few"],
)
def test_classes_are_named_by_the_labels_file(tmp_path: Path, names: tuple, classes: tuple) -> None:
    write_volume(tmp_path / "b.tif", LABELS, VolumeSpec((5, 4, 6), LABELS.dtype, classes=names))
    assert VolumePair(save(tmp_path, "a", IMAGE), tmp_path / "b.tif").classes == classes


def test_unlabelled_voxels_are_no_class(tmp_path: Path) -> None:
    labels = LABELS.copy()
    labels[0] = 255
    pair = VolumePair(save(tmp_path, "a", IMAGE), save(tmp_path, "b", labels))
    assert len(pair.classes) == 3


def test_image_and_labels_may_be_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "both.h5"
    with h5py.File(path, "w") as file:
        file["raw"], file["labels"] = IMAGE, LABELS
    data = load_data(DataSpec(str(path), str(path), dataset="raw", labels_dataset="labels", gap=0))
    first = data.source.ids[0]
    assert np.array_equal(data.source.image(first), IMAGE[0])
    assert np.array_equal(data.source.mask(first), LABELS[0])


def test_it_can_be_simulated_on(tmp_path: Path) -> None:
    volume = np.ones((30, 4, 4), np.uint8)
    paths = [save(tmp_path, name, volume) for name in ("a", "b")]
    data = load_data(DataSpec(str(paths[0]), str(paths[1]), fraction=0.2, gap=2))
    assert (len(data.pool), len(data.test)) == (20, 6)


@pytest.mark.parametrize(
    ("centre", "in_pool", "in_test"),
    [(0.5, (), ("top", "nowhere")), (1.0, ("top",), ("nowhere",))],
)
def test_what_a_split_cannot_learn_or_measure_is_known(
    tmp_path: Path, centre: float, in_pool: tuple[str, ...], in_test: tuple[str, ...]
) -> None:
    labels = np.zeros((30, 4, 4), np.uint8)
    labels[:, 0], labels[26:, 1], labels[3:6, 2] = 1, 2, 3
    labels[:, 3] = 255
    labels_path = tmp_path / "b.h5"
    write_volume(
        labels_path, labels,
        VolumeSpec(labels.shape, labels.dtype, classes=("background", "body", "top", "nowhere")),
    )  # fmt: skip
    image_path = save(tmp_path, "a", np.zeros_like(labels))
    data = load_data(DataSpec(str(image_path), str(labels_path), gap=2, centre=centre))

    contents = data.read()

    assert contents.missing_in_pool == in_pool
    assert contents.missing_in_test == in_test


@pytest.mark.parametrize(
    ("image", "labels", "message"),
    [
        (IMAGE, LABELS[:4], r"shape \(5, 4, 6\).*\(4, 4, 6\)"),
        (IMAGE[0], LABELS, "expected three axes"),
        (IMAGE, LABELS.astype(np.float32) + 0.5, "whole class ids"),
        (IMAGE, LABELS * np.float32("nan"), "whole class ids"),
        (IMAGE, LABELS.astype(np.int16) - 1, "whole class ids"),
        (IMAGE, LABELS.astype(np.int16) + 300, "whole class ids"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, image: np.ndarray, labels: np.ndarray, message: str
) -> None:
    with pytest.raises(VolumeError, match=message):
        VolumePair(save(tmp_path, "a", image), save(tmp_path, "b", labels))


def test_a_file_that_is_no_volume_is_named(tmp_path: Path) -> None:
    good = save(tmp_path, "a", IMAGE)
    for name in ("cut.npy", "cut.tif", "scan.raw"):
        (tmp_path / name).write_bytes(good.read_bytes()[:90])
        with pytest.raises(VolumeError, match=name.replace(".", r"\.")):
            VolumePair(tmp_path / name, good)


def test_truth_values_are_labels(tmp_path: Path) -> None:
    labels = LABELS > 1
    pair = VolumePair(save(tmp_path, "a", IMAGE), save(tmp_path, "b", labels))
    assert np.array_equal(pair.mask("z0001"), labels[1])
    assert pair.classes == ("background", "class 1")


def several(folder: Path, kind: str, array: np.ndarray) -> Path:
    """``array`` (2, Z, Y, X) as times or channels of one file."""
    path = folder / f"labels{kind}"
    if kind == ".nii":
        nibabel.save(nibabel.Nifti1Image(array.transpose(3, 2, 1, 0), np.eye(4)), path)
    elif kind == ".tif":
        tifffile.imwrite(path, array, ome=True, metadata={"axes": "CZYX"})
    elif kind == ".h5":
        with h5py.File(path, "w") as file:
            file["labels"] = array
            for place, name in enumerate("tzyx"):
                file["labels"].dims[place].label = name
    elif kind == ".zarr":
        names = ["c", "z", "y", "x"]
        zarr.create_array(path, data=array, dimension_names=names)
    elif kind == ".nrrd":
        header = {"kinds": ["list", "domain", "domain", "domain"]}
        nrrd.write(
            str(path), np.ascontiguousarray(np.moveaxis(array, 0, 3)), header, index_order="C"
        )
    elif kind == ".mha":
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array, isVector=False), str(path))
    else:
        with mrcfile.new(path) as mrc:
            mrc.set_data(array.astype(np.int8))
    return path


@pytest.mark.parametrize(
    ("kind", "option"),
    [(".nii", "time"), (".tif", "channel"), (".h5", "time"), (".zarr", "channel"),
     (".nrrd", "channel"), (".mha", "time"), (".mrc", "time")],
)  # fmt: skip
def test_of_several_label_volumes_one_is_chosen_or_all_refused(
    tmp_path: Path, kind: str, option: str
) -> None:
    scan = save(tmp_path, "scan", np.arange(120 * 3, dtype=np.uint16).reshape(15, 4, 6))
    first = (np.arange(15 * 4 * 6).reshape(15, 4, 6) % 3).astype(np.uint8)
    labels = several(tmp_path, kind, np.stack([first, first[::-1]]))
    with pytest.raises(VolumeError, match=rf"choose it with --labels-{option}, 0 to 1"):
        load_data(DataSpec(str(scan), str(labels), gap=0))
    chosen = {f"labels_{option}": 1}
    data = load_data(DataSpec(str(scan), str(labels), gap=0, **chosen))
    for z in range(15):
        assert np.array_equal(data.source.mask(f"z{z:04d}"), first[14 - z])
    with pytest.raises(VolumeError, match=rf"has 2 {option}s, asked for is --labels-{option} 2"):
        load_data(DataSpec(str(scan), str(labels), gap=0, **{f"labels_{option}": 2}))


def test_colours_are_no_labels(tmp_path: Path) -> None:
    scan = save(tmp_path, "scan", IMAGE)
    rgb = np.stack([LABELS, LABELS, 2 - LABELS], axis=-1)
    tifffile.imwrite(tmp_path / "labels.tif", rgb, photometric="rgb")
    (tmp_path / "labels").mkdir()
    for z, page in enumerate(rgb):
        Image.fromarray(page).save(tmp_path / "labels" / f"{z}.png")
    for labels in (tmp_path / "labels.tif", tmp_path / "labels"):
        with pytest.raises(VolumeError, match=r"colour image .*--labels-channel, 0 to 2"):
            load_data(DataSpec(str(scan), str(labels), gap=0))
        data = load_data(DataSpec(str(scan), str(labels), gap=0, labels_channel=2))
        assert np.array_equal(data.source.mask("z0001"), 2 - LABELS[1])
