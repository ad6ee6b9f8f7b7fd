"""Bits in bulk: writing codes of any width one after the other, finding the few that are set.

What the two mask encoders share: `masks` (brush) and `mask_png` (bitmask).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["BLOCK", "PIECE", "BitWriter", "Bits", "set_places"]

Bits = npt.NDArray[np.uint64]

_WORD, _SIX, _LOW_SIX = np.uint64(64), np.uint64(6), np.uint64(63)

BLOCK = 1 << 14
"""Codes to work on at a time: enough for NumPy, few enough to stay in the processor's cache."""

PIECE = 1 << 18
"""Pixels to look at at a time, likewise. A multiple of eight."""


class BitWriter:
    """A stream of bits, the first one highest in its byte.

    ``bits``: how many were written.
    """

    def __init__(self) -> None:
        self.bits = 0
        self._full: list[bytes] = []
        self._partial = 0  # the last word begun, its first bit highest

    def write_int(self, code: int, width: int) -> None:
        """Append the lowest ``width`` bits of ``code``, any number."""
        used = self.bits % 64
        spare = -(used + width) % 64
        text = self._partial >> (64 - used) << (width + spare) | code << spare
        full = (used + width) // 64
        words = text.to_bytes(8 * full + (8 if spare else 0), "big")
        self._full.append(words[: 8 * full])
        self._partial = int.from_bytes(words[8 * full :], "big")
        self.bits += width

    def write(self, codes: Bits, widths: Bits, zeros: Bits | None = None) -> None:
        """Append ``codes`` one after the other.

        ``codes``: (N,), N ≥ 1, none with bits above its ``widths`` (N,), 1 to 64. ``zeros``: (N,),
        as many zero bits after each.
        """
        ends = np.cumsum(widths if zeros is None else widths + zeros)
        ends += np.uint64(self.bits % 64)
        starts = np.empty_like(ends)
        starts[0], starts[1:] = self.bits % 64, ends[:-1]
        word = (starts >> _SIX).astype(np.int64)
        offset = starts & _LOW_SIX
        left = codes << (_WORD - widths)
        full, rest = divmod(int(ends[-1]), 64)
        words = np.zeros(full + 1, np.uint64)
        first = np.concatenate(([0], np.flatnonzero(word[1:] != word[:-1]) + 1))
        words[word[first]] = np.bitwise_or.reduceat(left >> offset, first)
        words[0] |= np.uint64(self._partial)
        spilling = np.flatnonzero(offset + widths > _WORD)
        words[word[spilling] + 1] |= left[spilling] << (_WORD - offset[spilling])
        self._full.append(words[:full].astype(">u8").tobytes())
        self._partial = int(words[full])
        self.bits += 64 * full + rest - self.bits % 64

    def getvalue(self) -> bytes:
        """All that was written, the last byte filled up with zeros."""
        tail = self._partial.to_bytes(8, "big")
        return b"".join((*self._full, tail[: -(-(self.bits % 64) // 8)]))


def set_places(padded: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """`np.flatnonzero`, faster where few are set: eight at a time.

    ``padded``: (N,) bool, contiguous, N a multiple of eight.
    """
    octets = padded.view(np.uint64)
    busy = np.flatnonzero(octets != 0)
    within = np.flatnonzero(octets[busy].view(np.bool_))
    where: npt.NDArray[np.int64] = 8 * busy[within >> 3] + (within & 7)
    return where
