"""A round's label maps as label volumes: bit for bit what the round saw, 255 where nobody labelled.

A volume's slices are put back along the axis they were cut along, so the label volume lies on its
source volume, also where `nextslice import --flip` has turned its slices over (PNG files, one a
slice, are as people saw them). Memory holds one slice of it at a time; slices cut along y or x wait
in a file.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from al_strategies.learner import IGNORE, Progress
from ml_backend.export.files import ExportError, file_name, to_json, whole
from ml_backend.rounds.artefacts import DATASET, ROUND
from ml_backend.rounds.cut_from import FindSource, SourceError
from ml_backend.rounds.records import DatasetRecord, LabelRecord, RoundRecord
from ml_backend.rounds.stacks import Stack, places_along, sized, stacked
from ml_backend.rounds.store import RoundFolder
from ml_backend.volumes.address import SliceAddress, is_slice_address
from ml_backend.volumes.formats.registry import mask_formats, volume_stem
from ml_backend.volumes.opening import write_volume
from ml_backend.volumes.volume import VolumeError, VolumeSpec, axis_index

__all__ = [
    "MASKS_VERSION",
    "MASK_FORMATS",
    "LabelVolume",
    "MasksReport",
    "export_masks",
    "read_mask",
]

MASK_FORMATS = mask_formats()
"""Name of a format → ending of a label volume's file; png is a folder with a file a slice."""

MASKS_VERSION = 1
"""Of `labels.json`: goes up when a key changes its meaning or goes away."""

_COLUMNS = ("task", "volume", "axis", "slice", "file", "annotation", "completed_by", "updated_at",
            "hash", "model_version", "corrected", "boundary", "dragged",
            "seconds")  # fmt: skip

Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class LabelVolume:
    """What was written of one volume along one axis.

    ``file``: relative to the export's folder, None where no slice is labelled (nothing is written
    then). ``shape``: (Z, Y, X), None for PNG files. ``slices``: how many the volume has along
    ``axis``, as far as is known. ``source``: the volume that the slices were cut from, by
    its name.
    """

    volume: str
    axis: str
    file: str | None
    shape: tuple[int, int, int] | None
    slices: int
    labelled: int
    source: str | None = None
    voxel_size: tuple[float, float, float] | None = None
    unit: str = ""


@dataclass(frozen=True)
class MasksReport:
    """``labels``: how many label maps; ``warnings``: what a person should know of them."""

    volumes: tuple[LabelVolume, ...]
    labels: int
    warnings: tuple[str, ...] = ()


def read_mask(folder: RoundFolder, label: LabelRecord) -> Mask:
    """The label map as the round saw it, (H, W) uint8. StoreError when its file is gone or
    damaged."""
    return folder.project.mask(label)


@dataclass
class _Stack(Stack):
    """A stack, those of its slices that are labelled, and what a person should know of it."""

    labels: list[LabelRecord] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def twice(self) -> tuple[LabelRecord, LabelRecord] | None:
        """Two labels of one place, if there are."""
        seen: dict[int, LabelRecord] = {}
        for label in self.labels:
            other = seen.setdefault(self.places[label.task], label)
            if other is not label:
                return other, label
        return None


