"""What there is to see of a volume of a project: its slices, its scan, what is labelled in it.

Which slices there are says the newest round that has listed them; what is labelled and predicted
says Label Studio, in requests that grow with the volume and not with the project.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from ml_backend.api.dashboard.grid import Grid
from ml_backend.errors import NextsliceError
from ml_backend.logs import without_passwords
from ml_backend.rounds.cut_from import SourceError, address_of, source_of
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.queue import known_queue
from ml_backend.rounds.records import TaskRecord
from ml_backend.rounds.stacks import Stack, places_along
from ml_backend.studio.client import TaskRow, annotated, with_version
from ml_backend.studio.label_config import LabelConfig, label_colour, parse_label_config
from ml_backend.volumes.address import SliceAddress
from ml_backend.volumes.volume import VolumeError

__all__ = ["KINDS", "Kind", "Looked", "ShownSlice", "VolumeView", "cut_from", "take_look"]

Kind = Literal["scan", "labels", "prediction"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_FORM = 1
"""Raised whenever the same volume and labels would give other bytes."""


@dataclass(frozen=True)
class ShownSlice:
    """A task. ``z``: the number that its slice has along the axis; ``at``: where the file has it,
    another one where slices were turned over; ``label_studio``: its address there."""

    task: int
    z: int
    at: int
    labelled: bool
    predicted: bool
    label_studio: str


@dataclass(frozen=True)
class VolumeView:
    """A volume along one axis. ``version``: the published one, where it predicts.

    ``grid``: None where there is no scan to show; ``lacking`` says why. ``placed``: whether its
    file says which way it lies. ``unanswered``: why Label Studio did not say what is labelled.
    ``tags``: of each volume that can be had, another one when it becomes another.
    """

    volume: str
    axis: str
    slices: tuple[ShownSlice, ...]
    classes: tuple[str, ...]
    version: str | None
    grid: Grid | None = None
    placed: bool = False
    lacking: str = ""
    unanswered: str = ""
    tags: Mapping[Kind, str] = field(default_factory=dict)

    @property
    def labelled(self) -> int:
        """How many slices are labelled."""
        return sum(one.labelled for one in self.slices)

    @property
    def predicted(self) -> int:
        """How many slices have a stored mask of the published version."""
        return sum(one.predicted for one in self.slices)

    @property
    def colours(self) -> list[str]:
        """Of the classes from the second on: the first is the background."""
        return [label_colour(i) for i in range(len(self.classes) - 1)]


@dataclass(frozen=True)
class Looked:
    """A `VolumeView`, and what its volumes are built from. ``config``: None where Label Studio did
    not answer."""

    view: VolumeView
    stack: Stack
    address: SliceAddress | None = None
    config: LabelConfig | None = None


def take_look(
    project: ConnectedProject,
    volume: str,
    axis: str,
    tasks: Sequence[TaskRecord],
    classes: Sequence[str],
) -> Looked:
    """``tasks``: the slices of ``volume`` along ``axis``; ``classes``: where Label Studio does not
    say. What cannot be had is said in the view. Raises StoreError."""
    stack = Stack(volume, axis, *places_along(tasks))
    address, lacking = None, ""
    try:
        address = cut_from(project, stack, tasks)
    except (SourceError, VolumeError) as error:
        lacking = str(error)
    asked = _Asked(project, [task.id for task in tasks])
    grid = None if stack.source is None else Grid.of(stack.source.shape)
    tags: dict[Kind, str] = {}
    if address is not None and grid is not None:
        state = project.service.volumes.state(address)
        shown = (grid, stack.source, axis)
        tags["scan"] = _tag(shown, state, address.options, address.window)
        if asked.config is not None:
            how = (asked.config.fingerprint, asked.config.reading, project.settings.unlabelled)
            tags["labels"] = _tag(shown, how, _versions(asked.labelled))
            if asked.version is not None:
                tags["prediction"] = _tag(shown, how, asked.version, _versions(asked.predicted))
    view = VolumeView(
        volume=volume,
        axis=axis,
        slices=tuple(
            ShownSlice(
                task, z, stack.put(task), task in asked.labelled, task in asked.predicted,
                project.page_of(task),
            )
            for task, z in sorted(stack.places.items(), key=lambda item: (item[1], item[0]))
        ),
        classes=tuple(classes) if asked.config is None else asked.config.classes,
        version=asked.version,
        grid=grid,
        placed=stack.source is not None and stack.source.affine is not None,
        lacking=lacking,
        unanswered=asked.unanswered,
        tags=tags,
    )  # fmt: skip
    return Looked(view, stack, address, asked.config)


def cut_from(project: ConnectedProject, stack: Stack, tasks: Sequence[TaskRecord]) -> SliceAddress:
    """The address of one of the slices, whose volume the stack takes for its own. Raises
    SourceError where there is none, and NoSuchVolume."""
    address = next((a for t in tasks if (a := address_of(project.service, t.image))), None)
    if address is None:
        raise SourceError(
            "Its slices are pictures that Label Studio shows, and no volume that this backend "
            "reads: there is no scan to show in 3-D."
        )
    if not stack.numbered:
        raise SourceError("Not every slice of it says in its task, as z, which slice it is.")
    source = source_of(project.service, address)
    unfit = stack.use(source, source.slice_shape(stack.axis))
    if unfit is not None:
        raise SourceError(unfit)
    return address


class _Asked:
    """What Label Studio says of the tasks ``ids``: those that are ``labelled``, those that are
    ``predicted`` with the mask of ``version``."""

    def __init__(self, project: ConnectedProject, ids: Sequence[int]) -> None:
        self.labelled: dict[int, TaskRow] = {}
        self.predicted: dict[int, TaskRow] = {}
        self.config: LabelConfig | None = None
        self.unanswered = ""
        published = project.published
        masked = published is not None and published.weights is not None
        self.version = published.model_version if published is not None and masked else None
        studio, number = project.studio, project.number
        try:
            config = parse_label_config(project.in_studio().label_config)
            rows = studio.tasks_by_id(number, ids, [annotated()])
            self.labelled = {row.id: row for row in rows}
            if published is not None and masked:
                stored = with_version(published.model_version)
                queue = known_queue(project.folder.round(published.round))
                without = set() if queue is None else queue.bare
                rows = studio.tasks_by_id(number, ids, [stored])
                self.predicted = {row.id: row for row in rows if row.id not in without}
            self.config = config
        except NextsliceError as error:
            self.unanswered = without_passwords(str(error))


def _versions(rows: Mapping[int, TaskRow]) -> list[tuple[int, str]]:
    return sorted((row.id, row.updated_at.isoformat()) for row in rows.values())


def _tag(*parts: object) -> str:
    return hashlib.sha256(repr((_FORM, *parts)).encode()).hexdigest()[:32]
