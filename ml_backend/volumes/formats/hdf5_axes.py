"""What the axes of an HDF5 dataset are called, by whatever says so.

``axistags`` (vigra, ilastik: JSON), dimension labels and the names of dimension scales (h5py,
netCDF), the ``axes`` of an NXdata group, and of the dataset itself (NeXus before 2014: "z:y:x").
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ml_backend.volumes.formats.axes import letter_of
from ml_backend.volumes.formats.notes import as_text
from ml_backend.volumes.volume import VolumeError

__all__ = ["axis_names", "text"]


def axis_names(path: Path, dataset: Any, group: Any, name: str) -> Sequence[str]:
    """One for each axis of ``dataset``, "" for one without; none where nothing names them. It was
    found as ``name`` in ``group``, which may be another than its own.

    Raises VolumeError where two of them call axes differently, and for tags that cannot be read.
    """
    said: tuple[str, Sequence[str]] | None = None
    for what, names in _sources(path, dataset, group, name):
        if not any(map(letter_of, names)):
            continue
        if said is not None and not _agree(said[1], names):
            raise VolumeError(
                f"{path} has axes that are {', '.join(said[1])} by its {said[0]} and "
                f"{', '.join(names)} by its {what}: expected one of them, or both the same"
            )
        said = said or (what, names)
    return () if said is None else said[1]


def text(value: Any) -> str:
    """What an attribute says."""
    value = value[0] if isinstance(value, np.ndarray) and value.size == 1 else value
    return as_text(value) if isinstance(value, bytes) else str(value)


def _agree(one: Sequence[str], other: Sequence[str]) -> bool:
    pairs = zip(map(letter_of, one), map(letter_of, other), strict=False)
    return len(one) == len(other) and all(a == b or not a or not b for a, b in pairs)


def _sources(path: Path, dataset: Any, group: Any, name: str) -> Iterator[tuple[str, list[str]]]:
    if "axistags" in dataset.attrs:
        yield "axistags", _tags(path, text(dataset.attrs["axistags"]))
    if any(labels := [dimension.label for dimension in dataset.dims]):
        yield "dimension labels", labels
    if any(scales := [_scale(dimension) for dimension in dataset.dims]):
        yield "dimension scales", scales
    if "axes" in group.attrs and text(group.attrs.get("signal", name)) == name:
        names = _list(group.attrs["axes"])
        # fewer: of the first ones, or in an order of their own
        if len(names) == dataset.ndim:
            _check_indices(path, group, names)
            yield "NXdata axes", names
    if "axes" in dataset.attrs:
        names = _list(dataset.attrs["axes"])
        if len(names) == dataset.ndim:
            yield "attribute axes", names


def _tags(path: Path, tags: str) -> list[str]:
    try:
        return [str(axis["key"]) for axis in json.loads(tags)["axes"]]
    except (ValueError, KeyError, TypeError):
        raise VolumeError(
            f"{path} has axistags that cannot be read ({tags[:100]!r}), expected those of vigra"
        ) from None


def _scale(dimension: Any) -> str:
    """Of the first dimension scale: what it is called, else the name of its dataset. "" for one
    that is gone, as copies of a dataset refer to scales that were left behind."""
    try:
        for label, scale in dimension.items():
            return str(label or scale.name or "").rsplit("/", 1)[-1]
    except (KeyError, RuntimeError, ValueError):
        pass
    return ""


def _check_indices(path: Path, group: Any, names: Sequence[str]) -> None:
    """Raise VolumeError where NXdata says of an axis that it is another one of the dataset."""
    for place, name in enumerate(names):
        said = np.atleast_1d(group.attrs.get(f"{name}_indices", place))
        if letter_of(name) and said.dtype.kind in "iu" and place not in said:
            raise VolumeError(
                f"{path} has NXdata axes {', '.join(names)}, and {name}_indices says that {name} "
                f"is axis {said[0]} of its dataset: expected both the same"
            )


def _list(value: Any) -> list[str]:
    """Of an attribute that is a list, or a text as "z:y:x", "[z,y,x]" or "zyx"."""
    names = [text(one) for one in np.atleast_1d(value)]
    if len(names) > 1:
        return names
    parts = [part for part in re.split(r"[\s:,\[\]\"']+", names[0]) if part]
    if len(parts) == 1 and re.fullmatch(r"[tczyxTCZYX]{3,5}", parts[0]):
        return list(parts[0])
    return parts