def export_masks(
    folder: RoundFolder,
    out: Path,
    format: str = "tiff",
    *,
    find_source: FindSource | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MasksReport:
    """Write every label of the round into the folder ``out``: one label volume for each volume and
    axis of the project, and an index of them, `labels.json` and `labels.csv`.

    ``format``: one of `MASK_FORMATS`. Label volumes are uint8 of shape (Z, Y, X): the class index,
    255 where nobody labelled; voxel size, unit and class names are in the file where its format has
    a place for them, and in `labels.json`. Shape and voxel size are those of the source volume
    where ``find_source`` finds it; else a volume ends at its highest z, and where z is unknown or
    no slice number (whole, from 0 to 1,048,575), slices come in their order. As PNG only the
    labelled slices are written, ``<volume>/<axis><z>.png``, or ``<volume>/task-<id>.png`` where z
    is unknown or used twice.

    Raises ExportError for slices of one volume that differ in size or are labelled twice (PNG can
    hold those) and for an ``out`` that is there already; StoreError for a round or label map that
    is missing or damaged.
    """
    if format not in MASK_FORMATS:
        raise ExportError(f"format is {format!r}, expected one of {', '.join(MASK_FORMATS)}")
    record = folder.need(ROUND)
    dataset = folder.need(DATASET)
    stacks = _stacks(dataset)
    with whole(out, overwrite=overwrite) as partial:
        partial.mkdir()
        writer = _Writer(folder, dataset, partial, format, find_source, progress)
        volumes = tuple(writer.write(stack) for stack in stacks)
        warnings = tuple(warning for stack in stacks for warning in stack.warnings)
        _write_index(partial, folder, record, format, volumes, warnings, writer.rows)
    return MasksReport(volumes, len(dataset.labels), warnings)


# -- which slice goes where


def _stacks(dataset: DatasetRecord) -> list[_Stack]:
    labels = {label.task: label for label in dataset.labels}
    try:
        groups = stacked(dataset.tasks)
    except VolumeError as error:
        raise ExportError(str(error)) from None
    return [
        _Stack(
            volume,
            axis,
            *places_along(tasks),
            labels=[labels[t.id] for t in tasks if t.id in labels],
        )
        for (volume, axis), tasks in groups.items()
    ]


# -- writing


class _Writer:
    """Writes one stack after the other into ``out``; ``rows`` is the index of their labels."""

    def __init__(
        self,
        folder: RoundFolder,
        dataset: DatasetRecord,
        out: Path,
        format: str,
        find_source: FindSource | None,
        progress: Progress | None,
    ) -> None:
        self.folder = folder
        self.classes = tuple(dataset.classes)
        self.out = out
        self.format = format
        self.rows: list[dict[str, Any]] = []
        self._images = {task.id: task.image for task in dataset.tasks}
        self._find_source = find_source
        self._total = len(dataset.labels)
        self._progress = progress
        self._taken = dict.fromkeys(("labels.json", "labels.csv"), "")  # the index

    def write(self, stack: _Stack) -> LabelVolume:
        """The stack's file or PNG files; nothing where no slice is labelled."""
        file = shape = None
        if stack.labels:
            self._look_for_source(stack)
            if self.format == "png":
                file = self._write_slices(stack)
            else:
                file, shape = self._write_volume(stack)
        source = stack.source
        return LabelVolume(
            volume=stack.volume,
            axis=stack.axis,
            file=file,
            shape=shape,
            slices=stack.length,
            labelled=len(stack.labels),
            source=source.name if source else None,
            voxel_size=source.voxel_size if source else None,
            unit=source.unit if source else "",
        )

    def _look_for_source(self, stack: _Stack) -> None:
        if self._find_source is None or not stack.numbered:
            return
        first = stack.labels[0]
        try:
            source = self._find_source(self._images[first.task])
        except SourceError as error:
            stack.warnings.append(f"{stack.title}: shape and voxel size are not known: {error}")
            return
        if source is not None:
            unfit = stack.use(source, read_mask(self.folder, first).shape)
            stack.warnings += [unfit] if unfit else []

    def _look_at_address(self, stack: _Stack) -> None:
        """Whether slices were turned over, where no source can say it. Who signed the address does
        not matter: nothing is read by it."""
        image = self._images[stack.labels[0].task]
        claimed = SliceAddress.claimed(image) if is_slice_address(image) else None
        stack.flip = claimed.options.flip if claimed else ""
        if stack.axis in stack.flip:
            stack.warnings.append(
                f"{stack.title}: its slices were counted from the file's other end (--flip "
                f"{stack.axis}). How many the file has is not known here, so the label volume has "
                "them in that order: it is the file's turned over. Export where the file is"
            )

    def _name(self, volume: str) -> str:
        """The volume's name as a file's, another one for each volume: ``bone.nii.gz`` gives
        ``bone-z.tif``."""
        plain = name = file_name(volume_stem(volume))
        number = 1
        # Two names that differ in case only are one file on some systems.
        while self._taken.setdefault(name.lower(), volume) != volume:
            number += 1
            name = f"{plain}-{number}"
        return name

    def _written(self, stack: _Stack, label: LabelRecord, file: str) -> None:
        cost = label.effort
        self.rows.append(
            {
                "task": label.task,
                "volume": stack.volume,
                "axis": stack.axis,
                "slice": stack.places[label.task],
                "file": file,
                "annotation": label.annotation,
                "completed_by": label.completed_by,
                "updated_at": label.updated_at,
                "hash": label.hash,
                "model_version": cost.model_version if cost else None,
                "corrected": cost.corrected if cost else None,
                "boundary": cost.boundary if cost else None,
                "dragged": cost.dragged if cost else None,
                "seconds": cost.seconds if cost else None,
            }
        )
        if self._progress is not None:
            self._progress("masks", len(self.rows), self._total)

    def _write_slices(self, stack: _Stack) -> str:
        """The very bytes of the store, a file a label."""
        name = self._name(stack.volume)
        (self.out / name).mkdir(exist_ok=True)
        by_place = stack.numbered and stack.twice() is None
        digits = len(str(stack.length - 1))
        for label in stack.labels:
            place = f"{stack.axis}{stack.places[label.task]:0{digits}d}"
            file = f"{name}/{place if by_place else f'task-{label.task}'}.png"
            read_mask(self.folder, label)  # raises where it is damaged
            (self.out / file).write_bytes(self.folder.project.mask_bytes(label))
            self._written(stack, label, file)
        return name

    def _write_volume(self, stack: _Stack) -> tuple[str, tuple[int, int, int]]:
        self._check_once(stack)
        if stack.source is None:
            self._look_at_address(stack)
        file = f"{self._name(stack.volume)}-{stack.axis}{MASK_FORMATS[self.format]}"
        rows, columns = read_mask(self.folder, stack.labels[0]).shape
        extent = [rows, columns]
        extent.insert(axis_index(stack.axis), stack.length)
        depth, height, width = extent
        shape = (depth, height, width)
        source = stack.source
        spec = VolumeSpec(
            shape,
            np.dtype(np.uint8),
            voxel_size=source.voxel_size if source else None,
            unit=source.unit if source else "",
            classes=self.classes,
            affine=source.affine if source else None,
            frame=source.frame if source else "",
            origin=source.origin if source else None,
        )
        planes = self._planes if stack.axis == "z" else self._cut_planes
        write_volume(self.out / file, planes(stack, shape, (rows, columns), file), spec)
        return file, shape

    def _check_once(self, stack: _Stack) -> None:
        twice = stack.twice()
        if twice is not None:
            raise ExportError(
                f"{stack.title}: tasks {twice[0].task} and {twice[1].task} are both slice "
                f"{stack.places[twice[0].task]} and both labelled, a label volume has one place "
                "for them. Export as png, which keeps a file for each, or delete one of the tasks."
            )

    def _planes(
        self, stack: _Stack, shape: tuple[int, int, int], size: tuple[int, int], file: str
    ) -> Iterator[Mask]:
        """The label volume along z, its slices cut along z too."""
        labels = {stack.put(label.task): label for label in stack.labels}
        for z in range(shape[0]):
            label = labels.get(z)
            if label is None:
                yield np.full(size, IGNORE, np.uint8)
            else:
                yield self._sized(stack, label, size)
                self._written(stack, label, file)

    def _cut_planes(
        self, stack: _Stack, shape: tuple[int, int, int], size: tuple[int, int], file: str
    ) -> Iterator[Mask]:
        """The label volume along z, its slices cut along y or x: each gives a line to every plane.

        They wait in a file beside the export, so that memory does not grow with their number.
        """
        places = [stack.put(label.task) for label in stack.labels]
        with tempfile.TemporaryFile(dir=self.out.parent) as spool:
            kept = np.memmap(spool, np.uint8, "w+", shape=(len(places), *size))
            for i, label in enumerate(stack.labels):
                kept[i] = self._sized(stack, label, size)
                self._written(stack, label, file)
            for z in range(shape[0]):
                plane = np.full(shape[1:], IGNORE, np.uint8)
                if stack.axis == "y":
                    plane[places] = kept[:, z]
                else:
                    plane[:, places] = kept[:, z].T
                yield plane

    def _sized(self, stack: _Stack, label: LabelRecord, size: tuple[int, int]) -> Mask:
        mask = read_mask(self.folder, label)
        if mask.shape != size:
            raise ExportError(
                f"{stack.title}: its slices differ in size: {sized(size)} pixels in task "
                f"{stack.labels[0].task}, {sized(mask.shape)} in task {label.task}. A "
                f"{self.format} volume has one size: export as png, a file a slice."
            )
        return stack.straight(mask)


def _write_index(
    out: Path,
    folder: RoundFolder,
    record: RoundRecord,
    format: str,
    volumes: Sequence[LabelVolume],
    warnings: Sequence[str],
    rows: Sequence[dict[str, Any]],
) -> None:
    content = {
        "format": "nextslice masks",
        "version": MASKS_VERSION,
        "project": folder.project.path,
        "round": record.round,
        "model_version": record.model_version,
        "file_format": format,
        "classes": record.classes,
        "unlabelled": IGNORE,
        "volumes": [asdict(volume) for volume in volumes],
        "labels": list(rows),
        "warnings": list(warnings),
    }
    (out / "labels.json").write_text(to_json(content), encoding="utf-8")
    with (out / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, _COLUMNS)
        table.writeheader()
        table.writerows(rows)
