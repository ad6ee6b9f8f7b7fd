"""A tomogram that is read slice by slice: one type, whatever the file format.

`Volume` is what `open_volume` gives and what slice server, import, training and segmentation read;
`VolumeSpec` says what `write_volume` is to write. Arrays are (Z, Y, X), axes are called z, y, x.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ml_backend.errors import NextsliceError
from ml_backend.volumes.limits import SLICE_VOXELS
from ml_backend.volumes.turn import Affine

if TYPE_CHECKING:
    from ml_backend.volumes.runs import Runs

__all__ = [
    "AXES",
    "Bounds",
    "Read",
    "ReadOptions",
    "Volume",
    "VolumeError",
    "VolumeSpec",
    "axis_index",
]

AXES = ("z", "y", "x")
"""The axes of a volume in the order of its shape. A slice along z is (Y, X), along y (Z, X), along
x (Z, Y)."""

Slice = npt.NDArray[Any]

Read = Callable[[int, int], Slice]
"""``read(axis, index)`` of a `Volume`."""


class VolumeError(NextsliceError, ValueError):
    """A volume that cannot be read or written; the message names the file, what was found in it
    and what was expected."""


def axis_index(axis: int | str) -> int:
    """0, 1 or 2 for ``"z"``, ``"y"``, ``"x"`` or the number itself. Raises VolumeError."""
    if axis in AXES:
        return AXES.index(str(axis))
    if axis in (0, 1, 2, "0", "1", "2"):
        return int(axis)
    raise VolumeError(f"axis is {axis!r}, expected one of z, y, x (or 0, 1, 2)")


def slice_shape(shape: tuple[int, int, int], axis: int) -> tuple[int, int]:
    """(height, width) of a slice across ``axis`` of a volume of ``shape`` (Z, Y, X)."""
    rows, columns = (length for i, length in enumerate(shape) if i != axis)
    return rows, columns


def _nothing() -> None:
    """Of a format that keeps no file open, or has no runs."""


@dataclass(frozen=True)
class Volume(AbstractContextManager["Volume", None]):
    """A volume on disk; nothing but what is asked for is read.

    ``shape`` (Z, Y, X); ``dtype``: of the values as they come, in native byte order;
    ``read(axis, index)``: one slice across that axis. ``voxel_size``: edge lengths along z, y, x in
    ``unit`` ("µm", "mm", … where the file names a length in any usual way, else its own word), None
    where the file does not say. ``classes``: the names of a label volume's values by index, where
    the file says them. ``affine``: where the voxels lie, None where the file does not say; its
    axes have been ``turned`` for that since they were read, and ``stored`` says how they run in the
    file, as "LPS" of x, y, z. ``frame``: of which coordinate system that is, in NIfTI's words
    ("scanner", "aligned", "talairach", "mni", "template"), empty where the file does not say.
    ``origin``: where the first voxel lies along z, y, x in ``unit``, for files that say this and
    no directions. ``files``: what the volume is made of besides ``path`` and what is in it, links
    followed. ``axis``: the one that indices run along. ``runs()``: where z slices lie as they are,
    None where they do not or it is not known. Reading is safe from several threads. Closes its
    files as a context manager or by `close`, at the latest when nothing refers to it any more.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    read: Read = field(repr=False)
    voxel_size: tuple[float, float, float] | None = None
    unit: str = ""
    classes: tuple[str, ...] | None = None
    affine: Affine | None = None
    turned: bool = False
    stored: str = ""
    frame: str = ""
    origin: tuple[float, float, float] | None = None
    files: tuple[Path, ...] = field(default=(), repr=False, compare=False)
    axis: int = 0
    close: Callable[[], None] = field(default=_nothing, repr=False, compare=False)
    runs: Callable[[], Runs | None] = field(default=_nothing, repr=False, compare=False)

    def along(self, axis: int | str) -> Volume:
        """The same volume with slices along ``axis``: "z", "y", "x" or 0, 1, 2."""
        return replace(self, axis=axis_index(axis))

    @property
    def slice_shape(self) -> tuple[int, int]:
        """(height, width) of a slice."""
        return slice_shape(self.shape, self.axis)

    def __len__(self) -> int:
        return self.shape[self.axis]

    def __getitem__(self, index: int) -> Slice:
        """The slice at ``index`` along `axis`, an array of its own in native values.

        Raises IndexError outside 0 … len - 1, VolumeError for a file that is broken there, and for
        a slice of more than `SLICE_VOXELS`.
        """
        if not 0 <= index < len(self):
            raise IndexError(
                f"{self.path} has no slice {index} along {AXES[self.axis]}: expected 0 to "
                f"{len(self) - 1}"
            )
        if math.prod(self.slice_shape) > SLICE_VOXELS:
            raise VolumeError(
                f"{self.path} has slices of {self.slice_shape} voxels along {AXES[self.axis]}, "
                f"expected at most {SLICE_VOXELS} in one, as 16384 x 16384: cut it into parts"
            )
        found = self.read(self.axis, index)
        if found.shape != self.slice_shape or found.dtype != self.dtype:
            raise VolumeError(
                f"{self.path}, slice {index} along {AXES[self.axis]}, is {found.dtype} of shape "
                f"{found.shape}: expected {self.dtype} of shape {self.slice_shape} as the others"
            )
        return found

    def __iter__(self) -> Iterator[Slice]:
        return (self[i] for i in range(len(self)))

    def __exit__(self, *failure: object) -> None:
        self.close()


