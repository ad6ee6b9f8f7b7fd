"""Masks in Label Studio's two forms: brush (run-length code) and bitmask (PNG in a data URL).

Both keep the mask in the alpha channel of an RGBA image of the slice's own size. What people paint
is antialiased, so the decoders return alpha as it is; `painted_where` says where it counts as
painted. This module knows NumPy and Pillow, nothing of tasks, regions or classes.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.errors import NextsliceError
from ml_backend.pictures import BROKEN_PICTURE, MOST_PIXELS, open_picture
from ml_backend.studio.bitstream import BLOCK, PIECE, Bits, BitWriter, set_places
from ml_backend.studio.mask_png import write_png

__all__ = [
    "PAINTED",
    "MaskError",
    "decode_bitmask",
    "decode_brush",
    "encode_bitmask",
    "encode_brush",
    "painted_where",
]

PAINTED = 128
"""Alpha from which a pixel counts as painted: half, since strokes are antialiased."""

_CHANNELS = 4
_RUN_SIZES = (3, 4, 8, 16)
_COUNT_BITS = 32
_HEADER_BITS = _COUNT_BITS + 5 + 4 * len(_RUN_SIZES)
_HEADER_TAIL = 7 << 16 | 2 << 12 | 3 << 8 | 7 << 4 | 15  # 8-bit words, run sizes 3, 4, 8, 16
_LONGEST_RUN = 1 << 16
_LONG = (1 << 8) // _CHANNELS + 1  # pixels from which a run takes the 16-bit size
_WALK_BYTES = 1 << 15  # of the stream at a time: the table of step lengths stays in cache
_DATA_URL = "data:image/png;base64,"


def _short_runs() -> Bits:
    """(2, 66): code, without its value, and width of a run of so many pixels; the last is long."""
    rows = [(0, 0)]
    for length in range(_CHANNELS, _CHANNELS * _LONG, _CHANNELS):
        index, size = next((i, size) for i, size in enumerate(_RUN_SIZES) if length <= 1 << size)
        rows.append(((4 | index) << (size + 8) | (length - 1) << 8, 3 + size + 8))
    rows.append((7 << (_RUN_SIZES[-1] + 8), 3 + _RUN_SIZES[-1] + 8))
    return np.array(rows, np.uint64).T.copy()


_SHORT_RUNS = _short_runs()


class MaskError(NextsliceError, ValueError):
    """A mask or an encoded mask that is not what Label Studio's format says."""


def encode_brush(mask: npt.NDArray[np.bool_] | npt.NDArray[np.uint8]) -> list[int]:
    """The mask as the value ``rle`` of a BrushLabels region.

    ``mask``: (H, W), bool, or uint8 that holds only {0, 1} or {0, 255}; not empty.
    Returns bytes as ints, identical to ``label_studio_sdk.converter.brush.mask2rle`` of
    ``mask * 255``: runs only, over R = G = B = A, a whole zero byte more when aligned.
    Raises MaskError for any other mask.
    """
    painted = _as_painted(mask)
    count = _CHANNELS * painted.size
    if count >> _COUNT_BITS:
        raise MaskError(
            f"a brush mask holds at most 2³⁰ - 1 pixels, this one {painted.shape[1]} × "
            f"{painted.shape[0]}: use BitmaskLabels or smaller slices"
        )
    flat = painted.ravel()
    starts = np.concatenate(([0], _changes(flat), [flat.size]))
    writer = BitWriter()
    header = count << (_HEADER_BITS - _COUNT_BITS) | _HEADER_TAIL
    writer.write_int(header, _HEADER_BITS)
    for first in range(0, starts.size - 1, BLOCK):  # even: every block begins with flat[0]'s value
        runs = np.diff(starts[first : first + BLOCK + 1])
        writer.write(*_run_codes(runs, painted_first=bool(flat[0])))
    return list(writer.getvalue() + (b"" if writer.bits % 8 else b"\0"))


