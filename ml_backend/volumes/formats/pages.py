"""Volumes of which only whole z slices can be read: a folder of images, pages of a file."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.enclosure import check_inside
from ml_backend.volumes.volume import Read, ReadOptions, VolumeError

__all__ = ["Look", "by_page", "files_in", "folder_read"]

Slice = npt.NDArray[Any]

Look = tuple[tuple[int, int], np.dtype[Any]]
"""Shape and type of an image, from its header alone."""


def by_page(count: int, page: Callable[[int], Slice]) -> Read:
    """Slices along z are pages; along y and x every page is read for its row or column."""

    def read(axis: int, index: int) -> Slice:
        if axis == 0:
            return page(index)
        return np.stack([page(z).take(index, axis - 1) for z in range(count)])

    return read


def files_in(folder: Path, endings: Sequence[str]) -> list[Path]:
    """Its files with one of ``endings``, ``s2`` before ``s10``; hidden ones left out."""
    found = (
        path
        for path in folder.iterdir()
        if path.suffix.lower() in endings and not path.name.startswith(".")
    )
    return sorted(found, key=_natural)


def folder_read(
    files: Sequence[Path],
    options: ReadOptions,
    look: Callable[[Path], Look],
    page: Callable[[Path, Callable[[Look], None]], Slice],
) -> tuple[Look, Read]:
    """Shape and type of the first image as ``look`` finds them in its header, and how slices are
    read from one image a file: by ``page``, which has shape and type checked before it decodes.

    Raises VolumeError naming the file that has another shape or type than the first: the last one,
    as a stray image sorts there, at once, the others when they are read. Files that are links to
    somewhere outside are refused both times.
    """
    folder = files[0].parent
    for path in files:
        check_inside(path, folder, options)
    first = look(files[0])

    def check(path: Path, found: Look) -> None:
        if found != first:
            raise VolumeError(
                f"{path} is {found[1]} of shape {found[0]}, expected {first[1]} of shape "
                f"{first[0]} as {files[0].name}: a folder is one volume"
            )

    def checked(z: int) -> Slice:
        check_inside(files[z], folder, options)
        return page(files[z], lambda found: check(files[z], found))

    check(files[-1], look(files[-1]))
    return first, by_page(len(files), checked)


def _natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], path.name
