"""A folder of grey JPEG 2000 images, one slice each, in the natural order of their names.

Voxel size and class names are those of ``volume.json`` or of SkyScan's log. Pillow reads the header
and imagecodecs the values; openjpeg makes up what a cut file lacks, so its end is looked at first.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.formats.checks import native, reading
from ml_backend.volumes.formats.format import Format
from ml_backend.volumes.formats.pages import Look, folder_read
from ml_backend.volumes.formats.skyscan import folder_notes, slices_in
from ml_backend.volumes.volume import ReadOptions, Volume, VolumeError

__all__ = ["FORMAT", "read"]

_EXPECTED = "a whole grey JPEG 2000 image"
_ENDINGS = (".jp2", ".j2k", ".j2c", ".jpx")
_TYPES = {"L": np.uint8, "I;16": np.uint16}
_CODES = b"\xff\x4f"
"""A codestream begins so, and a file of boxes as below."""
_BOXES = b"\0\0\0\x0cjP  \r\n\x87\n"
_END = b"\xff\xd9"


def read(path: Path, options: ReadOptions) -> Volume:
    """8- or 16-bit grey images."""
    if not path.is_dir():
        raise VolumeError(f"{path} is one image, expected its folder: give that")
    files = slices_in(path, _ENDINGS)
    (size, dtype), cut = folder_read(files, options, _look, _image)
    return folder_notes(path, options).volume(path, (len(files), *size), dtype, cut)


FORMAT = Format(
    name="jpeg2000",
    title="JPEG 2000",
    summary="a folder of grey `.jp2` or `.j2k` files (8 or 16 bit), as SkyScan writes them",
    endings=_ENDINGS,
    read=read,
    images={"JPEG 2000": _ENDINGS},
    place=78,
)


def _look(path: Path) -> Look:
    from ml_backend.pictures import open_picture

    with reading(path, _EXPECTED), open_picture(path, ("JPEG2000",)) as image:
        if image.mode not in _TYPES:
            raise VolumeError(
                f"{path} is a colour image ({image.mode}), expected one grey value a voxel"
            )
        return (image.height, image.width), np.dtype(_TYPES[image.mode])


def _image(path: Path, check: Callable[[Look], None]) -> npt.NDArray[Any]:
    import imagecodecs

    check(_look(path))
    with reading(path, _EXPECTED):
        data = path.read_bytes()
        _check_end(path, data)
        return native(np.asarray(imagecodecs.jpeg2k_decode(data)))


def _check_end(path: Path, data: bytes) -> None:
    """Raises VolumeError where the codestream does not end in ``data``."""
    start, end = (0, len(data)) if data.startswith(_CODES) else _codestream(path, data)
    if end > len(data) or not data[start:end].endswith(_END):
        raise VolumeError(
            f"{path} has {len(data)} bytes, and its image does not end in them, expected "
            f"{_EXPECTED}: it is cut off"
        )


def _codestream(path: Path, data: bytes) -> tuple[int, int]:
    """Where it begins and ends, as its box says."""
    place = 0
    while data.startswith(_BOXES) and place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        head = 8
        if length == 1:
            (length,), head = struct.unpack_from(">Q", data, place + 8), 16
        end = len(data) if length == 0 else place + length
        if kind == b"jp2c":
            return place + head, end
        if end <= place:
            break
        place = end
    raise VolumeError(f"{path} has no JPEG 2000 codestream, expected {_EXPECTED}: is it cut off?")
