"""HDF5 and NeXus: the dataset that is named, that NeXus points to, or the only volume in the file.

NeXus: ``default`` attributes from the root down to an NXdata group whose ``signal`` names the
dataset and whose ``axes`` give the voxel size; before 2014, ``signal=1`` on the dataset itself.
Names of axes are obeyed (`hdf5_axes`). ``element_size_um`` (z, y, x), as ilastik and BigDataViewer
write it, is read as well.
Detectors compress with Bitshuffle, LZ4, Blosc, Zstandard, …: hdf5plugin knows them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.formats.checks import reading
from ml_backend.volumes.formats.format import DTYPES, EVERYTHING, Format
from ml_backend.volumes.formats.hdf5_axes import text
from ml_backend.volumes.formats.hdf5_dataset import OpenDataset
from ml_backend.volumes.formats.hdf5_files import Hdf5Files
from ml_backend.volumes.formats.hdf5_parts import parts_of
from ml_backend.volumes.formats.notes import Notes, length_in, sizes_in_one_unit
from ml_backend.volumes.formats.slabs import Slabs, chunk_shape, in_slabs
from ml_backend.volumes.volume import ReadOptions, Volume, VolumeSpec

__all__ = ["FORMAT", "read", "write"]

_EXPECTED = "an HDF5 file"


def read(path: Path, options: ReadOptions) -> Volume:
    """``options.dataset``: path of a dataset, or of an NXdata group."""
    import hdf5plugin  # noqa: F401  (h5py reads its compressions once it is imported)

    with reading(path, _EXPECTED):
        dataset = OpenDataset(path, options)
    try:
        with reading(path, _EXPECTED):
            return _volume(path, dataset)
    except BaseException:
        dataset.close()
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
    datasets=True,
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
    origin = spec.origin or (0.0, 0.0, 0.0)
    for place, name in enumerate("zyx"):
        axis = group.create_dataset(
            name, data=np.arange(spec.shape[place]) * spec.voxel_size[place] + origin[place]
        )
        axis.attrs["units"] = spec.unit
        group.attrs[f"{name}_indices"] = place
    if (factor := length_in(spec.unit, "µm")) is not None:
        dataset.attrs["element_size_um"] = [size * factor for size in spec.voxel_size]


def _volume(path: Path, dataset: OpenDataset) -> Volume:
    axes, native = dataset.axes, dataset.dtype
    chunks = dataset.chunks and tuple(dataset.chunks[axis] for axis in axes)
    slabs = Slabs(dataset.shape, chunks, native.itemsize, dataset.block)
    notes = _notes(dataset, axes)

    def close() -> None:
        slabs.close()
        dataset.close()

    volume = notes.volume(path, dataset.shape, native, slabs.read, close)
    return replace(volume, runs=dataset.runs)


def _notes(opened: OpenDataset, axes: tuple[int, int, int]) -> Notes:
    dataset = opened.values
    classes = dataset.attrs.get("classes")
    names = None if classes is None else tuple(text(name) for name in np.atleast_1d(classes))
    notes = _axes_notes(opened.files, dataset, opened.group, axes)
    sizes = dataset.attrs.get("element_size_um")
    if notes.voxel_size is None and sizes is not None and np.size(sizes) == 3:
        notes = Notes.sized(list(sizes), "µm")
    return replace(notes, classes=names)


def _axes_notes(files: Hdf5Files, dataset: Any, group: Any, axes: tuple[int, int, int]) -> Notes:
    """From the datasets that NXdata's ``axes`` name, where they are evenly spaced lengths."""
    import h5py

    names = [text(name) for name in np.atleast_1d(group.attrs.get("axes", []))]
    if len(names) != dataset.ndim:
        return Notes()
    sizes, units, places = [], [], []
    for axis in axes:
        one = files.member(group, names[axis])
        if not isinstance(one, h5py.Dataset) or "units" not in one.attrs:
            return Notes()
        parts_of(files, one)
        size, place = _step(one, dataset.shape[axis])
        sizes.append(size)
        places.append(place)
        units.append(one.attrs["units"])
    return sizes_in_one_unit(sizes, units, places)


def _step(coordinates: Any, length: int) -> tuple[float | None, float | None]:
    """How far they are apart, None where they are not one for each index, or uneven; and the first
    one, None where they descend."""
    if coordinates.shape != (length,) or length < 2 or coordinates.dtype.kind not in "iuf":
        return None, None
    values = coordinates[()].astype(np.float64)
    steps = np.diff(values)
    mean = float(steps.mean())
    if not np.allclose(steps, mean, rtol=1e-3, atol=0):
        return None, None
    return abs(mean), float(values[0]) if mean > 0 else None
