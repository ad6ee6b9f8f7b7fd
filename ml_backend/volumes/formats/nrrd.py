"""NRRD, attached (``.nrrd``) and detached (``.nhdr`` beside its values), raw or packed.

pynrrd parses the header; raw values are read where they lie. What is packed by gzip or bzip2 is
unpacked once into a temporary file. Where the voxels lie is said, and not applied here.
"""

from __future__ import annotations

import bz2
import gzip
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.enclosure import check_inside
from ml_backend.volumes.formats.checks import number_type, reading, three_axes
from ml_backend.volumes.formats.flat import Flat
from ml_backend.volumes.formats.format import EVERYTHING, Format
from ml_backend.volumes.formats.notes import Notes, our_classes, our_note, sizes_in_one_unit
from ml_backend.volumes.formats.unpacked import HIGHEST_RATIO, Source, Unpacked
from ml_backend.volumes.geometry import LEFT_POSTERIOR, is_default, placed
from ml_backend.volumes.limits import TEXT_BYTES
from ml_backend.volumes.volume import ReadOptions, Volume, VolumeError, VolumeSpec

__all__ = ["FORMAT", "read", "write"]

_EXPECTED = "an NRRD file"
_NAMES = {
    "u1": "unsigned char, uchar, uint8, uint8_t", "i1": "signed char, int8, int8_t",
    "u2": "unsigned short, unsigned short int, ushort, uint16, uint16_t",
    "i2": "short, short int, signed short, signed short int, int16, int16_t",
    "u4": "unsigned int, uint, uint32, uint32_t", "i4": "int, signed int, int32, int32_t",
    "u8": "unsigned long long, unsigned long long int, ulonglong, uint64, uint64_t",
    "i8": "long long, long long int, signed long long, signed long long int, longlong, int64,"
    " int64_t",
    "f4": "float", "f8": "double",
}  # fmt: skip
_TYPES = {name: code for code, names in _NAMES.items() for name in names.split(", ")}
_FLOATS = {"float32": "float", "float64": "double"}
_KINDS = {"domain", "space", "time", "none", "???", "stub"}
"""Of axes that may be those of a volume; others hold colours or vectors."""
_SPACES = {
    "right-anterior-superior": np.eye(3), "ras": np.eye(3),
    "left-posterior-superior": LEFT_POSTERIOR, "lps": LEFT_POSTERIOR,
    "left-anterior-superior": np.diag([-1.0, 1.0, 1.0]), "las": np.diag([-1.0, 1.0, 1.0]),
}  # fmt: skip
_UNITS = {"µm": "um", "Å": "angstrom"}
_KEY = "nextslice"
_HOW = "`unu save -f nrrd -e raw` writes such a file"


def read(path: Path, options: ReadOptions) -> Volume:
    """Three axes, or more of which the others have length 1."""
    with reading(path, _EXPECTED):
        header, start = _header(path)
        sizes = [int(n) for n in header["sizes"]][::-1]  # fastest last
        axes = three_axes(path, sizes)
        _check_kinds(path, header)
        dtype = _stored_type(path, header)
        z, y, x = (sizes[axis] for axis in axes)
        place, start = _place(path, header, options, start)
        notes = _notes(header, axes, len(sizes))
        lies = _lies(header, axes, len(sizes))
    flat, encoding = Flat(place, (z, y, x), dtype), str(header["encoding"]).lower()
    native = number_type(path, dtype)
    skip = int(header.get("byte skip", header.get("byteskip", 0)))
    if encoding == "raw":
        flat = _raw(flat, start, skip)
        flat.check()
        return placed(notes.volume(path, flat.shape, native, flat.read), lies)
    if encoding not in ("gzip", "gz", "bzip2", "bz2"):
        raise VolumeError(
            f"{path} has the encoding {encoding}, expected raw, gzip or bzip2: {_HOW}"
        )
    packed = Flat(place, flat.shape, dtype, max(0, skip))
    kind = "gzip" if encoding.startswith("g") else "bzip2"
    unpacked = Unpacked(
        packed, partial(_stream, place, start, kind), kind,
        HIGHEST_RATIO if kind == "gzip" else 0, _HOW,
    )  # fmt: skip
    volume = notes.volume(path, flat.shape, native, unpacked.read, unpacked.close)
    return placed(volume, lies)


