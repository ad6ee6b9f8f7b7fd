"""Along which axes the images of a TIFF are counted, and which page each of them is on.

Who wrote a file says so in a way of its own: OME-XML, ImageJ's description, tifffile's, and the
tags of microscopes (`tiff_microscopes`). What no one describes is a stack of its pages.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree  # nosec B405  # it fetches nothing, expat bounds entities

import numpy as np

from ml_backend.volumes.formats.checks import reading
from ml_backend.volumes.formats.notes import Notes, sizes_in_one_unit
from ml_backend.volumes.formats.tiff_microscopes import by_microscope
from ml_backend.volumes.formats.tiff_table import NOTHING, Planes
from ml_backend.volumes.volume import VolumeError

__all__ = ["NAMESPACE", "ome_files", "planes_of"]

NAMESPACE = "nextslice/classes"
"""Of the map annotation in which class names are kept."""

_IMAGEJ = {"t": "frames", "z": "slices", "c": "channels"}


def planes_of(path: Path, tif: Any, first: Any, full: Sequence[int]) -> Planes:
    """Those of the file open as ``tif``, whose pages ``full`` are images, as ``first`` is.

    Raises VolumeError for a description that is broken, or of slices that are elsewhere.
    """
    found = by_microscope(path, tif, first, full)
    if found is None and tif.is_ome and (xml := tif.ome_metadata):
        found = _of_ome(path, xml, first, len(full))
    if found is None and tif.is_imagej and (meta := tif.imagej_metadata):
        found = _of_imagej(meta, first)
    if found is None and tif.is_shaped and (shaped := tif.shaped_metadata):
        found = _of_tifffile(shaped, first)
    if found is None:
        found = Planes("own", ("",), (len(full),))
    return found


@dataclass(frozen=True)
class _Ome:
    """The only image of OME-XML: its axes but y and x, outermost first, and how many there are."""

    path: Path
    pixels: ElementTree.Element
    names: str
    lengths: tuple[int, ...]

    def pages(self, there: int) -> tuple[int, ...] | None:
        """The page of each plane; None: in the order of the file's pages, of which so many are
        ``there``."""
        total = math.prod(self.lengths)
        pages: dict[int, int] = {}
        for data in self.pixels.findall("{*}TiffData"):
            self._check_here(data)
            first, page = self._place(data), int(data.get("IFD", 0))
            given = data.get(
                "PlaneCount", data.get("NumPlanes", "1" if "IFD" in data.attrib else "")
            )
            count = int(given) if given else total - first
            for step in range(min(count, total - first)):
                pages[first + step] = page + step
        missing = total - len(pages)
        if not pages or (missing and there != total):  # then the file is cut off
            return None
        if missing:
            raise VolumeError(
                f"{self.path} has OME-XML that says where {len(pages)} of its {total} slices are, "
                f"{missing} are nowhere: expected all of them"
            )
        return tuple(pages[place] for place in range(total))

    def _place(self, data: ElementTree.Element) -> int:
        """Of the first plane that ``data`` speaks of."""
        places = [int(data.get(f"First{axis}", 0)) for axis in self.names]
        for axis, place, length in zip(self.names, places, self.lengths, strict=True):
            if not 0 <= place < length:
                raise VolumeError(
                    f"{self.path} has OME-XML with a plane {axis} {place}, expected 0 to "
                    f"{length - 1}: pages in the order of slices"
                )
        return int(np.ravel_multi_index(places, self.lengths))

    def _check_here(self, data: ElementTree.Element) -> None:
        uuid = data.find("{*}UUID")
        name = None if uuid is None else uuid.get("FileName")
        if name is not None and name != self.path.name and (self.path.parent / name).exists():
            raise VolumeError(
                f"{self.path} has slices in other files ({name}), expected all of them in one: "
                "give the folder instead"
            )


def _of_ome(path: Path, xml: str, first: Any, there: int) -> Planes:
    root = _parsed(path, xml)
    images = root.findall("{*}Image/{*}Pixels")
    if len(images) != 1:
        raise VolumeError(f"{path} has {len(images)} OME images, expected one volume a file")
    pixels = images[0].attrib
    names = _ome_order(path, pixels.get("DimensionOrder", "XYZCT"))
    lengths = [int(pixels.get(f"Size{axis}", 1)) for axis in names]
    if first.samplesperpixel > 1:
        # the values of a pixel are counted as channels
        place = names.index("C")
        lengths[place] = max(1, lengths[place] // first.samplesperpixel)
    pages = _Ome(path, images[0], names, tuple(lengths)).pages(there)
    notes = sizes_in_one_unit(
        [pixels.get(f"PhysicalSize{axis}") for axis in "ZYX"],
        [pixels.get(f"PhysicalSize{axis}Unit", "µm") for axis in "ZYX"],
    )
    unit = "" if notes.unit == "pixel" else notes.unit
    notes = Notes(notes.voxel_size, unit, _classes(root))
    return Planes("OME", tuple(names), tuple(lengths), pages, notes)


def _parsed(path: Path, xml: str) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(xml)  # nosec B314  # likewise
    except ElementTree.ParseError as error:
        raise VolumeError(f"{path} has broken OME-XML ({error}), expected it whole") from error


def ome_files(path: Path) -> dict[str, dict[str, Hashable]]:
    """Names of the files over which OME-XML in the TIFF at ``path`` spreads its planes → axis →
    place of the plane in each; nothing where it names no other file. Raises VolumeError."""
    import tifffile

    with reading(path, "a whole TIFF image"), tifffile.TiffFile(path) as tif:
        xml = tif.ome_metadata if tif.is_ome else None
    if not xml:
        return {}
    places: dict[str, dict[str, Hashable]] = {}
    for data in _parsed(path, xml).findall("{*}Image/{*}Pixels/{*}TiffData"):
        uuid = data.find("{*}UUID")
        if uuid is not None and (name := uuid.get("FileName")):
            places[name] = {axis: int(data.get(f"First{axis}", 0)) for axis in "TCZ"}
    return places if len(places) > 1 else {}


def _ome_order(path: Path, order: str) -> str:
    """Axes but x and y, outermost first."""
    names = order[:1:-1]
    if order[:2] != "XY" or sorted(names) != ["C", "T", "Z"]:
        raise VolumeError(
            f"{path} has OME-XML with the dimension order {order!r}, expected X, Y and then Z, C, T"
        )
    return names


def _classes(root: ElementTree.Element) -> tuple[str, ...] | None:
    for note in root.findall("{*}StructuredAnnotations/{*}MapAnnotation"):
        if note.get("Namespace") == NAMESPACE:
            return tuple(item.text or "" for item in note.findall("{*}Value/{*}M"))
    return None


def _of_imagej(meta: dict[str, Any], first: Any) -> Planes:
    order = str(meta.get("order", "czt")).lower()
    if sorted(order) != ["c", "t", "z"]:  # "default", too
        order = "czt"
    names = order[::-1]
    lengths = [int(meta.get(_IMAGEJ[name], 1)) for name in names]
    if first.samplesperpixel > 1 and lengths[names.index("c")] == first.samplesperpixel:
        # Bio-Formats calls the values of a pixel channels
        lengths[names.index("c")] = 1
    images = int(meta.get("images", math.prod(lengths)))
    if images != math.prod(lengths) and sum(length > 1 for length in lengths) < 2:
        # a plain stack, of which only the number of images is always said
        names, lengths = "z", [images]
    unit = meta.get("unit", "")
    notes = NOTHING
    if unit and unit != "pixel":
        # ImageJ leaves a spacing of 1 away
        sizes = [meta.get("spacing", 1.0), *(_pixel(first, tag) for tag in (283, 282))]
        notes = Notes.sized(sizes, unit)
    return Planes("ImageJ", tuple(names.upper()), tuple(lengths), None, notes)


def _pixel(page: Any, tag: int) -> float | None:
    """Edge length from a resolution tag, a fraction of pixels a unit."""
    found = page.tags.get(tag)
    return None if found is None or not found.value[0] else found.value[1] / found.value[0]


def _of_tifffile(shaped: Sequence[dict[str, Any]], first: Any) -> Planes | None:
    """None for several series in one file: they are the pages of one stack."""
    shape = tuple(shaped[0].get("shape", ()))
    count = 2 + (first.samplesperpixel > 1)
    if len(shaped) != 1 or first.shape != shape[-count:]:
        return None
    lengths = shape[:-count]
    axes = str(shaped[0].get("axes", ""))
    names = tuple(axes[: len(lengths)]) if len(axes) == len(shape) else ("",) * len(lengths)
    return Planes("tifffile", names, lengths)
