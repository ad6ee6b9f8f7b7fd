"""Labels are laid on a scan by what both files say, exactly, or refused saying both."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from ml_backend.experiment.data import DataSpec, load_data
from ml_backend.volumes.opening import open_volume, write_volume
from ml_backend.volumes.pair import VolumePair
from ml_backend.volumes.volume import VolumeError, VolumeSpec

Array = npt.NDArray[Any]

SHAPE = (4, 5, 6)
"""Along x, y, z of the files."""
SCAN = np.arange(120, dtype=np.int16).reshape(SHAPE)
LABELS = (np.random.default_rng(3).integers(0, 3, SHAPE)).astype(np.uint8)
LPS = np.array([[-0.5, 0, 0, 7], [0, -0.6, 0, 5], [0, 0, 0.8, -3], [0, 0, 0, 1.0]])
SWAPPED = np.array([[0, 0, 0.5, -4], [-0.6, 0, 0, 5], [0, 0.8, 0, 2], [0, 0, 0, 1.0]])
OBLIQUE = np.array(
    [[-0.48, 0.12, 0.02, 7], [0.1, 0.58, -0.1, 5], [0, 0.1, 0.79, -3], [0, 0, 0, 1.0]]
)
RAS = np.diag([0.5, 0.6, 0.8, 1.0])
WAYS = [
    np.array(list(zip(axes, ways, strict=True)), float)
    for axes in itertools.permutations(range(3))
    for ways in itertools.product((1, -1), repeat=3)
]
"""The 48 ways in which the axes of one grid can run."""


def save(path: Path, values: Array, affine: Array, unit: str = "mm") -> Path:
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return path


def whole(path: Path) -> Array:
    """(Z, Y, X)"""
    with open_volume(path) as volume:
        return np.stack(list(volume))


def masks(image: Path, labels: Path, axis: str = "z") -> tuple[Array, Array]:
    """Image and mask of every slice."""
    pair = VolumePair(image, labels, axis=axis)
    return (
        np.stack([pair.image(i) for i in pair.ids]),
        np.stack([pair.mask(i) for i in pair.ids]),
    )


def as_seen(values: Array, affine: Array) -> Array:
    """(Z, Y, X) of the canonical image, as nibabel has it."""
    image: Any = nib.as_closest_canonical(nib.Nifti1Image(values, affine))
    found: Array = np.asarray(image.dataobj).T
    return found


@pytest.mark.parametrize("affine", [RAS, LPS, SWAPPED, OBLIQUE])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_scan_is_read_towards_right_anterior_and_superior(
    tmp_path: Path, affine: Array, suffix: str
) -> None:
    path = save(tmp_path / f"scan{suffix}", SCAN, affine)
    expected = as_seen(SCAN, affine)
    assert np.array_equal(whole(path), expected)
    with open_volume(path) as volume:
        assert volume.shape == expected.shape
        for axis in range(3):
            along = volume.along(axis)
            assert np.array_equal(np.stack(list(along)), np.moveaxis(expected, axis, 0))
        assert volume.affine is not None
        at = np.array(volume.affine) @ [*np.argwhere(expected == 57)[0], 1]
        assert at == pytest.approx((affine @ [*np.argwhere(SCAN == 57)[0], 1])[:3], abs=1e-4)
        edges = np.linalg.norm(np.array(volume.affine)[:, :3], axis=0)
        assert volume.voxel_size == pytest.approx(edges, rel=1e-4)


def test_a_file_that_does_not_say_how_it_lies_stays_as_it_is(tmp_path: Path) -> None:
    image = nib.Nifti1Image(SCAN, None)
    nib.save(image, tmp_path / "scan.nii")
    with open_volume(tmp_path / "scan.nii") as volume:
        assert (volume.affine, volume.turned) == (None, False)
    assert np.array_equal(whole(tmp_path / "scan.nii"), SCAN.T)


@pytest.mark.parametrize("affine", [LPS, OBLIQUE])
def test_labels_whose_axes_run_another_way_are_laid_on_the_scan(
    tmp_path: Path, affine: Array
) -> None:
    scan = save(tmp_path / "scan.nii", SCAN, affine)
    truth = as_seen(LABELS, affine)
    for way in WAYS:
        image: Any = nib.Nifti1Image(LABELS, affine).as_reoriented(way)
        nib.save(image, tmp_path / "labels.nii")
        found, mask = masks(scan, tmp_path / "labels.nii")
        assert np.array_equal(found, as_seen(SCAN, affine))
        assert np.array_equal(mask, truth), way


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_in_a_simulation_too(tmp_path: Path, axis: str) -> None:
    scan = save(tmp_path / "scan.nii", SCAN, LPS)
    nib.save(nib.Nifti1Image(LABELS, LPS).as_reoriented(WAYS[29]), tmp_path / "labels.nii")
    number = "zyx".index(axis)
    spec = DataSpec(str(scan), str(tmp_path / "labels.nii"), axis=number, gap=0)
    data = load_data(spec)
    assert data.source.ids
    for z, slice_id in enumerate(data.source.ids):
        assert np.array_equal(data.source.image(slice_id), as_seen(SCAN, LPS).take(z, number))
        assert np.array_equal(data.source.mask(slice_id), as_seen(LABELS, LPS).take(z, number))


def test_units_are_compared(tmp_path: Path) -> None:
    scan = save(tmp_path / "scan.nii", SCAN, LPS)
    micrometres = np.diag([1000, 1000, 1000, 1]) @ LPS
    labels = save(tmp_path / "labels.nii", LABELS, micrometres, "micron")
    assert np.array_equal(masks(scan, labels)[1], as_seen(LABELS, LPS))


def moved(affine: Array, *by: float) -> Array:
    found = affine.copy()
    found[:3, 3] += by
    return found


@pytest.mark.parametrize(
    ("labels", "affine", "found"),
    [
        (LABELS, LPS @ np.diag([2, 1, 1, 1.0]), "voxels apart"),
        (LABELS, LPS @ np.diag([1, 1, 1.1, 1.0]), "voxels apart"),
        (LABELS, moved(LPS, 0, 0, 0.4), "up to 0.5 voxels apart"),
        (LABELS, moved(LPS, -20, 0, 0), "up to 40 voxels apart"),
        (LABELS, OBLIQUE, "voxels apart"),
        (LABELS, np.eye(4), "voxels apart"),
        (LABELS[:3], LPS, "they differ in shape"),
        (np.ascontiguousarray(LABELS.T), LPS, "they differ in shape"),
    ],
)
def test_labels_that_lie_elsewhere_are_refused_saying_both(
    tmp_path: Path, labels: Array, affine: Array, found: str
) -> None:
    scan = save(tmp_path / "scan.nii", SCAN, LPS)
    with pytest.raises(VolumeError, match="do not lie on one another") as refused:
        masks(scan, save(tmp_path / "labels.nii", labels, affine))
    said = str(refused.value)
    assert found in said
    assert (
        f"{scan} (4 x 5 x 6 voxels along x, y, z of 0.5 x 0.6 x 0.8 mm, orientation RAS, " in said
    )
    assert "in the file LPS, from (5.5, 2.6, -3) on)" in said
    assert f"labels.nii ({' x '.join(map(str, labels.shape))} voxels" in said


def test_small_differences_of_a_header_are_none(tmp_path: Path) -> None:
    scan = save(tmp_path / "scan.nii", SCAN, LPS)
    labels = save(tmp_path / "labels.nii", LABELS, moved(LPS, 0.02, -0.02, 0.03))
    assert np.array_equal(masks(scan, labels)[1], as_seen(LABELS, LPS))


def array(path: Path, values: Array, **about: Any) -> Path:
    """``values`` (Z, Y, X) in a format that does not say how it lies."""
    write_volume(path, values, VolumeSpec(values.shape, values.dtype, **about))  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("name", ["b.npy", "b.tif", "b.h5"])
def test_nobody_guesses_where_labels_lie_that_do_not_say_it(tmp_path: Path, name: str) -> None:
    labels = array(tmp_path / name, np.ascontiguousarray(LABELS.T))
    turned = save(tmp_path / "lps.nii", SCAN, LPS)
    with pytest.raises(VolumeError, match=r"without an orientation\).*one of them does not say"):
        masks(turned, labels)
    # where the scan is read as it is stored, there is but one way
    straight = save(tmp_path / "ras.nii", SCAN, RAS)
    assert np.array_equal(masks(straight, labels)[1], LABELS.T)
    scan = array(tmp_path / "scan.npy", np.ascontiguousarray(SCAN.T))
    assert np.array_equal(masks(scan, save(tmp_path / "l.nii", LABELS, RAS))[1], LABELS.T)
    with pytest.raises(VolumeError, match="does not say how it lies"):
        masks(scan, save(tmp_path / "l.nii", LABELS, LPS))


@pytest.mark.parametrize(
    ("size", "unit", "fits"),
    [
        ((2.0, 1.5, 1.25), "µm", True),
        ((0.002, 0.0015, 0.00125), "mm", True),
        ((2.004, 1.5, 1.25), "µm", True),  # three digits
        ((2.0, 1.5, 1.5), "µm", False),
        ((2.0, 1.5, 1.25), "mm", False),
        ((9.0, 9.0, 9.0), "pixel", True),  # nobody knows what that is
        (None, "", True),
    ],
)
def test_voxels_are_of_one_size(tmp_path: Path, size: Any, unit: str, fits: bool) -> None:
    shape = SCAN.T.shape
    scan = array(tmp_path / "a.h5", SCAN.T, voxel_size=(2.0, 1.5, 1.25), unit="µm")
    labels = array(tmp_path / "b.h5", LABELS.T, voxel_size=size, unit=unit)
    if fits:
        assert masks(scan, labels)[1].shape == shape
        return
    with pytest.raises(VolumeError, match="their voxels are of other sizes") as refused:
        masks(scan, labels)
    assert "of 1.25 x 1.5 x 2 µm" in str(refused.value)


def test_what_we_wrote_before_places_were_kept_lies_voxel_by_voxel(tmp_path: Path) -> None:
    """Label volumes of nextslice had the voxel size alone in their affine, and a comment."""
    straight = save(tmp_path / "ras.nii", SCAN, moved(RAS, 3, 4, 5))
    labels = array(tmp_path / "l.nii", LABELS.T, voxel_size=(0.8, 0.6, 0.5), unit="mm")
    with open_volume(labels) as volume:
        assert volume.affine is None
    assert np.array_equal(masks(straight, labels)[1], LABELS.T)


@pytest.mark.parametrize("unit", ["mm", "nm"])
@pytest.mark.parametrize("name", ["l.nii", "l.nii.gz"])
@pytest.mark.parametrize("affine", [RAS, LPS, SWAPPED, OBLIQUE])
def test_what_is_written_for_a_scan_lies_on_it(
    tmp_path: Path, affine: Array, name: str, unit: str
) -> None:
    scan = save(tmp_path / "scan.nii", SCAN, affine)
    with open_volume(scan) as volume:
        spec = VolumeSpec(
            volume.shape, volume.dtype, volume.voxel_size, volume.unit, affine=volume.affine
        )
        write_volume(tmp_path / name, volume, spec)
    written: Any = nib.load(tmp_path / name)
    for value in (0, 57, 119):
        there = nib.affines.apply_affine(affine, np.argwhere(value == SCAN)[0])
        here = np.argwhere(np.asarray(written.dataobj) == value)[0]
        assert nib.affines.apply_affine(written.affine, here) == pytest.approx(there, abs=1e-4)
    nib.save(nib.Nifti1Image(LABELS, affine), tmp_path / "labels.nii")
    assert np.array_equal(
        masks(tmp_path / name, tmp_path / "labels.nii")[1], as_seen(LABELS, affine)
    )


def test_a_quaternion_and_a_broken_one(tmp_path: Path) -> None:
    image = nib.Nifti1Image(SCAN, None)
    image.header.set_qform(LPS, code="scanner")
    nib.save(image, tmp_path / "q.nii")
    assert np.array_equal(whole(tmp_path / "q.nii"), as_seen(SCAN, LPS))
    data = bytearray((tmp_path / "q.nii").read_bytes())
    data[256:268] = np.array([5, 5, 5], "<f4").tobytes()  # quatern_b, c, d
    (tmp_path / "broken.nii").write_bytes(data)
    with open_volume(tmp_path / "broken.nii") as volume:
        assert volume.affine is None


@pytest.mark.parametrize("bad", [np.diag([0, 1, 1, 1.0]), np.full((4, 4), np.nan)])
def test_an_affine_that_is_none_says_nothing(tmp_path: Path, bad: Array) -> None:
    image = nib.Nifti1Image(SCAN, None)
    for row, values in enumerate(bad[:3]):
        image.header[f"srow_{'xyz'[row]}"] = values
    image.header["sform_code"] = 1
    with (tmp_path / "bad.nii").open("wb") as file:
        image.header["vox_offset"] = 352
        image.header.write_to(file)
        file.write(bytes(352 - file.tell()) + SCAN.tobytes("F"))
    assert np.array_equal(whole(tmp_path / "bad.nii"), SCAN.T)


def test_hdf5_files_say_no_orientation(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = SCAN
    with open_volume(tmp_path / "a.h5") as volume:
        assert (volume.affine, volume.turned) == (None, False)