def write(path: Path, slices: Iterable[npt.NDArray[Any]], spec: VolumeSpec) -> None:
    """Attached and raw, x fastest; class names as a key of our own, in JSON."""
    dtype = spec.dtype.newbyteorder("<")
    lines = [
        "NRRD0005",
        f"type: {_FLOATS.get(spec.dtype.name, spec.dtype.name)}",
        "dimension: 3",
        "space dimension: 3" if spec.affine is None else "space: right-anterior-superior",
        f"sizes: {' '.join(map(str, spec.shape[::-1]))}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: raw",
    ]
    if spec.affine is not None:
        steps = zip(*spec.affine, strict=True)
        z, y, x, start = (f"({','.join(map(repr, step))})" for step in steps)
        lines += [f"space directions: {x} {y} {z}", f"space origin: {start}"]
    elif spec.voxel_size is not None:
        x, y, z = (repr(float(size)) for size in spec.voxel_size[::-1])
        lines.append(f"space directions: ({x},0,0) (0,{y},0) (0,0,{z})")
    if spec.voxel_size is not None:
        unit = _UNITS.get(spec.unit, spec.unit)
        if unit.isascii() and '"' not in unit and "\n" not in unit:
            lines.append(f'space units: "{unit}" "{unit}" "{unit}"')
    said = {"classes": spec.classes, "sized": spec.voxel_size is not None}
    lines.append(f"{_KEY}:={json.dumps(said)}")
    with path.open("wb") as file:
        file.write(("\n".join(lines) + "\n\n").encode("ascii"))
        for values in slices:
            file.write(values.astype(dtype, copy=False).tobytes())