def decode_brush(rle: Sequence[int] | bytes, height: int, width: int) -> npt.NDArray[np.uint8]:
    """The alpha channel (H, W) uint8 of a BrushLabels region's ``rle``.

    Reads any stream of the format (``@thi.ng/rle-pack``, which Label Studio's editor uses): any
    word size and run sizes, literal groups of any length. Words wider than 8 bits are clamped at
    255, as the browser's canvas does. What follows the last value is padding and is not looked at.
    Raises MaskError for a stream that is truncated, is not made of bytes, or does not hold exactly
    4·H·W values.
    """
    stream = _as_bytes(rle)
    word, sizes = _read_header(stream, height, width)
    window = _windows(stream)
    total = _CHANNELS * height * width
    done = 0
    alpha: list[npt.NDArray[np.uint8]] = []
    for starts in _group_starts(stream, word, sizes):
        groups = _Groups.read(window, starts, sizes)
        ends = done + np.cumsum(groups.length)
        if ends[-1] >= total:
            used = int(np.searchsorted(ends, total)) + 1
            groups, ends = groups.head(used), ends[:used]
            if ends[-1] > total:
                raise MaskError(
                    f"the brush stream's last group runs past the end: {ends[-1]} values in "
                    f"groups, {total} in the header"
                )
        words_of_last = 1 if groups.run[-1] else int(groups.length[-1])
        if int(groups.payload[-1]) + word * words_of_last > 8 * len(stream):
            done = int(ends[-1] - groups.length[-1])
            break
        alpha.append(groups.alpha(window, ends, word))
        done = int(ends[-1])
        if done == total:
            return np.concatenate(alpha).reshape(height, width)
    raise MaskError(
        f"the brush stream is truncated: it ends after {len(stream)} bytes with {done} of "
        f"{total} values"
    )


def encode_bitmask(mask: npt.NDArray[np.bool_] | npt.NDArray[np.uint8]) -> str:
    """The mask as the value ``imageDataURL`` of a BitmaskLabels region.

    ``mask``: as for `encode_brush`. Returns ``data:image/png;base64,…``: an RGBA PNG, alpha 255
    where painted and 0 elsewhere, black everywhere. Raises MaskError for any other mask.
    """
    png = write_png(_as_painted(mask))
    return _DATA_URL + base64.b64encode(png).decode("ascii")


def decode_bitmask(data_url: str, most_pixels: int = MOST_PIXELS) -> npt.NDArray[np.uint8]:
    """The alpha channel (H, W) uint8 of a BitmaskLabels region's ``imageDataURL``.

    Reads any PNG as the browser would draw it: true colour, grey or palette; one without
    transparency is opaque, that is painted everywhere. The size is the PNG's own.
    Raises MaskError for anything but a base64 PNG data URL, and, before memory is taken, for one of
    more than ``most_pixels``.
    """
    head, comma, body = data_url.partition(",")
    if not comma or not head.startswith("data:image/png") or not head.endswith(";base64"):
        raise MaskError(f"expected a bitmask that begins with {_DATA_URL!r}, found {head[:60]!r}")
    try:
        png = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:  # the latter: not ASCII
        raise MaskError(f"the bitmask's base64 text cannot be read: {error}") from error
    try:
        with open_picture(png, ("PNG",), most_pixels) as image:
            alpha = image if image.mode == "RGBA" else image.convert("RGBA")
            return np.array(alpha.getchannel("A"))
    except BROKEN_PICTURE as error:
        raise MaskError(f"the bitmask's PNG cannot be read: {error}") from error


