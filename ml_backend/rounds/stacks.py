"""Which slice of a volume each task is: the slices of one volume along one axis, as a stack."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ml_backend.rounds.cut_from import Source
from ml_backend.rounds.records import TaskRecord
from ml_backend.rounds.source import PROJECT_VOLUME
from ml_backend.volumes.limits import LONGEST_AXIS
from ml_backend.volumes.volume import AXES, VolumeError, axis_index

__all__ = ["Stack", "places_along", "sized", "stacked"]

Mask = npt.NDArray[np.uint8]


@dataclass
class Stack:
    """The slices of one volume along one axis. ``places``: task → its place along the axis;
    ``numbered``: whether that is the slice's own number or only its place in order. ``source``: the
    volume that they were cut from, where it is known; where it is not, ``flip``: the axes along
    which they were turned over."""

    volume: str
    axis: str
    places: dict[int, int]
    numbered: bool
    source: Source | None = None
    flip: str = ""

    @property
    def title(self) -> str:
        return f"volume {self.volume!r} along {self.axis}"

    @property
    def length(self) -> int:
        """Slices along the axis."""
        if self.source is not None:
            return self.source.shape[axis_index(self.axis)]
        return 1 + max(self.places.values())

    def put(self, task: int) -> int:
        """Where along the axis of the volume's file it goes: slices that were turned over go back
        to where the file has them, if the source says how many it has."""
        place = self.places[task]
        turned = self.source is not None and self.axis in self.source.flip
        return self.length - 1 - place if turned else place

    def straight(self, mask: Mask) -> Mask:
        """A label map turned over as its slice was, so that it lies on the file."""
        across = [axis for axis in AXES if axis != self.axis]
        flip = self.flip if self.source is None else self.source.flip
        steps = tuple(slice(None, None, -1 if axis in flip else 1) for axis in across)
        return mask[steps]

    def use(self, source: Source, size: tuple[int, ...]) -> str | None:
        """Take ``source`` for the volume that the slices were cut from, if their numbers and
        ``size``, of one of their label maps, fit it; else why not."""
        length, expected = source.shape[axis_index(self.axis)], source.slice_shape(self.axis)
        highest = max(self.places.values())
        if highest < length and size == expected:
            self.source = source
            return None
        return (
            f"{self.title}: {source.name} has {length} slices of {sized(expected)} pixels, the "
            f"labels have {sized(size)} and slices go up to {highest}: its shape and voxel size "
            "are not used"
        )


def stacked(tasks: Iterable[TaskRecord]) -> dict[tuple[str, str], list[TaskRecord]]:
    """The tasks by volume and axis, each by id. Raises VolumeError for an axis that is none."""
    groups: dict[tuple[str, str], list[TaskRecord]] = {}
    for task in sorted(tasks, key=lambda task: task.id):
        groups.setdefault((task.volume or PROJECT_VOLUME, _axis(task)), []).append(task)
    return dict(sorted(groups.items()))


def _axis(task: TaskRecord) -> str:
    try:
        return AXES[axis_index(task.axis)]
    except VolumeError as error:
        raise VolumeError(f"task {task.id}: {error}") from None


def places_along(tasks: Sequence[TaskRecord]) -> tuple[dict[int, int], bool]:
    """z where it is a slice number in all of them, whole, from 0 and below the `LONGEST_AXIS` of a
    volume; else their place by z, else by id. Whether it is z."""
    heights = {task.id: task.z for task in tasks if task.z is not None}
    order = [task.id for task in tasks]
    if len(heights) == len(tasks):
        if all(0 <= z < LONGEST_AXIS and z.is_integer() for z in heights.values()):
            return {task: int(z) for task, z in heights.items()}, True
        order.sort(key=lambda task: (heights[task], task))
    return {task: place for place, task in enumerate(order)}, False


def sized(shape: Sequence[int]) -> str:
    """``width × height``."""
    return " × ".join(map(str, reversed(shape)))
