"""AmiraMesh (``.am``): a uniform lattice of Amira or Avizo, grey values or labels.

The header is text up to ``@1``; raw values behind it are read where they lie, zipped ones (HxZip)
and runs (HxByteRLE, of label fields) are unpacked once into a temporary file. A lattice may have
several data, each behind its own number, and several values a voxel. The bounding box lies on the
centres of the outermost voxels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ml_backend.volumes.formats.axes import choose_axes
from ml_backend.volumes.formats.checks import number_type, reading
from ml_backend.volumes.formats.flat import Cut, cut_out
from ml_backend.volumes.formats.format import Format
from ml_backend.volumes.formats.notes import Notes, as_text
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
_LATTICE = re.compile(r"^[ \t]*define[ \t]+Lattice[ \t]+([\d \t]+)", re.MULTILINE)
_DATA = re.compile(
    r"""^[ \t]*Lattice\s{0,9}\{\s{0,9}
        (\w+)\s{0,9}(?:\[\s{0,9}(\d{1,9})\s{0,9}\])?\s{1,9}(\w+)\s{0,9}  # type, values, name
        \}\s{0,9}=?\s{0,9}@(\d{1,9})\s{0,9}
        (?:\(\s{0,9}(\w+)\s{0,9},\s{0,9}(\d{1,18})\s{0,9}\))?  # what packed it, to what size
    """,
    re.MULTILINE | re.VERBOSE,
)
_BOX = re.compile(r"BoundingBox\s+((?:[-+\d.eE]+\s+){5}[-+\d.eE]+)")
_UNIT = re.compile(r"Coordinates\s+\"([^\"]*)\"")
_HOW = "save it from Amira as raw AmiraMesh binary, or as TIFF"
_LITERAL = 0x80
_LONGEST_RUN = 127


def read(path: Path, options: ReadOptions) -> Volume:
    """On a uniform lattice. ``options.dataset``: the name of its data, where there are several;
    ``options.channel``: which of several values a voxel."""
    with reading(path, _EXPECTED):
        head, start = _head(path)
        sizes = [int(n) for n in _said(path, _LATTICE, head, "define Lattice")[1].split()][::-1]
        _check_uniform(path, head)
        data = _chosen(path, head, options)
        lengths = (*sizes, data.values) if data.values > 1 else tuple(sizes)
        names = [*([""] * len(sizes)), *("channel" for _ in lengths[len(sizes) :])]
        choice = choose_axes(path, names, lengths, options)
        dtype = _type(path, head, data)
        start = _start(path, head, data.number, start, math.prod(sizes))
        flat = cut_out(path, lengths, dtype, 0 if data.packing else start, choice)
        notes = _notes(head, flat.shape)
    native, packing = number_type(path, dtype), data.packing
    if not packing:
        Cut(path, lengths, dtype, start, choice).check()
        return notes.volume(path, flat.shape, native, flat.read)
    source: Callable[[Path, int, int], Any] | None = {"HxZip": _zipped, "HxByteRLE": _runs}.get(
        packing
    )
    if source is None or (packing == "HxByteRLE" and dtype.itemsize > 1):
        raise VolumeError(f"{path} has {dtype} packed by {packing}, expected HxZip or none: {_HOW}")
    _check_end(path, start + data.packed)
    unpacked = Unpacked(
        flat, partial(source, path, start, data.packed), packing,
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
    chooses=True,
    datasets=True,
    apart=False,
    place=82,
)


def _head(path: Path) -> tuple[str, int]:
    """The text before the values, and where these begin. Raises VolumeError."""
    with path.open("rb") as file:
        data = file.read(HEADER_BYTES)
    found = re.search(rb"\n@1\r?\n", data)
    head = as_text(data[: found.start() if found else 4096])
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


@dataclass(frozen=True)
class _Data:
    """What the header says of a lattice's data: type, values a voxel, name, the number that they
    lie behind, what packed them and to how many bytes."""

    kind: str
    values: int
    name: str
    number: int
    packing: str
    packed: int

    def size(self, voxels: int) -> int:
        """Bytes in the file. Raises KeyError for an unknown type."""
        if self.packing:
            return self.packed
        return voxels * self.values * np.dtype(_TYPES[self.kind]).itemsize


def _all_data(head: str) -> list[_Data]:
    """In the order of their numbers."""
    found = [
        _Data(kind, int(values or 1), name, int(number), packing or "", int(packed or 0))
        for kind, values, name, number, packing, packed in _DATA.findall(head)
    ]
    return sorted(found, key=lambda one: one.number)


def _chosen(path: Path, head: str, options: ReadOptions) -> _Data:
    found = _all_data(head)
    if not found:
        raise VolumeError(
            f"{path} has no line 'Lattice {{ … }} @1' in its header, expected a lattice of numbers"
        )
    if options.dataset is not None:
        found = [one for one in found if one.name == options.dataset] or found
    if len(found) == 1 and options.dataset in (None, found[0].name):
        return found[0]
    listed = "".join(
        f"\n  {one.name} {one.kind}{f'[{one.values}]' if one.values > 1 else ''}" for one in found
    )
    asked = "several data" if options.dataset is None else f"no data {options.dataset}"
    raise VolumeError(f"{path} has {asked}, name one as dataset:{listed}")


def _start(path: Path, head: str, number: int, first: int, voxels: int) -> int:
    """The byte behind the line ``@number``; those of smaller numbers lie before it. Data of other
    things than the lattice (coordinates, vertices) come behind: their size is not known."""
    place, passed = first, 1
    with path.open("rb") as file:
        for one in _all_data(head):
            if passed == number:
                return place
            if one.number != passed:
                break
            place += one.size(voxels)
            file.seek(place)
            if (line := re.match(rb"\r?\n?@(\d{1,9})\r?\n", file.read(32))) is None:
                raise VolumeError(
                    f"{path} has no line @{passed + 1} at byte {place}, where the data @{passed} "
                    "end: expected a whole AmiraMesh file"
                )
            passed, place = int(line[1]), place + line.end()
    if passed == number:
        return place
    raise VolumeError(
        f"{path} has its lattice behind @{number}, expected it behind @1 or other lattices: {_HOW}"
    )


def _type(path: Path, head: str, data: _Data) -> np.dtype[Any]:
    form = _MAGIC.match(head)
    assert form is not None
    if form[1] == "ASCII" or data.kind not in _TYPES:
        raise VolumeError(
            f"{path} has {form[1]} values of type {data.kind}, expected binary, of numbers: {_HOW}"
        )
    return np.dtype(("<" if form[1].endswith("LITTLE-ENDIAN") else ">") + _TYPES[data.kind])


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
