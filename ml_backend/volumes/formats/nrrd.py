"""NRRD, attached (``.nrrd``) and detached (``.nhdr`` beside its values), raw or packed.

pynrrd parses the header; raw values are read where they lie, also in many files. What is packed by
gzip or bzip2 is unpacked once into a temporary file. Where the voxels lie is said, and not applied
here.
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
from ml_backend.volumes.formats.axes import choose_axes, letter_of
from ml_backend.volumes.formats.checks import number_type, reading
from ml_backend.volumes.formats.flat import Cut, cut_out
from ml_backend.volumes.formats.format import EVERYTHING, Format
from ml_backend.volumes.formats.notes import (
    Notes,
    as_text,
    our_classes,
    our_note,
    sizes_in_one_unit,
)
from ml_backend.volumes.formats.pieces import Pieces, numbered
from ml_backend.volumes.formats.unpacked import HIGHEST_RATIO, Source, Unpacked
from ml_backend.volumes.geometry import (
    LEFT_POSTERIOR,
    in_millimetres_of_itk,
    is_default,
    placed,
)
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
_KINDS = {"domain", "space", "none", "???", "stub"}
"""Of axes that may be those of a volume; others hold times, colours, vectors or lists."""
_SPACES = {
    "right-anterior-superior": np.eye(3), "ras": np.eye(3),
    "left-posterior-superior": LEFT_POSTERIOR, "lps": LEFT_POSTERIOR,
    "left-anterior-superior": np.diag([-1.0, 1.0, 1.0]), "las": np.diag([-1.0, 1.0, 1.0]),
}  # fmt: skip
_UNITS = {"µm": "um", "Å": "angstrom"}
_PACKED = {"gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
_KEY = "nextslice"
_HOW = "`unu save -f nrrd -e raw` writes such a file"


def read(path: Path, options: ReadOptions) -> Volume:
    """Three axes, and more of which the others have length 1 or are chosen: what the header calls
    a list, a vector or a colour by ``options.channel``, times by ``options.time``."""
    with reading(path, _EXPECTED):
        header, start, files = _header(path)
        lengths = [int(n) for n in header["sizes"]][::-1]  # fastest last
        choice = choose_axes(path, _axes(header, len(lengths)), lengths, options)
        encoding = str(header["encoding"]).lower()
        raw, kind = encoding == "raw", _PACKED.get(encoding, "")
        if not raw and not kind:
            raise VolumeError(
                f"{path} has the encoding {encoding}, expected raw, gzip or bzip2: {_HOW}"
            )
        dtype = _stored_type(path, header)
        notes = _notes(header, choice.axes, len(lengths))
        lies = _lies(header, choice.axes, len(lengths))
        if files is not None and not raw:
            raise VolumeError(
                f"{path} has values packed by {kind} in {len(files)} files, expected one: {_HOW}"
            )
    native = number_type(path, dtype)
    if files is not None:
        places = tuple(path.parent / name for name in files)
        begin = partial(_begin, header, 0)
        pieces = Pieces(path, places, tuple(lengths), dtype, choice, begin, options)
        with reading(path, _EXPECTED):
            pieces.check()
        return placed(notes.volume(path, pieces.shape, native, pieces.read), lies)
    with reading(path, _EXPECTED):
        place = _place(path, header, options)
        start = start if place == path else 0
        size = math.prod(lengths) * dtype.itemsize
        skip = _begin(header, start, place, size) if raw else max(0, _skip(header))
        packed_at = 0 if raw else _behind_lines(header, start, place)
        flat = cut_out(place, lengths, dtype, skip, choice)
    if raw:
        Cut(place, tuple(lengths), dtype, skip, choice).check()
        return placed(notes.volume(path, flat.shape, native, flat.read), lies)
    unpacked = Unpacked(
        flat, partial(_stream, place, packed_at, kind), kind,
        HIGHEST_RATIO if kind == "gzip" else 0, _HOW,
    )  # fmt: skip
    volume = notes.volume(path, flat.shape, native, unpacked.read, unpacked.close)
    return placed(volume, lies)


def write(path: Path, slices: Iterable[npt.NDArray[Any]], spec: VolumeSpec) -> None:
    """Attached and raw, x fastest; class names as a key of our own, in JSON."""
    spec = in_millimetres_of_itk(spec)
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
    summary="`.nrrd`, or `.nhdr` with its values in another file or in many; raw, gzip or bzip2",
    endings=(".nrrd", ".nhdr"),
    read=read,
    chooses=True,
    apart=False,
    write=write,
    dtypes=tuple(np.dtype(code).name for code in _NAMES),
    keeps=EVERYTHING,
    repeatable=True,
    masks=".nrrd",
    place=57,
)


def _header(path: Path) -> tuple[dict[str, Any], int, list[str] | None]:
    """Its fields, the byte behind it, and the names of the files that hold the values, where these
    are many. Raises VolumeError, and what pynrrd raises."""
    import nrrd

    with path.open("rb") as file:
        if file.read(4) != b"NRRD":
            raise VolumeError(f"{path} is no NRRD file, expected one that begins with NRRD")
        file.seek(0)
        lines, size = [], 0
        while (raw := file.readline(TEXT_BYTES)).strip():
            lines.append(as_text(raw))  # of bytes pynrrd drops what is not ASCII
            size += len(raw)
            if size > TEXT_BYTES:
                raise VolumeError(f"{path} has a header without an end, expected an empty line")
        start = file.tell()
    files = None
    for number, line in enumerate(lines):
        name, _, value = line.partition(":")
        value = value.strip()
        if name not in ("data file", "datafile"):
            continue
        if value.split()[:1] == ["LIST"]:
            files = [one.strip() for one in lines[number + 1 :]]
            lines = lines[: number + 1]
            break
        if "%" in value:
            files = numbered(path, value)
    header = dict(nrrd.read_header(lines))
    for name in ("type", "sizes", "encoding"):
        if name not in header:
            raise VolumeError(f"{path} has no field {name!r} in its header, expected a whole one")
    return header, start, files


def _axes(header: Mapping[str, Any], count: int) -> list[str]:
    """Names for `choose_axes`, the fastest axis last."""
    kinds = [str(kind) for kind in header.get("kinds", ())]
    labels = [str(label) for label in header.get("labels", ())]
    kinds += ["???"] * (count - len(kinds))
    labels += [""] * (count - len(labels))
    return [_axis(k, label) for k, label in zip(kinds, labels, strict=True)][:count][::-1]


def _axis(kind: str, label: str) -> str:
    letter = letter_of(label)
    if kind.lower() == "time":
        return f"time ({label})" if label else "time"
    if kind.lower() in _KINDS or letter == "t":
        return label
    return f"channel ({label or kind})"


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


def _place(path: Path, header: Mapping[str, Any], options: ReadOptions) -> Path:
    """The file that holds the values."""
    name = header.get("data file", header.get("datafile"))
    if name is None:
        return path
    place = path.parent / str(name)
    check_inside(place, path, options)
    if not place.exists():
        raise VolumeError(
            f"{path} has its values in {name}, which is not there: expected it in {path.parent}"
        )
    return place


def _skip(header: Mapping[str, Any]) -> int:
    return int(header.get("byte skip", header.get("byteskip", 0)))


def _behind_lines(header: Mapping[str, Any], start: int, place: Path) -> int:
    """The byte behind the lines to skip, which begin at ``start``."""
    with place.open("rb") as file:
        file.seek(start)
        for _ in range(int(header.get("line skip", header.get("lineskip", 0)))):
            if not file.readline(TEXT_BYTES):
                break
        return file.tell()


def _begin(header: Mapping[str, Any], start: int, place: Path, size: int) -> int:
    """Where raw values begin. A skip of -1: they are the last ``size`` bytes of the file."""
    if (skip := _skip(header)) == -1:
        return max(0, place.stat().st_size - size)
    return _behind_lines(header, start, place) + max(0, skip)


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
