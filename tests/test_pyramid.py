"""Smaller ones of a volume: their voxels lie where the metadata say, and are what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from ml_backend.volumes.formats.pyramid import levels_of
from ml_backend.volumes.opening import open_volume, write_volume
from ml_backend.volumes.volume import VolumeSpec

CLASSES = ("background", "bone", "implant")


def written(path: Path, array: np.ndarray[Any, Any], **about: Any) -> Any:
    shape = (array.shape[0], array.shape[1], array.shape[2])
    write_volume(path, array, VolumeSpec(shape, array.dtype, **about))
    return zarr.open_group(path, mode="r")


def places(level: Any, axis: int, length: int) -> np.ndarray[Any, Any]:
    """Where the middles of the voxels lie, by the metadata alone."""
    scale, *moved = level["coordinateTransformations"]
    start = moved[0]["translation"][axis] if moved else 0.0
    return np.asarray(start + scale["scale"][axis] * np.arange(length))


@pytest.mark.parametrize("classes", [None, CLASSES])
@pytest.mark.parametrize("origin", [None, (5.0, -3.0, 2.0)])
def test_every_level_lies_where_it_says(tmp_path: Path, classes: Any, origin: Any) -> None:
    """Of a ramp the means are the ramp at the middles, and so are single voxels."""
    shape, size = (6, 300, 1030), (2.0, 1.0, 1.0)
    z, y, x = np.indices(shape)
    for axis, ramp in enumerate((z, y, x)):
        path = tmp_path / f"{axis}.zarr"
        about = {"voxel_size": size, "unit": "µm", "classes": classes, "origin": origin}
        group = written(path, ramp.astype(np.float32), **about)
        (image,) = group.attrs["ome"]["multiscales"]
        assert image["type"] == ("mean" if classes is None else "nearest")
        found = [group[level["path"]] for level in image["datasets"]]
        # the short axis waits until its voxels are cubes
        assert [one.shape for one in found] == [
            (6, 300, 1030), (6, 150, 515), (3, 75, 258), (2, 38, 129),
        ]  # fmt: skip
        begin = (origin or (0.0, 0.0, 0.0))[axis]
        for level, one in zip(image["datasets"], found, strict=True):
            lies = (places(level, axis, one.shape[axis]) - begin) / size[axis]
            values = np.moveaxis(np.asarray(one[:]), axis, 0)
            inside = slice(0, -1) if len(lies) > 1 else slice(0, 0)  # the last may be padded
            expected = np.broadcast_to(lies[inside, None, None], values[inside].shape)
            assert np.array_equal(values[inside], expected), level["path"]


def test_classes_are_never_mixed(tmp_path: Path) -> None:
    array = np.random.default_rng(0).choice(np.array([0, 2], np.uint8), (4, 64, 600))
    group = written(tmp_path / "a.zarr", array, classes=CLASSES)
    assert set(np.unique(group["1"][:])) == {0, 2}
    assert np.array_equal(group["1"][:], array[::2, ::2, ::2])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "uint64", "bool"])
def test_types_are_kept(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(1)
    array = (rng.random((2, 40, 520)) * 200).astype(dtype)
    if dtype == "uint64":
        array = array + np.uint64(2**63)
    group = written(tmp_path / "a.zarr", array)
    assert group["1"].dtype == array.dtype
    if dtype == "uint64":
        assert np.array_equal(group["1"][:], array[::2, ::2, ::2])
    else:
        even = array.astype(np.float64).reshape(1, 2, 20, 2, 260, 2).mean((1, 3, 5))
        apart = np.abs(group["1"][:].astype(np.float64) - even).max()
        assert apart <= (1e-4 if dtype == "float32" else 0.5)


def test_a_small_volume_has_one_level() -> None:
    assert len(levels_of(VolumeSpec((256, 256, 256), np.dtype(np.uint8)))) == 1


def test_the_full_resolution_is_read(tmp_path: Path) -> None:
    array = np.random.default_rng(2).integers(0, 255, (3, 10, 700), np.uint8)
    written(tmp_path / "a.zarr", array)
    with open_volume(tmp_path / "a.zarr") as volume:
        assert np.array_equal(np.stack(list(volume)), array)


def test_a_folder_with_a_pyramid_may_be_overwritten(tmp_path: Path) -> None:
    array = np.zeros((2, 10, 700), np.uint8)
    written(tmp_path / "a.zarr", array)
    write_volume(tmp_path / "a.zarr", array, VolumeSpec((2, 10, 700), array.dtype), overwrite=True)
