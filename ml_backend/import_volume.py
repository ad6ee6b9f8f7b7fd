"""A volume into Label Studio: a project, its tasks, and the labels that are there already.

Nothing is created before everything that can be wrong has been looked at: the file and its last
slice, the grey window, the label volume, the project that is to be extended. What is there is kept
and what is missing is added, so an import that was interrupted is simply made again.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from al_strategies.learner import IGNORE, Progress
from ml_backend.errors import NextsliceError
from ml_backend.grey import middles
from ml_backend.pictures import class_ids, encode_png
from ml_backend.rounds.adopt import connect
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.service import Service, slice_keys
from ml_backend.studio.annotations import regions
from ml_backend.studio.client import Project, StudioError, TaskRow, drafted, ids_after
from ml_backend.studio.images import decode_image
from ml_backend.studio.interactive import DRAG_HELP
from ml_backend.studio.label_config import (
    WHY,
    LabelConfig,
    bitmask_config,
    brush_config,
    parse_label_config,
    shows_why,
)
from ml_backend.studio.projects import (
    ANNOTATED_AT_ONCE,
    annotate,
    check_title,
    create_project,
    delete_untouched,
    import_tasks,
    projects_called,
    set_data,
    shortened_title,
    upload_images,
)
from ml_backend.volumes.address import SliceAddress, is_slice_address
from ml_backend.volumes.formats.notes import read_sidecar
from ml_backend.volumes.geometry import flipped, laid_on, sides
from ml_backend.volumes.opening import ReadOptions, open_volume
from ml_backend.volumes.roots import VolumeRoots
from ml_backend.volumes.volume import AXES, Bounds, Volume, VolumeError
from ml_backend.volumes.window import Window, fit_window, render

__all__ = ["ImportReport", "ImportRequest", "import_volume"]

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

_TASKS_PER_REQUEST = 500
_BYTES_PER_REQUEST = 16 << 20
_FILES_PER_REQUEST = 16
_COMPARED = 3
"""Of a project's uploaded slices that show something, to tell whose they are."""


@dataclass(frozen=True)
class ImportRequest:
    """What is to become tasks.

    ``path``: any volume that `open_volume` reads, with ``options``. ``labels``: class names of a
    new project, in the order of the label volume's values from 1 (one called *background* is its
    0); not needed for one that is there, or where the label volume's metadata says them.
    ``project``: number of the project to extend; None: the one called ``title`` (default: the
    volume's name), or a new one. ``kind`` of its masks.
    ``axis``, ``every`` and ``span`` (first, last + 1) say which slices. ``window``: grey values
    shown black and white; None: those of the volume's tasks that are there, else percentiles of the
    volume. ``flip``: axes along which slices are shown, and learned from, the other way round, some
    of "zyx"; the label volume is turned over with them. ``with_labels``: a label volume that lies
    on the volume (`laid_on`) and has its shape: its slices become annotations; 255 = unlabelled.
    ``upload``: send PNG files into Label Studio instead of addresses of our slice server.
    ``connect``: register the backend and adopt the project at the end.
    """

    path: Path
    labels: tuple[str, ...] = ()
    project: int | None = None
    title: str | None = None
    kind: Literal["bitmask", "brush"] = "bitmask"
    axis: str = "z"
    every: int = 1
    span: tuple[int, int] | None = None
    window: Window | None = None
    flip: str = ""
    with_labels: Path | None = None
    options: ReadOptions = field(default_factory=ReadOptions)
    label_options: ReadOptions = field(default_factory=ReadOptions)
    upload: bool = False
    connect: bool = True


@dataclass(frozen=True)
class ImportReport:
    """What an import did: the project, whether it is new, how many tasks were added, annotated and
    there before, the window of what was added, how many tasks got a new address, and how many of
    those that were there have labels in the label volume: they keep the annotations they have. So
    many of these had none, though nobody has touched them, and got the label volume's. ``stored``:
    how the file says that its x, y, z run, as "LPS", empty where it does not; ``sides``: what is at
    the top and at the left of a slice then."""

    project: int
    title: str
    created: bool
    volume: str
    added: int
    annotated: int
    kept: int
    window: Window
    moved: int = 0
    labels_left: int = 0
    labels_added: int = 0
    stored: str = ""
    sides: tuple[str, str] | None = None


