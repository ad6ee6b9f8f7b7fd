"""Make docs/images/connected.png and drags.png of what browser tests have seen.

NEXTSLICE_SCREENSHOTS=FOLDER python -m pytest tests/integration/test_drags.py
    tests/integration/test_browser.py -k bitmask
python docs/scripts/page_pictures.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

IMAGES = Path(__file__).parents[1] / "images"
CONNECTED = (0, 0, 960, 265)
"""The card of the backend, of a page of 1400 × 900."""
DRAGS = ("drag-bitmask-1-before", "drag-bitmask-4-both")
PAGE = (240, 90, 1080, 900)
"""The slice, its tools and the switches."""
GAP = 16


def main(folder: Path) -> None:
    connected = _part(folder, "bitmask-1-settings", CONNECTED)
    connected.quantize(128).save(IMAGES / "connected.png", optimize=True)
    parts = [_part(folder, name, PAGE) for name in DRAGS]
    width, height = parts[0].size
    both = Image.new("RGB", (2 * width + GAP, height), "white")
    for place, part in enumerate(parts):
        both.paste(part, (place * (width + GAP), 0))
    both.quantize(128).save(IMAGES / "drags.png", optimize=True)


def _part(folder: Path, name: str, box: tuple[int, int, int, int]) -> Image.Image:
    return Image.open(folder / f"{name}.png").convert("RGB").crop(box)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
