"""Pictures and label maps as files: PNG out, what is let in and what may be wrong, class ids."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image

from al_strategies.learner import IGNORE, SMALL_SIDE
from ml_backend.errors import NextsliceError

__all__ = [
    "BROKEN_PICTURE",
    "MOST_PIXELS",
    "PICTURES",
    "TooManyPixels",
    "as_shown",
    "as_stored",
    "class_ids",
    "decode_label_map",
    "encode_png",
    "open_picture",
    "small_picture",
    "small_size",
]

LabelMap = npt.NDArray[np.uint8]

BROKEN_PICTURE = (
    OSError,  # also that the file is none
    SyntaxError,  # Pillow's word for a PNG whose chunks are damaged
    ValueError,
    Image.DecompressionBombError,
    # What its decoders meet in damaged headers is not translated.
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,  # NotImplementedError and RecursionError are some
    TypeError,
    struct.error,
    zlib.error,
)
"""What Pillow raises at bytes that are no picture, a damaged one, or one that is too large."""

PICTURES = ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP")
"""What is read, whatever a file is called. Pillow knows fifty more; one of them, EPS, is a program,
which Ghostscript runs."""

_PHOTOMETRIC = 262  # tag of TIFF

MOST_PIXELS = 1 << 27
"""Of a picture: 134 million, as 16,384 × 8,192."""


_PIXELS_PER_BYTE = {
    "PNG": 8 * 1032,
    "raw": 8,
    "packbits": 8 * 64,
    "tiff_deflate": 8 * 1032,
    "tiff_adobe_deflate": 8 * 1032,
}
"""Of a PNG, and of a TIFF by its compression, at most: a byte holds no more than 8, deflate makes
no more than 1,032 bytes of one and PackBits 64. Of the others nothing is known."""


class TooManyPixels(NextsliceError, ValueError):
    """A picture claims more pixels than are read."""


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


def small_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of a picture with `SMALL_SIDE` pixels a side at most, never enlarged."""
    scale = min(1.0, SMALL_SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def small_picture(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A grey (H, W) image of `small_size`, each pixel the mean of its area."""
    picture = Image.fromarray(image)
    return np.asarray(picture.resize(small_size(*picture.size), Image.Resampling.BOX))


def open_picture(
    source: bytes | Path,
    formats: tuple[str, ...] = PICTURES,
    most_pixels: int = MOST_PIXELS,
) -> Image.Image:
    """The picture in ``source``, a context manager, of which no pixel is decoded yet.

    Raises one of `BROKEN_PICTURE`, as decoding it may: TooManyPixels for one of more than
    ``most_pixels``, or than its bytes can hold, before memory is taken for them.
    """
    image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
    width, height = image.size
    most = most_pixels
    # Pillow takes memory for all that is claimed; a PNG that ends early it decodes, the rest black.
    packed = _PIXELS_PER_BYTE.get(_packing(image))
    if packed is not None:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        most = min(most, packed * size)
    if width * height > most:
        image.close()
        raise TooManyPixels(f"it is {width} × {height} pixels, at most {most} are read")
    return image


def _packing(image: Image.Image) -> str:
    """The format, of a TIFF its compression."""
    return str(image.info.get("compression") if image.format == "TIFF" else image.format)


def decode_label_map(data: bytes) -> LabelMap:
    """The label map (H, W) that `encode_png` wrote. Raises one of `BROKEN_PICTURE`."""
    with open_picture(data, formats=("PNG",)) as image:
        return np.asarray(image.convert("L"))


def as_shown(image: Image.Image, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Grey ``values`` of ``image`` as every program shows them: where 0 is white (TIFF) Pillow
    turns over 8 bits and not 16."""
    if values.dtype.kind == "u" and values.itemsize == 2 and _white_is_zero(image):
        return np.asarray(np.uint16(65535) - values)
    return values


def as_stored(image: Image.Image) -> npt.NDArray[Any]:
    """The class ids of ``image`` as they are in the file: Pillow turns those over where 0 is white,
    and spreads those of 2 or 4 bits over 8."""
    step = _step(image)  # which Pillow knows until it decodes
    values = np.array(image)
    if values.dtype in (np.bool_, np.uint8) and _white_is_zero(image):
        values = ~values
    return values if step == 1 else values // np.uint8(step)


def _step(image: Image.Image) -> int:
    """Between two values that differ by one in the file."""
    packed = re.search(r"\bL;([24])", str(getattr(image, "tile", [])[:1]))
    return 255 // (2 ** int(packed[1]) - 1) if packed else 1


def _white_is_zero(image: Image.Image) -> bool:
    return getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0


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
