"""What a format declares of itself: all that the rest of the product knows of it.

Each module of this package declares one `Format` as ``FORMAT``, another distribution one behind an
entry point (docs/plugins.md); `registry` finds them. Declarations are looked at whenever the
product starts, so a module imports its heavy library in the functions that need it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from ml_backend.volumes.volume import ReadOptions, Volume, VolumeSpec

__all__ = ["DTYPES", "EVERYTHING", "Format", "Kept"]

DTYPES = (
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16",
    "float32", "float64",
)  # fmt: skip
"""Every type that a volume can have."""

Kept = Literal["voxel_size", "unit", "classes"]
EVERYTHING: tuple[Kept, ...] = ("voxel_size", "unit", "classes")
"""What a format may keep besides the values."""


@dataclass(frozen=True)
class Format:
    """One file format of volumes. The contract of all of them is tests/test_formats.py.

    For people:

    - ``name``: on the command line and in records, as "ome-zarr".
    - ``title``: in tables and sentences; ``summary``: what of it is read, for docs/import.md.
    - ``readable``: it in the list of what can be read, by default title and first ending.
    - ``place``: where it stands in lists, smaller first.

    Reading and writing:

    - ``endings``: of the names it is read by and written under, in lower case, the usual one first.
    - ``also``: endings that it is read by too, and never written under.
    - ``read(path, options)`` opens a volume whose slices are read when they are asked for;
      VolumeError for what is broken or something else.
    - ``chooses``: ``read`` obeys ``channel`` and ``time`` of the options; else they are refused.
    - ``datasets``: ``read`` obeys ``dataset``; ``described``: it obeys ``shape``, ``dtype`` and
      ``offset``. Else what is given of them is refused where `open_volume` is strict.
    - ``apart``: it is read in a child process, under limits of time and memory (`apart`). False
      where no C code parses the file that bytes may hang or end.
    - ``write(path, slices, spec)`` makes the new ``path`` of slices (Y, X) along z; None: it is
      read only. `write_volume` checks slices and spec, and moves what is whole to its place.
    - ``dtypes``: NumPy's names of the types that are written, and come back bit for bit;
      ``written_as``: what is written, where that is narrower than ``title``.
    - ``keeps``: what is written besides the values and comes back.
    - ``sidecar``: it keeps that in ``<name>.json`` beside its file.
    - ``repeatable``: the same volume, written twice, is the same bytes.
    - ``masks``: the ending under which label volumes are exported; None: not offered there.

    Recognised otherwise than by its ending:

    - ``folder``: it is a folder; ``marks``: names of files that only such a folder has.
      ``strange(folder)``: names in it that ``write`` has not written there: a folder with such is
      not overwritten.
    - ``images``: kind → endings of the files of which a folder is a volume, one slice each.
    - ``without_ending``: a name without an ending is written as this.
    - ``takes(path, options)``: whether a file that no ending tells is one of these; asked of a
      folder too where there are ``images``.
    - ``explains``: endings that ``read`` answers with what to do instead.
    - ``long_endings``: those that also belong together when a name is taken apart, as ".ome.tif".

    Raises ValueError for a declaration that contradicts itself.
    """

    name: str
    title: str
    summary: str
    endings: tuple[str, ...]
    read: Callable[[Path, ReadOptions], Volume]
    also: tuple[str, ...] = ()
    chooses: bool = False
    datasets: bool = False
    described: bool = False
    apart: bool = True
    write: Callable[[Path, Iterable[npt.NDArray[Any]], VolumeSpec], None] | None = None
    dtypes: tuple[str, ...] = ()
    written_as: str = ""
    keeps: tuple[Kept, ...] = ()
    sidecar: bool = False
    repeatable: bool = False
    masks: str | None = None
    folder: bool = False
    marks: tuple[str, ...] = ()
    strange: Callable[[Path], list[str]] | None = None
    images: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    without_ending: bool = False
    takes: Callable[[Path, ReadOptions], bool] | None = None
    explains: tuple[str, ...] = ()
    long_endings: tuple[str, ...] = ()
    readable: str = ""
    place: int = 100

    def __post_init__(self) -> None:
        if wrong := _contradiction(self):
            raise ValueError(f"format {self.name!r} {wrong}")

    @property
    def reads_files(self) -> bool:
        """Whether its endings are those of files; a folder of images has files of another kind."""
        return not (self.folder and self.images)

    @property
    def claimed(self) -> frozenset[str]:
        """All endings that no other format may have."""
        images = (ending for endings in self.images.values() for ending in endings)
        return frozenset((*self.endings, *self.also, *self.explains, *self.long_endings, *images))

    def ending_of(self, name: str) -> str:
        """The longest of its endings that ``name`` has, in any case; empty without one."""
        return _longest(self.endings, name)

    def reading_of(self, name: str) -> str:
        """The same of all that it is read by."""
        return _longest((*self.endings, *self.also), name)


def _longest(endings: tuple[str, ...], name: str) -> str:
    ours = [ending for ending in endings if name.lower().endswith(ending)]
    return max(ours, key=len, default="")


def _contradiction(one: Format) -> str:
    """What is wrong with it, empty where nothing is."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", one.name):
        return "has a name that is not made of a-z, 0-9 and dashes"
    if not one.endings or any(e != e.lower() or not e.strip("._") for e in one.claimed):
        return f"has the endings {sorted(one.claimed)}, expected some in lower case, as .tif"
    if not set(one.dtypes) <= set(DTYPES):
        return f"declares the dtypes {', '.join(one.dtypes)}, expected some of {', '.join(DTYPES)}"
    if not set(one.keeps) <= set(EVERYTHING):
        return f"keeps {', '.join(one.keeps)}, expected some of {', '.join(EVERYTHING)}"
    if bool(one.dtypes) != (one.write is not None):
        return "has a write without the dtypes that it writes, or the other way round"
    if one.masks is not None and "uint8" not in one.dtypes:
        return "offers label volumes (masks) but writes no uint8"
    if one.masks and one.masks not in one.endings:
        return f"has masks={one.masks!r}, expected one of its endings {', '.join(one.endings)}"
    if one.masks == "" and not one.without_ending:
        return "has masks='' but is not what a name without an ending is written as"
    if one.folder and one.write and not one.strange:
        return "writes a folder, but does not say what is strange in one, which must not be removed"
    if one.folder and one.sidecar:
        return "is a folder with a sidecar: keep in the folder what is known of it"
    return ""
