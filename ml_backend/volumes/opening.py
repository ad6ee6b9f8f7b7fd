"""Open and write a volume of any format: the name's ending, or what a folder holds, says which.

A reader opens what it needs and reads a slice when it is asked for; a writer takes slices one by
one. Libraries are imported with the format that needs them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from al_strategies.learner import Progress
from ml_backend.durable import move_whole
from ml_backend.volumes.apart import open_apart
from ml_backend.volumes.enclosure import check_inside, elsewhere, looked_at
from ml_backend.volumes.formats.axes import refuse_choice
from ml_backend.volumes.formats.checks import writable_type
from ml_backend.volumes.formats.format import Format
from ml_backend.volumes.formats.notes import sidecar_path
from ml_backend.volumes.formats.registry import formats
from ml_backend.volumes.geometry import flipped, towards_superior
from ml_backend.volumes.limits import LONGEST_AXIS
from ml_backend.volumes.recognition import format_for, format_of, readable
from ml_backend.volumes.staging import holds_us, staging
from ml_backend.volumes.volume import ReadOptions, Volume, VolumeError, VolumeSpec

__all__ = ["FORMATS", "ReadOptions", "check_target", "open_volume", "write_volume"]

Slice = npt.NDArray[Any]

FORMATS: Mapping[str, str]
"""Name of each format that is written → the ending of a path that `write_volume` writes it under.
``png`` is a folder: a name that ends in ``_png``, or has no ending."""


def __getattr__(name: str) -> Any:
    if name == "FORMATS":  # not at import: plugins may import this module
        return {one.name: one.endings[0] for one in formats() if one.write is not None}
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def open_volume(
    path: str | Path, options: ReadOptions | None = None, *, strict: bool = False
) -> Volume:
    """The volume at ``path``; nothing but its description is read yet.

    Without ``options`` it is oriented, see `ReadOptions`. ``strict``: what its format does not look
    at of ``options`` is refused; addresses of slices that were given needless ones stay good.
    Raises VolumeError for what is none of the formats, is broken, has no three axes (z, y, x) of
    numbers, needs ``options``, leads out of their bounds, or claims more than `limits` allow.
    """
    place, given = Path(path), options or ReadOptions(oriented=True)
    if not place.exists():
        raise VolumeError(f"{place} does not exist, expected {readable()}")
    with looked_at() as places:
        check_inside(place, place, given)
        check_inside(sidecar_path(place), place, given)
        kind = format_of(place, given)
        if not kind.chooses:
            refuse_choice(place, given)
        if strict:
            _refuse_needless(place, kind, given)
        volume = open_apart(place, given) if kind.apart else kind.read(place, given)
    volume = replace(volume, files=(*volume.files, *elsewhere(places, place)))
    if max(volume.shape) > LONGEST_AXIS:
        volume.close()
        raise VolumeError(
            f"{place} has the shape {volume.shape}, expected at most {LONGEST_AXIS} slices along "
            "an axis: is its header broken?"
        )
    return flipped(towards_superior(volume) if given.oriented else volume, given.flip)


def _refuse_needless(path: Path, kind: Format, options: ReadOptions) -> None:
    datasets = () if kind.datasets else ("dataset",)
    description = () if kind.described else ("shape", "dtype", "offset")
    for name in (*datasets, *description):
        if (value := getattr(options, name)) not in (None, 0):
            raise VolumeError(
                f"{path} is read as {kind.title}, which says all of itself and does not look at "
                f"{options.asked_by(name)} (found {value!r}): leave it out"
            )


def write_volume(
    path: str | Path,
    slices: Iterable[Slice],
    spec: VolumeSpec,
    progress: Progress | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write ``slices`` along z, (Y, X) each, as the format that the ending of ``path`` names.

    They are taken one at a time; chunked formats keep a row of chunks in memory. The volume appears
    under its name when it is whole, an interrupted one not at all. Raises VolumeError where
    ``path`` exists (unless ``overwrite``; of folders only an empty one, or one that was written
    here and holds nothing besides), another process is writing it, the format cannot hold the type,
    or ``slices`` are not what ``spec`` says: as many, of that shape and type.
    """
    target = Path(path).absolute()
    kind, write = format_for(target)
    spec = _checked_spec(target, spec)
    _refuse_existing(target, kind, overwrite)
    writable_type(target, spec.dtype, kind.dtypes, kind.written_as or kind.title)
    source = iter(slices)
    with staging(target) as folder:
        part = folder / target.name
        write(part, _checked(target, source, spec, progress), spec)
        if next(source, None) is not None:
            raise VolumeError(f"{target}: there are more slices than the {spec.shape[0]} expected")
        # a writer may take hours: look again
        _refuse_existing(target, kind, overwrite)
        _publish(folder, target)


