"""The slices of a project as arrays: downloaded once, kept on disk under a size limit."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import threading
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ml_backend.studio.client import Studio, StudioError

__all__ = ["ImageCache", "decode_image", "encode_png"]

logger = logging.getLogger(__name__)

_PLAIN_MODES = {"L", "RGB", "RGBA", "I", "I;16", "I;16B", "F"}
_COLOUR_MODES = {"P", "PA", "CMYK", "YCbCr", "LAB", "HSV"}


def decode_image(data: bytes, name: str) -> npt.NDArray[Any]:
    """(H, W), (H, W, 3) or (H, W, 4) in the file's own dtype. StudioError names what is broken."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode in _PLAIN_MODES:
                return np.asarray(image)
            return np.asarray(image.convert("RGB" if image.mode in _COLOUR_MODES else "L"))
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise StudioError(
            f"{name}: found {len(data)} bytes starting {data[:8]!r} that cannot be read as an "
            f"image ({error}); expected PNG, JPEG or TIFF."
        ) from error


def encode_png(image: npt.NDArray[np.uint8]) -> bytes:
    """A grey (H, W) uint8 image or label map as PNG, packed lightly: speed before size."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


class ImageCache:
    """Images of one project's tasks. ``limit_gib``: the least recently used go first beyond it."""

    def __init__(self, studio: Studio, folder: Path, project_key: str, limit_gib: float) -> None:
        self._studio = studio
        self._root = folder
        # The key is in the name: a fresh server has a project 1 and a task 1 again.
        self._folder = folder / project_key
        self._limit = int(limit_gib * 2**30)
        self._lock = threading.Lock()
        self._size: int | None = None

    def image(self, task_id: int, url: str) -> npt.NDArray[Any]:
        """The task's image as stored, native grey values."""
        return decode_image(self.data(task_id, url), f"The image of task {task_id} ({url})")

    def data(self, task_id: int, url: str) -> bytes:
        """The image's bytes, from disk if they were fetched before."""
        name = hashlib.sha256(f"{task_id} {url}".encode()).hexdigest()[:32]
        file = self._folder / name[:2] / name
        try:
            data = file.read_bytes()
            os.utime(file)
            return data
        except FileNotFoundError:
            pass
        data = self._studio.download(url, task_id)
        self._keep(file, data)
        return data

    def _keep(self, file: Path, data: bytes) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}")
            partial.write_bytes(data)
            partial.replace(file)
        except OSError as error:  # a full disk must not stop a prediction
            logger.warning("cannot keep %s in the cache: %s", file, error)
            return
        with self._lock:
            if self._size is None:
                self._size = sum(f.stat().st_size for f in self._root.rglob("*") if f.is_file())
            else:
                self._size += len(data)
            if self._size > self._limit:
                self._size = self._evict()

    def _evict(self) -> int:
        """Delete the least recently used files down to nine tenths of the limit."""
        files = [
            (f.stat().st_mtime, f.stat().st_size, f) for f in self._root.rglob("*") if f.is_file()
        ]
        size = sum(s for _, s, _ in files)
        for _, length, file in sorted(files, key=lambda item: item[0]):
            if size <= 0.9 * self._limit:
                break
            file.unlink(missing_ok=True)
            size -= length
        return size