def import_volume(
    service: Service, request: ImportRequest, progress: Progress | None = None
) -> ImportReport:
    """Make the slices of a volume tasks of a Label Studio project.

    A task's data has the image (in the field that the labelling config reads), ``volume``, ``axis``
    and ``z``; slices that are tasks already are kept as they are, but for the volume's tasks whose
    address is another than it would be today (``PUBLIC_URL``, the secret or the asked window
    changed): they get today's, for the same slice, through the same window if none is asked for.
    Such slices that nobody has touched get the label volume's labels too.
    ``progress`` steps: ``"check labels"``, ``"addresses"``, ``"labels"``, ``"import"``.

    Raises VolumeError (a file, the roots, slices that are not there, labels that do not fit) and
    LabelConfigError before anything is created, StudioError when Label Studio refuses; a project
    that was created for a file that turns out to be broken while it is uploaded is deleted again,
    unless it has annotations by then, also of the label volume, or anything else of somebody's.
    """
    try:
        return _import_oriented(service, request, progress, oriented=True)
    except _StoredThereAlready:
        return _import_oriented(service, request, progress, oriented=False)


class _StoredThereAlready(Exception):
    """The volume's tasks show it as it is stored: people have drawn on it so."""


def _import_oriented(
    service: Service, request: ImportRequest, progress: Progress | None, *, oriented: bool
) -> ImportReport:
    with ExitStack() as opened:
        roots = service.volumes.roots
        options = replace(request.options, bounds=_bounds(roots, request), oriented=oriented)
        scan = opened.enter_context(open_volume(request.path, options))
        # said in the addresses where it changes anything alone
        options = replace(request.options, oriented=scan.turned)
        options = replace(options, flip=request.flip)
        if options.offset == 0 and not read_sidecar(request.path).get("offset"):
            options = replace(options, offset=None)
        request = replace(request, options=options)
        volume = flipped(scan, request.flip).along(request.axis)
        labels: Volume | None = None
        if request.with_labels is not None:
            bounds = roots.bounds_of(request.with_labels)
            asked = replace(request.label_options, bounds=bounds, oriented=True, labels=True)
            labels = opened.enter_context(open_volume(request.with_labels, asked))
            labels = flipped(laid_on(labels, scan), request.flip).along(request.axis)
        return _Import(service, request, volume, labels, progress).run()


def _bounds(roots: VolumeRoots, request: ImportRequest) -> Bounds:
    """Those of the slice server, where slices are to come from it."""
    if request.upload or not request.path.exists():
        return roots.bounds_of(request.path)
    roots.name(request.path)  # or VolumeError says which folders there are
    return roots.bounds


