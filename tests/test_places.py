"""What `segment` and `export` write lies on the scan in other programs: each format is read back by
one that is not ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import tifffile
import zarr

from ml_backend.volumes.geometry import laid_on
from ml_backend.volumes.opening import open_volume, write_volume
from ml_backend.volumes.volume import ReadOptions, VolumeSpec

Array = np.ndarray[Any, Any]

SCAN = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
CLASSES = ("background", "bone")
OBLIQUE = np.array(
    [[0.36, -0.48, 0.0, 12.5], [0.48, 0.36, 0.0, -7.0], [0.0, 0.0, 0.8, 3.25], [0, 0, 0, 1]]
)
SHEARED = np.array([[0.5, 0.1, 0, 1], [0, 0.6, 0, 2], [0, 0, 0.8, 3], [0, 0, 0, 1.0]])
SIZE, ORIGIN = (4.6, 2.3, 1.15), (10.0, -20.0, 30.5)


def scan(path: Path, affine: Array | None, code: int, unit: str = "mm", q: bool = False) -> Path:
    image = nib.Nifti1Image(SCAN, affine)
    image.header.set_xyzt_units(unit)
    image.set_qform(affine, code if q else 0)
    image.set_sform(affine, 0 if q else code)
    nib.save(image, path)
    return path


def labels_of(path: Path, out: Path) -> Path:
    """Labels of the scan at ``path``, read as `import` and `segment` read it: its values mod 2."""
    with open_volume(path, options=ReadOptions(oriented=True)) as volume:
        spec = VolumeSpec(
            volume.shape, np.dtype(np.uint8), volume.voxel_size, volume.unit, CLASSES,
            volume.affine, volume.frame, volume.origin,
        )  # fmt: skip
        write_volume(out, ((one % 2).astype(np.uint8) for one in volume), spec)
    return out


def header(path: Path) -> Any:
    return nib.load(path).header


@pytest.mark.parametrize("unit", ["mm", "micron", "meter"])
@pytest.mark.parametrize("out", ["l.nii.gz", "l.mha", "l.nrrd"])
def test_itk_finds_labels_on_the_scan_whatever_its_unit(
    tmp_path: Path, unit: str, out: str
) -> None:
    """It turns the units of NIfTI to mm, and those of NRRD and MetaImage to nothing."""
    affine = np.array([[0, -2.0, 0, 100], [1.5, 0, 0, -50], [0, 0, 3.0, 20], [0, 0, 0, 1]])
    labels_of(scan(tmp_path / "s.nii", affine, 1, unit), tmp_path / out)
    there, here = (SimpleITK.ReadImage(tmp_path / name) for name in ("s.nii", out))
    mm = {"mm": 1.0, "micron": 1e-3, "meter": 1e3}[unit]
    assert here.GetSpacing() == pytest.approx((2 * mm, 1.5 * mm, 3 * mm), rel=1e-5)
    for z, y, x in np.ndindex(here.GetSize()[::-1]):
        place = there.TransformPhysicalPointToContinuousIndex(
            here.TransformIndexToPhysicalPoint((x, y, z))
        )
        index = [int(i) for i in np.rint(place)]
        assert place == pytest.approx(index, abs=1e-3)
        assert there.GetPixel(*index) % 2 == here.GetPixel(x, y, z)
    with open_volume(tmp_path / out) as labels, open_volume(tmp_path / "s.nii") as read:
        assert laid_on(labels, read).shape == read.shape


def test_labels_of_a_metaimage_scan_keep_its_unit(tmp_path: Path) -> None:
    """ITK takes its numbers for mm: it does so with those of the labels too."""
    spec = VolumeSpec(
        SCAN.shape, SCAN.dtype, (3.0, 2.0, 1.5), "µm",
        affine=((0, 0, 1.5, 1), (0, 2.0, 0, 2), (3.0, 0, 0, 3)),
    )  # fmt: skip
    write_volume(tmp_path / "s.mha", SCAN, spec)
    for out in ("l.mha", "l.nrrd"):
        labels_of(tmp_path / "s.mha", tmp_path / out)
        there, here = (SimpleITK.ReadImage(tmp_path / name) for name in ("s.mha", out))
        assert (here.GetSpacing(), here.GetOrigin()) == (there.GetSpacing(), there.GetOrigin())
        with open_volume(tmp_path / out) as volume:
            assert volume.unit == "µm"


@pytest.mark.parametrize("unit", ["mm", "micron", "meter"])
@pytest.mark.parametrize("code", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("q", [False, True])
def test_nifti_keeps_code_and_unit(tmp_path: Path, unit: str, code: int, q: bool) -> None:
    labels = labels_of(scan(tmp_path / "s.nii", OBLIQUE, code, unit, q), tmp_path / "l.nii.gz")
    found = header(labels)
    assert (int(found["sform_code"]), int(found["qform_code"])) == (code, code)
    assert found.get_xyzt_units()[0] == unit
    assert found.get_qform() == pytest.approx(found.get_sform(), abs=1e-5)


@pytest.mark.parametrize("affine", [OBLIQUE, SHEARED, np.diag([-0.5, -0.6, 0.8, 1])])
def test_nifti_lies_on_its_scan_in_nibabel(tmp_path: Path, affine: Array) -> None:
    labels = nib.load(labels_of(scan(tmp_path / "s.nii", affine, 1), tmp_path / "l.nii"))
    to_scan = np.linalg.inv(affine) @ labels.affine
    for place in np.ndindex(labels.shape):
        x, y, z = np.rint(nib.affines.apply_affine(to_scan, place)).astype(int)
        assert labels.dataobj[place] == SCAN[x, y, z] % 2


def test_a_sheared_scan_has_no_qform(tmp_path: Path) -> None:
    found = header(labels_of(scan(tmp_path / "s.nii", SHEARED, 2), tmp_path / "l.nii"))
    assert (int(found["sform_code"]), int(found["qform_code"])) == (2, 0)


def test_nifti_lies_on_its_scan_in_itk(tmp_path: Path) -> None:
    there = SimpleITK.ReadImage(str(scan(tmp_path / "s.nii", OBLIQUE, 1)))
    here = SimpleITK.ReadImage(str(labels_of(tmp_path / "s.nii", tmp_path / "l.nii.gz")))
    for index in np.ndindex(here.GetSize()):
        point = here.TransformIndexToPhysicalPoint(index)
        assert here[index] == there[there.TransformPhysicalPointToIndex(point)] % 2


def test_a_scan_that_says_no_place_gets_labels_that_say_none(tmp_path: Path) -> None:
    path = scan(tmp_path / "s.nii", None, 0)
    labels = labels_of(path, tmp_path / "l.nii")
    found = header(labels)
    assert (int(found["sform_code"]), int(found["qform_code"])) == (0, 0)
    # so every program puts both in the same place, its own
    assert np.array_equal(nib.load(labels).affine, nib.load(path).affine)
    itk = [SimpleITK.ReadImage(str(one)) for one in (path, labels)]
    assert itk[0].GetOrigin() == itk[1].GetOrigin()
    assert itk[0].GetDirection() == itk[1].GetDirection()


def test_the_comment_says_nothing_that_is_not_so(tmp_path: Path) -> None:
    for affine, code in ((OBLIQUE, 1), (None, 0)):
        labels = labels_of(scan(tmp_path / "s.nii", affine, code), tmp_path / "l.nii")
        (extension,) = header(labels).extensions
        said = json.loads(extension.get_content())["nextslice"]
        assert None not in said.values()
        assert said["classes"] == list(CLASSES)
        labels.unlink()


def zarr_scan(path: Path, version: int) -> Path:
    """As other tools write it: scale and translation on each level."""
    group = zarr.create_group(path, zarr_format=2 if version == 4 else 3)
    group.create_array("0", data=np.ascontiguousarray(SCAN.T))
    steps = [{"type": "scale", "scale": [*SIZE]}, {"type": "translation", "translation": [*ORIGIN]}]
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}]}
    if version == 4:
        group.attrs["multiscales"] = [image | {"version": "0.4"}]
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    return path


@pytest.mark.parametrize("version", [4, 5])
def test_ome_zarr_keeps_scale_and_translation(tmp_path: Path, version: int) -> None:
    labels = labels_of(zarr_scan(tmp_path / "s.zarr", version), tmp_path / "l.zarr")
    (image,) = zarr.open_group(labels, mode="r").attrs["ome"]["multiscales"]
    assert [axis["name"] for axis in image["axes"]] == ["z", "y", "x"]
    assert {axis["unit"] for axis in image["axes"]} == {"micrometer"}
    scale, translation = image["datasets"][0]["coordinateTransformations"]
    assert scale == {"type": "scale", "scale": [*SIZE]}
    assert translation == {"type": "translation", "translation": [*ORIGIN]}
    # and once more, for nothing is lost on the way
    again = labels_of(labels, tmp_path / "again.zarr")
    assert zarr.open_group(again, mode="r").attrs["ome"]["multiscales"] == [image]


def test_a_scan_that_lies_upright_has_its_place_in_ome_zarr(tmp_path: Path) -> None:
    affine = np.array([[-0.5, 0, 0, 9], [0, -0.6, 0, 7], [0, 0, 0.8, 3], [0, 0, 0, 1.0]])
    labels = labels_of(scan(tmp_path / "s.nii", affine, 1), tmp_path / "l.zarr")
    (image,) = zarr.open_group(labels, mode="r").attrs["ome"]["multiscales"]
    scale, translation = image["datasets"][0]["coordinateTransformations"]
    assert scale["scale"] == pytest.approx([0.8, 0.6, 0.5])
    # turned towards right, anterior, superior: the last voxel is the first one
    assert translation["translation"] == pytest.approx([3, 7 - 4 * 0.6, 9 - 3 * 0.5], abs=1e-5)
    oblique = labels_of(scan(tmp_path / "o.nii", OBLIQUE, 1), tmp_path / "o.zarr")
    (image,) = zarr.open_group(oblique, mode="r").attrs["ome"]["multiscales"]
    assert [one["type"] for one in image["datasets"][0]["coordinateTransformations"]] == ["scale"]


def test_hdf5_keeps_where_the_axes_begin(tmp_path: Path) -> None:
    labels = labels_of(zarr_scan(tmp_path / "s.zarr", 5), tmp_path / "l.h5")
    with h5py.File(labels) as file:
        group = file["entry/data"]
        for name, size, origin in zip("zyx", SIZE, ORIGIN, strict=True):
            assert group[name][:3] == pytest.approx(origin + size * np.arange(3))
            assert group[name].attrs["units"] == "µm"
        assert group["data"].attrs["element_size_um"] == pytest.approx(SIZE)
    with open_volume(labels) as volume:
        assert volume.origin == pytest.approx(ORIGIN)
    again = labels_of(labels, tmp_path / "again.zarr")
    (image,) = zarr.open_group(again, mode="r").attrs["ome"]["multiscales"]
    translation = image["datasets"][0]["coordinateTransformations"][1]
    assert translation["translation"] == pytest.approx(ORIGIN)


@pytest.mark.parametrize("name", ["l.raw", "l.npy", "l_png"])
def test_sidecars_keep_the_origin(tmp_path: Path, name: str) -> None:
    labels = labels_of(zarr_scan(tmp_path / "s.zarr", 5), tmp_path / name)
    with open_volume(labels) as volume:
        assert (volume.origin, volume.voxel_size) == (ORIGIN, SIZE)


def test_tiff_says_the_spacing_to_ome_and_to_imagej(tmp_path: Path) -> None:
    labels = labels_of(zarr_scan(tmp_path / "s.zarr", 5), tmp_path / "l.tif")
    with tifffile.TiffFile(labels) as tif:
        pixels = tifffile.xml2dict(tif.ome_metadata)["OME"]["Image"]["Pixels"]
        assert [pixels[f"PhysicalSize{axis}"] for axis in "ZYX"] == pytest.approx(SIZE)
        assert {pixels[f"PhysicalSize{axis}Unit"] for axis in "ZYX"} == {"µm"}
        # in dots a centimetre, which is all that ImageJ itself reads
        numerator, denominator = tif.pages[0].tags["XResolution"].value
        assert 1e4 * denominator / numerator == pytest.approx(SIZE[2], rel=1e-4)
