"""Make docs/images/drags.png of what the browser tests of drags have seen.

NEXTSLICE_SCREENSHOTS=FOLDER python -m pytest tests/integration/test_drags.py -k bitmask
python docs/scripts/drag_pictures.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

SEEN = ("drag-bitmask-1-before", "drag-bitmask-4-both")
PAGE = (240, 90, 1080, 900)
"""The slice, its tools and the switches, of a page of 1400 × 900."""
GAP = 16


def main(folder: Path, out: Path) -> None:
    parts = [Image.open(folder / f"{name}.png").convert("RGB").crop(PAGE) for name in SEEN]
    width, height = parts[0].size
    both = Image.new("RGB", (2 * width + GAP, height), "white")
    for place, part in enumerate(parts):
        both.paste(part, (place * (width + GAP), 0))
    both.quantize(128).save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parents[1] / "images" / "drags.png")
