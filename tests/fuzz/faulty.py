"""A target that does all that must not be: to see that the runner notices."""

from __future__ import annotations

import ctypes
from functools import partial

from tests.fuzz.target import MOST_GROWTH, Sample, Target, unchanged

__all__ = ["FAULTY"]


def _obey(sample: Sample) -> None:
    if sample[""] == b"raise":
        raise KeyError("nobody documented this")
    if sample[""] == b"refuse":
        raise ValueError("documented")
    if sample[""] == b"hang":
        while True:
            pass
    if sample[""] == b"grow":
        bytearray(MOST_GROWTH + (64 << 20))[::4096] = b"\1" * ((MOST_GROWTH + (64 << 20)) >> 12)
    if sample[""] == b"end":
        ctypes.string_at(0)


FAULTY = {"faulty": Target("faulty", partial(unchanged, _obey), (ValueError,), longest_s=2.0)}