def painted_where(alpha: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Where ``alpha`` (any shape) is at least half: of 255, or, in a mask that reaches that
    nowhere, of its own maximum, since scripts encode masks of 0 and 1 as they are."""
    peak = int(alpha.max(initial=0))
    return alpha >= (PAINTED if peak >= PAINTED else max(1, (peak + 1) // 2))


def _as_painted(mask: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or not mask.size:
        shape = getattr(mask, "shape", type(mask).__name__)
        raise MaskError(f"expected a mask of shape (H, W) with at least one pixel, found {shape}")
    if mask.dtype == np.bool_:
        return mask
    if mask.dtype != np.uint8:
        raise MaskError(f"expected a bool or uint8 mask, found {mask.dtype}: compare it first")
    drawn: npt.NDArray[np.bool_] = mask != 0
    top = int(mask.max())
    if top not in (0, 1, 255) or np.count_nonzero(mask == top) != np.count_nonzero(drawn):
        raise MaskError(
            "a uint8 mask holds only 0 and 1, or only 0 and 255; this one has other values: "
            "pass `class_map == index` or `painted_where(alpha)`"
        )
    return drawn


def _changes(flat: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Where ``flat`` differs from the pixel before, ascending."""
    differs = np.zeros(min(PIECE, flat.size + -flat.size % 8), np.bool_)
    found = []
    for first in range(0, flat.size, PIECE):
        piece = flat[first : first + PIECE]
        differs[0] = first > 0 and flat[first] != flat[first - 1]
        np.not_equal(piece[1:], piece[:-1], out=differs[1 : piece.size])
        differs[piece.size :] = False
        found.append(set_places(differs) + first)
    return np.concatenate(found)


def _run_codes(runs: npt.NDArray[np.int64], *, painted_first: bool) -> tuple[Bits, Bits]:
    """Code and width of runs of pixels that are painted and not by turns."""
    kind = np.minimum(runs, _LONG)
    codes, widths = (table.take(kind) for table in _SHORT_RUNS)
    long = np.flatnonzero(kind == _LONG)
    last = (_CHANNELS * runs[long] - 1) & (_LONGEST_RUN - 1)
    codes[long] |= last.astype(np.uint64) << np.uint64(8)
    codes[0 if painted_first else 1 :: 2] |= np.uint64(255)
    if int(runs.max()) <= _LONGEST_RUN // _CHANNELS:
        return codes, widths
    # Runs longer than 65,536 values are that many, as often as it takes, before the rest.
    pieces = 1 + (_CHANNELS * runs - 1) // _LONGEST_RUN
    repeated = np.repeat(codes, pieces)
    full = np.ones(repeated.size, np.bool_)
    full[np.cumsum(pieces) - 1] = False
    repeated[full] |= np.uint64((_LONGEST_RUN - 1) << 8)
    return repeated, np.repeat(widths, pieces)


def _as_bytes(rle: Sequence[int] | bytes) -> bytes:
    # bytes(5) would be five zeros, and bytes(array) the memory of an array of any dtype.
    if not isinstance(rle, (list, tuple, bytes)):
        raise MaskError(f"expected a brush stream as a list of bytes, found {type(rle).__name__}")
    try:
        return bytes(rle)
    except (TypeError, ValueError) as error:
        raise MaskError(
            f"a brush stream is a list of whole numbers from 0 to 255: {error}"
        ) from error


def _read_header(stream: bytes, height: int, width: int) -> tuple[int, tuple[int, ...]]:
    """The bits of a word and of the four length fields, after a look at the number of values."""
    if height < 1 or width < 1:
        raise MaskError(f"expected an image of at least one pixel, found {width} × {height}")
    total = _CHANNELS * height * width
    if 8 * len(stream) < _HEADER_BITS:
        raise MaskError(f"the brush stream is {len(stream)} bytes, shorter than its header (7)")
    header = int.from_bytes(stream[:7], "big") >> 3
    count = header >> (_HEADER_BITS - _COUNT_BITS)
    if count != total:
        raise MaskError(
            f"the brush stream holds {count} values, an image of {width} × {height} has {total} "
            "(4 a pixel): it belongs to an image of another size"
        )
    word = (header >> 16 & 31) + 1
    return word, tuple((header >> shift & 15) + 1 for shift in (12, 8, 4, 0))


def _group_starts(
    stream: bytes, word: int, sizes: tuple[int, ...]
) -> Iterator[npt.NDArray[np.int64]]:
    """The first bit of every group, in order and in blocks, until the stream's end.

    Where a group starts follows only from the one before, so this is the one loop: a step is a
    look into a table of step lengths made for every bit at once.
    """
    steps = bytes([0] * 4 + [3 + size + word for size in sizes] + [0] * 248)
    total_bits = 8 * len(stream)
    octets = np.frombuffer(stream + b"\0", np.uint8)
    position = _HEADER_BITS
    while position < total_bits:
        base = 8 * (position // 8)
        bits = np.unpackbits(octets[base // 8 : base // 8 + _WALK_BYTES + 1])
        span = min(8 * _WALK_BYTES, total_bits - base)
        three = bits[:span] << 2 | bits[1 : span + 1] << 1 | bits[2 : span + 2]
        step = three.tobytes().translate(steps)
        marks = bytearray(span)
        at = position - base
        while at < span:
            marks[at] = 1
            at += step[at] or _literal_step(stream, base + at, word, sizes)
        yield np.flatnonzero(np.frombuffer(marks, np.bool_)) + base
        position = base + at


def _literal_step(stream: bytes, start: int, word: int, sizes: tuple[int, ...]) -> int:
    """The bits of the literal group that starts at bit ``start``."""
    ahead = int.from_bytes(stream[start >> 3 : (start >> 3) + 4].ljust(4, b"\0"), "big")
    ahead = ahead << (start & 7) & 0xFFFFFFFF
    size = sizes[ahead >> 29 & 3]
    length = (ahead << 3 & 0xFFFFFFFF) >> (32 - size)
    return 3 + size + word * (length + 1)


def _windows(stream: bytes) -> npt.NDArray[Any]:
    """A view: the 64 bits that begin at each byte of the stream, zeros after its end."""
    return np.ndarray((len(stream) + 1,), ">u8", stream + bytes(8), strides=(1,))


def _bits_at(window: npt.NDArray[Any], bit: npt.NDArray[np.int64]) -> Bits:
    """At least 57 bits from each position ``bit`` on, the first one highest."""
    # A truncated stream may point behind its end; the caller finds that out from the positions.
    octet = np.minimum(bit >> 3, window.size - 1)
    bits: Bits = window[octet].astype(np.uint64) << (bit & 7).astype(np.uint64)
    return bits


@dataclass(frozen=True)
class _Groups:
    """Groups of a brush stream: a word that is repeated (``run``) or ``length`` words."""

    run: npt.NDArray[np.bool_]
    length: npt.NDArray[np.int64]
    payload: npt.NDArray[np.int64]  # the bit at which the words begin

    @classmethod
    def read(
        cls, window: npt.NDArray[Any], starts: npt.NDArray[np.int64], sizes: tuple[int, ...]
    ) -> _Groups:
        codes = _bits_at(window, starts)
        size = np.array(sizes, np.uint64)[(codes >> np.uint64(61)) & np.uint64(3)]
        length = ((codes << np.uint64(3)) >> (np.uint64(64) - size)).astype(np.int64) + 1
        return cls(codes >> np.uint64(63) != 0, length, starts + 3 + size.astype(np.int64))

    def head(self, number: int) -> _Groups:
        return _Groups(self.run[:number], self.length[:number], self.payload[:number])

    def alpha(
        self, window: npt.NDArray[Any], ends: npt.NDArray[np.int64], word: int
    ) -> npt.NDArray[np.uint8]:
        """The alpha values among the groups' words; ``ends``: how many words end with each."""
        # Alpha is word 4k + 3: a group that covers [a, b) holds those with k in [a // 4, b // 4).
        begins = ends - self.length
        first = begins // _CHANNELS
        count = ends // _CHANNELS - first
        if self.run.all():
            return np.repeat(_levels(window, self.payload, word), count)
        pieces = np.where(self.run, 1, count)
        group = np.repeat(np.arange(pieces.size), pieces)
        nth = np.arange(group.size) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        index = _CHANNELS * (first[group] + nth) + _CHANNELS - 1 - begins[group]
        index[self.run[group]] = 0
        levels = _levels(window, self.payload[group] + word * index, word)
        return np.repeat(levels, np.where(self.run, count, 1)[group])


def _levels(
    window: npt.NDArray[Any], bit: npt.NDArray[np.int64], word: int
) -> npt.NDArray[np.uint8]:
    words = _bits_at(window, bit) >> np.uint64(64 - word)
    levels: npt.NDArray[np.uint8] = np.minimum(words, np.uint64(255)).astype(np.uint8)
    return levels
