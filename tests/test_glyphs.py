"""Names in letters that matplotlib's own font lacks."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager
from matplotlib.text import Text

from ml_backend.experiment import glyphs
from ml_backend.experiment.canvas import new_figure, to_png
from ml_backend.experiment.glyphs import give_glyphs


@pytest.fixture(autouse=True)
def one_more_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Matplotlib's own fonts, and one that has 骨 alone, called Bones."""
    own = [entry for entry in fontManager.ttflist if "mpl-data" in entry.fname]
    monkeypatch.setattr(fontManager, "ttflist", own)
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((500, 900), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", "bone"])
    font.setupCharacterMap({ord("骨"): "bone"})
    font.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "bone": pen.glyph()})
    font.setupHorizontalMetrics({".notdef": (1000, 0), "bone": (1000, 0)})
    font.setupHorizontalHeader(ascent=900, descent=-100)
    font.setupNameTable({"familyName": "Bones", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "bones.ttf")
    fontManager.addfont(tmp_path / "bones.ttf")
    for cached in (glyphs._families, glyphs._say):
        cached.cache_clear()
    yield
    for cached in (glyphs._families, glyphs._say):
        cached.cache_clear()


def written(text: str) -> tuple[Text, bytes]:
    figure = new_figure(2)
    shown = figure.text(0.5, 0.5, text)
    return shown, to_png(figure)


def test_letters_are_taken_from_a_font_that_has_them(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, drawn = written("bone 骨")
    assert text.get_fontfamily() == ["sans-serif", "Bones"]
    assert not caplog.records
    glyphs._families.cache_clear()
    monkeypatch.setattr(fontManager, "ttflist", fontManager.ttflist[:-1])
    text, box = written("bone 骨")
    assert text.get_fontfamily() == ["sans-serif"]
    assert drawn != box


def test_letters_that_no_font_has_are_said_once_in_a_sentence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's own, of each letter
        for _ in range(2):
            written("骨と鑷")
    (said,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert said.getMessage().startswith("no font of this machine has the letters と鑷: pictures")


def test_texts_that_the_own_font_can_draw_stay_in_it() -> None:
    figure = new_figure(2)
    figure.subplots().set_title("µ-CT, größer als Ω\nβ → ∞")
    give_glyphs(figure)
    assert {tuple(text.get_fontfamily()) for text in figure.findobj(Text)} == {("sans-serif",)}
