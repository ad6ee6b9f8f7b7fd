"""TIFF files as microscopes write them, byte for byte where tifffile does not write such."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

__all__ = ["fluoview", "index_mapped", "lsm", "metamorph", "micromanager", "ndtiff"]

_LONG, _SHORT, _RATIONAL = 4, 3, 5


def _entry(tag: int, kind: int, count: int, value: int) -> bytes:
    return struct.pack("<HHLL", tag, kind, count, value)


def _baseline(page: np.ndarray, place: int, photometric: int = 1) -> list[bytes]:
    rows, columns = page.shape
    return [
        _entry(256, _LONG, 1, columns), _entry(257, _LONG, 1, rows),
        _entry(258, _SHORT, 1, 8 * page.itemsize), _entry(259, _SHORT, 1, 1),
        _entry(262, _SHORT, 1, photometric), _entry(273, _LONG, 1, place),
        _entry(277, _SHORT, 1, 1), _entry(278, _LONG, 1, rows), _entry(279, _LONG, 1, page.nbytes),
    ]  # fmt: skip


def _directory(entries: Sequence[bytes], following: int) -> bytes:
    return struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<L", following)


def metamorph(path: Path, array: np.ndarray, photometric: int = 1, step: int = 0) -> None:
    """STK: one page, and the other planes behind it; UIC2 says how many, and how far apart
    (``step`` µm; 0: not), UIC1 that a pixel is 0.5 µm."""
    planes = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    uic2 = struct.pack("<6L", step, 1, 2450000, 0, 2450000, 0) * len(planes)
    data = planes.tobytes()
    after = 8 + len(data)
    # 3: a pixel has a unit, 4, 5: its size as a fraction, 6: the name of the unit
    sizes = after + len(uic2)
    texts = struct.pack("<2L", 1, 2) + struct.pack("<L", 3) + b"um\0"
    uic1 = struct.pack("<8L", 3, 1, 4, sizes, 5, sizes, 6, sizes + 8)
    place = sizes + len(texts)
    extra = [_entry(33628, _LONG, 4, place), _entry(33629, _RATIONAL, len(planes), after)]
    directory = _directory(_baseline(planes[0], 8, photometric) + extra, 0)
    start = place + len(uic1)
    path.write_bytes(b"II*\0" + struct.pack("<L", start) + data + uic2 + texts + uic1 + directory)


def lsm(
    path: Path,
    array: np.ndarray,
    compression: str | None = None,
    thumbnail: tuple[int, ...] = (4, 4),
) -> None:
    """Zeiss LSM: (T, Z, C, Y, X); every image is followed by its thumbnail, and has its channels
    one after another. Voxels of 0.4, 0.2, 0.1 µm."""
    times, depth, channels, rows, columns = array.shape
    info = np.zeros(1, np.dtype(tifffile.TIFF.CZ_LSMINFO).newbyteorder("<"))
    info["MagicNumber"], info["StructureSize"] = 67127628, info.itemsize
    for axis, length in zip("XYZ", (columns, rows, depth), strict=True):
        info[f"Dimension{axis}"] = length
    info["DimensionChannels"], info["DimensionTime"] = channels, times
    info["ScanType"] = 6 if times > 1 else 0
    for axis, size in zip("XYZ", (1e-7, 2e-7, 4e-7), strict=True):
        info[f"VoxelSize{axis}"] = size
    tag = (34412, 1, info.nbytes, info.tobytes(), True)
    with tifffile.TiffWriter(path, byteorder="<") as tif:
        for number, image in enumerate(array.reshape(-1, channels, rows, columns)):
            planar: dict[str, Any] = {"planarconfig": "separate"} if channels > 1 else {}
            tif.write(
                image if channels > 1 else image[0], photometric="minisblack", metadata=None,
                extratags=[] if number else [tag], compression=compression, **planar,
            )  # fmt: skip
            thumb = np.zeros((3, *thumbnail), np.uint8)
            tif.write(
                thumb, photometric="rgb", planarconfig="separate", subfiletype=1, metadata=None
            )


def fluoview(path: Path, array: np.ndarray, axes: str) -> None:
    """Olympus FluoView: pages in the order of ``axes``, outermost first; voxels of 0.4, 0.2,
    0.1 µm."""
    names = {"X": b"X", "Y": b"Y", "Z": b"Z", "T": b"T", "C": b"Ch"}
    steps = {"X": 0.1, "Y": 0.2, "Z": 0.4}
    header = np.zeros(1, np.dtype(tifffile.TIFF.MM_HEADER).newbyteorder("<"))
    for place, (axis, length) in enumerate(zip(axes[::-1], array.shape[::-1], strict=True)):
        unit = b"um" if axis in steps else b""
        header["Dimensions"][0, place] = (names[axis], length, 0, steps.get(axis, 1), unit)
    tags = [
        (34361, 1, header.nbytes, header.tobytes(), True),
        (34362, 12, 8, tuple(np.zeros(8)), True),
    ]
    with tifffile.TiffWriter(path, byteorder="<") as tif:
        for number, page in enumerate(array.reshape(-1, *array.shape[-2:])):
            tif.write(page, metadata=None, extratags=[] if number else tags)


def _pages_that_say(
    path: Path, pages: Sequence[np.ndarray], said: Sequence[Mapping[str, Any]]
) -> None:
    with tifffile.TiffWriter(path) as tif:
        for page, meta in zip(pages, said, strict=True):
            tag = (51123, "s", 0, json.dumps(meta), False)
            tif.write(page, metadata=None, extratags=[tag])


def micromanager(
    path: Path, pages: Sequence[np.ndarray], places: Sequence[tuple[int, int, int]]
) -> None:
    """Micro-Manager: each page says its (time, z, channel)."""
    names = ("FrameIndex", "SliceIndex", "ChannelIndex")
    said = [
        dict(zip(names, place, strict=True))
        | {"PositionIndex": 0, "PixelSizeUm": 0.5, "ZStepUm": 2.0}
        for place in places
    ]
    _pages_that_say(path, pages, said)


def ndtiff(path: Path, pages: Sequence[np.ndarray], axes: Sequence[Mapping[str, Any]]) -> None:
    """NDTiff: each page names the axes that it lies along; channels have names."""
    _pages_that_say(path, pages, [{"Axes": dict(place), "PixelSizeUm": 0.5} for place in axes])


def index_mapped(
    path: Path,
    pages: Sequence[np.ndarray],
    places: Sequence[tuple[int, int, int]],
    summary: Mapping[str, Any],
) -> None:
    """Micro-Manager as it was before pages said their place: a map of (channel, z, time) at the
    beginning of the file."""
    text = json.dumps(summary).encode()
    content = bytearray(40) + text + b'{"Width": 10}'
    offsets = []
    for number, page in enumerate(pages):
        offsets.append(len(content))
        count = 10
        place = len(content) + 2 + 12 * count + 4
        entries = [*_baseline(page, place), _entry(51123, 2, 13, 40 + len(text))]
        last = number == len(pages) - 1
        content += _directory(entries, 0 if last else place + page.nbytes)
        content += page.astype("<u2").tobytes()
    index = len(content)
    content += struct.pack("<2L", 3453623, len(pages))
    for place, offset in zip(places, offsets, strict=True):
        content += struct.pack("<5L", *place, 0, offset)
    content[:8] = b"II*\0" + struct.pack("<L", offsets[0])
    content[8:40] = struct.pack(
        "<8L", 54773648, index, 483765892, 0, 99384722, 0, 2355492, len(text)
    )
    path.write_bytes(bytes(content))
