"""A writer of OLE compound files ([MS-CFB], version 4), which no library at hand writes."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

_SECTOR, _MINI, _CUTOFF = 4096, 64, 4096
_FREE, _END, _FAT, _NONE = 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD, 0xFFFFFFFF
_STORAGE, _STREAM, _ROOT = 1, 2, 5


def write_compound(path: Path, streams: Mapping[str, bytes]) -> Path:
    """``streams``: "folder/name" → what is in it. Streams below 4 KiB lie in the mini stream."""
    sectors: list[bytes] = []
    table: list[int] = []

    def chain(data: bytes) -> int:
        """The first of the sectors that ``data`` was put into."""
        if not data:
            return _END
        start = len(sectors)
        for place in range(0, len(data), _SECTOR):
            sectors.append(data[place : place + _SECTOR].ljust(_SECTOR, b"\0"))
            table.append(len(sectors))
        table[-1] = _END
        return start

    mini, mini_table = b"", []
    entries: list[list] = [["Root Entry", _ROOT, _NONE, _NONE, 0, 0]]  # sibling, child, start, size
    storages = {"": 0}
    last: dict[int, int] = {}

    def add(parent: int, entry: list) -> int:
        """Each entry is the right sibling of the one before: a tree without branches."""
        entries.append(entry)
        place = len(entries) - 1
        if parent in last:
            entries[last[parent]][2] = place
        else:
            entries[parent][3] = place
        last[parent] = place
        return place

    for name, data in streams.items():
        folder, _, leaf = name.rpartition("/")
        if folder not in storages:
            storages[folder] = add(0, [folder, _STORAGE, _NONE, _NONE, 0, 0])
        start = _END
        if data and len(data) < _CUTOFF:
            start = len(mini) // _MINI
            mini += data.ljust(-(-len(data) // _MINI) * _MINI, b"\0")
            mini_table += [*range(len(mini_table) + 1, len(mini) // _MINI), _END]
        else:
            start = chain(data)
        add(storages[folder], [leaf, _STREAM, _NONE, _NONE, start, len(data)])
    entries[0][4:] = [chain(mini), len(mini)]
    packed_table = struct.pack(f"<{len(mini_table)}I", *mini_table)
    mini_start = chain(packed_table.ljust(-(-len(packed_table) // _SECTOR) * _SECTOR, b"\xff"))
    directory = b"".join(
        name.encode("utf-16-le").ljust(64, b"\0")
        + struct.pack("<HBBIII36xIQ", 2 * len(name) + 2, kind, 1, _NONE, right, child, start, size)
        for name, kind, right, child, start, size in entries
    )
    directory_start = chain(directory)
    count = -(-(len(table) + 1) // (_SECTOR // 4 - 1))
    fat = list(range(len(table), len(table) + count))
    table += [_FAT] * count
    table += [_FREE] * (count * _SECTOR // 4 - len(table))
    header = struct.pack(
        "<8s16x5H6xIIIIIIIIII", bytes.fromhex("d0cf11e0a1b11ae1"), 0x3E, 4, 0xFFFE, 12, 6,
        -(-len(directory) // _SECTOR), count, directory_start, 0, _CUTOFF,
        mini_start, -(-len(packed_table) // _SECTOR), _END, 0, 0,
    )[:-4]  # fmt: skip
    header += struct.pack("<109I", *fat, *[_FREE] * (109 - count))
    body = b"".join(sectors) + struct.pack(f"<{len(table)}I", *table)
    path.write_bytes(header.ljust(_SECTOR, b"\0") + body)
    return path
