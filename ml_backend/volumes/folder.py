"""A folder of slices with their masks as a `SliceSource`.

``images/NAME.png`` goes with ``masks/NAME.png`` (grey value = class id, 255 = unlabelled); TIFF is
read as well. Optional: ``classes.json`` (``{"names": ["background", …]}``) and ``volumes.json``
(``{"volumes": [{"name": …, "split": "train"}, …]}``, as `Phantom.write` leaves it): then a file
called ``<volume name>_…`` belongs to that volume, else all of them to one that is called as the
folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from al_strategies.evidence import Position, SliceId
from al_strategies.learner import IGNORE
from ml_backend.errors import NextsliceError
from ml_backend.pictures import (
    BROKEN_PICTURE,
    as_shown,
    as_stored,
    class_ids,
    open_picture,
)
from ml_backend.volumes.enclosure import check_inside
from ml_backend.volumes.formats.pages import files_in
from ml_backend.volumes.volume import ReadOptions, VolumeError

__all__ = ["FolderError", "FolderSource", "MissingMaskError"]

_SUFFIXES = (".png", ".tif", ".tiff")
_GREY_MODES = {"1", "L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"}


class FolderError(NextsliceError, ValueError):
    """A folder, or a file in it, is not what is expected; the message names it."""

    def __str__(self) -> str:
        return str(self.args[0])


class MissingMaskError(FolderError, KeyError):
    """A slice has no mask file: nobody labelled it."""


class FolderSource:
    """The slices of ``directory``, a `SliceSource`; files are read when asked for, every time.

    ids are file names without suffix, ordered by volume and z. z is the last number in the name
    (``z013``, ``0050``) that is not the same in all names of the volume (``z013_8bit``); where one
    lacks it or two share it, z is the place in the order of names, ``s2`` before ``s10``. Raises
    FolderError when there is no ``images/`` with at least one image, when two files have the same
    name but for the suffix, when ``classes.json`` or ``volumes.json`` is malformed, and, when it is
    read as well, for what is a link that leads out of ``directory``.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        for name in ("images", "masks", "classes.json", "volumes.json"):
            self._inside(self.directory / name)
        if not (self.directory / "images").is_dir():
            raise FolderError(
                f"{self.directory} has no folder images/, expected images/NAME.png and"
                " masks/NAME.png"
            )
        self._images = _files(self.directory / "images")
        if not self._images:
            raise FolderError(f"{self.directory / 'images'} has no .png or .tif file")
        masks = self.directory / "masks"
        self._masks = _files(masks) if masks.is_dir() else {}
        for path in (*self._images.values(), *self._masks.values()):
            self._inside(path)
        self._volumes = _read_volumes(self.directory)
        self._positions = self._place()
        self.ids: tuple[SliceId, ...] = tuple(self._positions)
        self._names = _read_classes(self.directory)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names by mask value, from ``classes.json``; without it every mask is read once, and
        they are "background", "class 1", … up to the highest value."""
        if self._names is not None:
            return self._names
        highest = max((self._highest(slice_id) for slice_id in self._masks), default=0)
        return ("background", *(f"class {i}" for i in range(1, highest + 1)))

    @property
    def labelled(self) -> frozenset[SliceId]:
        """The slice ids that have a mask file."""
        return frozenset(i for i in self.ids if str(i) in self._masks)

    @property
    def splits(self) -> dict[str, tuple[SliceId, ...]]:
        """The slice ids of each split that ``volumes.json`` names, none where no image belongs to
        a volume of it; empty without the file."""
        splits: dict[str, list[SliceId]] = {name: [] for name in self._volumes.values() if name}
        for slice_id, position in self._positions.items():
            split = self._volumes.get(position.volume, "")
            if split:
                splits[split].append(slice_id)
        return {name: tuple(ids) for name, ids in splits.items()}

    def image(self, slice_id: SliceId) -> npt.NDArray[Any]:
        """(H, W), or (H, W, 3) for a colour file, in the file's own dtype: 16-bit stays 16-bit.

        Raises KeyError for an unknown id, FolderError for a file that cannot be read.
        """
        return _read_image(self._inside(self._image_path(slice_id)))

    def mask(self, slice_id: SliceId) -> npt.NDArray[np.uint8]:
        """(H, W) uint8 class ids, `IGNORE` where unlabelled.

        Raises MissingMaskError (a KeyError) where there is none, FolderError when its size is not
        the image's or a value has no class.
        """
        image = self._image_path(slice_id)
        path = self._masks.get(str(slice_id))
        if path is None:
            raise MissingMaskError(
                f"no mask for {image}, expected {self.directory / 'masks'}/{slice_id}.png"
            )
        mask = _read_mask(self._inside(path))
        width, height = _size(image)
        if mask.shape != (height, width):
            raise FolderError(
                f"{path} is {mask.shape[1]}×{mask.shape[0]} pixels (width × height), expected"
                f" {width}×{height} as {image.name}"
            )
        if self._names is not None:
            _check_values(path, mask, self._names)
        return mask

    def position(self, slice_id: SliceId) -> Position:
        """Volume and z. Raises KeyError for an unknown id."""
        self._image_path(slice_id)
        return self._positions[str(slice_id)]

    def _inside(self, path: Path) -> Path:
        """``path``, as for every volume: whoever made the folder must not show the whole machine
        through it."""
        try:
            check_inside(path, self.directory, ReadOptions())
        except VolumeError as error:
            raise FolderError(str(error)) from error
        return path

    def _image_path(self, slice_id: SliceId) -> Path:
        try:
            return self._images[str(slice_id)]
        except KeyError:
            known = f"{len(self._images)} slices from {self.ids[0]!r} to {self.ids[-1]!r}"
            raise KeyError(f"{self.directory} has no slice {slice_id!r}, it has {known}") from None

    def _highest(self, slice_id: str) -> int:
        mask = _read_mask(self._inside(self._masks[slice_id]))
        return int(np.where(mask == IGNORE, 0, mask).max(initial=0))

    def _place(self) -> dict[str, Position]:
        members: dict[str, list[str]] = {}
        for name in self._images:
            members.setdefault(self._volume_of(name), []).append(name)
        order = {volume: i for i, volume in enumerate(self._volumes)}
        positions: dict[str, Position] = {}
        for volume in sorted(members, key=lambda v: (order.get(v, -1), v)):
            names = members[volume]
            ordered = sorted(zip(_zs(names), names, strict=True))
            positions |= {name: Position(volume, z) for z, name in ordered}
        return positions

    def _volume_of(self, name: str) -> str:
        owners = [volume for volume in self._volumes if name.startswith(f"{volume}_")]
        return max(owners, key=len, default=self.directory.resolve().name)


def _files(folder: Path) -> dict[str, Path]:
    """Stem → image file, ``s2`` before ``s10``; hidden ones (half written) left out."""
    found: dict[str, Path] = {}
    for path in files_in(folder, _SUFFIXES):
        if path.stem in found:
            raise FolderError(
                f"{folder} has both {found[path.stem].name} and {path.name}, expected one file"
                " for each name"
            )
        found[path.stem] = path
    return found


def _zs(names: Sequence[str]) -> list[float]:
    """z of each of a volume's ``names``, which are in order."""
    numbers = [[float(n) for n in re.findall(r"\d+", name)] for name in names]
    for place in range(1, min(map(len, numbers)) + 1):
        found = [of_name[-place] for of_name in numbers]
        if len(set(found)) == len(names):
            return found
        if len(set(found)) > 1:
            break
    return [float(i) for i in range(len(names))]


