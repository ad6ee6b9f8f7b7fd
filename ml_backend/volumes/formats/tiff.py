"""TIFF: a stack of pages in one file, or a folder of one-page files.

Pages are parsed and decoded when they are asked for, by tifffile: strips or tiles, any compression
and predictor that it knows, BigTIFF, either byte order. ImageJ's stacks of one page followed by all
images (how it writes more than 4 GB) are read by position. Slices along y and x are cut from a map
of the file where pages are uncompressed, else every page is decoded.

Voxel sizes come from OME-XML or ImageJ's description. The resolution tags alone say nothing of z.
"""

from __future__ import annotations

import math
import struct
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree import ElementTree  # nosec B405  # it fetches nothing, expat bounds entities

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.formats.checks import chunk_size, native, number_type, reading
from ml_backend.volumes.formats.flat import Flat, read_run
from ml_backend.volumes.formats.format import EVERYTHING, Format
from ml_backend.volumes.formats.notes import Notes, length_in, sizes_in_one_unit
from ml_backend.volumes.formats.pages import Look, by_page, files_in, folder_read
from ml_backend.volumes.volume import ReadOptions, Volume, VolumeError, VolumeSpec

__all__ = ["FORMAT", "read", "write"]

Slice = npt.NDArray[Any]

_ENDINGS = (".tif", ".tiff", ".btf", ".tf8")
_EXPECTED = "a TIFF stack"
_ONE = "a whole TIFF image"
_NOTHING = Notes()
_NAMESPACE = "nextslice/classes"


def read(path: Path, options: ReadOptions) -> Volume:
    """A file with one grey page a slice, or a folder of such files with one page each."""
    return _read_folder(path, options) if path.is_dir() else _read_file(path)


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
        metadata["MapAnnotation"] = {"Namespace": _NAMESPACE, **names}
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
        "one file with many pages (BigTIFF, ImageJ, OME-TIFF; tiled or compressed), or a folder of "
        "one-page files"
    ),
    readable="a TIFF stack (.tif)",
    endings=_ENDINGS,
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
    files = files_in(path, _ENDINGS)
    (size, dtype), cut = folder_read(files, options, _look, _image)
    notes = Notes.beside(path)
    return notes.volume(path, (len(files), *size), dtype, cut)


def _look(path: Path) -> Look:
    import tifffile

    with reading(path, _ONE), tifffile.TiffFile(path) as tif:
        page = _only_page(path, tif)
        return page.shape, number_type(path, page.dtype)


def _image(path: Path, check: Callable[[Look], None]) -> Slice:
    import tifffile

    with reading(path, _ONE), tifffile.TiffFile(path) as tif:
        page = _only_page(path, tif)
        check((page.shape, number_type(path, page.dtype)))
        return _decode(path, page)


def _only_page(path: Path, tif: Any) -> Any:
    first = _first(path, tif)
    if tif.pages.is_multipage or len(first.shape) != 2:
        raise VolumeError(
            f"{path} has {len(tif.pages)} pages of shape {first.shape}, expected one slice a file "
            "in a folder"
        )
    return first


def _read_file(path: Path) -> Volume:
    import tifffile

    with reading(path, _EXPECTED):
        tif = tifffile.TiffFile(path)
    try:
        # threads share the file's position
        tif.filehandle.set_lock(True)
        with reading(path, _EXPECTED):
            return _open(path, tif)
    except BaseException:
        tif.close()
        raise


def _open(path: Path, tif: Any) -> Volume:
    first = _first(path, tif)
    said = _description(path, tif, first)
    pages = len(tif.pages)
    _check_chain(path, tif, pages)
    notes, dtype = said.notes, number_type(path, first.dtype)
    rows, columns = first.shape[-2:]
    depth = said.depth or pages
    if len(first.shape) == 3 or (pages == 1 and depth > 1):
        # all images behind one page, which is how more than 4 GB fit into an ImageJ stack
        depth = first.shape[0] if len(first.shape) == 3 else depth
        flat = _behind(path, first, (depth, rows, columns), pages)
        tif.close()
        return notes.volume(path, flat.shape, dtype, flat.read)
    if depth != pages:
        raise VolumeError(
            f"{path} has {pages} pages, expected {depth} as its {said.kind} description says: is it"
            " cut off?"
        )
    stack = _Stack(path, tif, (pages, rows, columns), first)
    weakref.finalize(stack, tif.close)
    return notes.volume(path, stack.shape, dtype, stack.read, tif.close)


