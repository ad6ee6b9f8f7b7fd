"""What becomes of a process whose parent ends without a word, as by SIGKILL."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["end_with_parent"]

_PR_SET_PDEATHSIG = 1


def end_with_parent(number: int) -> None:
    """Linux: have this process sent the signal ``number`` once its parent has ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
