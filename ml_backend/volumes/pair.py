"""A volume and its label volume as a `SliceSource`: two NumPy files or two multi-page TIFF stacks.

Slices are read one at a time: NumPy files are memory-mapped, TIFF pages are read when asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from al_strategies.evidence import Position, SliceId
from al_strategies.learner import IGNORE

__all__ = ["VolumePair", "VolumePairError"]

Read = Callable[[int], npt.NDArray[Any]]


class VolumePairError(ValueError):
    """A volume or its labels are not what is expected; the message names the file."""


class VolumePair:
    """The slices of ``image`` with the masks of ``labels``, both (Z, H, W); a `SliceSource`.

    ``.npy`` files, or ``.tif``/``.tiff`` files with Z pages. Labels are whole numbers: class ids
    from 0, 255 = unlabelled. Slices run along ``axis`` of both. ids are ``z0000``, ``z0001``, ….

    Raises VolumePairError when a file cannot be read or the shapes differ.
    """

    def __init__(self, image: str | Path, labels: str | Path, *, axis: int = 0) -> None:
        self.path, self._labels_path = Path(image), Path(labels)
        shape, self._image = _open(self.path, axis)
        label_shape, self._labels = _open(self._labels_path, axis)
        if shape != label_shape:
            raise VolumePairError(
                f"{self.path} has the shape {shape}, {self._labels_path} {label_shape}: expected "
                "one label for every voxel"
            )
        self.ids: tuple[SliceId, ...] = tuple(f"z{z:04d}" for z in range(shape[0]))
        self._z = {slice_id: z for z, slice_id in enumerate(self.ids)}
        highest = max(int(self._known(z).max(initial=0)) for z in range(shape[0]))
        self.classes = ("background", *(f"class {i}" for i in range(1, highest + 1)))

    def image(self, slice_id: SliceId) -> npt.NDArray[Any]:
        """(H, W) in the file's own dtype. Raises KeyError for an unknown id."""
        return self._image(self._z[slice_id])

    def mask(self, slice_id: SliceId) -> npt.NDArray[np.uint8]:
        """(H, W) uint8 class ids, `IGNORE` where unlabelled."""
        return self._mask(self._z[slice_id])

    def position(self, slice_id: SliceId) -> Position:
        """The file's name, and z in slices."""
        return Position(self.path.stem, float(self._z[slice_id]))

    def _mask(self, z: int) -> npt.NDArray[np.uint8]:
        values = self._labels(z)
        if values.min(initial=0) < 0 or values.max(initial=0) > IGNORE or (values % 1).any():
            raise VolumePairError(
                f"{self._labels_path}, slice {z}, has values from {values.min()} to "
                f"{values.max()}: expected whole class ids from 0 to {IGNORE}"
            )
        return values.astype(np.uint8)

    def _known(self, z: int) -> npt.NDArray[np.uint8]:
        mask = self._mask(z)
        known: npt.NDArray[np.uint8] = mask[mask != IGNORE]
        return known


def _open(path: Path, axis: int) -> tuple[tuple[int, ...], Read]:
    """Shape with the slices' axis first, and a function that reads slice z."""
    if axis not in (0, 1, 2):
        raise VolumePairError(f"axis is {axis}, expected 0, 1 or 2")
    if path.suffix.lower() == ".npy":
        return _open_numpy(path, axis)
    if path.suffix.lower() in (".tif", ".tiff"):
        if axis:
            raise VolumePairError(f"{path} is a stack of pages: its slices run along axis 0 only")
        return _open_tiff(path)
    raise VolumePairError(f"{path} is no volume that can be read here, expected .npy or .tif")


def _open_numpy(path: Path, axis: int) -> tuple[tuple[int, ...], Read]:
    try:
        volume = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise VolumePairError(f"{path} cannot be read ({error}), expected a NumPy file") from error
    if volume.ndim != 3 or not volume.size or volume.dtype.kind not in "biuf":
        raise VolumePairError(
            f"{path} is {volume.dtype} of shape {volume.shape}, expected three axes of numbers"
        )
    moved = np.moveaxis(volume, axis, 0)
    return moved.shape, lambda z: np.array(moved[z])


def _open_tiff(path: Path) -> tuple[tuple[int, ...], Read]:
    def read(z: int) -> npt.NDArray[Any]:
        with Image.open(path) as image:
            image.seek(z)
            return np.array(image)

    try:
        with Image.open(path) as image:
            pages: int = getattr(image, "n_frames", 1)
            width, height = image.size
        first = read(0)
    except (OSError, SyntaxError, UnidentifiedImageError) as error:
        raise VolumePairError(f"{path} cannot be read ({error}), expected a TIFF stack") from error
    if first.ndim != 2:
        raise VolumePairError(f"{path} is a colour image, expected one grey value a pixel")
    return (pages, height, width), read
