"""DICOM: series and files with many images, as pydicom and others write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_rescale
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from ml_backend.volumes.opening import ReadOptions, open_volume
from ml_backend.volumes.volume import Bounds, VolumeError
from tests.test_formats import assert_holds

RNG = np.random.default_rng(5)
GREY = RNG.integers(0, 4096, (6, 20, 24), "u2")
STORED = ReadOptions()
"""As pydicom has the pixels; tests/test_directions.py turns them."""
UID = "1.2.826.0.1.3680043.8.498.1"


def image(pixels: np.ndarray, **elements: Any) -> Dataset:
    """A CT image of 12 bits in 16, in Hounsfield units by an intercept of -1024."""
    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.SOPClassUID = CTImageStorage if pixels.ndim == 2 else EnhancedCTImageStorage
    one.SOPInstanceUID = generate_uid()
    one.SeriesInstanceUID, one.SeriesDescription = UID, "bone"
    one.Rows, one.Columns = pixels.shape[-2:]
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 12, 11, 0
    one.RescaleSlope, one.RescaleIntercept = 1, -1024
    one.PixelSpacing = [0.5, 0.25]
    if pixels.ndim == 3:
        one.NumberOfFrames = len(pixels)
    one.PixelData = pixels.astype("<u2").tobytes()
    for name, value in elements.items():
        setattr(one, name, value)
    return one


def save(path: Path, one: Dataset, syntax: str = ExplicitVRLittleEndian) -> None:
    one.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        one.PixelData = np.frombuffer(one.PixelData, "<u2").astype(">u2").tobytes()
    one.save_as(path, enforce_file_format=True)


def series(folder: Path, array: np.ndarray = GREY, name: str = "{:03d}.dcm", **more: Any) -> Path:
    """Stored from the last to the first, as the names say: 000 is the last slice."""
    folder.mkdir(exist_ok=True)
    for z, pixels in enumerate(array):
        number = len(array) - 1 - z
        elements = {
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "ImagePositionPatient": [-10, -12, 7.5 + 1.25 * z],
            "InstanceNumber": number + 1,
        }
        save(folder / name.format(number), image(pixels, **(elements | more)))
    return folder


def hounsfield(array: np.ndarray = GREY) -> np.ndarray:
    return array.astype("i2") - np.int16(1024)


@pytest.mark.parametrize("name", ["{:03d}.dcm", "IM{:04d}", "1.2.840.{}", "{:02d}.IMA"])
def test_a_series_is_sorted_by_position_and_rescaled(tmp_path: Path, name: str) -> None:
    series(tmp_path / "ct", name=name)
    (tmp_path / "ct" / "readme.txt").write_text("a note")
    with open_volume(tmp_path / "ct", STORED) as volume:
        assert_holds(volume, hounsfield())
        assert (volume.voxel_size, volume.unit) == ((1.25, 0.5, 0.25), "mm")


def test_oblique_slices_are_sorted_along_their_normal(tmp_path: Path) -> None:
    across = np.array([0.0, -0.6, 0.8])  # the scanner's z, tilted: y falls where z rises
    for z, pixels in enumerate(GREY):
        place = [float(n) for n in np.round(1.5 * z * across, 9)]
        one = image(pixels, ImageOrientationPatient=[1, 0, 0, 0, 0.8, 0.6])
        one.ImagePositionPatient = place
        save(tmp_path / f"{(5 * z) % 6}.dcm", one)
    with open_volume(tmp_path, STORED) as volume:
        assert_holds(volume, hounsfield())
        assert volume.voxel_size == pytest.approx((1.5, 0.5, 0.25))


def test_without_positions_numbers_tell_the_order(tmp_path: Path) -> None:
    for z, pixels in enumerate(GREY):
        one = image(pixels, InstanceNumber=3 * z, SpacingBetweenSlices=0.75)
        save(tmp_path / f"{(5 * z) % 6}.dcm", one)
    with open_volume(tmp_path, STORED) as volume:
        assert_holds(volume, hounsfield())
        assert volume.voxel_size == (0.75, 0.5, 0.25)


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"),
    [(1, 0, "u2"), (1, -1024, "i2"), (2, 0, "u2"), (20, -7, "i4"), (0.5, 1, "f4")],
)
def test_whole_numbers_stay_whole(
    tmp_path: Path, slope: float, intercept: float, dtype: str
) -> None:
    series(tmp_path / "ct", RescaleSlope=slope, RescaleIntercept=intercept)
    with open_volume(tmp_path / "ct", STORED) as volume:
        assert_holds(volume, (GREY * float(slope) + intercept).astype(dtype))


def test_each_slice_has_a_scale_of_its_own(tmp_path: Path) -> None:
    series(tmp_path / "pet")
    for z in range(6):
        path = tmp_path / "pet" / f"{5 - z:03d}.dcm"
        one = pydicom.dcmread(path)
        one.RescaleSlope, one.RescaleIntercept = 0.25 + z, 0
        one.save_as(path)
    with open_volume(tmp_path / "pet", STORED) as volume:
        scales = np.array([0.25 + z for z in range(6)])[:, None, None]
        assert_holds(volume, (GREY * scales).astype("f4"))


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian]
)
@pytest.mark.parametrize("many", [False, True])
def test_transfer_syntaxes(tmp_path: Path, syntax: str, many: bool) -> None:
    parts = [GREY] if many else list(GREY)
    for z, pixels in enumerate(parts):
        save(tmp_path / f"{z}.dcm", image(pixels, InstanceNumber=z), syntax)
    with open_volume(tmp_path / "0.dcm" if many else tmp_path, STORED) as volume:
        assert_holds(volume, hounsfield())


CODECS = {
    JPEG2000Lossless: lambda one: imagecodecs.jpeg2k_encode(one, level=0, codecformat="j2k"),
    JPEGLSLossless: imagecodecs.jpegls_encode,
    JPEGLosslessSV1: lambda one: imagecodecs.ljpeg_encode(one, bitspersample=16),
}


def packed(syntax: str) -> Dataset:
    one = image(GREY, BitsStored=16, HighBit=15)
    if syntax == RLELossless:
        one.compress(RLELossless)
    else:
        one.PixelData = encapsulate([CODECS[syntax](pixels) for pixels in GREY])
        one["PixelData"].VR = "OB"
    return one


@pytest.mark.parametrize("syntax", [RLELossless, *CODECS])
def test_compressed_images_are_unpacked_one_by_one(tmp_path: Path, syntax: str) -> None:
    save(tmp_path / "a.dcm", packed(syntax), syntax)
    with open_volume(tmp_path / "a.dcm", STORED) as volume:
        assert_holds(volume, GREY.astype("i4") - 1024)


def test_an_image_says_where_each_of_its_frames_lies(tmp_path: Path) -> None:
    one = image(GREY[::-1])
    del one.PixelSpacing, one.RescaleSlope, one.RescaleIntercept
    shared, measures, orientation, values = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.25], 3
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    values.RescaleSlope, values.RescaleIntercept = 1, -1024
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.PixelValueTransformationSequence = [values]
    one.SharedFunctionalGroupsSequence = [shared]
    one.PerFrameFunctionalGroupsSequence = []
    for z in reversed(range(6)):
        place, frame = Dataset(), Dataset()
        place.ImagePositionPatient = [0, 0, 2.0 * z]
        frame.PlanePositionSequence = [place]
        one.PerFrameFunctionalGroupsSequence.append(frame)
    save(tmp_path / "a.dcm", one)
    with open_volume(tmp_path / "a.dcm", STORED) as volume:
        assert_holds(volume, hounsfield())
        assert (volume.voxel_size, volume.unit) == ((2.0, 0.5, 0.25), "mm")


@pytest.mark.parametrize(
    ("down", "start", "offsets", "places"),
    [
        (1, -30, [0, 2, 4, 6, 8, 10], [-30, -28, -26, -24, -22, -20]),
        (1, -30, [-30, -28, -26, -24, -22, -20], [-30, -28, -26, -24, -22, -20]),
        (1, 0, [0, 2, 4, 6, 8, 10], [0, 2, 4, 6, 8, 10]),
        (1, 100, [100, 98, 96, 94, 92, 90], [100, 98, 96, 94, 92, 90]),
        (-1, -30, [0, 2, 4, 6, 8, 10], [-30, -32, -34, -36, -38, -40]),
        (-1, -30, [-30, -28, -26, -24, -22, -20], [-30, -28, -26, -24, -22, -20]),
    ],
    ids=["relative", "absolute", "both", "absolute and falling", "along the normal", "along z"],
)
def test_where_the_planes_of_a_dose_lie(
    tmp_path: Path, down: int, start: int, offsets: list[int], places: list[int]
) -> None:
    """Either form of PS3.3 C.8.8.3.2: offsets along the normal of the first plane, or z in the
    patient, which begin with that of the first plane. ``down``: the y of columns, so the normal is
    z or against it."""
    one = image(
        GREY, ImageOrientationPatient=[1, 0, 0, 0, down, 0], ImagePositionPatient=[1, 2, start],
        GridFrameOffsetVector=[float(offset) for offset in offsets],
    )  # fmt: skip
    save(tmp_path / "dose.dcm", one)
    with open_volume(tmp_path / "dose.dcm", STORED) as volume:
        order = np.argsort(down * np.array(places))
        assert_holds(volume, hounsfield()[order])
        assert volume.affine is not None
        steps = np.array(volume.affine)
        assert volume.voxel_size == (2.0, 0.5, 0.25)
    # the columns of z, y, x and of the place of the first voxel
    assert [float(steps[2, 3] + z * steps[2, 0]) for z in range(6)] == sorted(
        places, key=lambda place: down * place
    )


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm",
        "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm",
        "JPEG2000.dcm", "693_J2KI.dcm", "rtdose.dcm", "rtdose_rle.dcm", "JPGExtended.dcm",
    ],
)  # fmt: skip
def test_files_of_scanners_have_the_values_that_pydicom_finds(name: str) -> None:
    path = Path(str(get_testdata_file(name, download=False)))
    one = pydicom.dcmread(path)
    # without its decoders: by the values that are known of them
    try:
        pixels = one.pixel_array
    except RuntimeError:
        pixels = None
    with open_volume(path, STORED) as volume:
        assert volume.shape == (int(one.get("NumberOfFrames", 1)), one.Rows, one.Columns)
        if pixels is not None:
            wanted = apply_rescale(pixels, one)
            assert np.array_equal(np.stack(list(volume)), wanted.reshape(volume.shape))
        else:
            assert np.ptp(volume[0]) > 100


def test_of_several_series_one_is_named(tmp_path: Path) -> None:
    series(tmp_path / "ct")
    other = series(tmp_path / "other", GREY[:2] // 2, SeriesInstanceUID=f"{UID}.7")
    for path in other.iterdir():
        path.rename(tmp_path / "ct" / f"other-{path.name}")
    listed = rf"2 series, name one as dataset:\n  {UID} bone <u2|uint16 \(6, 20, 24\)\n  {UID}\.7"
    with pytest.raises(VolumeError, match=listed):
        open_volume(tmp_path / "ct")
    with open_volume(tmp_path / "ct", ReadOptions(dataset=f"{UID}.7")) as volume:
        assert_holds(volume, hounsfield(GREY[:2] // 2))
    with pytest.raises(VolumeError, match=r"has no series 1\.2, expected one of:"):
        open_volume(tmp_path / "ct", ReadOptions(dataset="1.2"))


def changed(path: Path, **elements: Any) -> None:
    one = pydicom.dcmread(path)
    for name, value in elements.items():
        setattr(one, name, value)
    one.save_as(path)


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"ImagePositionPatient": [-10, -12, 8.75]}, "lie in the same place"),
        ({"ImagePositionPatient": [-10, -12, 30]}, "a slice is missing"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, 1]}, "does not lie in parallel"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "is a colour image"),
        ({"BitsAllocated": 1}, "1 bits a pixel, expected 8, 16 or 32"),
        ({"Rows": 40}, r"002\.dcm has 960 bytes of pixels, expected 1920"),
    ],
)
def test_what_is_no_volume_is_refused(
    tmp_path: Path, elements: dict[str, Any], message: str
) -> None:
    changed(series(tmp_path / "ct") / "002.dcm", **elements)
    with pytest.raises(VolumeError, match=message):
        open_volume(tmp_path / "ct")


def test_a_missing_slice_is_no_slice_of_zeros(tmp_path: Path) -> None:
    (series(tmp_path / "ct") / "003.dcm").unlink()
    with pytest.raises(VolumeError, match=r"002\.dcm lies 2\.5 mm behind 004\.dcm, expected 1\.25"):
        open_volume(tmp_path / "ct")


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.3, 0.7, 0.99])
def test_a_file_that_is_cut_off_is_refused_by_name(tmp_path: Path, kept: float) -> None:
    path = series(tmp_path / "ct") / "002.dcm"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(VolumeError, match=r"002\.dcm .*expected"):
        open_volume(tmp_path / "ct")


@pytest.mark.parametrize("syntax", [RLELossless, *CODECS])
@pytest.mark.parametrize("lost", [3, 40, 1500])
def test_compressed_files_that_are_cut_off_are_refused(
    tmp_path: Path, syntax: str, lost: int
) -> None:
    save(tmp_path / "a.dcm", packed(syntax), syntax)
    data = (tmp_path / "a.dcm").read_bytes()
    (tmp_path / "a.dcm").write_bytes(data[:-lost])
    with pytest.raises(VolumeError, match=r"a\.dcm has \d+ bytes, .*cut off"):
        open_volume(tmp_path / "a.dcm")


def test_a_file_that_is_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    folder = series(tmp_path / "ct")
    (folder / "002.dcm").rename(tmp_path / "elsewhere.dcm")
    (folder / "002.dcm").symlink_to(tmp_path / "elsewhere.dcm")
    with pytest.raises(VolumeError, match=r"002\.dcm is opened for .*leads out of"):
        open_volume(folder)
    with open_volume(folder, ReadOptions(bounds=Bounds((tmp_path,)))) as volume:
        assert_holds(volume, hounsfield())


@pytest.mark.parametrize("lost", [0, 3, 5])
def test_where_one_has_no_position_all_are_sorted_by_number(tmp_path: Path, lost: int) -> None:
    folder = series(tmp_path / "a", SliceThickness=2.5)
    path = folder / f"{lost:03d}.dcm"
    one = pydicom.dcmread(path)
    del one.ImagePositionPatient
    one.save_as(path)
    with open_volume(folder) as volume:
        assert_holds(volume, hounsfield()[::-1])
        assert volume.voxel_size == (2.5, 0.5, 0.25)
