"""HDF5 and NeXus: the dataset that is named, that NeXus points to, or the only volume in the file.

NeXus: ``default`` attributes from the root down to an NXdata group whose ``signal`` names the
dataset and whose ``axes`` give the voxel size; before 2014, ``signal=1`` on the dataset itself.
``element_size_um`` (z, y, x), as ilastik and BigDataViewer write it, is read as well.
Detectors compress with Bitshuffle, LZ4, Blosc, Zstandard, …: hdf5plugin knows them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.formats.checks import chunk_size, number_type, reading, three_axes
from ml_backend.volumes.formats.format import DTYPES, EVERYTHING, Format
from ml_backend.volumes.formats.hdf5_files import Hdf5Files
from ml_backend.volumes.formats.notes import Notes, length_in, sizes_in_one_unit
from ml_backend.volumes.formats.slabs import Slabs, chunk_shape, in_slabs
from ml_backend.volumes.volume import ReadOptions, Volume, VolumeError, VolumeSpec

__all__ = ["FORMAT", "read", "write"]

_EXPECTED = "an HDF5 file"
_LISTED = 20


def read(path: Path, options: ReadOptions) -> Volume:
    """``options.dataset``: path of a dataset, or of an NXdata group."""
    import hdf5plugin  # noqa: F401  (h5py reads its compressions once it is imported)

    with reading(path, _EXPECTED):
        files = Hdf5Files(path, options)
    try:
        with reading(path, _EXPECTED):
            return _open(path, files, options.dataset)
    except BaseException:
        files.close()
        raise


def write(path: Path, slices: Iterable[npt.NDArray[Any]], spec: VolumeSpec) -> None:
    """A NeXus file: /entry/data/data, chunked and compressed, with its axes where voxels have a
    size, ``classes`` an attribute of the dataset."""
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["default"] = "entry"
        entry = file.create_group("entry")
        entry.attrs.update({"NX_class": "NXentry", "default": "data"})
        group = entry.create_group("data")
        group.attrs.update({"NX_class": "NXdata", "signal": "data"})
        dataset = group.create_dataset(
            "data", spec.shape, spec.dtype, chunks=chunk_shape(spec), compression="gzip",
            compression_opts=4, shuffle=True,
        )  # fmt: skip
        _write_axes(group, dataset, spec)
        if spec.classes is not None:
            dataset.attrs["classes"] = np.array(spec.classes, h5py.string_dtype())
        start = 0
        for slab in in_slabs(slices, spec, dataset.chunks[0]):
            dataset[start : start + len(slab)] = slab
            start += len(slab)


FORMAT = Format(
    name="hdf5",
    title="HDF5, NeXus",
    summary=(
        "the dataset that the NeXus defaults lead to, the only volume in the file, or "
        "`--dataset /entry/data`; compressed as detectors do it too (Bitshuffle, LZ4, Blosc, …)"
    ),
    readable="HDF5/NeXus (.h5, .nxs)",
    endings=(".h5", ".hdf5", ".hdf", ".nxs", ".nx", ".he5"),
    read=read,
    chooses=True,
    write=write,
    dtypes=DTYPES,
    keeps=EVERYTHING,
    repeatable=True,
    masks=".h5",
    place=20,
)


def _write_axes(group: Any, dataset: Any, spec: VolumeSpec) -> None:
    import h5py

    if spec.voxel_size is None:
        group.attrs["axes"] = np.array([".", ".", "."], h5py.string_dtype())
        return
    group.attrs["axes"] = np.array(["z", "y", "x"], h5py.string_dtype())
    for place, name in enumerate("zyx"):
        axis = group.create_dataset(
            name, data=np.arange(spec.shape[place]) * spec.voxel_size[place]
        )
        axis.attrs["units"] = spec.unit
        group.attrs[f"{name}_indices"] = place
    if (factor := length_in(spec.unit, "µm")) is not None:
        dataset.attrs["element_size_um"] = [size * factor for size in spec.voxel_size]


def _open(path: Path, files: Hdf5Files, name: str | None) -> Volume:
    dataset = _named(files, name) if name is not None else _found(files)
    place = Path(f"{path}:{dataset.name}")
    native = number_type(place, dataset.dtype)
    axes = three_axes(place, dataset.shape)
    files.check(dataset)
    chunk_size(place, dataset.chunks or (), native)
    expected = "a whole dataset, in a compression that HDF5 or hdf5plugin knows"

    def block(axis: int, start: int, stop: int) -> npt.NDArray[Any]:
        index: list[Any] = [0] * dataset.ndim
        for i, source in enumerate(axes):
            index[source] = slice(start, stop) if i == axis else slice(None)
        with reading(place, expected):
            return np.asarray(dataset[tuple(index)]).astype(native, copy=False)

    z, y, x = (dataset.shape[axis] for axis in axes)
    chunks = dataset.chunks and tuple(dataset.chunks[axis] for axis in axes)
    slabs = Slabs((z, y, x), chunks, native.itemsize, block)
    notes = _notes(files, dataset, axes)

    def close() -> None:
        slabs.close()
        files.close()

    return notes.volume(path, (z, y, x), native, slabs.read, close)


def _named(files: Hdf5Files, name: str) -> Any:
    import h5py

    found = files.member(files.root, name)
    if isinstance(found, h5py.Group):
        found = files.member(found, _text(found.attrs.get("signal", "data")))
    if not isinstance(found, h5py.Dataset):
        raise VolumeError(
            f"{files.path} has no dataset {name}, expected one of:{_listed(_all(files))}"
        )
    return found


def _found(files: Hdf5Files) -> Any:
    """By the NeXus defaults, else the only dataset with three axes of numbers."""
    if (pointed := _by_default(files)) is not None:
        return pointed
    there = _all(files)
    if files.refused:  # it may be the one, and another must not be taken for it
        raise files.refused[0]
    candidates = [one for one in there if one.dtype.kind in "biuf" and _is_volume(one.shape)]
    signals = [one for one in candidates if str(_text(one.attrs.get("signal", ""))) == "1"]
    for few in (signals, candidates):
        if len(few) == 1:
            return few[0]
    if candidates:
        raise VolumeError(
            f"{files.path} has {len(candidates)} datasets that could be the volume, name one as "
            f"dataset:{_listed(candidates)}"
        )
    raise VolumeError(
        f"{files.path} has no dataset with three axes of numbers, expected a volume; it has:"
        f"{_listed(there) or ' nothing'}"
    )


def _by_default(files: Hdf5Files) -> Any | None:
    """The signal that ``default`` attributes lead to, None where there are none."""
    import h5py

    group, passed = files.root, []
    while "signal" not in group.attrs:
        passed.append(group)
        name = _text(group.attrs.get("default", ""))
        step = files.member(group, name) if name else None
        if not isinstance(step, h5py.Group) or step in passed:
            return None
        group = step
    signal = files.member(group, _text(group.attrs["signal"]))
    return signal if isinstance(signal, h5py.Dataset) else None


def _all(files: Hdf5Files) -> list[Any]:
    """Every dataset, linked ones once; links that lead nowhere or outside are left out."""
    import h5py

    seen: set[Any] = set()
    found, groups = [], [files.root]
    while groups:
        for member in files.members(groups.pop()):
            if member in seen:
                continue
            seen.add(member)
            if isinstance(member, h5py.Group):
                groups.append(member)
            elif isinstance(member, h5py.Dataset):
                found.append(member)
    return found


def _is_volume(shape: tuple[int, ...] | None) -> bool:
    return shape is not None and sum(length > 1 for length in shape) <= 3 <= len(shape)


def _listed(datasets: Iterable[Any]) -> str:
    lines = [f"\n  {one.name} {one.dtype} {one.shape}" for one in datasets]
    more = f"\n  … and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
    return "".join(lines[:_LISTED]) + more


def _notes(files: Hdf5Files, dataset: Any, axes: tuple[int, int, int]) -> Notes:
    classes = dataset.attrs.get("classes")
    names = None if classes is None else tuple(_text(name) for name in np.atleast_1d(classes))
    notes = _axes_notes(files, dataset, axes)
    sizes = dataset.attrs.get("element_size_um")
    if notes.voxel_size is None and sizes is not None and np.size(sizes) == 3:
        notes = Notes.sized(list(sizes), "µm")
    return Notes(notes.voxel_size, notes.unit, names)


def _axes_notes(files: Hdf5Files, dataset: Any, axes: tuple[int, int, int]) -> Notes:
    """From the datasets that NXdata's ``axes`` name, where they are evenly spaced lengths."""
    import h5py

    group = dataset.parent
    names = [_text(name) for name in np.atleast_1d(group.attrs.get("axes", []))]
    if len(names) != dataset.ndim:
        return Notes()
    sizes, units = [], []
    for axis in axes:
        one = files.member(group, names[axis])
        if not isinstance(one, h5py.Dataset) or "units" not in one.attrs:
            return Notes()
        files.check(one)
        sizes.append(_step(one, dataset.shape[axis]))
        units.append(one.attrs["units"])
    return sizes_in_one_unit(sizes, units)


def _step(coordinates: Any, length: int) -> float | None:
    """How far they are apart; None where they are not one for each index, or uneven."""
    if coordinates.shape != (length,) or length < 2 or coordinates.dtype.kind not in "iuf":
        return None
    values = coordinates[()]
    steps = np.diff(values.astype(np.float64))
    mean = float(steps.mean())
    return abs(mean) if np.allclose(steps, mean, rtol=1e-3, atol=0) else None


def _text(value: Any) -> str:
    value = value[0] if isinstance(value, np.ndarray) and value.size == 1 else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
