"""TIFF: a stack of pages in one file, or a folder of one-page files.

Which page is which slice is said in many ways: `tiff_planes` knows them.
Pages are parsed and decoded when they are asked for, by tifffile: strips or tiles, any compression
and predictor that it knows, BigTIFF, either byte order. ImageJ's stacks of one page followed by all
images (how it writes more than 4 GB) are read by position. Slices along y and x are cut from a map
of the file where pages are uncompressed, else every page is decoded.

Voxel sizes come from OME-XML or ImageJ's description. The resolution tags alone say nothing of z.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.formats.checks import native, number_type, reading
from ml_backend.volumes.formats.colour import check_shows_grey
from ml_backend.volumes.formats.file_names import chosen_files
from ml_backend.volumes.formats.flat import Flat
from ml_backend.volumes.formats.format import EVERYTHING, Format
from ml_backend.volumes.formats.notes import length_in
from ml_backend.volumes.formats.pages import Look, by_page, folder_read
from ml_backend.volumes.formats.skyscan import folder_notes, slices_in
from ml_backend.volumes.formats.tiff_microscopes import has_room
from ml_backend.volumes.formats.tiff_pages import (
    Pixels,
    Shown,
    check_chain,
    check_page,
    check_segments,
    full_pages,
    stored_type,
)
from ml_backend.volumes.formats.tiff_planes import NAMESPACE, planes_of
from ml_backend.volumes.formats.tiff_table import Planes
from ml_backend.volumes.runs import Runs, file_state
from ml_backend.volumes.volume import ReadOptions, Volume, VolumeError, VolumeSpec

__all__ = ["FORMAT", "read", "write"]

Slice = npt.NDArray[Any]

_ENDINGS = (".tif", ".tiff", ".btf", ".tf8")
_EXPECTED = "a TIFF stack"
_ONE = "a whole TIFF image"
_BEHIND = ("MetaMorph", "ImageJ", "tifffile")
"""What puts all images behind one page."""


def read(path: Path, options: ReadOptions) -> Volume:
    """A file with one grey page a slice, or a folder of such files with one page each."""
    return _read_folder(path, options) if path.is_dir() else _read_file(path, options)


def write(path: Path, slices: Iterable[Slice], spec: VolumeSpec) -> None:
    """An uncompressed OME-TIFF, BigTIFF from 4 GiB on; class names as a map annotation."""
    import tifffile

    metadata: dict[str, Any] = {"axes": "ZYX"}
    resolution: dict[str, Any] = {}
    if spec.voxel_size is not None:
        for axis, size in zip("ZYX", spec.voxel_size, strict=True):
            metadata |= {
                f"PhysicalSize{axis}": size,
                f"PhysicalSize{axis}Unit": spec.unit or "pixel",
            }
        if (factor := length_in(spec.unit, "cm")) is not None:
            _, y, x = (size * factor for size in spec.voxel_size)
            resolution = {"resolution": (1 / x, 1 / y), "resolutionunit": "CENTIMETER"}
    if spec.classes is not None:
        names = {str(value): name for value, name in enumerate(spec.classes)}
        metadata["MapAnnotation"] = {"Namespace": NAMESPACE, **names}
    size = math.prod(spec.shape) * spec.dtype.itemsize
    with tifffile.TiffWriter(path, bigtiff=size > 0xF0000000, ome=True) as tif:
        tif.write(
            iter(slices), shape=spec.shape, dtype=spec.dtype, photometric="minisblack",
            metadata=metadata, **resolution,
        )  # fmt: skip


FORMAT = Format(
    name="tiff",
    title="TIFF",
    summary=(
        "one file with many pages (BigTIFF, ImageJ, OME-TIFF, MetaMorph STK, LSM, FluoView, "
        "Micro-Manager, NDTiff; tiled or compressed), or a folder of one-page files"
    ),
    readable="a TIFF stack (.tif)",
    endings=_ENDINGS,
    also=(".stk", ".lsm"),
    read=read,
    chooses=True,
    write=write,
    written_as="OME-TIFF",
    dtypes=("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"),
    keeps=EVERYTHING,
    masks=".tif",
    images={"TIFF": _ENDINGS},
    long_endings=(".ome.tif", ".ome.tiff"),
    place=10,
)


def _read_folder(path: Path, options: ReadOptions) -> Volume:
    files, options = chosen_files(path, slices_in(path, _ENDINGS), options)

    def look(file: Path) -> Look:
        with _only_page(file, options) as (page, _):
            return _size(page), _type(file, page)

    def image(file: Path, check: Callable[[Look], None]) -> Slice:
        with _only_page(file, options) as (page, pixels):
            check((_size(page), _type(file, page)))
            return pixels.decode(file, page)

    (size, dtype), cut = folder_read(files, options, look, image)
    with _only_page(files[0], options) as (page, pixels):
        samples = page.samplesperpixel if pixels.must_be_grey else 1
    if samples > 1:
        what = f"{samples} values a pixel"
        check_shows_grey(files[0], what, lambda z: cut(0, z), len(files))
    notes = folder_notes(path, options)
    return notes.volume(path, (len(files), *size), dtype, cut)


@contextmanager
def _only_page(path: Path, options: ReadOptions) -> Iterator[tuple[Any, Pixels]]:
    """The only image of a file, and what its values are."""
    import tifffile

    with reading(path, _ONE), tifffile.TiffFile(path) as tif:
        full = full_pages(path, tif)
        first: Any = tif.pages.get(full[0])
        check_page(path, first)
        behind = _images_behind(path, tif, first, full)
        if len(full) > 1 or behind > 1 or len(first.shape) != 2 + (first.samplesperpixel > 1):
            raise VolumeError(
                f"{path} has {max(len(full), behind)} pages of shape {first.shape}, expected one "
                "slice a file in a folder"
            )
        yield first, Pixels.of(path, first, options)


def _images_behind(path: Path, tif: Any, first: Any, full: Sequence[int]) -> int:
    """How many images there are where more than the page's own lie behind it; else 0. Tools that
    split stacks leave a description of the whole in every file, and nothing behind its page."""
    if len(full) > 1 or tif.is_ome or not has_room(first):
        return 0
    planes = planes_of(path, tif, first, full)
    return planes.total if planes.kind in _BEHIND else 0


def _size(page: Any) -> tuple[int, int]:
    rows, columns = page.imagelength, page.imagewidth
    return rows, columns


def _type(path: Path, page: Any) -> np.dtype[Any]:
    return number_type(path, page.dtype)


def _read_file(path: Path, options: ReadOptions) -> Volume:
    import tifffile

    with reading(path, _EXPECTED):
        tif = tifffile.TiffFile(path)
    try:
        # threads share the file's position
        tif.filehandle.set_lock(True)
        with reading(path, _EXPECTED):
            return _open(path, tif, options)
    except BaseException:
        tif.close()
        raise


def _open(path: Path, tif: Any, options: ReadOptions) -> Volume:
    full = full_pages(path, tif)
    first = tif.pages.get(full[0])
    check_page(path, first)
    check_chain(path, tif, len(tif.pages))
    planes = planes_of(path, tif, first, full)
    if len(first.shape) == 3 and first.samplesperpixel == 1:
        # a volume of its own on one page
        if len(full) > 1:
            raise VolumeError(
                f"{path} has {len(full)} pages of shape {first.shape}, expected one that is a "
                "volume, or a slice on each"
            )
        planes = Planes(planes.kind, ("Z",), (first.shape[0],), notes=planes.notes)
    # what is not said to be colours is chosen among as channels, unless images already are
    pixels = Pixels.of(
        path, first,
        replace(options, time=None, channel=None if planes.several_channels else options.channel),
        channels=planes.channels,
    )  # fmt: skip
    others = options if pixels.sample is None else replace(options, channel=None)
    chosen = planes.chosen(path, _size(first), others)
    dtype, size = _type(path, first), _size(first)
    if len(full) == 1 and planes.total > 1:
        # all images behind one page, which is how more than 4 GB fit into an ImageJ stack
        behind = _Behind(_flat(path, first, (planes.total, *size)), chosen, first, pixels)
        tif.close()
        return planes.notes.volume(path, (len(chosen), *size), dtype, behind.read)
    if planes.total != len(full):
        raise VolumeError(
            f"{path} has {len(full)} pages, expected {planes.total} as its {planes.kind} "
            "description says: is it cut off?"
        )
    pages = [(planes.pages or full)[place] for place in chosen]
    stack = _Stack(path, tif, (len(pages), *size), first, pages, pixels)
    weakref.finalize(stack, tif.close)
    if pixels.must_be_grey:
        what = f"{pixels.samples} values a pixel"
        check_shows_grey(path, what, lambda z: stack.read(0, z), len(pages))
    volume = planes.notes.volume(path, stack.shape, dtype, stack.read, tif.close)
    return replace(volume, runs=stack.runs)


@dataclass(frozen=True)
class _Behind:
    """Some of the images that lie one after another from where the only page begins."""

    flat: Flat
    chosen: Sequence[int]
    page: Any = field(repr=False)
    pixels: Pixels

    def read(self, axis: int, index: int) -> Slice:
        if axis == 0:
            return self.pixels.turned(self.page, self.flat.read(0, self.chosen[index]))
        whole = self.flat.read(axis, index)
        return self.pixels.turned(self.page, whole[[*self.chosen]])


@dataclass(frozen=True)
class _Stack:
    """Pages of one file, parsed when asked for."""

    path: Path
    tif: Any
    shape: tuple[int, int, int]
    first: Any = field(repr=False)
    pages: Sequence[int] = field(repr=False)
    pixels: Pixels

    def read(self, axis: int, index: int) -> Slice:
        if axis == 0:
            return self._decoded(index)
        with reading(self.path, _EXPECTED):
            if self._starts is not None:
                return self._mapped(axis, index, self._starts)
        return by_page(self.shape[0], self._decoded)(axis, index)

    def runs(self) -> Runs | None:
        with reading(self.path, _EXPECTED):
            try:
                starts = self._starts
            except VolumeError:
                return None  # said of the page that is at fault, when it is read
            state = file_state(self.tif.filehandle.fileno())
        dtype = stored_type(self.first)
        if starts is None or any(self.pixels.turns(page, dtype) for _, page in starts):
            return None
        return Runs(self.path, dtype, [start for start, _ in starts], state)

    def _mapped(self, axis: int, index: int, starts: list[tuple[int, Any]]) -> Slice:
        dtype = stored_type(self.first)
        size = math.prod(self.shape[1:]) * dtype.itemsize
        end, found = max(start for start, _ in starts) + size, self.path.stat().st_size
        if found < end:
            raise VolumeError(f"{self.path} has {found} bytes, expected {end}: it is cut off")
        file = np.memmap(self.path, np.uint8, "r")
        lines = []
        for start, page in starts:
            values = file[start : start + size].view(dtype).reshape(self.shape[1:])
            lines.append(self.pixels.turned(page, native(values.take(index, axis - 1))))
        return np.stack(lines)

    def _decoded(self, z: int) -> Slice:
        with reading(self.path, f"{_EXPECTED}: page {self.pages[z]} is broken"):
            return self.pixels.decode(self.path, self._page(z))

    def _page(self, z: int) -> Any:
        number = self.pages[z]
        with self.tif.filehandle.lock:
            page = self.tif.pages.get(number)
        if page.shape != self.first.shape or page.dtype != self.first.dtype:
            raise VolumeError(
                f"{self.path}, page {number}, is {page.dtype} of shape {page.shape}, expected "
                f"{self.first.dtype} of shape {self.first.shape} as the first: a stack has slices "
                "of one size and type"
            )
        return page

    @cached_property
    def _starts(self) -> list[tuple[int, Any]] | None:
        """Where the values of every page begin, and how it shows them; None where one cannot be
        mapped."""
        starts: list[tuple[int, Any]] = []
        if not self.first.is_final or self.pixels.samples > 1:
            return None
        for z in range(self.shape[0]):
            page = self._page(z)
            check_segments(self.path, page)
            if not page.is_final:
                return None
            starts.append((page.dataoffsets[0], Shown.of(page)))
        return starts


def _flat(path: Path, first: Any, shape: tuple[int, int, int]) -> Flat:
    """All images from where the first one begins."""
    if not first.is_final or first.samplesperpixel > 1:
        raise VolumeError(
            f"{path} has 1 page, compressed, in tiles or in colours, for the {shape[0]} slices "
            "that its description names: expected one page a slice"
        )
    flat = Flat(path, shape, stored_type(first), first.dataoffsets[0])
    flat.check()
    return flat