class _Import:
    """One import, in its order: look at everything, then create."""

    def __init__(
        self,
        service: Service,
        request: ImportRequest,
        volume: Volume,
        labels: Volume | None,
        progress: Progress | None,
    ) -> None:
        self.service, self.studio = service, service.studio
        self.request, self.volume, self.labels = request, volume, labels
        self.progress: Progress = progress or (lambda step, done, total: None)
        self.axis = AXES[volume.axis]
        self._added = self._to_add = self._newest = 0
        self._there: dict[int, str] = {}
        self._bare: dict[int, int] = {}
        self._windows: Counter[Window] = Counter()
        self._moved: list[tuple[int, dict[str, str], dict[str, str]]] = []
        # What the browser loads from us must lie under a root; an upload comes from anywhere.
        self.name = (
            request.path.name if request.upload else service.volumes.roots.name(request.path)
        )

    def run(self) -> ImportReport:
        indices = self._indices()
        # Along z, whatever the slices: cut along y or x, most formats are read whole for each.
        along_z = self.volume.along("z")
        along_z[len(along_z) - 1]  # a truncated file misses its last slice
        project, config = self._existing()
        if config is None:
            config = parse_label_config(self._label_config())
        window = self._window() or fit_window(along_z)
        labelled: list[int] = []
        if self.labels is not None:
            labelled = _check_labels(self.labels, self.volume, indices, config, self.progress)
        created = project is None
        if project is None:
            project = self._new_project()
        try:
            self._there |= self._since(project, config.value_field)
            missing = self._missing(project, indices, window)
            self._move(project)
            added = self._annotate(project, config, labelled)
            annotated = self._create(project, config, missing, window)
        except BaseException as error:
            broken = isinstance(error, VolumeError)
            if not (broken and created and self._deleted(project)):
                self._say_what_is_left(project, created, error)
            raise
        if self.request.connect:
            try:
                connect(ConnectedProject(self.service, project.key))
            except BaseException as error:
                self._say_what_is_left(project, created, error)
                raise
        return ImportReport(
            project=project.id,
            title=project.title,
            created=created,
            volume=self.name,
            added=self._added,
            annotated=annotated,
            kept=len(indices) - self._added,
            window=window,
            moved=len(self._moved),
            labels_left=len(self._there.keys() & set(labelled)),
            labels_added=added,
            stored=self.volume.stored,
            sides=sides(self.volume),
        )

    def _deleted(self, project: Project) -> bool:
        """Delete the project that was made for a broken file, unless somebody has worked in it
        since; whether that was done."""
        try:
            if self.studio.project(project.id) != project:
                return False
            return delete_untouched(self.studio, project.id, self._added)
        except StudioError as error:
            logger.warning("project %s is not deleted: %s", project.id, error)
            return False

    def _say_what_is_left(self, project: Project, created: bool, error: BaseException) -> None:
        """Nobody should find half an import later and wonder."""
        made = "was made" if created else "was extended"
        said = (
            f"Project {project.id} ({project.title}) {made}: {self._added} of {self._to_add} "
            "slices are added. The same command goes on there"
        )
        said += ", or delete it in Label Studio." if created else "."
        if isinstance(error, NextsliceError):
            error.args = (f"{str(error).rstrip('.')}. {said}", *error.args[1:])
        else:
            logger.warning("%s", said)

    # -- before anything is created

    def _indices(self) -> range:
        first, stop = self.request.span or (0, len(self.volume))
        if not (0 <= first < stop <= len(self.volume)) or self.request.every < 1:
            raise VolumeError(
                f"slices {first} to {stop} of {self.volume.path}, every {self.request.every}: it "
                f"has {len(self.volume)} along {self.axis}, expected 0 ≤ first < last ≤ "
                f"{len(self.volume)} and every ≥ 1"
            )
        return range(first, stop, self.request.every)

    @property
    def _title(self) -> str:
        return self.request.title or shortened_title(self.request.path.name)

    @property
    def _upright(self) -> str:
        """What is where in a slice, as far as the file says it."""
        found = sides(self.volume)
        return f" {found[0].capitalize()} is at the top, {found[1]} at the left." if found else ""

    def _window(self) -> Window | None:
        """The one that is asked for, else the commonest of the volume's tasks that are there."""
        return self.request.window or next((w for w, _ in self._windows.most_common(1)), None)

    def _label_config(self) -> str:
        names = self.request.labels
        if not names and self.labels is not None and self.labels.classes:
            names = self.labels.classes[1:]
        if not names:
            raise VolumeError(
                f"the new project {self._title!r} needs class names, found none: give for example "
                '--labels "bone,implant,degradation layer"'
            )
        make = {"bitmask": bitmask_config, "brush": brush_config}[self.request.kind]
        return make(names, why=True)

    def _existing(self) -> tuple[Project | None, LabelConfig | None]:
        """The project to extend with its config, if there is one and it has the same classes."""
        if self.request.project is not None:
            found = [self.studio.project(self.request.project)]
        else:
            check_title(self._title)
            found = projects_called(self.studio, self._title)
        if not found:
            return None, None
        if len(found) > 1:
            numbers = ", ".join(str(p.id) for p in found)
            raise StudioError(
                f"{len(found)} projects are called {self._title!r} ({numbers}): say which one to "
                "extend with --project"
            )
        config = parse_label_config(found[0].label_config)
        if not config.plain_field:
            raise StudioError(
                f"project {found[0].id} ({found[0].title!r}) reads its images from "
                f'data.{config.value_field}, expected a plain field as in value="$image"'
            )
        if self.request.labels:
            wanted = parse_label_config(self._label_config())
            if wanted.classes != config.classes:
                raise StudioError(
                    f"project {found[0].id} ({found[0].title!r}) has the classes "
                    f"{', '.join(config.classes)}, asked for are {', '.join(wanted.classes)}: "
                    "give its labels, or another --title for a new project"
                )
        self._check_tasks(found[0], config)
        return found[0], config

    def _check_tasks(self, project: Project, config: LabelConfig) -> None:
        """Note which slices the project has, and which of them have another address today.

        StudioError when ours do not belong to them.
        """
        which = f"project {project.id} ({project.title!r})"
        elsewhere = "give another --title for a new project"
        volumes: set[str] = set()
        for row in self.studio.tasks(project.id):
            self._newest = row.id
            image, volume = row.data.get(config.value_field), row.data.get("volume")
            volumes.add(str(volume or "none"))
            served = isinstance(image, str) and is_slice_address(image)
            if served == self.request.upload:
                found, ours = "slices of volumes", "8-bit pictures (--upload)"
                if not served:
                    found, ours = "uploaded pictures", "slices of a volume"
                raise StudioError(
                    f"{which} shows {found}, this import {ours}: those are two grey scales, which "
                    f"no network can learn together. Import it as the others were, or {elsewhere}"
                )
            if not self._is_ours(row):
                continue
            claimed = SliceAddress.claimed(str(image))
            if claimed is not None:
                self._check_reading(which, claimed.options, elsewhere)
                self._note_address(row, config.value_field, claimed)
            z = _index(row)
            if z is not None:
                self._there[z] = str(image)
                if not row.total_annotations and not row.cancelled_annotations:
                    self._bare[z] = row.id
        implicit = self.request.project is None and self.request.title is None
        if implicit and volumes and self.name not in volumes:
            raise StudioError(
                f"{which} is called so already and holds other volumes "
                f"({', '.join(sorted(volumes))}): to add this one, give --project {project.id}; "
                f"else {elsewhere}"
            )

    def _is_ours(self, row: TaskRow) -> bool:
        return row.data.get("volume") == self.name and (row.data.get("axis") or "z") == self.axis

    def _check_reading(self, which: str, there: ReadOptions, elsewhere: str) -> None:
        """StudioError unless the slices that are there are read as ours."""
        ours = self.request.options
        if ours.oriented and not there.oriented:
            raise _StoredThereAlready
        differing = [
            f"{option.name} {_said(getattr(there, option.name))} there, "
            f"{_said(getattr(ours, option.name))} now"
            for option in fields(ReadOptions)
            if getattr(there, option.name) != getattr(ours, option.name)
        ]
        if differing:
            raise StudioError(
                f"{which} holds another reading of {self.name} ({'; '.join(differing)}), which no "
                f"network can learn together with this one. Give the options of then, or "
                f"{elsewhere.removeprefix('give ')}"
            )

    def _note_address(self, row: TaskRow, name: str, claimed: SliceAddress) -> None:
        """Note the window of one of the volume's tasks, and its new address if it needs one.

        Who signed it does not matter: whoever imports the volume may show it. Only its own slice,
        though: whoever may edit tasks must not get another one signed.
        """
        slice_ = (claimed.volume, claimed.axis, claimed.index)
        if slice_ != (self.name, self.axis, row.data.get("z")):
            return
        if claimed.window is not None:
            self._windows[claimed.window] += 1
        settings = self.service.settings
        wanted = replace(claimed, window=self.request.window or claimed.window)
        today = wanted.url(settings.slices_url, slice_keys(settings))
        if today != row.data[name]:
            self._moved.append((row.id, {name: today}, {name: row.data[name]}))

    # -- tasks

    def _new_project(self) -> Project:
        """StudioError where there is one by now: looking at the volume may have taken minutes."""
        found = projects_called(self.studio, self._title)
        if found:
            raise StudioError(
                f"project {found[0].id} ({found[0].title!r}) was made while this import looked at "
                "the volume, as the same command in another terminal does. Give the command again: "
                "it goes on there"
            )
        return create_project(self.studio, self._title, self._label_config(), DRAG_HELP)

    def _since(self, project: Project, name: str) -> dict[int, str]:
        """The images of the volume's slices that were added since we looked last, by us or by
        another import."""
        found: dict[int, str] = {}
        for row in self.studio.tasks(project.id, [ids_after(self._newest)]):
            self._newest = row.id
            z = _index(row) if self._is_ours(row) else None
            if z is not None:
                found[z] = str(row.data.get(name))
        return found

    def _move(self, project: Project) -> None:
        """Give the tasks that need one their new address, whatever slices are asked for, unless
        they got another one since they were looked at."""
        for done, (task, today, then) in enumerate(self._moved, start=1):
            set_data(self.studio, project.id, task, today, where=then)
            self.progress("addresses", done, len(self._moved))

    def _annotate(self, project: Project, config: LabelConfig, labelled: Sequence[int]) -> int:
        """Give slices that are there the labels that an import before this one lost, or was not
        asked for; how many. Not where somebody has annotated, skipped or begun the slice, also
        while this goes on."""
        lacking = [z for z in labelled if z in self._bare]
        given = 0
        for done in range(0, len(lacking), ANNOTATED_AT_ONCE):
            few = lacking[done : done + ANNOTATED_AT_ONCE]
            drawn = {self._bare[z]: self._annotations(z, config)["annotations"] for z in few}
            begun = [row.id for row in self.studio.tasks_by_id(project.id, drawn, [drafted()])]
            for task in begun:
                del drawn[task]
            given += annotate(self.studio, project.id, drawn)
            self.progress("labels", done + len(few), len(lacking))
        return given

    def _missing(self, project: Project, indices: range, window: Window) -> list[int]:
        if self.request.upload and self._there:
            self._check_pictures(project, window)
        return [i for i in indices if i not in self._there]

    def _check_pictures(self, project: Project, window: Window) -> None:
        """Raise StudioError when the pictures that are there are not our volume's: files of one
        name, as every sample's recon.tif, are different volumes. Air looks the same in all of them:
        so slices are compared until some had anything to see, all where none has."""
        there = sorted(self._there)
        for index in (there[0], there[-1]):
            if not 0 <= index < len(self.volume):
                self._refuse(project, f"one is its slice {index}, ours has {len(self.volume)}")
        telling = 0
        for place in dict.fromkeys([*middles(len(there), _COMPARED), *range(len(there))]):
            index = there[place]
            shown = render(self.volume[index], window)
            stored = decode_image(self.studio.download(self._there[index], 0), f"slice {index}")
            if not np.array_equal(stored, shown):
                self._refuse(project, f"its slice {index} looks different")
            telling += bool(shown.min() < shown.max())
            if telling == _COMPARED:
                return

    def _refuse(self, project: Project, difference: str) -> NoReturn:
        if self.request.options.oriented:
            raise _StoredThereAlready  # if they are pictures of this volume at all
        raise StudioError(
            f"project {project.id} ({project.title!r}) has slices of a volume called {self.name!r} "
            f"already, and {difference}: another file, or another --window. Give another --title "
            "for a new project"
        )

    def _create(
        self, project: Project, config: LabelConfig, missing: Sequence[int], window: Window
    ) -> int:
        """Add the tasks, some hundred a request; how many came with an annotation."""
        images = self._uploaded(project, missing, window) if self.request.upload else self._served(
            missing, window
        )  # fmt: skip
        done = annotated = 0
        seen: dict[int, str] = {}
        self._to_add = len(missing)
        self.progress("import", 0, len(missing))
        why = shows_why(project.label_config)
        upright = self._upright if why else ""
        slices = ((i, image, self._annotations(i, config)) for i, image in images)
        for batch in _within(slices, _TASKS_PER_REQUEST, lambda row: len(json.dumps(row[2]))):
            rows = []
            seen |= self._since(project, config.value_field)
            for index, image, labelled in batch:
                if index in seen:
                    self._there[index] = seen[index]
                    continue
                slice_ = {"volume": self.name, "axis": self.axis, "z": index}
                data = {**slice_, config.value_field: image}
                if why:
                    data[WHY] = f"Slice {index} along {self.axis} of {self.name}.{upright}"
                rows.append({"data": data, **labelled})
                annotated += bool(labelled)
            if rows:
                import_tasks(self.studio, project.id, rows)
            self._added += len(rows)
            done += len(batch)
            self.progress("import", done, len(missing))
        return annotated

    def _served(self, missing: Sequence[int], window: Window) -> Iterator[tuple[int, str]]:
        settings = self.service.settings
        keys = slice_keys(settings)
        for index in missing:
            address = SliceAddress(self.name, self.axis, index, window, self.request.options)
            yield index, address.url(settings.slices_url, keys)

    def _uploaded(
        self, project: Project, missing: Sequence[int], window: Window
    ) -> Iterator[tuple[int, str]]:
        stem = self.request.path.name.partition(".")[0]
        pictures = (
            (i, f"{stem}_{self.axis}{i:05d}.png", encode_png(render(self.volume[i], window)))
            for i in missing
        )
        for batch in _within(pictures, _FILES_PER_REQUEST, lambda picture: len(picture[2])):
            files = [(name, data) for _, name, data in batch]
            uploaded = upload_images(self.studio, project.id, files)
            yield from zip((i for i, _, _ in batch), uploaded, strict=True)

    def _annotations(self, index: int, config: LabelConfig) -> dict[str, Any]:
        """``{"annotations": […]}`` of a slice that somebody labelled, else nothing."""
        if self.labels is None:
            return {}
        mask = _mask(self.labels, index, config)
        if (mask == IGNORE).all():
            return {}
        return {"annotations": [{"result": regions(mask, config)}]}


