"""What microscopes write into TIFF: MetaMorph STK, Zeiss LSM, Olympus FluoView and SIS, ScanImage,
Micro-Manager and NDTiff.

tifffile reads their tags. Its series are used where they open no other file: those of
Micro-Manager and NDTiff do, so their pages are put in order here, by what each says of itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ml_backend.volumes.formats.notes import Notes, sizes_in_one_unit
from ml_backend.volumes.formats.tiff_table import NOTHING, Planes, table_of
from ml_backend.volumes.volume import VolumeError

__all__ = ["by_microscope", "has_room"]

_UIC = (33629, 33630, 33631)
"""Tags of MetaMorph that have as many values as there are planes."""
_UIC1 = 33628
_LSM, _FLUOVIEW, _MICROMANAGER = 34412, 34361, 51123
_INDICES = {
    "position": ("PositionIndex",),
    "time": ("FrameIndex", "Frame"),
    "z": ("SliceIndex", "Slice"),
    "channel": ("ChannelIndex",),
}
"""Axis → what a page of Micro-Manager calls its place along it."""
_SUMMARY = {"time": "Frames", "z": "Slices", "channel": "Channels"}
_SIBLINGS = ("_MMStack", "_NDTiffStack")


def by_microscope(path: Path, tif: Any, first: Any, full: Sequence[int]) -> Planes | None:
    """As the tags of the first page say, None where they are of no microscope."""
    tags = first.tags
    if (planes := _planes_behind(first)) > 1:
        return Planes("MetaMorph", ("z",), (planes,), notes=_of_metamorph(tif))
    if _UIC1 in tags and not planes and has_room(first):
        raise VolumeError(
            f"{path} is a MetaMorph file that says not how many planes lie behind its page, "
            "expected the tag UIC2: is it damaged?"
        )
    if _LSM in tags:
        return _of_lsm(tags.valueof(_LSM))
    if _FLUOVIEW in tags:
        return _of_fluoview(tags.valueof(_FLUOVIEW))
    if _MICROMANAGER in tags:
        return _of_micromanager(path, tif, full)
    if tif.is_sis or tif.is_scanimage:
        return _of_series(tif.series[0])
    return None


def _planes_behind(first: Any) -> int:
    """How many planes of MetaMorph lie behind the only page; 0 without its tags."""
    return max((first.tags[tag].count for tag in _UIC if tag in first.tags), default=0)


def has_room(first: Any) -> bool:
    """Whether another image as large could lie behind the page."""
    return bool(first.dataoffsets[0] + 2 * first.nbytes <= first.parent.filehandle.size)


def _of_metamorph(tif: Any) -> Notes:
    """Of evenly spaced planes that are calibrated."""
    try:
        meta = tif.stk_metadata or {}
        steps = np.asarray(meta.get("ZDistance", ()), float)
        even = steps.size > 0 and np.allclose(steps, steps[0])
        sizes = [steps[0] if even else None, meta.get("YCalibration"), meta.get("XCalibration")]
    except Exception:  # other tags may be broken, and the planes are there all the same
        return NOTHING
    unit = meta.get("CalibrationUnits", "")
    return Notes.sized(sizes, unit) if unit and unit != "pixel" else NOTHING


def _of_lsm(info: Mapping[str, Any]) -> Planes:
    import tifffile

    codes: Any = tifffile.TIFF
    axes = str(codes.CZ_LSMINFO_SCANTYPE[info["ScanType"]])
    for extra in "PM":  # positions, mosaic
        if info.get(f"Dimension{extra}", 0) > 0:
            axes = extra + axes
    # an image has all channels as the values of a pixel
    names = [axis for axis in axes if axis not in "CYX"]
    lengths = tuple(max(1, int(info[codes.CZ_LSMINFO_DIMENSIONS[axis]])) for axis in names)
    sizes = [info.get(f"VoxelSize{axis}", 0) * 1e6 for axis in "ZYX"]
    notes = Notes.sized(sizes, "µm")
    return Planes("LSM", tuple(names), lengths, notes=notes, channels=True)


def _of_fluoview(header: Mapping[str, Any]) -> Planes:
    import tifffile

    codes: Any = tifffile.TIFF
    found = {}
    for name, size, _, step, unit in header["Dimensions"]:
        if name and size > 0:
            found[codes.MM_DIMENSIONS.get(name.upper(), "Q")] = (int(size), step, unit)
    names = [axis for axis in reversed(found) if axis not in "YX"]
    steps = [found.get(axis, (0, None, "")) for axis in "ZYX"]
    notes = sizes_in_one_unit([step for _, step, _ in steps], [unit for *_, unit in steps])
    return Planes(
        "FluoView", tuple(names), tuple(found[axis][0] for axis in names),
        notes=notes if notes.unit else NOTHING,
    )  # fmt: skip


def _of_series(series: Any) -> Planes:
    axes, shape = series.get_axes(False), series.get_shape(False)
    leading = len(axes) - len(series.keyframe.axes)
    return Planes(series.kind, tuple(axes[:leading]), tuple(shape[:leading]))


def _of_micromanager(path: Path, tif: Any, full: Sequence[int]) -> Planes | None:
    """By what each page says of its place, else by the map of all at the beginning of the file."""
    pages = {index: tif.pages.get(index) for index in full}
    places = {index: _place(page.tags.valueof(_MICROMANAGER)) for index, page in pages.items()}
    header = _header(tif)
    if not all(places.values()):
        places = _mapped(header, {page.offset: index for index, page in pages.items()})
    if not places:
        return None
    planes = table_of(path, "Micro-Manager", places)
    _check_whole(path, planes, header.get("Summary", {}))
    meta = next(iter(pages.values())).tags.valueof(_MICROMANAGER)
    return Planes(
        "Micro-Manager", planes.names, planes.lengths, planes.pages,
        _sizes(header.get("Summary", {}), meta if isinstance(meta, dict) else {}),
    )  # fmt: skip


def _header(tif: Any) -> dict[str, Any]:
    """What is before the pages, nothing where it is not Micro-Manager's."""
    try:
        found = tif.micromanager_metadata
    except Exception:
        return {}
    return found if isinstance(found, dict) else {}