def check_target(path: str | Path, *, overwrite: bool = False) -> None:
    """Raise the VolumeError with which `write_volume` would refuse ``path``, before any work."""
    target = Path(path).absolute()
    _refuse_existing(target, format_for(target)[0], overwrite)


def _checked_spec(path: Path, spec: VolumeSpec) -> VolumeSpec:
    """With the type in native byte order."""
    if len(spec.shape) != 3 or min(spec.shape) < 1:
        raise VolumeError(f"{path}: the shape is {spec.shape}, expected (z, y, x), all above 0")
    dtype: np.dtype[Any] = np.dtype(spec.dtype)
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise VolumeError(f"{path}: the type is {dtype}, expected bool, integer or float")
    size = spec.voxel_size
    if size is not None and not all(math.isfinite(edge) and edge > 0 for edge in size):
        raise VolumeError(f"{path}: the voxel size is {size}, expected three lengths above 0")
    return replace(spec, dtype=dtype.newbyteorder("="))


def _checked(
    path: Path, slices: Iterator[Slice], spec: VolumeSpec, progress: Progress | None
) -> Iterator[Slice]:
    """As many as there must be, each of the type and shape it must have, C-contiguous."""
    depth = spec.shape[0]
    for z in range(depth):
        one = next(slices, None)
        if one is None:
            raise VolumeError(f"{path}: there are {z} slices, expected {depth}")
        if one.shape != spec.shape[1:] or one.dtype.newbyteorder("=") != spec.dtype:
            raise VolumeError(
                f"{path}: slice {z} is {one.dtype} of shape {one.shape}, expected {spec.dtype} of "
                f"shape {spec.shape[1:]}"
            )
        yield np.ascontiguousarray(one, spec.dtype)
        if progress is not None:
            progress("write volume", z + 1, depth)


def _refuse_existing(target: Path, kind: Format, overwrite: bool) -> None:
    if holds_us(target):
        raise VolumeError(
            f"{target} is the folder that this command runs in, or above it: it cannot be "
            "replaced, give a name in it"
        )
    places = (target, _sidecar(target)) if kind.sidecar else (target,)
    there = [one for one in places if one.exists() or one.is_symlink()]
    if there and not overwrite:
        raise VolumeError(f"{there[0]} exists already: remove it or choose another name")
    if not target.is_dir():
        if there and kind.folder:
            raise VolumeError(f"{target} is a file, expected a folder to overwrite: choose another")
        return
    if not kind.folder:
        raise VolumeError(f"{target} is a folder, expected a file to overwrite: choose another")
    # what was written here is removed with all that is in it, and nothing else ever
    if strange := kind.strange(target) if kind.strange else []:
        raise VolumeError(
            f"{target} is a folder that holds something else ({strange[0]}), expected {kind.name} "
            "that nextslice has written and nothing besides: choose another name"
        )


def _sidecar(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def _publish(staging: Path, target: Path) -> None:
    """Move what was written to its place, the volume itself last."""
    part = staging / target.name
    if _sidecar(part).exists():
        move_whole(_sidecar(part), _sidecar(target))
    move_whole(part, target, staging / ".replaced")  # which goes with the staging folder
