"""Values in many files, one behind the other, as the headers of NRRD (``data file``) and MetaImage
(``ElementDataFile``) name them: in a list, or by a pattern and its numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.enclosure import check_inside
from ml_backend.volumes.formats.axes import AxisChoice
from ml_backend.volumes.formats.flat import read_run
from ml_backend.volumes.formats.pages import by_page
from ml_backend.volumes.limits import LONGEST_AXIS
from ml_backend.volumes.volume import ReadOptions, VolumeError

__all__ = ["Pieces", "numbered"]

_NUMBER = re.compile(r"[-+]?\d{1,9}")
_PATTERN = re.compile(r"[^%]*%0?\d{0,2}[diu][^%]*")


def numbered(path: Path, said: str) -> list[str]:
    """Names of ``part%03d.raw 1 90 1``: a pattern, its first and last number, and the step, which
    may be left out; what follows is not looked at.

    Raises VolumeError naming ``path``, whose header says so, for what is none.
    """
    words = said.split()
    count = next((n for n, word in enumerate(words[:-5:-1]) if not _NUMBER.fullmatch(word)), 4)
    pattern = said.rsplit(None, count)[0] if count < len(words) else ""
    numbers = [int(word) for word in words[len(words) - count :]]
    first, last, step = (*numbers[:3], 1)[:3] if count > 1 else (0, 0, 0)
    if not _PATTERN.fullmatch(pattern) or not step or (last - first) * step < 0:
        raise VolumeError(
            f"{path} has its values in the files {said[:200]}, expected a pattern as part%03d.raw "
            "and its first number, last number and step"
        )
    count = (last - first) // step + 1
    if count > LONGEST_AXIS:
        raise VolumeError(f"{path} has its values in {count} files, expected one a slice at most")
    return [pattern % (first + place * step) for place in range(count)]


@dataclass(frozen=True)
class Pieces:
    """The volume that ``choice`` takes of an array of ``lengths``, the fastest axis last, of which
    each of ``files`` has an equal share from the byte on that ``start`` finds in it, raw."""

    header: Path
    files: tuple[Path, ...]
    lengths: tuple[int, ...]
    dtype: np.dtype[Any]
    choice: AxisChoice
    start: Callable[[Path, int], int]
    options: ReadOptions

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Z, Y, X)."""
        z, y, x = (self.lengths[axis] for axis in self.choice.axes)
        return z, y, x

    def check(self) -> None:
        """Raises VolumeError for a file that is missing, too short or outside the bounds, and where
        a slice is not in one of them."""
        z, y, x = self.choice.axes
        blocks = math.prod(self.lengths[: z + 1])
        if z > min(y, x) or not self.files or blocks % len(self.files):
            raise VolumeError(
                f"{self.header} has its values in {len(self.files)} files, expected as many as the "
                f"{blocks} slices of {self.lengths}, or as many slices in each"
            )
        for file in self.files:
            check_inside(file, self.header, self.options)
            if not file.is_file():
                raise VolumeError(
                    f"{self.header} has values in {file.name}, which is not there: expected it in "
                    f"{file.parent}"
                )
            expected = self.start(file, self._share) + self._share
            if (found := file.stat().st_size) < expected:
                raise VolumeError(
                    f"{file} has {found} bytes, expected {expected}: a part of the values that "
                    f"{self.header.name} describes"
                )

    def read(self, axis: int, index: int) -> npt.NDArray[Any]:
        """The slice at ``index`` across ``axis``."""
        return by_page(self.shape[0], self._page)(axis, index)

    @property
    def _share(self) -> int:
        """Bytes of a file."""
        return math.prod(self.lengths) * self.dtype.itemsize // len(self.files)

    def _page(self, index: int) -> npt.NDArray[Any]:
        z, y, x = self.choice.axes
        page = self.lengths[z + 1 :]
        place = [self.choice.picked.get(axis, 0) for axis in range(z)]
        number = int(np.ravel_multi_index([*place, index], self.lengths[: z + 1]))
        size = math.prod(page) * self.dtype.itemsize
        at, within = divmod(number * size, self._share)
        file = self.files[at]
        check_inside(file, self.header, self.options)
        values = read_run(file, self.start(file, self._share) + within, page, self.dtype)
        cut = values[
            tuple(self.choice.picked.get(a, slice(None)) for a in range(z + 1, len(self.lengths)))
        ]
        return np.ascontiguousarray(cut if y < x else cut.T)
