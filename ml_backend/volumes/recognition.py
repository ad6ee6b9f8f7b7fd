"""Which format a path is read as, or written as: by its ending, or by what a folder holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from ml_backend.volumes.formats.format import Format
from ml_backend.volumes.formats.registry import format_by_ending, formats
from ml_backend.volumes.formats.skyscan import is_preview
from ml_backend.volumes.volume import ReadOptions, VolumeError, VolumeSpec

__all__ = ["Write", "format_for", "format_of", "readable"]

_CONVERTERS: Mapping[tuple[str, ...], str] = {
    (".czi", ".lif", ".nd2", ".ims", ".vsi", ".oir", ".oib", ".oif", ".dv"): (
        "`bfconvert` of Bio-Formats, to .ome.tif,"
    ),
    (".aim",): "ITK's ScancoImageIO (itk-ioscanco), to .mha,",
    (".img", ".hdr", ".mnc", ".mgz", ".mgh"): "nibabel, to .nii,",
    (".vgl", ".pcr", ".pca"): "VGSTUDIO or the scanner's own program, to .vgi with a .vol,",
    (".gz", ".bz2", ".xz", ".zip", ".tar", ".7z"): "unpacking it",
    (".mat",): "SciPy (`scipy.io.loadmat`), to .npy,",
    (".vtk", ".gipl", ".pic"): "SimpleITK, to .mha,",
}
"""Endings that are seen, and not read: what makes of them one that is."""

Write = Callable[[Path, Iterable[npt.NDArray[Any]], VolumeSpec], None]


def readable() -> str:
    """What can be read, as the end of a sentence."""
    kinds = [next(iter(one.images)) for one in formats() if one.images]
    files = [
        one.readable or f"{one.title} ({one.endings[0]})" for one in formats() if one.reads_files
    ]
    return f"{', '.join(files)}, or a folder of one-page {' or '.join(kinds)} files"


def _nearest_way(name: str) -> str:
    """How what is called so becomes a volume that is read."""
    for endings, program in _CONVERTERS.items():
        if name.endswith(endings):
            return f"{program} makes a file that is"
    return "what holds raw values is read with --shape, --dtype and --offset"


def format_of(path: Path, options: ReadOptions) -> Format:
    """The format that reads what is at ``path``. Raises VolumeError when there is none."""
    if path.is_dir():
        return _format_of_folder(path, options)
    name = path.name.lower()
    for one in formats():
        if name.endswith(one.explains):
            return one
    known = [one for one in formats() if one.reads_files and one.reading_of(name)]
    if known:
        return max(known, key=lambda one: len(one.reading_of(name)))
    for one in formats():
        if one.takes is not None and one.takes(path, options):
            return one
    images = tuple(ending for one in formats() for e in one.images.values() for ending in e)
    hint = " (it is one image: give its folder)" if name.endswith(images) else ""
    raise VolumeError(
        f"{path} is no volume that can be read{hint}, expected {readable()}; {_nearest_way(name)}"
    )


def _format_of_folder(path: Path, options: ReadOptions) -> Format:
    for one in formats():
        if one.folder and not one.images and one.ending_of(path.name):
            return one
        if any((path / mark).exists() for mark in one.marks):
            return one
    there = (one.name.lower() for one in path.iterdir())
    names = [name for name in there if not name.startswith(".") and not is_preview(name)]
    found = [
        (one, kind, count)
        for one in formats()
        for kind, endings in one.images.items()
        if (count := sum(name.endswith(endings) for name in names))
    ]
    if not found:
        for one in formats():
            if one.images and one.takes is not None and one.takes(path, options):
                return one
    if len(found) > 1:
        counted = " and ".join(f"{count} {kind}" for _, kind, count in found)
        raise VolumeError(
            f"{path} has {counted} files, expected slices of one kind: a folder is one volume"
        )
    if not found:
        kinds = " or ".join(next(iter(one.images)) for one in formats() if one.images)
        raise VolumeError(
            f"{path} is a folder of {len(names)} files and folders, none of them a {kinds} image, "
            f"expected {readable()}"
        )
    return found[0][0]


def format_for(path: Path) -> tuple[Format, Write]:
    """The format that ``path`` is written as, and how. Raises VolumeError when there is none."""
    one = format_by_ending(path.name)
    if one is None and "." not in path.name:
        one = next((one for one in formats() if one.without_ending), None)
    if one is not None and one.write is not None:
        return one, one.write
    what = "names no format to write" if one is None else f"is {one.title}, which is read only"
    listed = ", ".join(f"{'/'.join(o.endings)} ({o.name})" for o in formats() if o.write)
    raise VolumeError(f"{path} {what}, expected one of the endings {listed}")
