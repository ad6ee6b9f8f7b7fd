"""Letters that matplotlib's own font lacks, as those of Chinese and Japanese names of classes: from
whatever font of this machine has them."""

from __future__ import annotations

import logging
from functools import cache

from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, findfont, fontManager, get_font
from matplotlib.text import Text

__all__ = ["give_glyphs"]

logger = logging.getLogger(__name__)

_PLACEHOLDERS = "last resort"
"""Of fonts that have a box for every letter."""


def give_glyphs(figure: Figure) -> None:
    """Have every text of ``figure`` drawn in fonts that have its letters; those that none has are
    logged, once."""
    for text in figure.findobj(Text):
        lacking = _letters_of(text.get_text()) - _letters_in(findfont(text.get_fontproperties()))
        if not lacking:
            continue
        families, none = _families(frozenset(lacking))
        text.set_fontfamily([*text.get_fontfamily(), *families])
        if none:
            _say(none)


def _letters_of(text: str) -> frozenset[int]:
    return frozenset(ord(letter) for letter in text if letter.isprintable())


@cache
def _letters_in(path: str) -> frozenset[int]:
    try:
        return frozenset(get_font(path).get_charmap())
    except (OSError, RuntimeError):  # one that FreeType cannot read
        return frozenset()


@cache
def _families(lacking: frozenset[int]) -> tuple[list[str], str]:
    """Families that have the letters between them, and the letters that none has."""
    families = []
    for entry in sorted(fontManager.ttflist, key=_plainest_first):
        if not lacking:
            break
        if _PLACEHOLDERS not in entry.name.lower() and lacking & _letters_in(entry.fname):
            families.append(entry.name)
            lacking -= _letters_in(entry.fname)
    return families, "".join(map(chr, sorted(lacking)))


def _plainest_first(entry: FontEntry) -> tuple[bool, bool, str, str]:
    plain = entry.weight in (400, "normal", "regular")
    return entry.style != "normal", not plain, entry.name, entry.fname


@cache
def _say(letters: str) -> None:
    logger.warning(
        "no font of this machine has the letters %s: pictures have boxes in their place. Install "
        "a font that has them, as Debian's fonts-noto-cjk of Chinese, Japanese and Korean",
        letters,
    )