def _place(meta: Any) -> dict[str, Hashable]:
    """Axis → where the page is along it; NDTiff has names of its own."""
    if not isinstance(meta, dict):
        return {}
    if isinstance(axes := meta.get("Axes"), dict) and axes:
        return dict(axes)
    place: dict[str, Hashable] = {}
    for axis, keys in _INDICES.items():
        for key in keys:
            if isinstance(meta.get(key), int):
                place.setdefault(axis, meta[key])
    return place


def _mapped(
    header: Mapping[str, Any], offsets: Mapping[int, int]
) -> dict[int, dict[str, Hashable]]:
    """Places by page, of the index map: channel, z, time, position and the offset of each page."""
    rows = header.get("IndexMap")
    if rows is None:
        return {}
    axes = ("channel", "z", "time", "position")
    return {
        offsets[int(row[4])]: dict(zip(axes, map(int, row[:4]), strict=True))
        for row in rows
        if int(row[4]) in offsets
    }


def _check_whole(path: Path, planes: Planes, summary: Mapping[str, Any]) -> None:
    """Raise VolumeError where slices are missing that are in other files of the acquisition."""
    wanted = {axis: summary.get(key) for axis, key in _SUMMARY.items()}
    lengths = dict(zip(planes.names, planes.lengths, strict=True))
    short = [axis for axis, n in wanted.items() if isinstance(n, int) and n > lengths.get(axis, 1)]
    for mark in _SIBLINGS:
        prefix, found, _ = path.name.partition(mark)
        others = [
            one.name
            for one in path.parent.iterdir()
            if found and one.name.startswith(prefix + mark) and one.name != path.name
        ]
        if others and (short or mark == "_NDTiffStack"):
            raise VolumeError(
                f"{path} has slices in other files ({min(others)}), expected all of them in one: "
                "save the acquisition as one file"
            )


def _sizes(summary: Mapping[str, Any], page: Mapping[str, Any]) -> Notes:
    step = summary.get("z-step_um", page.get("ZStepUm"))
    pixel = page.get("PixelSizeUm", summary.get("PixelSize_um"))
    return Notes.sized([step, pixel, pixel], "µm")