FORMAT = Format(
    name="nrrd",
    title="NRRD",
    summary="`.nrrd`, or `.nhdr` with its values in another file; raw, gzip or bzip2",
    endings=(".nrrd", ".nhdr"),
    read=read,
    apart=False,
    write=write,
    dtypes=tuple(np.dtype(code).name for code in _NAMES),
    keeps=EVERYTHING,
    repeatable=True,
    masks=".nrrd",
    place=57,
)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Its fields, and the byte behind it. Raises VolumeError, and what pynrrd raises."""
    import nrrd

    with path.open("rb") as file:
        if file.read(4) != b"NRRD":
            raise VolumeError(f"{path} is no NRRD file, expected one that begins with NRRD")
        file.seek(0)
        lines, size = [], 0
        while (line := file.readline(TEXT_BYTES)).strip():
            lines.append(line)
            size += len(line)
            if size > TEXT_BYTES:
                raise VolumeError(f"{path} has a header without an end, expected an empty line")
        start = file.tell()
    for line in lines:
        name, _, value = line.decode("ascii", "replace").partition(":")
        if name in ("data file", "datafile") and ("%" in value or value.strip() == "LIST"):
            raise VolumeError(
                f"{path} has its values in many files ({value.strip()}), expected one: {_HOW}"
            )
    header = dict(nrrd.read_header(lines))
    for name in ("type", "sizes", "encoding"):
        if name not in header:
            raise VolumeError(f"{path} has no field {name!r} in its header, expected a whole one")
    return header, start


def _check_kinds(path: Path, header: Mapping[str, Any]) -> None:
    kinds = [str(kind).lower() for kind in header.get("kinds", ())]
    for kind, size in zip(kinds, header["sizes"], strict=False):
        if kind not in _KINDS and size != 1:
            raise VolumeError(
                f"{path} has axes of the kinds {', '.join(kinds)}, expected three of space"
            )


def _stored_type(path: Path, header: Mapping[str, Any]) -> np.dtype[Any]:
    name, endian = str(header["type"]).lower(), str(header.get("endian", "little")).lower()
    if name not in _TYPES or endian not in ("little", "big"):
        raise VolumeError(
            f"{path} has values of type {name!r}, {endian} endian, expected a number a voxel"
        )
    code = _TYPES[name]
    if code[1] != "1" and "endian" not in header:
        raise VolumeError(f"{path} does not say its byte order, expected endian: little or big")
    return np.dtype(("<" if endian == "little" else ">") + code)


def _place(
    path: Path, header: Mapping[str, Any], options: ReadOptions, start: int
) -> tuple[Path, int]:
    """The file that holds the values, and where in it they begin but for the bytes to skip."""
    name = header.get("data file", header.get("datafile"))
    place = path
    if name is not None:
        place, start = path.parent / str(name), 0
        check_inside(place, path, options)
        if not place.exists():
            raise VolumeError(
                f"{path} has its values in {name}, which is not there: expected it in {path.parent}"
            )
    with place.open("rb") as file:
        file.seek(start)
        for _ in range(int(header.get("line skip", header.get("lineskip", 0)))):
            if not file.readline(TEXT_BYTES):
                break
        return place, file.tell()


def _raw(flat: Flat, start: int, skip: int) -> Flat:
    """``skip`` -1: the values are the last of the file."""
    size = math.prod(flat.shape) * flat.dtype.itemsize
    offset = max(0, flat.path.stat().st_size - size) if skip == -1 else start + max(0, skip)
    return Flat(flat.path, flat.shape, flat.dtype, offset)


@contextmanager
def _stream(path: Path, start: int, kind: str) -> Iterator[Source]:
    with path.open("rb") as file:
        file.seek(start)
        yield gzip.GzipFile(fileobj=file) if kind == "gzip" else bz2.BZ2File(file)


def _notes(header: Mapping[str, Any], axes: tuple[int, int, int], count: int) -> Notes:
    ours = our_note(header.get(_KEY, "{}"))
    names = our_classes(ours)
    sizes, units = _sizes(header, count)
    along = [sizes[axis] for axis in axes]
    notes = sizes_in_one_unit(along, [units[axis] for axis in axes])
    if not ours.get("sized", bool(notes.unit) or any(size != 1 for size in along)):
        return Notes(classes=names)
    return Notes(notes.voxel_size, notes.unit, names)


def _lies(
    header: Mapping[str, Any], axes: tuple[int, int, int], count: int
) -> npt.NDArray[Any] | None:
    """Where the voxels lie, as `placed` takes it; None where the file does not say it."""
    towards = _SPACES.get(str(header.get("space", "")).lower())
    steps, origin = header.get("space directions"), header.get("space origin")
    if towards is None or steps is None or origin is None or len(steps) != count:
        return None
    ours = [steps[count - 1 - axis] for axis in reversed(axes)]
    if any(one is None or len(one) != 3 for one in (*ours, origin)):
        return None
    matrix = np.column_stack([*ours, origin])
    if towards is LEFT_POSTERIOR and is_default(matrix):
        return None
    with np.errstate(invalid="ignore"):
        return np.asarray(towards @ matrix)


def _sizes(header: Mapping[str, Any], count: int) -> tuple[list[Any], list[str]]:
    """Length and unit of a step along each axis, the fastest last; None where it is not said."""
    sizes: list[Any] = [None] * count
    units = [str(unit) for unit in header.get("units", ())]
    if (vectors := header.get("space directions")) is not None:
        sizes = [None if v is None else float(np.linalg.norm(v)) for v in vectors]
        of_space = {str(unit) for unit in header.get("space units", ())}
        units = [of_space.pop() if len(of_space) == 1 else ""] * count
    elif (spacings := header.get("spacings")) is not None:
        sizes = [float(size) for size in spacings]
    units = units if len(units) == count else [""] * count
    if len(sizes) != count:
        sizes = [None] * count
    return sizes[::-1], units[::-1]
