"""Images as a table: axes, and the page of a TIFF, or the file of a folder, at each place."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ml_backend.volumes.formats.axes import choose_axes, letter_of
from ml_backend.volumes.formats.notes import Notes
from ml_backend.volumes.volume import ReadOptions, VolumeError

__all__ = ["NOTHING", "Planes", "table_of"]

NOTHING = Notes()


@dataclass(frozen=True)
class Planes:
    """What a ``kind`` of description says: the axes along which images are counted (``names``,
    outermost first, "" for one without), their ``lengths``, and what else is known.

    ``pages``: of each image in this order, counted as in the file; None: the file's own order.
    ``channels``: the values of a pixel are channels, whatever the page says.
    """

    kind: str
    names: tuple[str, ...]
    lengths: tuple[int, ...]
    pages: tuple[int, ...] | None = None
    notes: Notes = NOTHING
    channels: bool = False

    @property
    def total(self) -> int:
        """How many images there must be."""
        return math.prod(self.lengths)

    @property
    def several_channels(self) -> bool:
        """Whether images, and not the values of a pixel, are channels."""
        pairs = zip(self.names, self.lengths, strict=True)
        return any(letter_of(name) == "c" and length > 1 for name, length in pairs)

    def chosen(self, path: Path, size: tuple[int, int], options: ReadOptions) -> Sequence[int]:
        """Places in the table of the slices along z, of images (Y, X) of ``size``. Raises
        VolumeError where they are more than one stack, and none is chosen."""
        names, lengths = (*self.names, "Y", "X"), (*self.lengths, *size)
        if not any(map(letter_of, self.names)) and sum(n > 1 for n in self.lengths) <= 1:
            # one axis without a name, or none
            names, lengths = ("Z", "Y", "X"), (math.prod(self.lengths), *size)
        choice = choose_axes(path, names, lengths, options, stacked=True)
        table = np.arange(math.prod(lengths[:-2])).reshape(lengths[:-2])
        place: list[int | slice] = [*choice.index(0, 0, lengths[choice.axes[0]])][:-2]
        return [int(one) for one in table[tuple(place)].reshape(-1)]


def table_of(path: Path, kind: str, places: Mapping[int, Mapping[str, Hashable]]) -> Planes:
    """Of pages (or files) that each say where they lie: page → axis → place along it. Raises
    VolumeError unless there is one for each place."""
    axes = [*dict.fromkeys(axis for place in places.values() for axis in place)]
    along = {axis: _values([place.get(axis) for place in places.values()]) for axis in axes}
    lengths = tuple(len(values) for values in along.values())
    pages: dict[int, int] = {}
    for page, place in places.items():
        index = [along[axis].index(place.get(axis)) for axis in axes]
        pages[int(np.ravel_multi_index(index, lengths))] = page
    if len(pages) != math.prod(lengths) or len(places) != len(pages):
        said = ", ".join(f"{len(along[axis])} of {axis}" for axis in axes)
        raise VolumeError(
            f"{path} has {len(places)} pages at {len(pages)} places, expected one for each of "
            f"{said}: is it cut off?"
        )
    return Planes(kind, tuple(axes), lengths, tuple(pages[place] for place in sorted(pages)))


def _values(found: list[Hashable]) -> list[Any]:
    """Each once: numbers in their order, names in that of the file."""
    values: list[Any] = list(dict.fromkeys(found))
    return sorted(values) if all(isinstance(one, int) for one in values) else values
