"""A project's slices for a learner: images through the cache, labels as the round saw them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from al_strategies.evidence import Position, SliceId
from ml_backend.rounds.records import DatasetRecord, TaskRecord
from ml_backend.rounds.slices import ProjectSlices
from ml_backend.rounds.store import ProjectStore

__all__ = ["PROJECT_VOLUME", "ProjectSource", "positions"]

PROJECT_VOLUME = "project"
"""Volume of the slices whose task names none."""


def positions(dataset: DatasetRecord) -> dict[int, Position]:
    """Volume and z of every slice; without a z in the task's data, its place among the others."""
    places = dataset.places_of_tasks()
    return {
        task.id: Position(_stack(task), float(places[task.id]) if task.z is None else task.z)
        for task in dataset.tasks
    }


def _stack(task: TaskRecord) -> str:
    """What a slice is a neighbour in: its volume; cut along y or x, another stack than along z."""
    name = task.volume or PROJECT_VOLUME
    return name if task.axis == "z" else f"{name}, {task.axis}"


class ProjectSource:
    """`al_strategies.learner.SliceSource` over one round's dataset."""

    def __init__(self, dataset: DatasetRecord, folder: ProjectStore, images: ProjectSlices) -> None:
        self._tasks = {task.id: task for task in dataset.tasks}
        self._labels = {label.task: label for label in dataset.labels}
        self._positions = positions(dataset)
        self._folder = folder
        self._images = images

    @property
    def ids(self) -> Sequence[SliceId]:
        """Every task of the project, in task order."""
        return sorted(self._tasks)

    def image(self, slice_id: SliceId) -> npt.NDArray[Any]:
        """The task's image, native grey values."""
        task = self._tasks[int(slice_id)]
        return self._images.image(task.id, task.image)

    def around(self, slice_id: SliceId, neighbours: int) -> npt.NDArray[Any]:
        """(H, W, 2 n + 1): the slice between its neighbours, where its volume is known."""
        task = self._tasks[int(slice_id)]
        return self._images.around(task.id, task.image, neighbours)

    def mask(self, slice_id: SliceId) -> npt.NDArray[np.uint8]:
        """The label as this round saw it. KeyError for an unlabelled slice."""
        return self._folder.mask(self._labels[int(slice_id)])

    def position(self, slice_id: SliceId) -> Position:
        """Volume and z."""
        return self._positions[int(slice_id)]
