"""What every reader refuses, in one wording: unreadable files, odd types and odd shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.limits import CHUNK_BYTES
from ml_backend.volumes.volume import VolumeError

__all__ = ["chunk_size", "native", "number_type", "reading", "three_axes", "writable_type"]


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Whatever a library raises inside, as one VolumeError that names the file.

    Parsers of foreign bytes raise nearly anything on a broken file: struct.error, KeyError,
    zlib.error, MemoryError.
    """
    try:
        yield
    except VolumeError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise VolumeError(f"{path} cannot be read ({reason}), expected {expected}") from error


def number_type(path: Path, dtype: np.dtype[Any] | None) -> np.dtype[Any]:
    """``dtype`` in native byte order. Raises VolumeError unless it is bool, integer or float."""
    if dtype is None or dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise VolumeError(
            f"{path} has values of type {dtype}, expected one number a voxel: bool, integer or "
            "float of up to 64 bits"
        )
    return dtype.newbyteorder("=")


def native(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """In native byte order, truth values as 0 and 1 whatever byte stands for true."""
    if values.dtype == np.bool_:
        return np.asarray(values.view(np.uint8) != 0)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def three_axes(path: Path, shape: Sequence[int]) -> tuple[int, int, int]:
    """Which axes of ``shape`` are the volume's three: leading and trailing ones of length 1 beside
    them are left out. Raises VolumeError when there are more or fewer, or nothing in them."""
    axes = list(range(len(shape)))
    while len(axes) > 3 and shape[axes[0]] == 1:
        axes.pop(0)
    while len(axes) > 3 and shape[axes[-1]] == 1:
        axes.pop()
    if len(axes) != 3:
        raise VolumeError(f"{path} has the shape {tuple(shape)}, expected three axes: z, y, x")
    if min(shape) < 1:
        raise VolumeError(f"{path} has the shape {tuple(shape)}: it is empty, expected voxels")
    return axes[0], axes[1], axes[2]


def chunk_size(path: Path, chunk: Sequence[int], dtype: np.dtype[Any]) -> None:
    """Raises VolumeError for a chunk, strip or tile that takes too much memory to be unpacked."""
    if (size := math.prod(map(int, chunk)) * dtype.itemsize) > CHUNK_BYTES:
        raise VolumeError(
            f"{path} has its values in pieces of {tuple(chunk)}, {size} bytes each, expected at "
            f"most {CHUNK_BYTES}: write it in smaller ones"
        )


def writable_type(path: Path, dtype: np.dtype[Any], known: Sequence[str], what: str) -> None:
    """Raises VolumeError when ``what`` cannot hold ``dtype``: it has the types ``known`` only."""
    if dtype.name not in known:
        raise VolumeError(
            f"{path}: {what} holds no {dtype.name}, expected one of {', '.join(known)}; "
            "convert the values or write another format"
        )