@dataclass(frozen=True)
class _Stack:
    """Pages of one file, parsed when asked for."""

    path: Path
    tif: Any
    shape: tuple[int, int, int]
    first: Any = field(repr=False)

    def read(self, axis: int, index: int) -> Slice:
        if axis == 0:
            return self._decoded(index)
        with reading(self.path, _EXPECTED):
            if self._starts is not None:
                return self._mapped(axis, index, self._starts)
        return by_page(self.shape[0], self._decoded)(axis, index)

    def _mapped(self, axis: int, index: int, starts: list[int]) -> Slice:
        dtype = _stored_type(self.first)
        size = math.prod(self.shape[1:]) * dtype.itemsize
        end, found = max(starts) + size, self.path.stat().st_size
        if found < end:
            raise VolumeError(f"{self.path} has {found} bytes, expected {end}: it is cut off")
        file = np.memmap(self.path, np.uint8, "r")
        lines = [
            file[start : start + size].view(dtype).reshape(self.shape[1:]).take(index, axis - 1)
            for start in starts
        ]
        return native(np.stack(lines))

    def _decoded(self, z: int) -> Slice:
        with reading(self.path, f"{_EXPECTED}: page {z} is broken"):
            page = self._page(z)
            return _decode(self.path, page)

    def _page(self, z: int) -> Any:
        with self.tif.filehandle.lock:
            page = self.tif.pages.get(z)
        if page.shape != self.first.shape or page.dtype != self.first.dtype:
            raise VolumeError(
                f"{self.path}, page {z}, is {page.dtype} of shape {page.shape}, expected "
                f"{self.first.dtype} of shape {self.first.shape} as the first: a stack has slices "
                "of one size and type"
            )
        return page

    @cached_property
    def _starts(self) -> list[int] | None:
        """Where the values of every page begin; None where one cannot be mapped."""
        starts: list[int] = []
        if not self.first.is_final:
            return None
        for z in range(self.shape[0]):
            page = self._page(z)
            _check_segments(self.path, page)
            if not page.is_final:
                return None
            starts.append(page.dataoffsets[0])
        return starts


def _first(path: Path, tif: Any) -> Any:
    """The first page. Raises VolumeError unless it is grey and whole."""
    page = tif.pages.first
    if not page.shape or not all(isinstance(length, int) and length for length in page.shape):
        raise VolumeError(f"{path} has a first page of shape {page.shape}, expected an image")
    if page.samplesperpixel != 1:
        raise VolumeError(
            f"{path} is a colour image ({page.samplesperpixel} values a pixel), expected one grey "
            "value a voxel: split its channels"
        )
    number_type(path, page.dtype)
    _check_segments(path, page)
    return page


def _decode(path: Path, page: Any) -> Slice:
    """The values of a page, after a look at whether the file reaches so far."""
    _check_segments(path, page)
    if page.is_final:
        return read_run(path, page.dataoffsets[0], page.shape, _stored_type(page))
    return native(np.array(page.asarray()))


def _check_segments(path: Path, page: Any) -> None:
    """A strip beyond the end of the file, or one never written, is no slice of zeros."""
    size, found = page.parent.filehandle.size, len(page.dataoffsets)
    chunk_size(path, page.chunks, page.dtype)
    if not page.is_final and found != math.prod(page.chunked):
        raise VolumeError(
            f"{path}, page {page.index}, has {found} strips or tiles, expected "
            f"{math.prod(page.chunked)} for its shape {page.shape}"
        )
    for start, length in zip(page.dataoffsets, page.databytecounts, strict=True):
        if not start or not length:
            raise VolumeError(
                f"{path}, page {page.index}, has a strip or tile that was never written, expected "
                "a whole image"
            )
        if start + length > size:
            raise VolumeError(
                f"{path} has {size} bytes, expected {start + length} for page {page.index}: it is "
                "cut off"
            )


def _check_chain(path: Path, tif: Any, pages: int) -> None:
    """tifffile takes a chain of pages that leads nowhere for its end; a whole file ends it with
    0."""
    handle, form = tif.filehandle, tif.tiff
    place = tif.pages.next_page_offset
    with handle.lock:
        handle.seek(place)
        stored = handle.read(form.offsetsize)
    if len(stored) < form.offsetsize or struct.unpack(form.offsetformat, stored)[0] != 0:
        raise VolumeError(
            f"{path} has {pages} readable pages, and the next one lies beyond its {handle.size} "
            "bytes: expected a whole file, it is cut off or its page table is broken"
        )


