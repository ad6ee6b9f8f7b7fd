"""Images with several values a pixel that hold grey all the same: programs save grey as RGB."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.grey import SAMPLED_SLICES, middles
from ml_backend.volumes.volume import VolumeError

__all__ = ["check_shows_grey", "grey_of"]

Slice = npt.NDArray[Any]


def grey_of(values: Slice) -> Slice | None:
    """(Y, X) of (Y, X, S), S being grey and alpha (2), RGB (3) or RGB and alpha (4).

    None where colours differ in a pixel, or alpha hides one.
    """
    samples = values.shape[2]
    if samples in (2, 4) and not _opaque(values[..., -1]):
        return None
    grey = values[..., 0]
    if samples > 2:
        for other in (values[..., 1], values[..., 2]):
            if not np.array_equal(grey, other):
                return None
    return np.ascontiguousarray(grey)


def _opaque(alpha: Slice) -> bool:
    whole = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1
    return bool((alpha == whole).all())


def check_shows_grey(path: Path, what: str, read: Callable[[int], Slice], depth: int) -> None:
    """Raise VolumeError for a colour image (``what``) whose slices are black wherever one looks:
    nothing in it says that its colours are grey. And whatever ``read`` raises, as for colours."""
    looked_at = dict.fromkeys((0, depth - 1, *middles(depth, SAMPLED_SLICES)))
    # the first and the last one have to be grey, others only until one of them is not black
    shown = [bool(read(index).any()) for index in list(looked_at)[:2]]
    if not any(shown) and not any(read(index).any() for index in list(looked_at)[2:]):
        raise VolumeError(
            f"{path} is a colour image ({what}), expected one grey value a voxel: all of it is "
            "black, which is no grey that a colour image holds"
        )
