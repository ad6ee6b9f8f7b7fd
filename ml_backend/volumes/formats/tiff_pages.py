"""One page of a TIFF: which pages are images, what their values are, and whether they are whole.

Pages of a reduced image or of a mask (NewSubfileType) are no slices. Where 0 is white, values are
turned over, as every program shows them; class ids never are.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.formats.axes import refuse_choice
from ml_backend.volumes.formats.checks import chunk_size, native, number_type
from ml_backend.volumes.formats.colour import grey_of
from ml_backend.volumes.formats.flat import read_run
from ml_backend.volumes.volume import ReadOptions, VolumeError

__all__ = [
    "Pixels", "Shown", "check_chain", "check_page", "check_segments", "full_pages", "stored_type",
]  # fmt: skip

Slice = npt.NDArray[Any]

_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 6: 3}
"""Photometric interpretation → values that make a colour: white is zero, black is zero, RGB,
palette, YCbCr (which tifffile gives as RGB)."""
_ALPHA = (1, 2)
_MASK = 4  # as a photometric interpretation


def full_pages(path: Path, tif: Any) -> list[int]:
    """The pages of ``tif`` that are images. Raises VolumeError where there is none, and for one
    that says it is a reduced image and is none."""
    found: list[int] = []
    reduced: list[int] = []
    for index in range(len(tif.pages)):
        try:
            page = tif.pages.get(index)
        except Exception:  # its slice says what is broken, when it is read
            found.append(index)
            continue
        if page.subfiletype & 4 or page.photometric == _MASK:
            continue
        (reduced if page.subfiletype & 1 else found).append(index)
    if not found:
        raise VolumeError(
            f"{path} has {len(tif.pages)} pages, all of them reduced images or masks of others: "
            "expected the images themselves"
        )
    first = tif.pages.get(found[0])
    # LSM has a thumbnail of 128 × 128 pixels, however small the image is
    for index in () if tif.is_lsm else reduced:
        if tif.pages.get(index).shape == first.shape:
            raise VolumeError(
                f"{path} has a page ({index}) that says it is a reduced image of another, and is "
                f"as large as page {found[0]}: expected a smaller one, or a slice that says so"
            )
    return found


def check_page(path: Path, page: Any) -> None:
    """Raise VolumeError unless ``page`` is an image of numbers, and whole."""
    if not page.shape or not all(isinstance(length, int) and length for length in page.shape):
        raise VolumeError(f"{path} has a first page of shape {page.shape}, expected an image")
    number_type(path, page.dtype)
    check_segments(path, page)


@dataclass(frozen=True)
class Shown:
    """What of a page says how its values are shown."""

    photometric: int
    bitspersample: int

    @classmethod
    def of(cls, page: Any) -> Shown:
        return cls(int(page.photometric), int(page.bitspersample))


@dataclass(frozen=True)
class Pixels:
    """How the values of a pixel become the value of a voxel.

    ``samples``: how many there are; ``sample``: the one that is chosen, None: they must be one
    grey. ``labels``: they are class ids.
    """

    samples: int = 1
    sample: int | None = None
    labels: bool = False

    @property
    def must_be_grey(self) -> bool:
        """Whether they are colours that have to be one grey."""
        return self.samples > 1 and self.sample is None

    @classmethod
    def of(cls, path: Path, page: Any, options: ReadOptions, *, channels: bool = False) -> Pixels:
        """Of pages as ``page``. ``channels``: its values are no colours, whatever it says. Raises
        VolumeError where one must be chosen, and is not, or one that is not there is."""
        samples = page.samplesperpixel
        if samples == 1:
            refuse_choice(path, options)
            return cls(labels=options.labels)
        if options.channel is not None:
            if not 0 <= options.channel < samples:
                raise VolumeError(
                    f"{path} has {samples} values a pixel, asked for is "
                    f"{options.asked_by('channel')} {options.channel}: expected 0 to {samples - 1}"
                )
            return cls(samples, options.channel, options.labels)
        colours = _COLOURS.get(page.photometric, 0)
        alpha = samples == colours + 1 and (colours == 3 or page.extrasamples[:1] in _alphas())
        if channels or not (colours == samples == 3 or alpha):
            raise _colours(path, samples, "", options.asked_by("channel"))
        return cls(samples, labels=options.labels)

    def grey(self, path: Path, page: Any, values: Slice) -> Slice:
        """(Y, X) of the values of ``page``. Raises VolumeError for colours."""
        if self.samples > 1:
            values = values if page.planarconfig == 1 else np.moveaxis(values, 0, -1)
            if self.sample is not None:
                values = np.ascontiguousarray(values[..., self.sample])
            elif (grey := grey_of(values)) is not None:
                values = grey
            else:
                how = ReadOptions(labels=self.labels).asked_by("channel")
                raise _colours(path, self.samples, f", page {page.index}", how)
        return self.turned(page, values)

    def turned(self, page: Any | Shown, values: Slice) -> Slice:
        """Values, turned over where 0 is white. Others than whole numbers from 0 have no white to
        count from, and are shown as they are by every program."""
        if not self.turns(page, values.dtype):
            return values
        if values.dtype == np.bool_:
            return ~values
        white = values.dtype.type(2 ** min(page.bitspersample, 8 * values.dtype.itemsize) - 1)
        return np.asarray(white - values)

    def turns(self, page: Any | Shown, dtype: np.dtype[Any]) -> bool:
        """Whether `turned` changes values of this type."""
        return not self.labels and page.photometric == 0 and dtype.kind in "bu"

    def decode(self, path: Path, page: Any) -> Slice:
        """(Y, X) of a page, after a look at whether the file reaches so far."""
        check_segments(path, page)
        if page.is_final:
            values = read_run(path, page.dataoffsets[0], page.shape, stored_type(page))
        else:
            values = native(np.array(page.asarray()))
        return self.grey(path, page, values)


def _alphas() -> list[tuple[int, ...]]:
    return [(kind,) for kind in _ALPHA]


def _colours(path: Path, samples: int, where: str, how: str) -> VolumeError:
    return VolumeError(
        f"{path}{where} is a colour image ({samples} values a pixel), expected one grey value a "
        f"voxel: choose one of them with {how}, 0 to {samples - 1}, or split its channels"
    )


def stored_type(page: Any) -> np.dtype[Any]:
    """With the byte order of the file."""
    stored: np.dtype[Any] = np.dtype(page.parent.byteorder + page.dtype.char)
    return stored


def check_segments(path: Path, page: Any) -> None:
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


def check_chain(path: Path, tif: Any, pages: int) -> None:
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
