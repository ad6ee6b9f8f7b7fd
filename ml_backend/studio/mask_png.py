"""RGBA PNGs of masks, written from the places where the mask changes.

A BitmaskLabels region is an RGBA image: four bytes a pixel, three of them always 0. zlib and Pillow
have to compress all four; here the compressed rows follow from the mask's changes alone, about ten
times as fast (``benchmarks/masks.py`` prints both).

After the PNG filter "sub" a row is the filter's number, 1, then zeros, with a 255 in the alpha byte
where the mask begins and a 1 where it ends. Deflate (RFC 1951) writes each of these changes as that
value, a literal zero, and copies of this zero: 258 at a time, then the rest. All masks share one
Huffman code, in which 258 copies are two zero bits, so long stretches need not be written at all.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ml_backend.studio.bitstream import BLOCK, PIECE, Bits, BitWriter, set_places

__all__ = ["write_png"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGBA = struct.pack(">BBBBB", 8, 6, 0, 0, 0)  # 8 bits, true colour with alpha, not interlaced
_CHANNELS = 4
_ZLIB_HEADER = b"\x78\x01"
_ADLER = 65521
_SYMBOLS = 286  # literals 0-255, end of block 256, lengths 257-285
_END = 256
_FULL_COPY = 258  # symbol 285, the only one without extra bits at that length
_BYTE_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def write_png(painted: npt.NDArray[np.bool_]) -> bytes:
    """A PNG file, RGBA, of ``painted`` (H, W) bool, not empty: alpha 255 or 0, black everywhere."""
    height, width = painted.shape
    return b"".join(
        (
            _SIGNATURE,
            _chunk(b"IHDR", struct.pack(">II", width, height) + _RGBA),
            _chunk(b"IDAT", _compressed_rows(painted)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _compressed_rows(painted: npt.NDArray[np.bool_]) -> bytes:
    """The zlib stream of the mask's RGBA rows after the filter "sub"."""
    height, width = painted.shape
    line = 1 + _CHANNELS * width
    length = height * line
    tokens = _tokens()
    writer = BitWriter()
    writer.write_int(*tokens.head)
    low, high = 1, length  # the two halves of Adler-32: 1 + ∑ byte, ∑ (1 + …) = length + ∑ …
    places = _changes(painted)
    for first in range(0, places.size, BLOCK):
        place = places[first : first + BLOCK + 1]  # and the one after the block
        row = place // (width + 1)
        column = place - row * (width + 1)
        position = row * line + _CHANNELS * column
        if place.size <= BLOCK:
            position = np.append(position, length)
        row, column, before = row[:BLOCK], column[:BLOCK], position[:-1]
        begins = (column > 0) & painted[row, column - 1]

        zeros = np.diff(position) - 1
        copies = np.maximum(zeros - 1, 0)
        full = copies // _FULL_COPY
        token = (zeros > 0) * (1 + copies - full * _FULL_COPY) + begins * (1 + _FULL_COPY)
        writer.write(
            tokens.codes.take(token), tokens.widths.take(token), 2 * full.astype(np.uint64)
        )

        value = 1 + 254 * begins
        low += int(value.sum())
        high += int(((length - before) % _ADLER * value).sum())
    writer.write_int(*tokens.end)
    checksum = struct.pack(">HH", high % _ADLER, low % _ADLER)
    # Deflate fills its bytes from the lowest bit on.
    return _ZLIB_HEADER + writer.getvalue().translate(_BYTE_REVERSED) + checksum


def _changes(painted: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Where the filtered rows are not 0, ascending: ``row · (W + 1) + column``, column 0 for the
    filter's number and 1 to W for the alpha byte of a pixel unlike the one on its left."""
    height, width = painted.shape
    rows = min(height, max(1, PIECE // (width + 1)))
    cells = rows * (width + 1)
    padded = np.zeros(cells + -cells % 8, np.bool_)
    changes = padded[:cells].reshape(rows, width + 1)
    found = []
    for first in range(0, height, rows):
        piece = painted[first : first + rows]
        here = changes[: len(piece)]
        changes[len(piece) :] = False
        here[:, 0] = True
        here[:, 1] = piece[:, 0]
        np.not_equal(piece[:, 1:], piece[:, :-1], out=here[:, 2:])
        found.append(set_places(padded) + first * (width + 1))
    return np.concatenate(found)


class _Tokens(NamedTuple):
    """Codes, first bit highest, and their widths in bits.

    ``head``, ``end``: of the block. ``codes``, ``widths``: (2 · 259,), first of a change to 1, then
    to 255: alone, or with a literal zero and 0 to 257 copies of it.
    """

    head: tuple[int, int]
    codes: Bits
    widths: Bits
    end: tuple[int, int]


@cache
def _tokens() -> _Tokens:
    lengths = [0] * _SYMBOLS
    lengths[_END:285] = [8] * 26 + [7] * 3
    lengths[0], lengths[1], lengths[255], lengths[285] = 2, 4, 4, 1
    symbols = _huffman(lengths)
    zeros = ["", *(symbols[0] + copies for copies in _copies(symbols))]
    changes = [symbols[change] + more for change in (1, 255) for more in zeros]
    codes, widths = np.array([_code(text) for text in changes], np.uint64).T.copy()
    return _Tokens(_code(_block_head(lengths)), codes, widths, _code(symbols[_END]))


def _code(text: str) -> tuple[int, int]:
    return int(text, 2), len(text)


def _huffman(lengths: Sequence[int]) -> dict[int, str]:
    """The canonical code: short codes first, then by symbol (RFC 1951, 3.2.2)."""
    codes: dict[int, str] = {}
    code = width = 0
    for length, symbol in sorted((n, symbol) for symbol, n in enumerate(lengths) if n):
        code <<= length - width
        width = length
        codes[symbol] = f"{code:0{length}b}"
        code += 1
    return codes


def _copies(symbols: dict[int, str]) -> list[str]:
    """The codes of 0 to 257 copies of the byte before (RFC 1951, 3.2.5); distance 1 is one 0."""
    copies = ["", symbols[0], symbols[0] * 2]  # a copy is at least 3 long
    for symbol in range(257, 285):
        extra = max(0, (symbol - 261) // 4)
        copies += [symbols[symbol] + _number(nth, extra) + "0" for nth in range(1 << extra)]
    return copies[:_FULL_COPY]


def _block_head(lengths: Sequence[int]) -> str:
    """The head of a last block that brings its own Huffman codes (RFC 1951, 3.2.7)."""
    order = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
    widths = [{0: 3, 1: 3, 2: 3, 4: 3, 7: 3, 8: 2, 18: 3}.get(n, 0) for n in range(19)]
    names = _huffman(widths)
    unused = names[18] + _number(138 - 11, 7) + names[18] + _number(253 - 138 - 11, 7)  # 2-254
    return "".join(
        (
            "1",
            _number(2, 2),
            _number(_SYMBOLS - 257, 5),
            _number(0, 5),  # one distance
            _number(len(order) - 4, 4),
            *(_number(widths[n], 3) for n in order),
            *(names[n] for n in lengths[:2]),
            unused,
            *(names[n] for n in lengths[255:]),
            names[1],  # whose code is one bit
        )
    )


def _number(value: int, width: int) -> str:
    """``width`` bits, lowest first, as deflate writes all that is not a Huffman code."""
    return f"{value:0{width}b}"[::-1] if width else ""
