"""Scanco ISQ: a header of 512-byte blocks, then 16-bit values, x fastest.

Little-endian, as the VAX had it. Values are native (linear attenuation times the µ-scaling of the
header); voxel sizes are the scanned size by the number of voxels, in µm.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from ml_backend.volumes.formats.checks import reading, three_axes
from ml_backend.volumes.formats.flat import Flat
from ml_backend.volumes.formats.format import Format
from ml_backend.volumes.formats.notes import Notes
from ml_backend.volumes.volume import ReadOptions, Volume, VolumeError

__all__ = ["FORMAT", "read"]

_MAGIC = b"CTDATA-HEADER_V1"
_BLOCK = 512
_TYPE_AT, _SIZES_AT, _OFFSET_AT = 16, 44, 508
_PROJECTIONS = 9


def read(path: Path, options: ReadOptions) -> Volume:
    """One reconstruction."""
    with reading(path, "an ISQ file"):
        with path.open("rb") as file:
            head = file.read(_BLOCK)
        if not head.startswith(_MAGIC) or len(head) < _BLOCK:
            raise VolumeError(
                f"{path} is no ISQ file, expected one that begins with {_MAGIC.decode()} (an .aim "
                "is read by ITK's ScancoImageIO, which writes .mha)"
            )
        (kind,) = struct.unpack_from("<i", head, _TYPE_AT)
        x, y, z, *lengths = struct.unpack_from("<6i", head, _SIZES_AT)
        (blocks,) = struct.unpack_from("<i", head, _OFFSET_AT)
        if kind == _PROJECTIONS or lengths[2] == 0 or blocks < 0:
            raise VolumeError(
                f"{path} has data of type {kind}, {blocks} blocks of header and the size {lengths} "
                f"in µm, expected the slices of a reconstruction"
            )
        three_axes(path, (z, y, x))
        flat = Flat(path, (z, y, x), np.dtype("<i2"), (blocks + 1) * _BLOCK)
    flat.check()
    sizes = [length / count for length, count in zip(lengths, (x, y, z), strict=True)][::-1]
    return Notes.sized(sizes, "µm").volume(path, flat.shape, np.dtype(np.int16), flat.read)


FORMAT = Format(
    name="isq",
    title="Scanco ISQ",
    summary="`.isq` (`.isq;1` from VMS too): a reconstruction, in native values",
    readable="Scanco (.isq)",
    endings=(".isq", ".isq;1"),
    read=read,
    apart=False,
    place=80,
)
