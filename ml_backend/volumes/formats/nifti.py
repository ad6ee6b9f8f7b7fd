"""NIfTI-1 and -2, ``.nii`` and ``.nii.gz``: stored (x, y, z) with x fastest, so the bytes are ours.

Values are scaled by scl_slope and scl_inter where these say something else than 1 and 0. Where the
voxels lie (sform, else qform, and its code) is said, and not applied here. What is written has
both, as far as a qform can say it, with the code of the scan; or code 0 for a place that nobody
knows, which every program shows as it shows the scan that does not say it either.
A ``.nii.gz`` cannot be read at random: the first slice unpacks it once into a temporary file (in
TMPDIR), which `Volume.close` removes.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import struct
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.formats.axes import choose_axes
from ml_backend.volumes.formats.checks import number_type, reading
from ml_backend.volumes.formats.flat import Flat
from ml_backend.volumes.formats.format import EVERYTHING, Format
from ml_backend.volumes.formats.notes import Notes, length_in, our_note, unit_symbol
from ml_backend.volumes.formats.unpacked import Unpacked
from ml_backend.volumes.geometry import placed
from ml_backend.volumes.limits import HEADER_BYTES
from ml_backend.volumes.volume import Read, ReadOptions, Volume, VolumeError, VolumeSpec

__all__ = ["FORMAT", "read", "write"]

_EXPECTED = "a NIfTI file"
_LONGEST_HEADER = 544
_COMMENT = 6  # code of a header extension that holds text
_DIMENSIONS = ("x", "y", "z", "t", "channel", "dimension 6", "dimension 7")
"""As the format says; dimension 5 is for the values of a voxel."""
_CODES = {"scanner": 1, "aligned": 2, "talairach": 3, "mni": 4, "template": 5}
"""Coordinate systems by the format's sform_code and qform_code."""
_FRAME = "scanner"
"""Of a scan of another format that says where it lies."""
_APART = 1e-4
"""Share of a voxel by which a qform may say another step than the sform: both are float32."""
_UNITS = {"meter": "m", "mm": "mm", "micron": "µm"}


def read(path: Path, options: ReadOptions) -> Volume:
    """Three axes, and more of which the others have length 1 or are chosen."""
    from nibabel.volumeutils import apply_read_scaling

    with reading(path, _EXPECTED):
        header = _header_of(path)
        shape = tuple(map(int, header.get_data_shape()))
        choice = choose_axes(
            path, _DIMENSIONS[: len(shape)], shape, options, expected="three axes, x, y, z,"
        )
        z, y, x = (shape[axis] for axis in choice.axes)
        stored: np.dtype[Any] = np.dtype(header.get_data_dtype())
        native = number_type(path, stored)
        # None where the header says nothing, or what makes no sense
        slope, inter = (
            float(n or d) for n, d in zip(header.get_slope_inter(), (1, 0), strict=True)
        )
        notes = _notes(path, header)
        before = int(header.get_data_offset())
        whole = Flat(path, (math.prod(shape[2:]), y, x), stored, before)
        place = [choice.picked[axis] for axis in range(3, len(shape))]
        volumes_before = int(np.ravel_multi_index(place, shape[3:], order="F")) if place else 0
        offset = before + volumes_before * z * y * x * stored.itemsize
        flat = Flat(path, (z, y, x), stored, offset)
    read_stored: Read = flat.read
    close: Callable[[], None] | None = None
    if path.suffix.lower() == ".gz":
        unpacked = Unpacked(flat, partial(gzip.open, path))
        read_stored, close = unpacked.read, unpacked.close
    else:
        whole.check()
    if (slope, inter) == (1.0, 0.0):
        return _as_said(header, notes.volume(path, flat.shape, native, read_stored, close))
    scaled = number_type(path, apply_read_scaling(np.zeros(1, native), slope, inter).dtype)

    def read_scaled(axis: int, index: int) -> npt.NDArray[Any]:
        values: npt.NDArray[Any] = apply_read_scaling(read_stored(axis, index), slope, inter)
        return values

    return _as_said(header, notes.volume(path, flat.shape, scaled, read_scaled, close))


def write(path: Path, slices: Iterable[npt.NDArray[Any]], spec: VolumeSpec) -> None:
    """NIfTI-1, or -2 for an axis beyond 32,767, with the affine, or the voxel size alone; unit and
    class names as a comment, in JSON. Lengths that NIfTI has no unit for become µm."""
    header = _header(spec)
    packed = path.suffix.lower() == ".gz"
    with path.open("wb") as raw:
        # no name and no time in it: the same volume, the same file
        file: Any = gzip.GzipFile("", "wb", 6, raw, 0) if packed else raw
        header.write_to(file)
        file.write(bytes(int(header["vox_offset"]) - file.tell()))
        for values in slices:
            file.write(np.ascontiguousarray(values).data)
        if packed:
            file.close()