def _read_image(path: Path) -> npt.NDArray[Any]:
    try:
        with open_picture(path) as image:
            _refuse_stack(path, image)
            if image.mode in _GREY_MODES:
                return _native(as_shown(image, np.asarray(image)))
            return np.asarray(image.convert("L" if image.mode == "LA" else "RGB"))
    except FolderError:
        raise
    except BROKEN_PICTURE as error:
        raise _unreadable(path, error) from error


def _read_mask(path: Path) -> npt.NDArray[np.uint8]:
    try:
        with open_picture(path) as image:
            _refuse_stack(path, image)
            if image.mode not in _GREY_MODES | {"P"}:
                raise FolderError(
                    f"{path} has mode {image.mode}, expected one channel whose grey value is the"
                    " class id"
                )
            # a palette image is read by index, as annotation tools write it
            values = as_stored(image)
    except FolderError:
        raise
    except BROKEN_PICTURE as error:
        raise _unreadable(path, error) from error
    ids = class_ids(values)
    if ids is None:
        raise FolderError(
            f"{path} has values from {values.min()} to {values.max()}, expected whole class ids"
            " from 0 to 255"
        )
    return ids


def _native(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Native byte order and writable; two-level images as 0 and 255."""
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    return values.astype(values.dtype.newbyteorder("="))


def _size(path: Path) -> tuple[int, int]:
    try:
        with open_picture(path) as image:
            return image.size
    except BROKEN_PICTURE as error:
        raise _unreadable(path, error) from error


def _refuse_stack(path: Path, image: Image.Image) -> None:
    pages = getattr(image, "n_frames", 1)
    if pages > 1:
        raise FolderError(f"{path} has {pages} pages, expected one slice a file")


def _unreadable(path: Path, error: Exception) -> FolderError:
    return FolderError(f"{path} cannot be read ({error}), expected a whole PNG or TIFF image")


def _check_values(path: Path, mask: npt.NDArray[np.uint8], names: Sequence[str]) -> None:
    unknown = [int(v) for v in np.unique(mask) if v >= len(names) and v != IGNORE]
    if unknown:
        listed = ", ".join(map(str, unknown))
        raise FolderError(
            f"{path} has the value {listed}, expected 0 to {len(names) - 1} as classes.json names"
            f" {len(names)} classes (255: unlabelled)"
        )


def _read_classes(directory: Path) -> tuple[str, ...] | None:
    path = directory / "classes.json"
    if not path.exists():
        return None
    content = _read_json(path)
    names = content.get("names") if isinstance(content, dict) else content
    if (
        not isinstance(names, list)
        or not names
        or len(names) > IGNORE
        or not all(isinstance(n, str) and n.strip() for n in names)
        or len(set(names)) < len(names)
    ):
        raise FolderError(
            f"{path} has names {names!r}, expected"
            ' {"names": ["background", …]}: 1 to 255 different names, by mask value'
        )
    return tuple(names)


def _read_volumes(directory: Path) -> dict[str, str]:
    """Volume name → split, in the order of the file."""
    path = directory / "volumes.json"
    if not path.exists():
        return {}
    content = _read_json(path)
    volumes = content.get("volumes") if isinstance(content, dict) else None
    if not isinstance(volumes, list) or not all(
        isinstance(v, dict) and isinstance(v.get("name"), str) for v in volumes
    ):
        raise FolderError(
            f'{path}: expected {{"volumes": [{{"name": "sample 1", "split": "train"}}, …]}}'
        )
    return {v["name"]: str(v.get("split", "")) for v in volumes}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (RecursionError, ValueError) as error:
        raise FolderError(f"{path} is not JSON ({error})") from error