@dataclass(frozen=True)
class Bounds:
    """What reading a volume may not go beyond.

    ``roots``: folders in which everything lies that is opened on behalf of it, links followed;
    none: its own folder. ``timeout_s``: seconds in which it has to be open, and each slice read;
    ten times that across y and x, for which most formats read every slice. It holds for what is
    read in a child process. ``tiled``: addresses of the Tiled servers that may be asked, with
    ``tiled_key``.
    """

    roots: tuple[Path, ...] = ()
    timeout_s: float = 30.0
    tiled: tuple[str, ...] = ()
    tiled_key: str = field(default="", repr=False)


@dataclass(frozen=True)
class ReadOptions:
    """What some formats cannot say of themselves; the others do not look at it.

    ``dataset``: path of an HDF5 dataset or group, or of an array or group inside a Zarr folder.
    ``shape`` (Z, Y, X), ``dtype`` as NumPy writes it ("<u2") and ``offset`` in bytes: of raw files.
    ``bounds`` say nothing of the voxels: with others it is the same reading of the volume.
    ``oriented``: axes are swapped and reversed so that x runs nearest to right, y to anterior, z to
    superior, where the file says how they run; else they stay as they are stored. ``flip``: axes
    that are reversed after that, some of "zyx" in this order.
    ``channel`` and ``time``: which of several, from 0, where axes are named so. ``labels``: values
    are class ids, which stay as they are stored whatever is said of how to show them.
    """

    dataset: str | None = None
    shape: tuple[int, int, int] | None = None
    dtype: str | None = None
    offset: int | None = None
    bounds: Bounds = field(default_factory=Bounds, repr=False, compare=False)
    oriented: bool = False
    flip: str = ""
    channel: int | None = None
    time: int | None = None
    labels: bool = False

    def asked_by(self, name: str) -> str:
        """What the option ``name`` is called on the command line, for a label volume too."""
        return f"--labels-{name}" if self.labels else f"--{name}"


@dataclass(frozen=True)
class VolumeSpec:
    """What is written besides the values: shape (Z, Y, X), dtype, voxel size, class names, and
    where the voxels lie (``affine`` in its ``frame``, or ``origin``), where the format has a place
    for it."""

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    voxel_size: tuple[float, float, float] | None = None
    unit: str = ""
    classes: tuple[str, ...] | None = None
    affine: Affine | None = None
    frame: str = ""
    origin: tuple[float, float, float] | None = None