def _behind(path: Path, first: Any, shape: tuple[int, int, int], pages: int) -> Flat:
    """All images from where the first one begins."""
    if pages != 1 or not first.is_final:
        raise VolumeError(
            f"{path} has {pages} pages, compressed or in tiles, for the {shape[0]} slices that its "
            "description names: expected one page a slice"
        )
    flat = Flat(path, shape, _stored_type(first), first.dataoffsets[0])
    flat.check()
    return flat


def _stored_type(page: Any) -> np.dtype[Any]:
    stored: np.dtype[Any] = np.dtype(page.parent.byteorder + page.dtype.char)
    return stored


@dataclass(frozen=True)
class _Description:
    """What a file's own text says: how many slices (0: nothing), voxel size, classes."""

    kind: str = "own"
    depth: int = 0
    notes: Notes = _NOTHING


def _description(path: Path, tif: Any, first: Any) -> _Description:
    if tif.is_ome and (xml := tif.ome_metadata):
        return _of_ome(path, xml)
    if tif.is_imagej and (meta := tif.imagej_metadata):
        return _of_imagej(path, meta, first)
    if tif.is_shaped and (shaped := tif.shaped_metadata):
        # several series in one file are the pages of one stack
        leading = [n for meta in shaped for n in meta.get("shape", ())[:-2] if n > 1]
        if len(shaped) == 1 and first.shape == tuple(shaped[0].get("shape", ())[-2:]):
            return _Description("tifffile", _one_axis(path, leading))
    return _Description()


def _of_ome(path: Path, xml: str) -> _Description:
    try:
        root = ElementTree.fromstring(xml)  # nosec B314  # likewise
    except ElementTree.ParseError as error:
        raise VolumeError(f"{path} has broken OME-XML ({error}), expected it whole") from error
    images = root.findall("{*}Image/{*}Pixels")
    if len(images) != 1:
        raise VolumeError(f"{path} has {len(images)} OME images, expected one volume a file")
    pixels = images[0].attrib
    _check_planes(path, images[0])
    depth = _one_axis(path, [int(pixels.get(f"Size{axis}", 1)) for axis in "ZTC"])
    notes = sizes_in_one_unit(
        [pixels.get(f"PhysicalSize{axis}") for axis in "ZYX"],
        [pixels.get(f"PhysicalSize{axis}Unit", "µm") for axis in "ZYX"],
    )
    unit = "" if notes.unit == "pixel" else notes.unit
    return _Description("OME", depth, Notes(notes.voxel_size, unit, _classes(root)))


def _check_planes(path: Path, pixels: ElementTree.Element) -> None:
    """Planes must be the pages of this file in their order."""
    for data in pixels.findall("{*}TiffData"):
        uuid = data.find("{*}UUID")
        name = None if uuid is None else uuid.get("FileName")
        if name is not None and name != path.name and (path.parent / name).exists():
            raise VolumeError(
                f"{path} has slices in other files ({name}), expected all of them in one: give the"
                " folder instead"
            )
        page = int(data.get("IFD", 0))
        place = max(int(data.get(f"First{axis}", 0)) for axis in "ZTC")
        if page != place:
            raise VolumeError(
                f"{path} has slice {place} on page {page}, expected pages in the order of slices"
            )


def _classes(root: ElementTree.Element) -> tuple[str, ...] | None:
    for note in root.findall("{*}StructuredAnnotations/{*}MapAnnotation"):
        if note.get("Namespace") == _NAMESPACE:
            return tuple(item.text or "" for item in note.findall("{*}Value/{*}M"))
    return None


def _of_imagej(path: Path, meta: dict[str, Any], first: Any) -> _Description:
    _one_axis(path, [int(meta.get(name, 1)) for name in ("slices", "frames", "channels")])
    unit = meta.get("unit", "")
    if not unit or unit == "pixel":
        return _Description("ImageJ", int(meta.get("images", 1)))
    # ImageJ leaves a spacing of 1 away
    sizes = [meta.get("spacing", 1.0), *(_pixel(first, tag) for tag in (283, 282))]
    return _Description("ImageJ", int(meta.get("images", 1)), Notes.sized(sizes, unit))


def _pixel(page: Any, tag: int) -> float | None:
    """Edge length from a resolution tag, a fraction of pixels a unit."""
    found = page.tags.get(tag)
    return None if found is None or not found.value[0] else found.value[1] / found.value[0]


def _one_axis(path: Path, leading: list[int]) -> int:
    """The number of slices, from the lengths of all axes but y and x. Which one it is says little:
    a plain stack is often called frames or channels."""
    if sum(length > 1 for length in leading) > 1:
        raise VolumeError(
            f"{path} has stacks of {' × '.join(map(str, leading))} images, expected one axis of "
            "slices"
        )
    return max(leading, default=1)
