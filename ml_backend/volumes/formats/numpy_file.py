"""NumPy's ``.npy``: both orders and byte orders, never pickled objects.

Voxel size and class names are in a sidecar, ``scan.npy.json``. A ``.npz`` is an archive that cannot
be read slice by slice.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.formats.checks import number_type, reading, three_axes
from ml_backend.volumes.formats.flat import Flat
from ml_backend.volumes.formats.format import DTYPES, EVERYTHING, Format
from ml_backend.volumes.formats.notes import Notes, write_sidecar
from ml_backend.volumes.volume import ReadOptions, Volume, VolumeError, VolumeSpec

__all__ = ["FORMAT", "read", "write"]

_FORMAT: Any = np.lib.format  # has no types


def read(path: Path, options: ReadOptions) -> Volume:
    """The file must have exactly the size that its header says."""
    if path.suffix.lower() == ".npz":
        raise VolumeError(
            f"{path} is an archive whose slices cannot be read one by one: save the array by itself"
            " with numpy.save"
        )
    with reading(path, "a NumPy file"), path.open("rb") as file:
        version = _FORMAT.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = _FORMAT.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = _FORMAT.read_array_header_2_0(file)
        else:
            raise VolumeError(
                f"{path} is a NumPy file of version {version}, expected 1.0 or 2.0 as of an array "
                "of numbers"
            )
        offset = file.tell()
    native = number_type(path, dtype)
    z, y, x = (shape[axis] for axis in three_axes(path, shape))
    flat = Flat(path, (z, y, x), dtype, offset, "F" if fortran else "C")
    flat.check(exact=True)
    notes = Notes.beside(path)
    return notes.volume(path, flat.shape, native, flat.read)


def write(path: Path, slices: Iterable[npt.NDArray[Any]], spec: VolumeSpec) -> None:
    """Values in native byte order, x fastest, and the sidecar."""
    write_sidecar(path, spec)
    descr = _FORMAT.dtype_to_descr(spec.dtype)
    with path.open("wb") as file:
        header = {"descr": descr, "fortran_order": False, "shape": tuple(spec.shape)}
        _FORMAT.write_array_header_1_0(file, header)
        for values in slices:
            file.write(np.ascontiguousarray(values).data)


FORMAT = Format(
    name="numpy",
    title="NumPy",
    summary="`.npy`",
    endings=(".npy",),
    read=read,
    apart=False,
    write=write,
    dtypes=DTYPES,
    keeps=EVERYTHING,
    sidecar=True,
    repeatable=True,
    masks=".npy",
    explains=(".npz",),
    place=50,
)
