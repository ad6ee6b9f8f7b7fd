"""HDF5 files of which some bytes were changed: one that is never open, one whose values end what
reads them."""

from __future__ import annotations

import struct
from pathlib import Path

import h5py
import numpy as np

SHAPE = (64, 512, 512)
"""One chunk of 32 MiB: read beyond what is there, it leaves every heap."""


def hanging(path: Path) -> Path:
    """HDF5 goes through the strings of its attributes for ever: the free space behind them says
    that it is 0 bytes long."""
    with h5py.File(path, "w") as file:
        file["data"] = np.zeros((4, 8, 8), "u2")
        file.attrs["axes"] = np.array(["z", "y", "x"], h5py.string_dtype())
        file.attrs["signal"] = "data"
    content = bytearray(path.read_bytes())
    place = content.index(b"GCOL") + 16
    while (head := struct.unpack_from("<HHIQ", content, place))[0] != 0:
        place += 16 + (head[3] + 7) // 8 * 8
    struct.pack_into("<Q", content, place + 8, 0)
    path.write_bytes(content)
    return path


def crashing(path: Path) -> Path:
    """Its only chunk says that it is not compressed: HDF5 copies 32 MiB out of some kilobytes."""
    with h5py.File(path, "w") as file:
        file.create_dataset("data", SHAPE, "u2", chunks=SHAPE, compression="gzip", shuffle=True)
        file["data"][:] = np.uint16(7)
    content = bytearray(path.read_bytes())
    mask = content.index(b"TREE\x01") + 24 + 4  # the first key: bytes of the chunk, then the mask
    assert content[mask] == 0
    content[mask] = 0b10  # the second filter, which is gzip, is left out
    path.write_bytes(content)
    return path
