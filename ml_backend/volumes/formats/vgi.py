"""VGI: the text that VGSTUDIO and the reconstructions of many scanners leave beside a ``.vol``.

    {volume1}
    [file1]
    Size = 512 512 900
    Datatype = unsigned integer
    BitsPerElement = 16
    Name = scan.vol
    {volumeprimitive12}
    [geometry]
    resolution = 0.01 0.01 0.01
    unit = mm

The values are raw, little-endian, x fastest. Voxel size and unit stand under ``[geometry]``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from ml_backend.volumes.enclosure import check_inside
from ml_backend.volumes.formats.checks import number_type, reading, three_axes
from ml_backend.volumes.formats.flat import Flat
from ml_backend.volumes.formats.format import Format
from ml_backend.volumes.formats.notes import Notes, as_text
from ml_backend.volumes.limits import TEXT_BYTES
from ml_backend.volumes.volume import ReadOptions, Volume, VolumeError

__all__ = ["FORMAT", "read"]

_EXPECTED = "a VGI file"
_KINDS = {
    "unsigned integer": "u", "unsigned char": "u", "unsigned short": "u", "integer": "i",
    "signed integer": "i", "float": "f", "double": "f",
}  # fmt: skip

Section = Mapping[str, str]


def read(path: Path, options: ReadOptions) -> Volume:
    """Of one volume in one file."""
    with reading(path, _EXPECTED):
        sections = _sections(path)
        files = [one for name, one in sections if re.fullmatch(r"file\d+", name)]
        if len(files) != 1:
            raise VolumeError(
                f"{path} names {len(files)} files of values, expected one: join them, as VGSTUDIO's"
                " export of raw values does"
            )
        said = dict(next((one for name, one in sections if name == "representation"), {}))
        said |= files[0]
        place = _place(path, said, options)
        sizes = [int(n) for n in said.get("size", "").split()][::-1]
        three_axes(path, sizes)
        shape = (sizes[0], sizes[1], sizes[2])
        dtype = _type(path, said)
        flat = Flat(place, shape, dtype, int(said.get("skipheader", "0")))
        notes = _notes(sections)
    flat.check()
    return notes.volume(path, shape, number_type(path, dtype), flat.read)


FORMAT = Format(
    name="vgi",
    title="VGI",
    summary="`.vgi`, which says what is in the `.vol` beside it; raw values",
    readable="VGI (.vgi beside a .vol)",
    endings=(".vgi",),
    read=read,
    apart=False,
    place=74,
)


def _sections(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Name and entries of each ``[section]`` in order, both in lower case but for the values."""
    found: list[tuple[str, dict[str, str]]] = []
    with path.open("rb") as file:
        text = as_text(file.read(TEXT_BYTES))
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if section := re.fullmatch(r"\s*\[(.+)\]\s*", line):
            found.append((section[1].strip().lower(), {}))
        elif equals and found:
            found[-1][1][name.strip().lower()] = value.strip()
    if not found:
        raise VolumeError(f"{path} has no [section], expected {_EXPECTED}")
    return found


def _place(path: Path, said: Section, options: ReadOptions) -> Path:
    """The file of values: in the folder of ``path`` where the name is that of another machine."""
    if (kind := said.get("fileformat", "raw").lower()) != "raw":
        raise VolumeError(f"{path} has values in the format {kind}, expected raw ones")
    name = said.get("name", "")
    if not name:
        raise VolumeError(f"{path} names no file of values, expected Name = scan.vol")
    place = path.parent / name
    if not place.exists():
        place = path.parent / PureWindowsPath(name).name
    check_inside(place, path, options)
    if not place.is_file():
        raise VolumeError(
            f"{path} has its values in {name}, which is not there: expected it in {path.parent}"
        )
    return place


def _type(path: Path, said: Section) -> np.dtype[Any]:
    kind, bits = _KINDS.get(said.get("datatype", "").lower()), said.get("bitsperelement", "")
    if kind is None or bits not in ("8", "16", "32", "64"):
        raise VolumeError(
            f"{path} has values of {bits or 'unknown'} bits, {said.get('datatype', 'no type')!r}, "
            "expected integer or float of 8 to 64 bits"
        )
    return np.dtype(f"<{kind}{int(bits) // 8}")


def _notes(sections: list[tuple[str, dict[str, str]]]) -> Notes:
    for name, said in sections:
        if name == "geometry" and "resolution" in said:
            sizes = said["resolution"].split()[::-1]
            return Notes.sized(sizes if len(sizes) == 3 else (), said.get("unit", ""))
    return Notes()
