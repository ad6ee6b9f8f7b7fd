"""The slices of a project as arrays: downloaded once, kept on disk under a size limit."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from ml_backend.disk_cache import DiskCache
from ml_backend.pictures import (
    BROKEN_PICTURE,
    TooManyPixels,
    as_shown,
    encode_png,
    open_picture,
)
from ml_backend.studio.client import Studio, StudioError

__all__ = ["ImageCache", "decode_image", "encode_png"]

logger = logging.getLogger(__name__)

_PLAIN_MODES = {"L", "RGB", "RGBA", "I", "I;16", "I;16B", "F"}
_COLOUR_MODES = {"P", "PA", "CMYK", "YCbCr", "LAB", "HSV"}


def decode_image(data: bytes, name: str) -> npt.NDArray[Any]:
    """(H, W), (H, W, 3) or (H, W, 4) in the file's own dtype, turned as browsers show it.

    StudioError names what is broken, or of no format and size that is read (`pictures`), without a
    byte of it: it may come from anywhere.
    """
    try:
        with open_picture(data) as stored:
            image = _turned(stored)
            if image.mode in _PLAIN_MODES:
                return as_shown(stored, np.asarray(image))
            return np.asarray(image.convert("RGB" if image.mode in _COLOUR_MODES else "L"))
    except BROKEN_PICTURE as error:
        raise StudioError(
            f"{name}: found {len(data)} bytes that cannot be read as an image "
            f"({_reason(error)}); expected PNG, JPEG or TIFF, or WebP, GIF or BMP."
        ) from error


def _reason(error: Exception) -> str:
    """What went wrong. Pillow's own words may quote the file."""
    return str(error) if isinstance(error, TooManyPixels) else type(error).__name__


def _turned(image: Image.Image) -> Image.Image:
    """The image by its EXIF orientation, if it has any; masks are drawn on what browsers show."""
    image.load()
    # Browsers do not look at orientations of other metadata, as Pillow does. Pillow has turned a
    # TIFF by now.
    if "exif" not in image.info:
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # EXIF is broken in many ways, and no browser minds
        reason = type(error).__name__
        logger.warning("an image's EXIF cannot be read, its orientation is ignored: %s", reason)
        return image


class ImageCache:
    """Images of one project's tasks. ``limit_gib``: the least recently used go first beyond it."""

    def __init__(self, studio: Studio, folder: Path, project_key: str, limit_gib: float) -> None:
        self._studio = studio
        self._files = DiskCache(folder, limit_gib)
        # The key is in the name: a fresh server has a project 1 and a task 1 again.
        self._folder = project_key

    def image(self, task_id: int, url: str, within_s: float | None = None) -> npt.NDArray[Any]:
        """The task's image as stored, native grey values; from disk if it was fetched before.
        ``within_s``: how long fetching it may take, at most.

        Only what can be decoded is kept: a login or maintenance page is answered with 200 too.
        Raises StudioError for an image that cannot be fetched or is none.
        """
        digest = hashlib.sha256(f"{task_id} {url}".encode()).hexdigest()[:32]
        name = f"{self._folder}/{digest[:2]}/{digest}"
        title = f"The image of task {task_id} ({url})"
        kept = self._files.read(name)
        if kept is not None:
            try:
                return decode_image(kept, title)
            except StudioError as error:
                logger.warning("a file of the cache is broken, it is fetched again: %s", error)
                self._files.drop(name)
        data = self._studio.download(url, task_id, within_s)
        image = decode_image(data, title)
        self._files.keep(name, data)
        return image
