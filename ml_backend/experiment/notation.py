"""How a report writes numbers: a true minus, a space before %, and – for what cannot be said."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["NOTHING", "count", "listed", "percent", "signed"]

NOTHING = "–"


def signed(value: float) -> str:
    """``+0.012``, ``−0.003``; ``0.000`` for what rounds to it."""
    text = f"{value:+.3f}".replace("-", "−")
    return text[1:] if float(text[1:]) == 0 else text


def percent(share: float | None, digits: int = 1) -> str:
    """``97.1 %`` of 0.971."""
    return NOTHING if share is None else f"{100 * share:.{digits}f} %"


def count(number: int, noun: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *before, last = names
    return f"{', '.join(before)} and {last}" if before else last