def _index(row: TaskRow) -> int | None:
    """The slice that a task says it is; None without one."""
    z = row.data.get("z")
    return int(z) if isinstance(z, int) or (isinstance(z, float) and math.isfinite(z)) else None


def _said(value: object) -> object:
    """A reading option, in a sentence."""
    return "of the file" if value is None else "none" if value == "" else value


def _within(items: Iterator[Item], most: int, size: Callable[[Item], int]) -> Iterator[list[Item]]:
    """``items`` in batches of ``most`` that stay within Label Studio's limit of a request."""
    batch: list[Item] = []
    total = 0
    for item in items:
        length = size(item)
        if batch and (len(batch) == most or total + length > _BYTES_PER_REQUEST):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += length
    if batch:
        yield batch


def _check_labels(
    labels: Volume, volume: Volume, indices: range, config: LabelConfig, progress: Progress
) -> list[int]:
    """Which of ``indices`` somebody labelled.

    Raises VolumeError unless every label of theirs is a class, called so in the file too if it
    names them, or 255 where that can be said in the project.
    """
    if labels.shape != volume.shape:
        raise VolumeError(
            f"{labels.path} has the shape {labels.shape}, {volume.path} {volume.shape}: expected "
            "one label for every voxel"
        )
    named = [name.casefold() for name in (labels.classes or ())[1:]]
    if named != [name.casefold() for name in config.classes[1 : len(named) + 1]]:
        raise VolumeError(
            f"{labels.path} names its classes {', '.join(labels.classes or ())}, the project has "
            f"{', '.join(config.classes)}: expected the same in the same order, or bone would be "
            "taken for something else. Give --labels in the file's order, or write its values anew"
        )
    labelled: list[int] = []
    for done, index in enumerate(indices, start=1):
        mask = _mask(labels, index, config)
        unlabelled = mask == IGNORE
        if not unlabelled.all():
            labelled.append(index)
        if unlabelled.any() and not unlabelled.all() and not config.has_background_label:
            raise VolumeError(
                f"{labels.path}, slice {index}, is labelled in part ({IGNORE} = unlabelled), but "
                "in a project without a label called background every pixel that is not painted "
                "is background: add it to the labels, as in --labels background,bone"
            )
        progress("check labels", done, len(indices))
    return labelled


def _mask(labels: Volume, index: int, config: LabelConfig) -> npt.NDArray[np.uint8]:
    values = labels[index]
    ids = class_ids(values, len(config.classes))
    if ids is None:
        raise VolumeError(
            f"{labels.path}, slice {index}, has values from {values.min()} to {values.max()}: "
            f"expected 0 to {len(config.classes) - 1} ({', '.join(config.classes)}), or {IGNORE} "
            "for unlabelled"
        )
    return ids
