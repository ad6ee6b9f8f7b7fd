"""MetaImage: ``.mha``, or ``.mhd`` beside its values in a ``.raw`` or ``.zraw``, as ITK has it.

The header is lines of text; raw values are read where they lie, also in many files. What is packed
is unpacked once into a temporary file. Where the voxels lie is said, and not applied here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.enclosure import check_inside
from ml_backend.volumes.formats.axes import choose_axes
from ml_backend.volumes.formats.checks import number_type, reading
from ml_backend.volumes.formats.flat import Cut, cut_out
from ml_backend.volumes.formats.format import EVERYTHING, Format
from ml_backend.volumes.formats.notes import Notes, as_text, our_classes, our_note
from ml_backend.volumes.formats.pieces import Pieces, numbered
from ml_backend.volumes.formats.unpacked import Source, Unpacked, ZlibStream
from ml_backend.volumes.geometry import (
    LEFT_POSTERIOR,
    in_millimetres_of_itk,
    is_default,
    placed,
)
from ml_backend.volumes.limits import TEXT_BYTES
from ml_backend.volumes.volume import ReadOptions, Volume, VolumeError, VolumeSpec

__all__ = ["FORMAT", "read", "write"]

_EXPECTED = "a MetaImage file"
_TYPES = {
    "MET_UCHAR": "u1", "MET_CHAR": "i1", "MET_ASCII_CHAR": "i1", "MET_USHORT": "u2",
    "MET_SHORT": "i2", "MET_UINT": "u4", "MET_INT": "i4", "MET_ULONG": "u4", "MET_LONG": "i4",
    "MET_ULONG_LONG": "u8", "MET_LONG_LONG": "i8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_NAMES = {
    np.dtype(code).name: name
    for name, code in _TYPES.items()
    if name not in ("MET_ULONG", "MET_LONG", "MET_ASCII_CHAR")
}
_SPACING = ("ElementSpacing", "ElementSize")
_PLACE = (
    ("TransformMatrix", "Rotation", "Orientation"), ("Offset", "Position", "Origin"), _SPACING,
)  # fmt: skip
"""Each with its older names."""
_UNITS = {"µm": "um", "Å": "angstrom"}
_HOW = "`SimpleITK.WriteImage(image, 'scan.mha')` writes such a file"
_LAST = "ElementDataFile"
_DIMENSIONS = ("x", "y", "z", "time")
"""As ITK and its programs use them; MetaImage has no names."""


def read(path: Path, options: ReadOptions) -> Volume:
    """Three axes, and more of which the others have length 1 or are chosen: the fourth by
    ``options.time``, one of several values a voxel by ``options.channel``."""
    with reading(path, _EXPECTED):
        header, start, files = _header(path)
        sizes = [int(n) for n in header["DimSize"].split()][::-1]
        count, channels = len(sizes), int(header.get("ElementNumberOfChannels", "1"))
        several = [] if channels == 1 else [channels]
        lengths = (*sizes, *several)
        names = [*_axes(sizes), *("channel" for _ in several)]
        choice = choose_axes(path, names, lengths, options)
        dtype = _stored_type(path, header)
        notes = _notes(header, choice.axes, count)
        lies = _lies(header, choice.axes, count)
        packed = _true(header.get("CompressedData", "False"))
    native = number_type(path, dtype)
    if files is not None:
        if packed:
            raise VolumeError(
                f"{path} has packed values in {len(files)} files, expected one: {_HOW}"
            )
        places = tuple(path.parent / name for name in files)
        begin = partial(_offset, header, 0)
        pieces = Pieces(path, places, lengths, dtype, choice, begin, options)
        with reading(path, _EXPECTED):
            pieces.check()
        return placed(notes.volume(path, pieces.shape, native, pieces.read), lies)
    with reading(path, _EXPECTED):
        place, start = _place(path, header, options, start)
        offset = _offset(header, start, place, math.prod(lengths) * dtype.itemsize)
        flat = cut_out(place, lengths, dtype, 0 if packed else offset, choice)
    if not packed:
        Cut(place, lengths, dtype, offset, choice).check()
        return placed(notes.volume(path, flat.shape, native, flat.read), lies)
    unpacked = Unpacked(flat, partial(_stream, place, offset), "zlib", advice=_HOW)
    volume = notes.volume(path, flat.shape, native, unpacked.read, unpacked.close)
    return placed(volume, lies)


def write(path: Path, slices: Iterable[npt.NDArray[Any]], spec: VolumeSpec) -> None:
    """One file, raw, x fastest; class names in a field of our own, in JSON."""
    spec = in_millimetres_of_itk(spec)
    dtype = spec.dtype.newbyteorder("<")
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = False",
        "CenterOfRotation = 0 0 0",
        *_place_lines(spec),
    ]
    unit = _UNITS.get(spec.unit, spec.unit)
    if spec.voxel_size is not None and unit and unit.isascii() and "\n" not in unit:
        lines.append(f"DistanceUnits = {unit}")
    lines.append(f"DimSize = {' '.join(map(str, spec.shape[::-1]))}")
    said: dict[str, Any] = {"classes": spec.classes, "sized": spec.voxel_size is not None}
    if spec.affine is not None:
        said["placed"] = True
    lines += [f"Nextslice = {json.dumps(said)}", f"ElementType = {_NAMES[spec.dtype.name]}"]
    with path.open("wb") as file:
        file.write(("\n".join([*lines, f"{_LAST} = LOCAL"]) + "\n").encode("ascii"))
        for values in slices:
            file.write(values.astype(dtype, copy=False).tobytes())


FORMAT = Format(
    name="metaimage",
    title="MetaImage",
    summary="`.mha`, or `.mhd` with its values in another file or in many; raw or packed",
    endings=(".mha", ".mhd"),
    read=read,
    chooses=True,
    apart=False,
    write=write,
    dtypes=tuple(_NAMES),
    keeps=EVERYTHING,
    repeatable=True,
    masks=".mha",
    place=58,
)


def _header(path: Path) -> tuple[dict[str, str], int, list[str] | None]:
    """Its fields up to the last one, the byte behind them, and the names of the files that hold the
    values, where these are many. Raises VolumeError."""
    header: dict[str, str] = {}
    with path.open("rb") as file:
        while line := file.readline(TEXT_BYTES):
            name, equals, value = as_text(line).partition("=")
            if not equals or file.tell() > TEXT_BYTES:
                break
            header[name.strip()] = value.strip()
            if name.strip() == _LAST:
                break
        start = file.tell()
        files = _files(path, header.get(_LAST, ""), file)
    for name in ("DimSize", "ElementType", _LAST):
        if name not in header:
            raise VolumeError(
                f"{path} has no field {name} in its header, expected a MetaImage (.mha, .mhd)"
            )
    if header.get("ObjectType", "Image") != "Image":
        raise VolumeError(f"{path} is a {header['ObjectType']}, expected an image")
    if not _true(header.get("BinaryData", "True")):
        raise VolumeError(f"{path} has its values as text, expected BinaryData = True: {_HOW}")
    return header, start, files


def _files(path: Path, said: str, file: BinaryIO) -> list[str] | None:
    if said.split()[:1] == ["LIST"]:
        text = as_text(file.read(TEXT_BYTES))
        return [line.strip() for line in text.splitlines() if line.strip()]
    return numbered(path, said) if "%" in said else None


def _axes(sizes: list[int]) -> list[str]:
    """Names for `choose_axes`, the fastest axis last."""
    count = len(sizes)
    if count > 3 and sum(size != 1 for size in sizes) < 4:
        return [""] * count  # the others may come first too
    names = [*_DIMENSIONS, *(f"dimension {number}" for number in range(5, count + 1))]
    return names[:count][::-1]


def _true(text: str) -> bool:
    return text[:1].lower() in ("t", "1", "y")


def _stored_type(path: Path, header: Mapping[str, str]) -> np.dtype[Any]:
    if (name := header["ElementType"]) not in _TYPES:
        raise VolumeError(f"{path} has elements of type {name}, expected one number a voxel")
    big = header.get("ElementByteOrderMSB", header.get("BinaryDataByteOrderMSB", "False"))
    return np.dtype((">" if _true(big) else "<") + _TYPES[name])


def _place(
    path: Path, header: Mapping[str, str], options: ReadOptions, start: int
) -> tuple[Path, int]:
    """The file that holds the values, and where its header ends, 0 where it has none."""
    name = header[_LAST]
    if name.upper() == "LOCAL":
        return path, start
    place = path.parent / name
    check_inside(place, path, options)
    if not place.exists():
        raise VolumeError(
            f"{path} has its values in {name}, which is not there: expected it in {path.parent}"
        )
    return place, 0


def _offset(header: Mapping[str, str], start: int, place: Path, size: int) -> int:
    """Where values begin; a HeaderSize of -1: they are the last ``size`` bytes of the file."""
    skip = int(header.get("HeaderSize", "0"))
    if skip == -1:
        return max(0, place.stat().st_size - size)
    return start + max(0, skip)


@contextmanager
def _stream(path: Path, start: int) -> Iterator[Source]:
    with path.open("rb") as file:
        file.seek(start)
        yield ZlibStream(file)


def _place_lines(spec: VolumeSpec) -> list[str]:
    """Spacing, directions and origin, towards left, posterior, superior."""
    edges = np.array((spec.voxel_size or (1.0, 1.0, 1.0))[::-1])
    steps, start = np.diag(edges), np.zeros(3)
    if spec.affine is not None:
        z, y, x, start = (LEFT_POSTERIOR @ np.array(spec.affine)).T
        steps = np.array([x, y, z])
        if spec.voxel_size is None:
            edges = np.linalg.norm(steps, axis=1)
    lines = [
        f"TransformMatrix = {_numbers(steps / edges[:, None])}",
        f"Offset = {_numbers(start)}",
    ]
    sized = spec.voxel_size is not None or spec.affine is not None
    return [*lines, f"ElementSpacing = {_numbers(edges)}"] if sized else lines


def _numbers(values: npt.NDArray[Any]) -> str:
    return " ".join(repr(float(value) + 0.0) for value in values.ravel())  # no -0.0


def _lies(
    header: Mapping[str, str], axes: tuple[int, int, int], count: int
) -> npt.NDArray[Any] | None:
    """Where the voxels lie, as `placed` takes it: ITK counts towards left, posterior, superior.
    None where the file does not say it."""
    said = (_field(header, names) for names in _PLACE)
    directions, origin, spacing = (np.array(text.split(), float) for text in said)
    if (directions.size, origin.size) != (count * count, count):
        return None
    edges = spacing if spacing.size == count else np.ones(count)
    with np.errstate(over="ignore"):
        steps = directions.reshape(count, count) * edges[:, None]
    ours = [count - 1 - axis for axis in reversed(axes)]
    matrix = np.column_stack([*steps[ours, :3], origin[:3]])
    if is_default(matrix) and not _ours(header).get("placed"):
        return None
    with np.errstate(invalid="ignore"):
        return np.asarray(LEFT_POSTERIOR @ matrix)


def _field(header: Mapping[str, str], names: tuple[str, ...]) -> str:
    """The first of ``names`` that it has; empty without one."""
    return next((header[name] for name in names if name in header), "")


def _ours(header: Mapping[str, str]) -> dict[str, Any]:
    """What we have written beside the values, empty in files of others."""
    return our_note(header.get("Nextslice", "{}"))


def _notes(header: Mapping[str, str], axes: tuple[int, int, int], count: int) -> Notes:
    ours = _ours(header)
    names = our_classes(ours)
    sizes = _field(header, _SPACING).split()[::-1]
    unit = header.get("DistanceUnits", "")
    if len(sizes) != count:
        return Notes(classes=names)
    along = [float(sizes[axis]) for axis in axes]
    if not ours.get("sized", unit not in ("", "?") or any(size != 1 for size in along)):
        return Notes(classes=names)
    return Notes.sized(along, "" if unit == "?" else unit, names)
