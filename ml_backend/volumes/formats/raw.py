"""Values and nothing else: shape and type come from the caller or from a sidecar.

``scan.raw.json`` beside ``scan.raw``: ``{"shape": [z, y, x], "dtype": "<u2", "offset": 0}`` and
what `notes` keeps. x runs fastest.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.formats.checks import number_type
from ml_backend.volumes.formats.flat import Flat
from ml_backend.volumes.formats.format import DTYPES, EVERYTHING, Format
from ml_backend.volumes.formats.notes import Notes, read_sidecar, sidecar_path, write_sidecar
from ml_backend.volumes.volume import ReadOptions, Volume, VolumeError, VolumeSpec

__all__ = ["FORMAT", "read", "write"]

_HELP = 'expected a shape (z, y, x) and a dtype such as "<u2"'


def read(path: Path, options: ReadOptions) -> Volume:
    """The file must have exactly the size that offset, shape and dtype make. Options come before
    what the sidecar says."""
    sidecar = read_sidecar(path)
    shape = _shape(path, options.shape or sidecar.get("shape"))
    dtype = _dtype(path, options.dtype or sidecar.get("dtype"))
    offset = sidecar.get("offset", 0) if options.offset is None else options.offset
    if not isinstance(offset, int) or offset < 0:
        raise VolumeError(f"{path}: the offset is {offset!r}, expected bytes from 0")
    flat = Flat(path, shape, dtype, offset)
    flat.check(exact=True)
    notes = Notes.from_json(sidecar_path(path), sidecar)
    native = number_type(path, dtype)
    return notes.volume(path, shape, native, flat.read)


def write(path: Path, slices: Iterable[npt.NDArray[Any]], spec: VolumeSpec) -> None:
    """Values in native byte order, and the sidecar."""
    layout = {"shape": list(spec.shape), "dtype": spec.dtype.str, "offset": 0}
    write_sidecar(path, spec, layout)
    with path.open("wb") as file:
        for values in slices:
            file.write(np.ascontiguousarray(values).data)


def _takes(path: Path, options: ReadOptions) -> bool:
    """Whatever has a shape, from the caller or a sidecar."""
    return options.shape is not None or sidecar_path(path).exists()


FORMAT = Format(
    name="raw",
    title="raw",
    summary=(
        '`--shape 900,1024,1024 --dtype "<u2" --offset 0`, or the same in a file beside it, '
        "`scan.raw.json` for `scan.raw`"
    ),
    readable="raw values (.raw, .bin, .vol)",
    endings=(".raw", ".bin", ".vol"),
    read=read,
    described=True,
    apart=False,
    write=write,
    dtypes=DTYPES,
    keeps=EVERYTHING,
    sidecar=True,
    repeatable=True,
    takes=_takes,
    place=60,
)


def _shape(path: Path, shape: object) -> tuple[int, int, int]:
    if shape is None:
        vgi = path.with_suffix(".vgi")
        hint = f" ({vgi.name} beside it does: give that)" if vgi.exists() else ""
        raise VolumeError(
            f"{path} says nothing of its shape{hint}: {_HELP}, as options or in "
            f"{sidecar_path(path).name}"
        )
    lengths = tuple(shape) if isinstance(shape, (tuple, list)) else ()
    if len(lengths) != 3 or not all(isinstance(n, int) and n > 0 for n in lengths):
        raise VolumeError(f"{path}: the shape is {shape!r}, expected (z, y, x), all above 0")
    return lengths[0], lengths[1], lengths[2]


def _dtype(path: Path, dtype: object) -> np.dtype[Any]:
    if not isinstance(dtype, str):
        raise VolumeError(f"{path}: the dtype is {dtype!r}, {_HELP}")
    try:
        found: np.dtype[Any] = np.dtype(dtype)
    except Exception as error:  # its parser of such words raises many things
        raise VolumeError(f"{path}: the dtype is {dtype!r}, {_HELP}") from error
    number_type(path, found)
    return found