FORMAT = Format(
    name="nifti",
    title="NIfTI",
    summary="`.nii`, `.nii.gz`",
    readable="NIfTI (.nii, .nii.gz)",
    endings=(".nii", ".nii.gz"),
    read=read,
    chooses=True,
    apart=False,
    write=write,
    dtypes=(
        *("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
        *("float32", "float64"),
    ),
    keeps=EVERYTHING,
    repeatable=True,
    masks=".nii.gz",
    place=40,
)


def _header_of(path: Path) -> Any:
    """What is before the values, read no further than they begin: extensions may claim anything."""
    import nibabel

    opening: Any = gzip.open if path.suffix.lower() == ".gz" else open
    with opening(path, "rb") as file:
        head = file.read(_LONGEST_HEADER)
        for order in "<>":
            (size,) = struct.unpack_from(f"{order}i", head)
            if size == 348:
                kind: Any = nibabel.Nifti1Header
                (offset,) = struct.unpack_from(f"{order}f", head, 108)
            elif size == 540:
                kind = nibabel.Nifti2Header
                (offset,) = struct.unpack_from(f"{order}q", head, 168)
            else:
                continue
            if not 0 <= offset <= HEADER_BYTES:
                raise VolumeError(
                    f"{path} says that its values begin at byte {offset:.0f}, expected one within "
                    f"the first {HEADER_BYTES}"
                )
            head += file.read(max(0, int(offset) - len(head)))
            return kind.from_fileobj(io.BytesIO(head[: max(int(offset), size)]))
    raise VolumeError(f"{path} is no NIfTI file, expected .nii or .nii.gz")


def _header(spec: VolumeSpec) -> Any:
    import nibabel
    from nibabel.nifti1 import Nifti1Extension

    kind: Any = nibabel.Nifti1Header if max(spec.shape) < 2**15 else nibabel.Nifti2Header
    header = kind()
    header.set_data_dtype(spec.dtype)
    header.set_data_shape(spec.shape[::-1])
    sizes, unit = spec.voxel_size or (1.0, 1.0, 1.0), spec.unit
    if unit not in _UNITS.values() and (factor := length_in(unit, "µm")) is not None:
        sizes, unit = (sizes[0] * factor, sizes[1] * factor, sizes[2] * factor), "µm"
    else:
        factor = 1.0
    header.set_zooms(sizes[::-1])
    if spec.affine is not None:
        affine = np.diag([1.0, 1.0, 1.0, 1.0])
        affine[:3] = factor * np.array(spec.affine)[:, [2, 1, 0, 3]]
        _place(header, affine, _CODES.get(spec.frame, _CODES[_FRAME]))
    names = {symbol: name for name, symbol in _UNITS.items()}
    header.set_xyzt_units(xyz=names.get(unit, "unknown"))
    # the size itself stands in the header
    comment: dict[str, Any] = {"unit": unit, "sized": spec.voxel_size is not None}
    if spec.classes is not None:
        comment["classes"] = list(spec.classes)
    if spec.affine is not None:
        comment["placed"] = True
    text = json.dumps({"nextslice": comment}, ensure_ascii=False).encode()
    header.extensions.append(Nifti1Extension(_COMMENT, text))
    # 4 bytes that say whether there are extensions come after the header
    header["vox_offset"] = len(header.binaryblock) + 4 + header.extensions.get_sizeondisk()
    return header


def _place(header: Any, affine: npt.NDArray[np.float64], code: int) -> None:
    """Say that the voxels lie there; the qform alone has no room for shears."""
    header.set_qform(affine, code)
    header.set_sform(affine, code)
    if not np.allclose(header.get_qform(), affine, atol=_APART * np.abs(affine[:3, :3]).max()):
        header["qform_code"] = 0


def _frame(header: Any) -> str:
    """The name of the code that `_lies` goes by, empty for one that has none."""
    code = int(header["sform_code"]) or int(header["qform_code"])
    return next((name for name, one in _CODES.items() if one == code), "")


def _lies(header: Any) -> npt.NDArray[Any] | None:
    """Where the voxels lie, None where the file does not say it. Of those that we wrote without
    knowing it, only the voxel size means something."""
    from nibabel.spatialimages import HeaderDataError

    ours = _ours(header)
    said = header["sform_code"] > 0 or header["qform_code"] > 0
    if not said or (ours and not ours.get("placed")):
        return None
    try:
        return np.asarray(header.get_best_affine())
    except (HeaderDataError, ValueError):  # a quaternion that is none
        return None


def _as_said(header: Any, volume: Volume) -> Volume:
    found = placed(volume, _lies(header))
    return found if found.affine is None else replace(found, frame=_frame(header))


def _ours(header: Any) -> dict[str, Any]:
    """What we have written beside the values, empty in files of others."""
    comment: dict[str, Any] = {}
    for extension in header.extensions:
        if extension.get_code() == _COMMENT:
            comment = _comment(extension.get_content()) or comment
    return comment


def _notes(path: Path, header: Any) -> Notes:
    comment = _ours(header)
    said = Notes.from_json(path, {"classes": comment.get("classes")})
    zooms = header.get_zooms()[:3]
    unit = _UNITS.get(header.get_xyzt_units()[0], "") or comment.get("unit", "")
    if not comment.get("sized", bool(unit) or any(size != 1 for size in zooms)):
        return said
    # the shortest decimal of the stored float32: 4.6, not 4.599999904632568
    sizes = [float(str(np.float32(size))) for size in reversed(zooms)]
    return Notes.sized(sizes, unit_symbol(unit), said.classes)


def _comment(content: Any) -> dict[str, Any] | None:
    text = content.decode("utf-8", "replace") if isinstance(content, bytes) else str(content)
    ours = our_note(text).get("nextslice")
    return ours if isinstance(ours, dict) else None
