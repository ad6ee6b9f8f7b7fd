"""A volume and its label volume as a `SliceSource`, of any format that `open_volume` reads.

Slices are read one at a time, along any axis.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from al_strategies.evidence import Position, SliceId
from al_strategies.learner import IGNORE
from ml_backend.pictures import class_ids
from ml_backend.volumes.geometry import laid_on
from ml_backend.volumes.opening import open_volume
from ml_backend.volumes.volume import AXES, ReadOptions, Volume, VolumeError

__all__ = ["VolumePair"]


class VolumePair:
    """The slices of ``image`` with the masks of ``labels``, both (Z, Y, X); a `SliceSource`.

    Labels are whole numbers: class ids from 0, 255 = unlabelled. Slices run along ``axis`` of both.
    ids are ``z0000``, ``z0001``, …. Classes are those that the labels' file names, else
    "background", "class 1", … up to the highest value. The options are those of `open_volume`.
    The labels are laid on the image by what both files say, see `laid_on`.

    Raises VolumeError when a file cannot be read, and where labels lie elsewhere.
    """

    def __init__(
        self,
        image: str | Path,
        labels: str | Path,
        *,
        axis: int | str = 0,
        options: ReadOptions | None = None,
        labels_options: ReadOptions | None = None,
    ) -> None:
        scan = open_volume(image, options, strict=True)
        self._image = scan.along(axis)
        reading = replace(labels_options or ReadOptions(oriented=True), labels=True)
        self._labels = laid_on(open_volume(labels, reading, strict=True), scan).along(axis)
        self.path = self._image.path
        if self._image.shape != self._labels.shape:
            raise VolumeError(
                f"{self.path} has the shape {self._image.shape}, {self._labels.path} "
                f"{self._labels.shape}: expected one label for every voxel"
            )
        self.ids: tuple[SliceId, ...] = tuple(f"z{z:04d}" for z in range(len(self._image)))
        self._z = {slice_id: z for z, slice_id in enumerate(self.ids)}
        self.classes = _classes(self._labels)

    def image(self, slice_id: SliceId) -> npt.NDArray[Any]:
        """(H, W) in the file's own dtype. Raises KeyError for an unknown id."""
        return self._image[self._z[slice_id]]

    def mask(self, slice_id: SliceId) -> npt.NDArray[np.uint8]:
        """(H, W) uint8 class ids, `IGNORE` where unlabelled."""
        return _mask(self._labels, self._z[slice_id])

    def position(self, slice_id: SliceId) -> Position:
        """The file's name, and z in slices."""
        return Position(self.path.stem, float(self._z[slice_id]))


def _mask(labels: Volume, index: int) -> npt.NDArray[np.uint8]:
    values = labels[index]
    ids = class_ids(values)
    if ids is None:
        raise VolumeError(
            f"{labels.path}, slice {index} along {AXES[labels.axis]}, has values from "
            f"{values.min()} to {values.max()}: expected whole class ids from 0 to {IGNORE}"
        )
    return ids


def _classes(labels: Volume) -> tuple[str, ...]:
    """Every label is looked at once, in the order in which most files hold them."""
    along_z = labels.along("z")
    masks = (_mask(along_z, z) for z in range(len(along_z)))
    highest = max(int(np.where(mask == IGNORE, 0, mask).max()) for mask in masks)
    named = labels.classes or ()
    if len(named) > highest:
        return named
    return ("background", *(f"class {i}" for i in range(1, highest + 1)))
