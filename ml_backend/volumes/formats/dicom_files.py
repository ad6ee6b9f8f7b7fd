"""One DICOM file: what its header says of its images, and the pixels of one of them.

pydicom parses it. Pixels that lie there as they are are read as a run of bytes, JPEG in all its
kinds is decoded by imagecodecs, run lengths by pydicom.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.formats.checks import chunk_size, native, reading
from ml_backend.volumes.formats.flat import read_run
from ml_backend.volumes.volume import VolumeError

__all__ = ["DicomFile", "Frame", "is_dicom"]

_EXPECTED = "a DICOM image"
_MAGIC_AT = 128
_FLOATS: dict[int, np.dtype[Any]] = {0x7FE00008: np.dtype("f4"), 0x7FE00009: np.dtype("f8")}
_UNDEFINED = 0xFFFFFFFF
_DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"
"""Stands behind compressed pixels that are there to the end."""
_DECODERS = {
    "1.2.840.10008.1.2.4.50": "jpeg", "1.2.840.10008.1.2.4.51": "jpeg",
    "1.2.840.10008.1.2.4.57": "jpeg", "1.2.840.10008.1.2.4.70": "jpeg",
    "1.2.840.10008.1.2.4.80": "jpegls", "1.2.840.10008.1.2.4.81": "jpegls",
    "1.2.840.10008.1.2.4.90": "jpeg2k", "1.2.840.10008.1.2.4.91": "jpeg2k",
    "1.2.840.10008.1.2.4.201": "htj2k", "1.2.840.10008.1.2.4.202": "htj2k",
    "1.2.840.10008.1.2.4.203": "htj2k",
}  # fmt: skip
_RUN_LENGTHS = "1.2.840.10008.1.2.5"
_ROUNDED = 1e-3
"""Millimetres by which one place may differ that is written down twice."""

Vector = tuple[float, ...]


@dataclass(frozen=True)
class Frame:
    """One image: where it lies in space (mm, as DICOM's patient coordinates) and what its values
    mean. ``origin``: of its first pixel; ``along``: the way its rows run, then its columns;
    ``across``: normal of its plane; each None where the file does not say. ``spacing``: of rows and
    columns, mm; ``step``: between slices, where said."""

    index: int
    number: int
    origin: Vector | None
    along: Vector | None
    across: Vector | None
    spacing: Vector | None
    step: float | None
    slope: float
    intercept: float


@dataclass(frozen=True)
class DicomFile:
    """``frames`` images of ``shape`` (rows, columns) and of the type ``dtype`` as stored, of which
    ``bits`` are used, from byte ``start`` on where ``syntax`` does not compress them."""

    path: Path
    series: str
    title: str
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    bits: int
    syntax: str
    start: int
    frames: tuple[Frame, ...]

    @classmethod
    def read(cls, path: Path) -> DicomFile | None:
        """What the header says; None for a DICOM file that holds no image. Raises VolumeError."""
        import pydicom

        with reading(path, _EXPECTED), path.open("rb") as file:
            header = pydicom.dcmread(file, stop_before_pixels=True)
            if "Rows" not in header:
                _check_no_image(path, header)
                return None
            kind = _checked(path, header)
            tag, length, start = _pixels(path, header, file)
            dtype: np.dtype[Any] = _FLOATS.get(tag, kind)
            found = cls(
                path,
                str(header.get("SeriesInstanceUID", "")),
                str(header.get("SeriesDescription", "")),
                (int(header.Rows), int(header.Columns)),
                dtype,
                8 * dtype.itemsize if tag in _FLOATS else int(header.BitsStored),
                str(header.file_meta.TransferSyntaxUID),
                start,
                tuple(_frames(path, header)),
            )
            found._check(length)
            return found

    def pixels(self, index: int) -> npt.NDArray[Any]:
        """The values of image ``index`` as they are stored, in native byte order."""
        size = self.shape[0] * self.shape[1] * self.dtype.itemsize
        if self._plain:
            values = read_run(self.path, self.start + index * size, self.shape, self.dtype)
        else:
            with reading(self.path, f"{_EXPECTED}, whole and in a compression of DICOM"):
                values = native(self._decoded(index))
        if values.shape != self.shape:
            raise VolumeError(
                f"{self.path} has an image of shape {values.shape}, expected {self.shape} as its "
                "header says"
            )
        return self._used(values.astype(self.dtype.newbyteorder("="), copy=False))

    @property
    def _plain(self) -> bool:
        return self.syntax not in _DECODERS and self.syntax != _RUN_LENGTHS

    def _check(self, length: int) -> None:
        """Raises VolumeError for an unknown compression, and where the file is cut off."""
        found, count = self.path.stat().st_size, len(self.frames)
        chunk_size(self.path, self.shape, self.dtype)
        if not self._plain:
            with self.path.open("rb") as file:
                file.seek(max(self.start, found - (1 << 12)))
                if _DELIMITER not in file.read():
                    raise VolumeError(
                        f"{self.path} has {found} bytes, and its compressed pixels do not end in "
                        "them, expected a whole file: it is cut off"
                    )
            return
        if length == _UNDEFINED:
            raise VolumeError(
                f"{self.path} has pixels in the transfer syntax {self.syntax}, expected none or "
                "JPEG, JPEG-LS, JPEG 2000 or RLE: unpack it, as `dcmdjpeg` or `gdcmconv --raw` do"
            )
        size = count * self.shape[0] * self.shape[1] * self.dtype.itemsize
        if min(length, found - self.start) < size:
            raise VolumeError(
                f"{self.path} has {max(0, min(length, found - self.start))} bytes of pixels, "
                f"expected {size}: {count} of shape {self.shape}, {self.dtype}"
            )

    def _decoded(self, index: int) -> npt.NDArray[Any]:
        from pydicom.encaps import get_frame
        from pydicom.pixels.utils import pixel_array

        if self.syntax == _RUN_LENGTHS:
            return np.asarray(pixel_array(self.path, index=index, raw=True))
        import imagecodecs

        with self.path.open("rb") as file:
            file.seek(self.start)
            packed = get_frame(file, index, number_of_frames=len(self.frames))
        decode = getattr(imagecodecs, f"{_DECODERS[self.syntax]}_decode")
        return np.asarray(decode(packed))

    def _used(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Without what older files keep in the bits that no value needs."""
        unused = 8 * self.dtype.itemsize - self.bits
        return values if unused <= 0 else (values << unused) >> unused


def is_dicom(path: Path) -> bool:
    """Whether its first bytes say so; what is no file is none."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(_MAGIC_AT + 4)[_MAGIC_AT:] == b"DICM"
    except OSError:
        return False


def _check_no_image(path: Path, header: Any) -> None:
    """Raises VolumeError where it says that it is an image: what is missing was cut off."""
    kind = header.file_meta.get("MediaStorageSOPClassUID", None)
    if kind is None or "Image" in kind.name:
        raise VolumeError(
            f"{path} says nothing of rows and columns, expected a whole DICOM image: is it cut off?"
        )


def _checked(path: Path, header: Any) -> np.dtype[Any]:
    """The type of the stored values. Raises VolumeError for colour, bits and lookup tables."""
    if int(header.get("SamplesPerPixel", 1)) != 1 or "PALETTE" in str(
        header.get("PhotometricInterpretation", "")
    ):
        raise VolumeError(
            f"{path} is a colour image ({header.get('PhotometricInterpretation')}), expected one "
            "grey value a voxel"
        )
    if "ModalityLUTSequence" in header:
        raise VolumeError(
            f"{path} has a lookup table of values (Modality LUT), expected Rescale Slope and "
            "Intercept: convert it to NIfTI, as dcm2niix does"
        )
    allocated, signed = int(header.BitsAllocated), int(header.get("PixelRepresentation", 0))
    if allocated not in (8, 16, 32, 64):
        raise VolumeError(f"{path} has {allocated} bits a pixel, expected 8, 16 or 32")
    order = "<" if header.original_encoding[1] else ">"
    return np.dtype(f"{order}{'i' if signed else 'u'}{allocated // 8}")


def _pixels(path: Path, header: Any, file: Any) -> tuple[int, int, int]:
    """Tag, length and first byte of the pixels, which ``file`` stands before."""
    implicit, little = header.original_encoding
    if header.file_meta.TransferSyntaxUID.is_deflated:
        raise VolumeError(f"{path} is deflated as a whole, expected it unpacked: `dcmconv` does it")
    order, head = "<" if little else ">", file.read(8)
    if len(head) < 8:
        raise VolumeError(f"{path} ends before its pixels, expected a DICOM image: it is cut off")
    group, element = struct.unpack_from(f"{order}2H", head)
    if group != 0x7FE0:
        raise VolumeError(f"{path} has no pixels behind its header, expected a DICOM image")
    # OB, OW, OF and OD have two bytes of nothing and four of length
    (length,) = struct.unpack(f"{order}I", head[4:8] if implicit else file.read(4))
    return group << 16 | element, length, file.tell()


def _frames(path: Path, header: Any) -> list[Frame]:
    count = int(header.get("NumberOfFrames", None) or 1)
    each = header.get("PerFrameFunctionalGroupsSequence", None) or []
    shared = next(iter(header.get("SharedFunctionalGroupsSequence", None) or []), None)
    if each and len(each) != count:
        raise VolumeError(
            f"{path} describes {len(each)} images, expected {count} as it says itself"
        )
    own = [one for one in (shared, header) if one is not None]
    return [_frame([*each[i : i + 1], *own], i, count) for i in range(count)]


def _frame(places: Sequence[Any], index: int, count: int) -> Frame:
    """``places``: where what holds for it may stand, the nearest first."""

    def said(group: str, name: str) -> Any:
        for place in places:
            inner = next(iter(place.get(group, None) or []), None)
            for one in (inner, place):
                if one is not None and one.get(name, None) not in (None, ""):
                    return one.get(name)
        return None

    header = places[-1]
    origin = _vector(said("PlanePositionSequence", "ImagePositionPatient"), 3)
    rows = _vector(said("PlaneOrientationSequence", "ImageOrientationPatient"), 6)
    across = None if rows is None else tuple(float(n) for n in np.cross(rows[:3], rows[3:]))
    if count > 1 and len(places) == 1:  # one place in space for all of them
        origin = _moved(header, origin, across, index)
    step = said("PixelMeasuresSequence", "SpacingBetweenSlices")
    step = said("PixelMeasuresSequence", "SliceThickness") if step is None else step
    group = "PixelValueTransformationSequence"
    slope, intercept = said(group, "RescaleSlope"), said(group, "RescaleIntercept")
    return Frame(
        index,
        int(header.get("InstanceNumber", None) or 0) if count == 1 else index,
        origin,
        rows,
        across,
        _vector(said("PixelMeasuresSequence", "PixelSpacing"), 2),
        None if step is None else abs(float(step)),
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
    )


def _moved(header: Any, origin: Vector | None, across: Vector | None, index: int) -> Vector | None:
    """As radiotherapy doses have it (PS3.3 C.8.8.3.2): an offset of each image from the first along
    its normal, from 0 on, or z in the patient, from that of the first on."""
    offsets = header.get("GridFrameOffsetVector", None)
    if offsets is None or origin is None or across is None:
        return None
    first = float(offsets[0])
    absolute = first != 0 and math.isclose(first, origin[2], abs_tol=_ROUNDED)
    way, step = (0.0, 0.0, 1.0) if absolute else across, float(offsets[index]) - first
    return tuple(o + w * step for o, w in zip(origin, way, strict=True))


def _vector(value: Any, length: int) -> Vector | None:
    if value is None or isinstance(value, str) or len(value) != length:
        return None
    return tuple(float(n) for n in value)
