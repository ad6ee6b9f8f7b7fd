"""AmiraMesh (``.am``): a uniform lattice of Amira or Avizo, grey values or labels.

The header is text up to ``@1``; raw values behind it are read where they lie, zipped ones (HxZip)
and runs (HxByteRLE, of label fields) are unpacked once into a temporary file. The bounding box lies
on the centres of the outermost voxels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ml_backend.volumes.formats.checks import number_type, reading, three_axes
from ml_backend.volumes.formats.flat import Flat
from ml_backend.volumes.formats.format import Format
from ml_backend.volumes.formats.notes import Notes
from ml_backend.volumes.formats.unpacked import HIGHEST_RATIO, Source, Unpacked, ZlibStream
from ml_backend.volumes.limits import HEADER_BYTES
from ml_backend.volumes.volume import ReadOptions, Volume, VolumeError

__all__ = ["FORMAT", "read"]

_EXPECTED = "an AmiraMesh file"
_TYPES = {
    "byte": "u1", "short": "i2", "ushort": "u2", "int32": "i4", "int": "i4", "uint": "u4",
    "float": "f4", "double": "f8",
}  # fmt: skip
_MAGIC = re.compile(r"# (?:AmiraMesh|Avizo)(?: 3D)? (BINARY(?:-LITTLE-ENDIAN)?|ASCII)")
_LATTICE = re.compile(r"^[ \t]*define[ \t]+Lattice[ \t]+(.+)$", re.MULTILINE)
_DATA = re.compile(
    r"^[ \t]*Lattice\s*\{\s*(\w+)(\[\d+\])?\s+\w+\s*\}\s*=?\s*@(\d+)(?:\((\w+),(\d+)\))?",
    re.MULTILINE,
)
_BOX = re.compile(r"BoundingBox\s+((?:[-+\d.eE]+\s+){5}[-+\d.eE]+)")
_UNIT = re.compile(r"Coordinates\s+\"([^\"]*)\"")
_HOW = "save it from Amira as raw AmiraMesh binary, or as TIFF"
_LITERAL = 0x80
_LONGEST_RUN = 127


def read(path: Path, options: ReadOptions) -> Volume:
    """One number a voxel, on a uniform lattice."""
    with reading(path, _EXPECTED):
        head, start = _head(path)
        sizes = [int(n) for n in _said(path, _LATTICE, head, "define Lattice")[1].split()][::-1]
        z, y, x = (sizes[axis] for axis in three_axes(path, sizes))
        _check_uniform(path, head)
        data = _said(path, _DATA, head, "Lattice { … } @1")
        dtype = _type(path, head, data)
        notes = _notes(head, (z, y, x))
    native, packing = number_type(path, dtype), data[4]
    flat = Flat(path, (z, y, x), dtype, start)
    if packing is None:
        flat.check()
        return notes.volume(path, flat.shape, native, flat.read)
    source: Callable[[Path, int, int], Any] | None = {"HxZip": _zipped, "HxByteRLE": _runs}.get(
        packing
    )
    if source is None or (packing == "HxByteRLE" and dtype.itemsize > 1):
        raise VolumeError(f"{path} has {dtype} packed by {packing}, expected HxZip or none: {_HOW}")
    _check_end(path, start + int(data[5]))
    unpacked = Unpacked(
        Flat(path, flat.shape, dtype), partial(source, path, start, int(data[5])), packing,
        HIGHEST_RATIO if packing == "HxZip" else _LONGEST_RUN, _HOW,
    )  # fmt: skip
    return notes.volume(path, flat.shape, native, unpacked.read, unpacked.close)


FORMAT = Format(
    name="amira",
    title="AmiraMesh",
    summary="`.am` of Amira and Avizo: a uniform lattice of grey values or labels",
    readable="Amira (.am)",
    endings=(".am",),
    read=read,
    apart=False,
    place=82,
)


def _head(path: Path) -> tuple[str, int]:
    """The text before the values, and where these begin. Raises VolumeError."""
    with path.open("rb") as file:
        data = file.read(HEADER_BYTES)
    found = re.search(rb"\n@1\r?\n", data)
    head = data[: found.start() if found else 4096].decode("latin-1")
    if not _MAGIC.match(head) or found is None:
        raise VolumeError(
            f"{path} has no AmiraMesh header with values behind @1, expected {_EXPECTED}"
        )
    return head, found.end()


def _said(path: Path, what: re.Pattern[str], head: str, name: str) -> re.Match[str]:
    if (found := what.search(head)) is None:
        raise VolumeError(f"{path} has no line {name!r} in its header, expected a lattice")
    return found


def _check_uniform(path: Path, head: str) -> None:
    kind = re.search(r"CoordType\s+\"(\w+)\"", head)
    if kind is not None and kind[1] != "uniform":
        raise VolumeError(f"{path} has {kind[1]} coordinates, expected uniform ones: {_HOW}")


def _type(path: Path, head: str, data: re.Match[str]) -> np.dtype[Any]:
    form = _MAGIC.match(head)
    assert form is not None
    if form[1] == "ASCII" or data[1] not in _TYPES or data[2] not in (None, "[1]"):
        raise VolumeError(
            f"{path} has {form[1]} values of type {data[1]}{data[2] or ''}, expected binary, one "
            f"number a voxel: {_HOW}"
        )
    if data[3] != "1":
        raise VolumeError(f"{path} has its lattice behind @{data[3]}, expected @1: {_HOW}")
    return np.dtype(("<" if form[1].endswith("LITTLE-ENDIAN") else ">") + _TYPES[data[1]])


def _check_end(path: Path, end: int) -> None:
    if (found := path.stat().st_size) < end:
        raise VolumeError(f"{path} has {found} bytes, expected {end}: it is cut off")


@contextmanager
def _zipped(path: Path, start: int, length: int) -> Iterator[Source]:
    with path.open("rb") as file:
        file.seek(start)
        yield ZlibStream(file)


@contextmanager
def _runs(path: Path, start: int, length: int) -> Iterator[Source]:
    with path.open("rb") as file:
        file.seek(start)
        yield _Runs(file, length)


@dataclass
class _Runs:
    """HxByteRLE: a byte n below 128 repeats the next one n times, 128 + n is followed by n."""

    file: BinaryIO
    left: int
    _ready: bytearray = field(default_factory=bytearray)
    _packed: bytes = b""

    def read(self, size: int, /) -> bytes:
        while len(self._ready) < size and (self.left or self._packed):
            self._unpack()
        part = bytes(self._ready[:size])
        del self._ready[:size]
        return part

    def _unpack(self) -> None:
        """Another part of what is packed; a run that ends beyond it waits for the next."""
        data = self._packed + self.file.read(min(self.left, 2**16))
        fresh = len(data) - len(self._packed)
        self.left = self.left - fresh if fresh else 0
        place = 0
        while place < len(data):
            count = data[place] & _LONGEST_RUN
            following = count if data[place] & _LITERAL else 1
            if place + 1 + following > len(data):
                break
            values = data[place + 1 : place + 1 + following]
            self._ready += values if data[place] & _LITERAL else values * count
            place += 1 + following
        self._packed = data[place:]
        if self._packed and not self.left:
            raise EOFError("the packed values end within a run")


def _notes(head: str, shape: tuple[int, int, int]) -> Notes:
    found, unit = _BOX.search(head), _UNIT.search(head)
    if found is None or min(shape) < 2:
        return Notes()
    ends = [float(n) for n in found[1].split()]
    edges = [(ends[2 * i + 1] - ends[2 * i]) / (shape[2 - i] - 1) for i in (2, 1, 0)]
    return Notes.sized([float(f"{edge:.9g}") for edge in edges], unit[1] if unit else "")
