"""What a check has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["FIX", "Finding", "Verdict"]

FIX = "nextslice doctor --fix"
"""Mends what needs nobody's decision."""

Verdict = Literal["good", "warning", "fault", "unknown"]
"""As it should be · works, and will not always · does not work · could not be looked at."""


@dataclass(frozen=True)
class Finding:
    """What the check called ``check`` has found, in a sentence.

    ``mend``: the command or the setting that mends it, alone; empty where nothing is to be mended.
    """

    check: str
    verdict: Verdict
    says: str
    mend: str = ""
