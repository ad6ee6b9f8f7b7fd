"""DICOM, NRRD and MetaImage say how their axes run, as pydicom and SimpleITK write it."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.uid import generate_uid

from ml_backend.volumes.geometry import laid_on
from ml_backend.volumes.opening import ReadOptions, open_volume, write_volume
from ml_backend.volumes.volume import Volume, VolumeError, VolumeSpec
from tests.test_dicom import image as dicom_image
from tests.test_dicom import save as save_dicom
from tests.test_formats import assert_holds, values

GREY = values("u2", (5, 16, 32))
SIZES = (0.5, 0.25, 2.0)
"""Along x, y, z, as ITK has them."""
ORIGIN = (-10.0, 20.0, 7.5)
DIRECTIONS = {  # columns: where x, y and z run, towards left, posterior, superior
    "LPS": (1, 0, 0, 0, 1, 0, 0, 0, 1),
    "RAS": (-1, 0, 0, 0, -1, 0, 0, 0, 1),
    "PIR": (0, 0, -1, 1, 0, 0, 0, -1, 0),
}
FILES = ("a.mha", "a.mhd", "a.nrrd", "a.nhdr")
STORED = ReadOptions()


def itk_image(directions: tuple[float, ...], array: np.ndarray = GREY) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(SIZES)
    image.SetOrigin(ORIGIN)
    image.SetDirection(directions)
    return image


def series(folder: Path, directions: tuple[float, ...], array: np.ndarray = GREY) -> Path:
    """The same grid as a DICOM series: its third direction is the normal of the others."""
    image = itk_image(directions)
    ways = np.array(directions, float).reshape(3, 3)
    uid = generate_uid()
    folder.mkdir()
    for z, pixels in enumerate(array):
        one = dicom_image(pixels, SeriesInstanceUID=uid, RescaleIntercept=0, BitsStored=16)
        one.HighBit = 15
        one.PixelSpacing = [SIZES[1], SIZES[0]]
        one.ImageOrientationPatient = [*ways[:, 0], *ways[:, 1]]
        one.ImagePositionPatient = list(image.TransformIndexToPhysicalPoint((0, 0, z)))
        save_dicom(folder / f"{z}.dcm", one)
    return folder


def saved(path: Path, directions: tuple[float, ...], array: np.ndarray = GREY) -> Path:
    if path.suffix == "":
        return series(path, directions, array)
    SimpleITK.WriteImage(itk_image(directions, array), str(path))
    return path


def expected(directions: tuple[float, ...], array: np.ndarray = GREY) -> np.ndarray:
    """The array towards right, anterior and superior, as ITK turns it."""
    turned = SimpleITK.DICOMOrient(itk_image(directions, array), "LPS")
    return SimpleITK.GetArrayFromImage(turned)[:, ::-1, ::-1]


@pytest.mark.parametrize("way", DIRECTIONS)
@pytest.mark.parametrize("name", [*FILES, "dicom"])
def test_they_are_read_towards_right_anterior_and_superior(
    tmp_path: Path, name: str, way: str
) -> None:
    path = saved(tmp_path / name, DIRECTIONS[way])
    right = expected(DIRECTIONS[way])
    with open_volume(path) as volume:
        assert_holds(volume, right)
        assert (volume.stored, volume.turned) == (way, way != "RAS")
    with open_volume(path, STORED) as volume:
        assert_holds(volume, GREY)
        place = itk_image(DIRECTIONS[way]).TransformIndexToPhysicalPoint((3, 2, 1))
        assert volume.affine is not None
        found = np.array(volume.affine) @ (1, 2, 3, 1)
        assert found == pytest.approx((-place[0], -place[1], place[2]))


@pytest.mark.parametrize("scan", [*FILES, "dicom", "a.nii"])
@pytest.mark.parametrize("name", ["b.mha", "b.nrrd", "b.nii.gz"])
def test_labels_are_laid_on_the_scan_by_what_both_say(tmp_path: Path, scan: str, name: str) -> None:
    saved(tmp_path / scan, DIRECTIONS["PIR"])
    classes = (GREY % 3).astype(np.uint8)
    other = SimpleITK.DICOMOrient(itk_image(DIRECTIONS["PIR"], classes), "RAI")
    SimpleITK.WriteImage(other, str(tmp_path / name))
    for options in (None, STORED):
        with (
            open_volume(tmp_path / scan, options) as grey,
            open_volume(tmp_path / name, ReadOptions(oriented=True, labels=True)) as labels,
        ):
            found = laid_on(labels, grey)
            assert all(np.array_equal(a, b % 3) for a, b in zip(found, grey, strict=True))
    other.SetOrigin((0.0, 0.0, 1.0))
    SimpleITK.WriteImage(other, str(tmp_path / name))
    with (
        open_volume(tmp_path / scan) as grey,
        open_volume(tmp_path / name) as labels,
        pytest.raises(VolumeError, match="do not lie on one another"),
    ):
        laid_on(labels, grey)


@pytest.mark.parametrize("scan", [*FILES, "dicom", "a.nii"])
@pytest.mark.parametrize("name", ["b.mha", "b.nrrd"])
def test_what_is_written_for_a_scan_lies_on_it(tmp_path: Path, scan: str, name: str) -> None:
    saved(tmp_path / scan, DIRECTIONS["PIR"])
    with open_volume(tmp_path / scan) as grey:
        write(tmp_path / name, grey)
        with open_volume(tmp_path / name) as written:
            found = laid_on(written, grey)
            assert np.allclose(found.affine, grey.affine)
            assert_holds(found, np.stack([*grey]))
            assert written.voxel_size == pytest.approx(grey.voxel_size)
        place = np.array(grey.affine) @ (1, 2, 3, 1)
    theirs = SimpleITK.ReadImage(str(tmp_path / name)).TransformIndexToPhysicalPoint((3, 2, 1))
    assert theirs == pytest.approx((-place[0], -place[1], place[2]))


def write(path: Path, volume: Volume) -> None:
    spec = VolumeSpec(
        volume.shape, volume.dtype, volume.voxel_size, volume.unit, None, volume.affine
    )
    write_volume(path, volume, spec)


@pytest.mark.parametrize("name", FILES)
def test_what_itk_writes_for_an_image_that_nobody_placed_says_nothing(
    tmp_path: Path, name: str
) -> None:
    """Else labels of a TIFF would be refused for every tomogram that came through ITK."""
    image = SimpleITK.GetImageFromArray(GREY)
    image.SetSpacing(SIZES)
    SimpleITK.WriteImage(image, str(tmp_path / name))
    with open_volume(tmp_path / name) as volume:
        assert_holds(volume, GREY)
        assert (volume.affine, volume.turned) == (None, False)
    nibabel.save(nibabel.Nifti1Image(GREY.T, None), tmp_path / "b.nii")
    with open_volume(tmp_path / name) as scan, open_volume(tmp_path / "b.nii") as labels:
        assert laid_on(labels, scan) is labels


def test_a_tilted_gantry_shears_the_grid(tmp_path: Path) -> None:
    path = series(tmp_path / "ct", DIRECTIONS["LPS"])
    for z in range(len(GREY)):
        one = pydicom.dcmread(path / f"{z}.dcm")
        one.ImagePositionPatient = [-10, 20 + 0.5 * z, 7.5 + 2 * z]
        one.save_as(path / f"{z}.dcm")
    with open_volume(path) as volume:
        # y was turned: the last row of before is the first
        first, last = (np.array(volume.affine) @ (z, 15, 31, 1) for z in (0, 4))
        assert first == pytest.approx((10, -20, 7.5))
        assert last == pytest.approx((10, -22, 15.5))
        assert volume.voxel_size == (2.0, 0.25, 0.5)


@pytest.mark.parametrize(
    ("name", "said", "instead"),
    [
        ("a.mha", "Offset = -10 20 7.5", "Offset = 1e308 nan inf"),
        ("a.mha", "ElementSpacing = 0.5 0.25 2", "ElementSpacing = 1e200 1e200 1e200"),
        ("a.mha", "TransformMatrix = -1 0 0", "TransformMatrix = 1e308 1e308 1e308"),
        ("a.mha", "TransformMatrix = -1 0 0", "TransformMatrix = 0 0 0"),
        ("a.nrrd", "(-10,20,7.5)", "(nan,inf,1e308)"),
        ("a.nrrd", "(-0.5,0,0)", "(1e308,1e308,inf)"),
        ("a.nrrd", "(-0.5,0,0)", "(0,0,2)"),
    ],
)
def test_what_makes_no_sense_says_nothing(
    tmp_path: Path, name: str, said: str, instead: str
) -> None:
    path = saved(tmp_path / name, DIRECTIONS["RAS"])
    assert said.encode() in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(said.encode(), instead.encode()))
    with open_volume(path) as volume:
        assert_holds(volume, GREY)
        assert (volume.affine, volume.turned) == (None, False)
