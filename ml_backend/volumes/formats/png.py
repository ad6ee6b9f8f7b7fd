"""A folder of grey images, one slice each, in the natural order of their names.

Voxel size and class names are in ``volume.json`` in the folder, or in SkyScan's log. Slices along y
and x read every image.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.formats.axes import choose_axes
from ml_backend.volumes.formats.checks import native, reading
from ml_backend.volumes.formats.colour import check_shows_grey, grey_of
from ml_backend.volumes.formats.format import EVERYTHING, Format
from ml_backend.volumes.formats.notes import Notes, read_sidecar, write_sidecar
from ml_backend.volumes.formats.pages import Look, folder_read
from ml_backend.volumes.formats.skyscan import folder_notes, slices_in
from ml_backend.volumes.volume import ReadOptions, Volume, VolumeError, VolumeSpec

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FORMAT", "read", "write"]

_EXPECTED = "a whole grey image"
_IMAGES = {
    "PNG": (".png",), "JPEG": (".jpg", ".jpeg"), "WEBP": (".webp",), "GIF": (".gif",),
    "BMP": (".bmp",),
}  # fmt: skip
"""What is read, with TIFF all that may be uploaded (`PICTURES`); PNG is written."""
_WITHOUT_GREY = ("WEBP", "GIF")
"""Colours, or a palette in an order of its own: grey is what is shown so."""
_COLOURS = ("LA", "RGB", "RGBA")
_TYPES = {
    "1": np.bool_, "L": np.uint8, "P": np.uint8, "I": np.int32,
    "I;16": np.uint16, "I;16L": np.uint16, "I;16B": np.uint16, "I;16N": np.uint16,
}  # fmt: skip


def read(path: Path, options: ReadOptions) -> Volume:
    """8- or 16-bit grey images, also where they are stored as colours or in a palette of grey; of
    another palette the index, as annotation tools write it."""
    files = slices_in(path, [ending for endings in _IMAGES.values() for ending in endings])

    def look(file: Path) -> Look:
        return _look(file, options)

    def image(file: Path, check: Callable[[Look], None]) -> npt.NDArray[Any]:
        return _image(file, check, options)

    (size, dtype), cut = folder_read(files, options, look, image)
    if (mode := _colours(files[0])) and options.channel is None:
        check_shows_grey(files[0], mode, lambda z: cut(0, z), len(files))
    notes = folder_notes(path, options)
    return notes.volume(path, (len(files), *size), dtype, cut)


def write(path: Path, slices: Iterable[npt.NDArray[Any]], spec: VolumeSpec) -> None:
    """``0000.png``, ``0001.png``, … and ``volume.json``; uint8 and uint16 only."""
    from PIL import Image

    path.mkdir()
    write_sidecar(path, spec)
    digits = max(4, len(str(spec.shape[0] - 1)))
    for z, values in enumerate(slices):
        Image.fromarray(values).save(path / f"{z:0{digits}d}.png")


def _strange(folder: Path) -> list[str]:
    names = sorted(one.name for one in folder.iterdir())
    # anyone numbers images: the note that is written with them has to be there
    if read_sidecar(folder).keys() - {"origin"} != Notes().to_json().keys():
        return names
    return [name for name in names if not re.fullmatch(r"volume\.json|\d{4,}\.png", name)]


FORMAT = Format(
    name="png",
    title="images",
    summary="a folder of grey PNG (1 to 16 bit), JPEG, WebP, GIF or BMP files",
    endings=("_png",),
    read=read,
    chooses=True,
    apart=False,
    write=write,
    written_as="PNG",
    dtypes=("uint8", "uint16"),
    keeps=EVERYTHING,
    repeatable=True,
    masks="",
    folder=True,
    strange=_strange,
    images=_IMAGES,
    without_ending=True,
    place=55,
)


def _colours(path: Path) -> str:
    """The mode of an image of colours, which may hold grey; else nothing."""
    from ml_backend.pictures import open_picture

    with reading(path, _EXPECTED), open_picture(path, tuple(_IMAGES)) as image:
        return str(image.mode) if _has_colours(image) else ""


def _has_colours(image: Image) -> bool:
    return image.mode in _COLOURS and image.format not in _WITHOUT_GREY


def _look(path: Path, options: ReadOptions) -> Look:
    from ml_backend.pictures import open_picture

    with reading(path, _EXPECTED), open_picture(path, tuple(_IMAGES)) as image:
        return (image.height, image.width), _type(path, image, options)


def _image(path: Path, check: Callable[[Look], None], options: ReadOptions) -> npt.NDArray[Any]:
    from ml_backend.pictures import as_stored, open_picture

    with reading(path, _EXPECTED), open_picture(path, tuple(_IMAGES)) as image:
        check(((image.height, image.width), _type(path, image, options)))
        if _has_colours(image):
            return _grey(path, image, options)
        grey = image.convert("L") if _is_shown_grey(image) else image
        values = native(as_stored(grey) if options.labels else np.array(grey))
        palette = _grey_palette(grey, options)
        return values if palette is None else palette[values]


def _grey_palette(image: Image, options: ReadOptions) -> npt.NDArray[np.uint8] | None:
    """The grey of each index, where a palette shows nothing but grey: programs save an inverted
    image so. None for colours, which stand for class ids or whatever else, and for labels."""
    if image.mode != "P" or options.labels:
        return None
    colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    if (colours != colours[:, :1]).any():
        return None
    whole = np.zeros(256, np.uint8)
    whole[: len(colours)] = colours[:, 0]
    return whole


def _grey(path: Path, image: Image, options: ReadOptions) -> npt.NDArray[Any]:
    values, channel = np.array(image), options.channel
    grey = grey_of(values) if channel is None else np.ascontiguousarray(values[..., channel])
    if grey is None:
        raise _refusal(path, image, options)
    return grey


def _refusal(path: Path, image: Image, options: ReadOptions) -> VolumeError:
    last = len(image.getbands()) - 1
    return VolumeError(
        f"{path} is a colour image ({image.mode}), expected one grey value a voxel: choose one "
        f"with {options.asked_by('channel')}, 0 to {last}, or convert it to grey"
    )


def _type(path: Path, image: Image, options: ReadOptions) -> np.dtype[Any]:
    if (images := getattr(image, "n_frames", 1)) > 1:
        raise VolumeError(f"{path} has {images} images, expected one slice a file")
    if _is_shown_grey(image):
        return np.dtype(np.uint8)
    channels = len(image.getbands()) if _has_colours(image) else 1
    choose_axes(path, ("channel", "z", "y", "x"), (channels, 1, 1, 1), _chosen(options))
    if _has_colours(image):
        if ";16B" in str(getattr(image, "tile", "")):
            raise VolumeError(
                f"{path} is a colour image of 16 bits ({image.mode}), of which Pillow reads 8: "
                "expected grey, convert it"
            )
        return np.dtype(np.uint8)
    if image.mode not in _TYPES or image.format in _WITHOUT_GREY:
        raise _refusal(path, image, options)
    return np.dtype(_TYPES[image.mode])


def _chosen(options: ReadOptions) -> ReadOptions:
    """Without a choice all colours are looked at."""
    return options if options.channel is not None else replace(options, channel=0)


def _is_shown_grey(image: Image) -> bool:
    """Whether every pixel of a format that has no grey values is shown as one all the same."""
    if image.format not in _WITHOUT_GREY:
        return False
    red, green, blue = image.convert("RGB").split()
    return red.tobytes() == green.tobytes() == blue.tobytes()
