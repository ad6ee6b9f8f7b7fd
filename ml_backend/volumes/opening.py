"""Open and write a volume of any format: the name's ending, or what a folder holds, says which.

A reader opens what it needs and reads a slice when it is asked for; a writer takes slices one by
one. Libraries are imported with the format that needs them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from al_strategies.learner import Progress
from ml_backend.durable import move_whole
from ml_backend.volumes.formats.notes import Notes, read_sidecar
from ml_backend.volumes.staging import staging
from ml_backend.volumes.volume import ReadOptions, Volume, VolumeError, VolumeSpec

__all__ = ["FORMATS", "ReadOptions", "check_target", "open_volume", "write_volume"]

Slice = npt.NDArray[Any]


class _Module(Protocol):
    """A module of `formats`."""

    def read(self, path: Path, options: ReadOptions) -> Volume: ...

    def write(self, path: Path, slices: Iterable[Slice], spec: VolumeSpec) -> None: ...


@dataclass(frozen=True)
class _Format:
    """``endings`` of the names it is read by and written under, ``module`` in `formats`."""

    name: str
    module: str
    endings: tuple[str, ...]

    def load(self) -> _Module:
        return cast(_Module, import_module(f"ml_backend.volumes.formats.{self.module}"))


_TIFF = _Format("tiff", "tiff", (".tif", ".tiff", ".btf", ".tf8"))
_ZARR = _Format("ome-zarr", "ome_zarr", (".zarr",))
_NIFTI = _Format("nifti", "nifti", (".nii", ".nii.gz"))
_NUMPY = _Format("numpy", "numpy_file", (".npy",))
_PNG = _Format("png", "png", ("_png",))
_HDF5 = _Format("hdf5", "hdf5", (".h5", ".hdf5", ".hdf", ".nxs", ".nx", ".he5"))
_RAW = _Format("raw", "raw", (".raw", ".bin", ".vol"))
_ALL = (_TIFF, _ZARR, _NIFTI, _NUMPY, _PNG, _HDF5, _RAW)

FORMATS: Mapping[str, str] = MappingProxyType({one.name: one.endings[0] for one in _ALL})
"""Name of each format → the ending of a path that `write_volume` writes it under. ``png`` is a
folder: a name that ends in ``_png``, or has no ending."""

_READABLE = (
    "a TIFF stack (.tif), HDF5/NeXus (.h5, .nxs), OME-Zarr (.zarr), NIfTI (.nii, .nii.gz), NumPy "
    "(.npy), raw values (.raw, .bin, .vol), or a folder of one-page TIFF or PNG files"
)
_ZARR_MARKS = ("zarr.json", ".zgroup", ".zarray")
"""A folder with one of these is a Zarr group or array."""
_TIFFS, _IMAGES = _TIFF.endings, (".png", ".jpg", ".jpeg")


def open_volume(path: str | Path, options: ReadOptions | None = None) -> Volume:
    """The volume at ``path``; nothing but its description is read yet.

    Raises VolumeError for what is none of the formats, is broken, has no three axes (z, y, x) of
    numbers, or needs ``options``.
    """
    place, given = Path(path), options or ReadOptions()
    if not place.exists():
        raise VolumeError(f"{place} does not exist, expected {_READABLE}")
    return _format_of(place, given).load().read(place, given)


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
    kind = _format_for(target)
    spec = _checked_spec(target, spec)
    _refuse_existing(target, kind, overwrite)
    source = iter(slices)
    with staging(target) as folder:
        part = folder / target.name
        kind.load().write(part, _checked(target, source, spec, progress), spec)
        if next(source, None) is not None:
            raise VolumeError(f"{target}: there are more slices than the {spec.shape[0]} expected")
        # a writer may take hours: look again
        _refuse_existing(target, kind, overwrite)
        _publish(folder, target)


def check_target(path: str | Path, *, overwrite: bool = False) -> None:
    """Raise the VolumeError with which `write_volume` would refuse ``path``, before any work."""
    target = Path(path).absolute()
    _refuse_existing(target, _format_for(target), overwrite)


def _format_of(path: Path, options: ReadOptions) -> _Format:
    if path.is_dir():
        return _format_of_folder(path)
    name = path.name.lower()
    if name.endswith(".npz"):
        return _NUMPY  # which says what to do
    for one in _ALL:
        if one is not _PNG and name.endswith(one.endings):
            return one
    if options.shape is not None or path.with_name(f"{path.name}.json").exists():
        return _RAW
    image = " (it is one image: give its folder)" if name.endswith(_IMAGES) else ""
    raise VolumeError(f"{path} is no volume that can be read{image}, expected {_READABLE}")


def _format_of_folder(path: Path) -> _Format:
    if any((path / mark).exists() for mark in _ZARR_MARKS) or path.suffix.lower() == ".zarr":
        return _ZARR
    names = [one.name.lower() for one in path.iterdir() if not one.name.startswith(".")]
    tiffs = sum(name.endswith(_TIFFS) for name in names)
    images = {ending: sum(name.endswith(ending) for name in names) for ending in _IMAGES}
    counts = {"TIFF": tiffs, "PNG": images[".png"], "JPEG": images[".jpg"] + images[".jpeg"]}
    found = [f"{count} {kind}" for kind, count in counts.items() if count]
    if len(found) > 1:
        raise VolumeError(
            f"{path} has {' and '.join(found)} files, expected slices of one kind: a folder is one "
            "volume"
        )
    if not found:
        raise VolumeError(
            f"{path} is a folder of {len(names)} files and folders, none of them a TIFF or PNG "
            f"image, expected {_READABLE}"
        )
    return _TIFF if tiffs else _PNG


def _format_for(path: Path) -> _Format:
    name = path.name.lower()
    for one in _ALL:
        if name.endswith(one.endings):
            return one
    if "." not in name:
        return _PNG
    listed = ", ".join(f"{'/'.join(one.endings)} ({one.name})" for one in _ALL)
    raise VolumeError(f"{path} names no format to write, expected one of the endings {listed}")


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


def _refuse_existing(target: Path, kind: _Format, overwrite: bool) -> None:
    places = (target, _sidecar(target)) if kind in (_NUMPY, _RAW) else (target,)
    there = [one for one in places if one.exists() or one.is_symlink()]
    if there and not overwrite:
        raise VolumeError(f"{there[0]} exists already: remove it or choose another name")
    if not target.is_dir():
        if there and kind in (_ZARR, _PNG):
            raise VolumeError(f"{target} is a file, expected a folder to overwrite: choose another")
        return
    if kind not in (_ZARR, _PNG):
        raise VolumeError(f"{target} is a folder, expected a file to overwrite: choose another")
    # what was written here is removed with all that is in it, and nothing else ever
    if strange := _strange(target, kind):
        raise VolumeError(
            f"{target} is a folder that holds something else ({strange[0]}), expected {kind.name} "
            "that nextslice has written and nothing besides: choose another name"
        )


def _strange(folder: Path, kind: _Format) -> list[str]:
    """Names in ``folder`` that `write_volume` has not written there."""
    names = sorted(one.name for one in folder.iterdir())
    if kind is _ZARR and "zarr.json" in names:
        return [name for name in names if name not in ("zarr.json", "0")]
    # anyone numbers images: the note that is written with them has to be there
    if kind is _PNG and read_sidecar(folder).keys() == Notes().to_json().keys():
        return [name for name in names if not re.fullmatch(r"volume\.json|\d{4,}\.png", name)]
    return names


def _sidecar(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def _publish(staging: Path, target: Path) -> None:
    """Move what was written to its place, the volume itself last."""
    part = staging / target.name
    if _sidecar(part).exists():
        move_whole(_sidecar(part), _sidecar(target))
    move_whole(part, target, staging / ".replaced")  # which goes with the staging folder
