"""EDF of the ESRF: a folder with a file a slice, or one file with many images or a volume.

fabio parses the headers; the values behind them are read where they lie. Sizes of pixels are those
of ``PSize_1`` … ``PSize_3``, in metres.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.enclosure import check_inside
from ml_backend.volumes.formats.checks import number_type, reading, three_axes
from ml_backend.volumes.formats.flat import Flat, read_run
from ml_backend.volumes.formats.format import Format
from ml_backend.volumes.formats.notes import Notes
from ml_backend.volumes.formats.pages import Look, by_page, files_in, folder_read
from ml_backend.volumes.runs import FileState, Runs, file_state
from ml_backend.volumes.volume import ReadOptions, Volume, VolumeError

__all__ = ["FORMAT", "read"]

_EXPECTED = "an EDF file"
_ENDINGS = (".edf",)
_HOW = "`fabio-convert` writes it so"


def read(path: Path, options: ReadOptions) -> Volume:
    """A folder of one-image files, or a file."""
    if path.is_dir():
        return _read_folder(path, options)
    blocks = _blocks(path, options)
    first = blocks[0]
    native, notes = number_type(path, first.dtype), _notes(first.header)
    if len(blocks) == 1 and len(first.shape) > 2:
        z, y, x = (first.shape[axis] for axis in three_axes(path, first.shape))
        flat = Flat(first.place, (z, y, x), first.dtype, first.start)
        starts = range(first.start, flat.end, y * x * first.dtype.itemsize)
        runs = Runs(first.place, first.dtype, starts, first.state)
        return replace(notes.volume(path, flat.shape, native, flat.read), runs=lambda: runs)
    for number, block in enumerate(blocks):
        if (block.shape, block.dtype) != (first.shape, first.dtype) or len(block.shape) != 2:
            raise VolumeError(
                f"{path}, image {number}, is {block.dtype} of shape {block.shape}, expected "
                f"{first.dtype} of shape {first.shape[-2:]} as the first, (y, x)"
            )
    shape = (len(blocks), first.shape[0], first.shape[1])
    volume = notes.volume(path, shape, native, by_page(shape[0], lambda z: blocks[z].read()))
    return replace(volume, runs=lambda: _runs(blocks))


FORMAT = Format(
    name="edf",
    title="EDF",
    summary="a folder of one-image files, or a file with many images or one volume; as fabio",
    readable="EDF (.edf)",
    endings=_ENDINGS,
    read=read,
    images={"EDF": _ENDINGS},
    place=76,
)


@dataclass(frozen=True)
class _Block:
    """An image, or a volume, from byte ``start`` of the file ``place`` on, which was in ``state``
    when its header was read."""

    place: Path
    state: FileState
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    header: Mapping[str, str]

    def read(self) -> npt.NDArray[Any]:
        return read_run(self.place, self.start, (self.shape[0], self.shape[1]), self.dtype)


def _runs(blocks: Sequence[_Block]) -> Runs | None:
    """Of images of one shape and type; None where they lie in several files."""
    first = blocks[0]
    if any((block.place, block.state) != (first.place, first.state) for block in blocks):
        return None
    return Runs(first.place, first.dtype, [block.start for block in blocks], first.state)


def _blocks(path: Path, options: ReadOptions) -> Sequence[_Block]:
    """All that are in ``path``. Raises VolumeError where one is packed or not all there."""
    from fabio.edfimage import EdfImage

    image: Any = EdfImage()
    with reading(path, _EXPECTED), closing(image):
        state = _state(path)  # before: who writes to it meanwhile makes it another
        image.read(str(path))
        frames = (image.get_frame(i) for i in range(image.nframes))
        return [_block(path, state, frame, options) for frame in frames]


def _state(path: Path) -> FileState:
    with path.open("rb", 0) as file:
        return file_state(file.fileno())


def _block(path: Path, state: FileState, frame: Any, options: ReadOptions) -> _Block:
    header = {str(key): str(value) for key, value in frame.header.items()}
    packed = next((header[key] for key in header if key.upper() == "COMPRESSION"), "none")
    if packed.strip().upper() not in ("", "NONE", "NO", "FALSE"):
        raise VolumeError(f"{path} has values packed by {packed}, expected none: {_HOW}")
    if not any(key.upper() == "DATATYPE" for key in header):  # fabio takes 16 bits for granted
        raise VolumeError(f"{path} does not say the type of its values, expected DataType: {_HOW}")
    place, start = path, int(frame.start)
    if frame.bfname is not None:
        place, start = path.parent / frame.bfname, int(frame.bfstart)
        check_inside(place, path, options)
        if not place.is_file():
            raise VolumeError(
                f"{path} has its values in {place.name}, which is not there: expected it in "
                f"{path.parent}"
            )
        state = _state(place)
    dtype = np.dtype(frame.dtype).newbyteorder("<" if str(frame.byteorder.value) == "<" else ">")
    shape = tuple(int(length) for length in frame.shape)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    found = state[-1]
    if found < start + size:
        raise VolumeError(
            f"{place} has {found} bytes, expected {start + size}: {dtype} of shape {shape} from "
            f"byte {start}"
        )
    return _Block(place, state, start, shape, dtype, header)


def _read_folder(path: Path, options: ReadOptions) -> Volume:
    files = files_in(path, _ENDINGS)

    def only(file: Path) -> _Block:
        blocks = _blocks(file, options)
        if len(blocks) != 1 or len(blocks[0].shape) != 2:
            raise VolumeError(
                f"{file} has {len(blocks)} images of shape {blocks[0].shape}, expected one slice a "
                "file in a folder"
            )
        return blocks[0]

    def look(file: Path) -> Look:
        block = only(file)
        return (block.shape[0], block.shape[1]), number_type(file, block.dtype)

    def image(file: Path, check: Callable[[Look], None]) -> npt.NDArray[Any]:
        block = only(file)
        check(((block.shape[0], block.shape[1]), number_type(file, block.dtype)))
        return block.read()

    (size, dtype), cut = folder_read(files, options, look, image)
    notes = Notes.beside(path)
    if notes.voxel_size is None:
        notes = _notes(only(files[0]).header, notes.classes)
    return notes.volume(path, (len(files), *size), dtype, cut)


def _notes(header: Mapping[str, str], classes: tuple[str, ...] | None = None) -> Notes:
    keys = {key.lower(): value for key, value in header.items()}
    sizes = [keys.get(f"psize_{axis}", "").split()[:1] for axis in (3, 2, 1)]
    if not all(sizes):
        return Notes(classes=classes)
    return Notes.sized([size[0] for size in sizes], "m", classes)
