"""Zeiss (Xradia) TXM, reconstructed slices, and TXRM, projections: an OLE file with an image a
stream, which olefile finds. Voxels are cubes of the pixel size, in µm.
"""

from __future__ import annotations

import math
import re
import struct
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.formats.checks import reading
from ml_backend.volumes.formats.format import Format
from ml_backend.volumes.formats.notes import Notes
from ml_backend.volumes.formats.pages import by_page
from ml_backend.volumes.runs import Runs, file_state
from ml_backend.volumes.volume import ReadOptions, Volume, VolumeError

__all__ = ["FORMAT", "read"]

_EXPECTED = "a whole TXM or TXRM file (OLE)"
_TYPES = {
    2: "<i1", 3: "<u1", 4: "<i2", 5: "<u2", 6: "<i4", 7: "<u4", 8: "<i8", 9: "<u8", 10: "<f4",
    11: "<f8",
}  # fmt: skip
"""As Xradia numbers them."""
_IMAGE = re.compile(r"ImageData\d+/Image(\d+)")


def read(path: Path, options: ReadOptions) -> Volume:
    """Images in the order of their numbers."""
    import olefile

    with reading(path, _EXPECTED):
        if not olefile.isOleFile(path):
            raise VolumeError(f"{path} is no OLE file, expected {_EXPECTED}")
        file = olefile.OleFileIO(path)
    try:
        with reading(path, _EXPECTED):
            images = _Images.of(path, file)
            notes = _notes(file, path)
    except BaseException:
        file.close()
        raise
    weakref.finalize(images, file.close)
    shape, dtype = (len(images.names), *images.shape), images.dtype.newbyteorder("=")
    volume = notes.volume(path, shape, dtype, by_page(shape[0], images.read), file.close)
    return replace(volume, runs=images.runs)


FORMAT = Format(
    name="txm",
    title="Zeiss TXM, TXRM",
    summary="`.txm` (reconstructed slices), `.txrm` (projections)",
    readable="Zeiss (.txm)",
    endings=(".txm", ".txrm"),
    read=read,
    place=72,
)


@dataclass(eq=False)
class _Images:
    """The images of an OLE file, whose position threads share."""

    path: Path
    file: Any
    names: Sequence[str]
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, path: Path, file: Any) -> _Images:
        """Raises VolumeError where one is missing, or of another size than the file says."""
        width, height = (_said(file, path, f"Image{name}", "I") for name in ("Width", "Height"))
        code = _said(file, path, "DataType", "I")
        if code not in _TYPES:
            raise VolumeError(
                f"{path} has values of type {code}, expected one of {', '.join(map(str, _TYPES))}"
            )
        names = _names(path, file)
        found = cls(path, file, names, (int(height), int(width)), np.dtype(_TYPES[int(code)]))
        size = found.dtype.itemsize * int(width) * int(height)
        for name in names:
            if (there := file.get_size(name)) != size or not size:
                raise VolumeError(
                    f"{path} has {there} bytes in {name}, expected {size}: {found.dtype} of shape "
                    f"{found.shape}"
                )
        return found

    def read(self, z: int) -> npt.NDArray[Any]:
        with reading(self.path, _EXPECTED), self.lock:
            values = self.file.openstream(self.names[z]).getvalue()
        size = self.dtype.itemsize * math.prod(self.shape)
        if len(values) != size:  # olefile gives what there is
            raise VolumeError(
                f"{self.path} has {len(values)} bytes of {self.names[z]}, expected {size}: it is "
                "cut off"
            )
        pixels = np.frombuffer(values, self.dtype).reshape(self.shape)
        return pixels.astype(self.dtype.newbyteorder("="))

    def runs(self) -> Runs | None:
        """Where no image is scattered over the sectors of the file."""
        with reading(self.path, _EXPECTED), self.lock:
            state = file_state(self.file.fp.fileno())
            size = self.dtype.itemsize * math.prod(self.shape)
            starts = _starts(self.file, self.names, size)
        if starts is None or max(starts) + size > state[-1]:
            return None  # what is cut off is said of the image that is
        return Runs(self.path, self.dtype, starts, state)


def _starts(file: Any, names: Sequence[str], size: int) -> list[int] | None:
    """The byte at which each stream of ``size`` bytes begins; None where one of them is no single
    run of sectors, or so small that it lies in the mini stream."""
    if size < file.minisectorcutoff:
        return None
    sectors = np.asarray(file.fat, np.uint32)
    follows = sectors[:-1] == np.arange(1, len(sectors))
    # how many sectors before each one do not lead to the next
    breaks = np.concatenate([[0], np.cumsum(~follows)])
    entries = [file.direntries[file._find(name)] for name in names]
    firsts = np.array([entry.isectStart for entry in entries], np.int64)
    lasts = firsts + -(-size // file.sectorsize) - 1
    if lasts.max() >= len(sectors) or (breaks[lasts] != breaks[firsts]).any():
        return None
    return [int(start) for start in (firsts + 1) * file.sectorsize]


def _names(path: Path, file: Any) -> list[str]:
    numbered: Mapping[int, str] = {
        int(match[1]): "/".join(parts)
        for parts in file.listdir()
        if (match := _IMAGE.fullmatch("/".join(parts)))
    }
    # a scan that was broken off has taken fewer than were planned
    taken = "ImagesTaken" if file.exists("ImageInfo/ImagesTaken") else "NoOfImages"
    count = int(_said(file, path, taken, "I"))
    missing = next((n for n in range(1, count + 1) if n not in numbered), None)
    if missing or not count:
        raise VolumeError(
            f"{path} has {len(numbered)} images, expected {count} as it says itself"
            + (f": image {missing} is missing" if missing else "")
        )
    return [numbered[n] for n in range(1, count + 1)]


def _said(file: Any, path: Path, name: str, kind: str) -> float:
    stream = f"ImageInfo/{name}"
    if not file.exists(stream):
        raise VolumeError(f"{path} has no {stream}, expected {_EXPECTED}")
    value: float = struct.unpack_from(f"<{kind}", file.openstream(stream).read())[0]
    return value


def _notes(file: Any, path: Path) -> Notes:
    if not file.exists("ImageInfo/PixelSize"):
        return Notes()
    # the shortest decimal of the stored float32: 0.7, not 0.699999988079071
    size = float(str(np.float32(_said(file, path, "PixelSize", "f"))))
    return Notes.sized([size] * 3, "µm")
