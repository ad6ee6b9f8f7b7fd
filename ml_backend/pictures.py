"""Pictures and label maps as files: PNG out, what may go wrong on the way in, class ids."""

from __future__ import annotations

import io
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image

from al_strategies.learner import IGNORE

__all__ = ["BROKEN_PICTURE", "PICTURES", "class_ids", "decode_label_map", "encode_png"]

LabelMap = npt.NDArray[np.uint8]

BROKEN_PICTURE = (
    OSError,  # also that the file is none
    SyntaxError,  # Pillow's word for a PNG whose chunks are damaged
    ValueError,
    Image.DecompressionBombError,
)
"""What Pillow raises at bytes that are no picture, a damaged one, or one that is too large."""

PICTURES = ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP")
"""What is read, whatever a file is called. Pillow knows fifty more; one of them, EPS, is a program,
which Ghostscript runs."""


def encode_png(image: npt.NDArray[np.uint8]) -> bytes:
    """A grey (H, W) uint8 image or label map as PNG, packed lightly: speed before size.

    A scan's grey values are noise to LZ77 and a label map is runs, so runs and Huffman codes alone
    make smaller files than Pillow's level 3, in a quarter of the time (benchmarks/slices.py).
    """
    png = imagecodecs.PNG
    pixels = np.ascontiguousarray(image)
    return bytes(
        imagecodecs.png_encode(pixels, level=1, strategy=png.STRATEGY.RLE, filter=png.FILTER.SUB)
    )


def decode_label_map(data: bytes) -> LabelMap:
    """The label map (H, W) that `encode_png` wrote. Raises one of `BROKEN_PICTURE`."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("L"))


def class_ids(values: npt.NDArray[Any], classes: int | None = None) -> LabelMap | None:
    """Real ``values`` of any type as class ids, `IGNORE` where nobody labelled.

    None unless all are whole numbers from 0 to `IGNORE`, with ``classes`` below it or `IGNORE`.
    """
    # NaN fails every comparison
    if values.size and not (values.min() >= 0 and values.max() <= IGNORE):
        return None
    if values.dtype.kind not in "bui" and (values % 1).any():
        return None
    ids = values.astype(np.uint8)
    if classes is not None and ((ids >= classes) & (ids != IGNORE)).any():
        return None
    return ids
