"""Scan, labels and prediction of a project's volumes as NIfTI that a browser can hold, kept on
disk. Few at a time, in bounded time and memory."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.api.dashboard.grid import Grid, chosen_slices, scan_planes, small_masks
from ml_backend.api.dashboard.thumbnails import predicted
from ml_backend.api.dashboard.views import Kind, Looked, ShownSlice, VolumeView, take_look
from ml_backend.api.places import a_place
from ml_backend.api.server import VOLUMES
from ml_backend.disk_cache import DiskCache
from ml_backend.errors import NextsliceError, TryAgainLater
from ml_backend.rounds.artefacts import DATASET
from ml_backend.rounds.cut_from import Source
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import TaskRecord
from ml_backend.rounds.service import Service
from ml_backend.rounds.stacks import stacked
from ml_backend.rounds.sync import chosen_annotation, reading
from ml_backend.studio.annotations import label_map
from ml_backend.volumes.opening import write_volume
from ml_backend.volumes.turn import Affine
from ml_backend.volumes.volume import AXES, VolumeSpec

__all__ = [
    "Built", "ProjectVolumes", "Stacks", "TakesTooLong", "TooManyVolumes", "has_mask", "mask_of",
]  # fmt: skip

_BUILT_AT_ONCE = 2
"""Each takes a slice of the volume, `MOST_VOXELS` bytes, and a core."""
_WITHIN_S = 300.0
"""A volume is read, or its labels, in so long."""
_FRESH_S = 5.0
"""A page is followed by its three volumes, which need not ask Label Studio again."""
_KEPT = 32

Mask = npt.NDArray[np.uint8]
Row = dict[str, Any]


class TooManyVolumes(TryAgainLater, RuntimeError):
    """More volumes are asked for at once than have threads; the message says what to do."""


class TakesTooLong(NextsliceError, RuntimeError):
    """A volume is not read in the time that somebody would wait for it."""


@dataclass(frozen=True)
class Stacks:
    """The volumes of a project: the slices of each along each axis, as a round has listed them."""

    groups: Mapping[tuple[str, str], Sequence[TaskRecord]]
    classes: Sequence[str] = ()

    def find(self, volume: str, axis: str | None) -> tuple[str, str] | None:
        """The one along ``axis``, by default along that with the most slices; None: no such."""
        found = [key for key in self.groups if key[0] == volume and axis in (None, key[1])]
        return max(found, key=lambda key: len(self.groups[key]), default=None)


@dataclass(frozen=True)
class Built:
    """A ``.nii.gz`` file. ``left_out``: how many slices there were whose mask cannot be read."""

    data: bytes
    left_out: int = 0


class ProjectVolumes:
    """Volumes of projects for browsers. Safe to use from many threads."""

    def __init__(self, service: Service) -> None:
        settings = service.settings
        self._cache = DiskCache(settings.cache_dir, settings.cache_gib)
        self._places = threading.BoundedSemaphore(VOLUMES)
        self._builders = threading.BoundedSemaphore(_BUILT_AT_ONCE)
        self._building = tuple(threading.Lock() for _ in range(64))
        self._looking = tuple(threading.Lock() for _ in range(64))
        self._lock = threading.Lock()
        self._stacks: dict[object, Stacks] = {}
        self._looks: dict[object, tuple[float, Looked]] = {}

    def place(self) -> AbstractContextManager[None]:
        """One of the `VOLUMES` places for requests. Raises TooManyVolumes when all are taken."""
        full = TooManyVolumes(f"{VOLUMES} volumes are asked for at once: load the page again")
        return a_place(self._places, full)

    def stacks(self, project: ConnectedProject) -> Stacks:
        """The project's volumes, none before a round has listed its slices. Raises StoreError."""
        folder = project.folder
        number = next((n for n in reversed(folder.rounds()) if folder.round(n).has(DATASET)), None)
        if number is None:
            return Stacks({})
        listed = folder.round(number)
        key = (project.key, number, folder.store.modified(listed.where(DATASET)))
        with self._lock:
            found = self._stacks.get(key)
        if found is None:
            dataset = listed.need(DATASET)
            tasks = [task for task in dataset.tasks if task.axis in (*AXES, "0", "1", "2")]
            found = Stacks(stacked(tasks), dataset.classes)
            self._keep(self._stacks, key, found)
        return found

    def view(self, project: ConnectedProject, volume: str, axis: str | None) -> VolumeView | None:
        """What there is to see; None for a volume that is none of the project's. Raises StoreError,
        and SettingsError where the project's settings cannot be used."""
        found = self.looked(project, volume, axis)
        return None if found is None else found.view

    def built(
        self, project: ConnectedProject, volume: str, axis: str | None, kind: Kind, tag: str
    ) -> Built | None:
        """The file of ``kind`` that has the ``tag`` of the view; None where there is none now.

        Raises as `view`; StudioError, VolumeError, and TakesTooLong.
        """
        name = f"volumes/{project.key}/{tag}.nii.gz"
        # who asks for a volume that is being built waits for it
        with self._building[int(tag, 16) % len(self._building)]:
            data = self._cache.read(name)
            if data is not None:
                return Built(data, int(self._cache.read(f"{name}.left-out") or 0))
            looked = self.looked(project, volume, axis)
            if looked is None or looked.view.tags.get(kind) != tag:
                return None
            with self._builders:
                found = _build(project, looked, kind)
            if found.left_out:
                self._cache.keep(f"{name}.left-out", str(found.left_out).encode())
            self._cache.keep(name, found.data)
            return found

    def looked(self, project: ConnectedProject, volume: str, axis: str | None) -> Looked | None:
        """As `view`, with what volumes are built from."""
        stacks = self.stacks(project)
        name = stacks.find(volume, axis)
        if name is None:
            return None
        tasks = stacks.groups[name]
        key = (project.key, name)
        # who asks meanwhile waits for what is found
        with self._looking[hash(key) % len(self._looking)]:
            with self._lock:
                until, found = self._looks.get(key, (0.0, None))
            if found is None or time.monotonic() >= until or len(found.view.slices) != len(tasks):
                found = take_look(project, *name, tasks, stacks.classes)
                self._keep(self._looks, key, (time.monotonic() + _FRESH_S, found))
            return found

    def _keep(self, among: dict[object, Any], key: object, found: object) -> None:
        with self._lock:
            among.pop(key, None)
            while len(among) >= _KEPT:
                among.pop(next(iter(among)))
            among[key] = found


def _build(project: ConnectedProject, looked: Looked, kind: Kind) -> Built:
    check = _Clock(looked.view.volume).check
    if kind == "scan":
        return _scan(project, looked, check)
    grid, view, stack = looked.view.grid, looked.view, looked.stack
    assert grid is not None  # or there were no tag
    of = {one.at: one.task for one in view.slices if has_mask(one, kind)}
    places = {of[at]: place for place, at in chosen_slices(grid, view.axis, of).items()}
    left_out = 0

    def masks() -> Iterator[tuple[int, Mask]]:
        nonlocal left_out
        for row in project.studio.full_tasks_by_id(project.number, places):
            check()
            try:
                mask = mask_of(project, looked, kind, row)
            except NextsliceError:
                left_out += 1
                continue
            if mask is not None:
                yield places[row["id"]], stack.straight(mask)

    values = small_masks(grid, view.axis, masks())
    return Built(_file(values, looked, grid, view.classes), left_out)


def has_mask(one: ShownSlice, kind: Kind) -> bool:
    """Whether there is a mask of the slice in the volume of labels, or of predictions."""
    return one.labelled if kind == "labels" else one.predicted


def _scan(project: ConnectedProject, looked: Looked, check: Callable[[], None]) -> Built:
    address, grid, volumes = looked.address, looked.view.grid, project.service.volumes
    assert address is not None
    assert grid is not None
    window = volumes.window(address)
    with volumes.volume(address.volume, replace(address.options, flip="")) as volume:
        return Built(_file(scan_planes(volume, window, grid, check), looked, grid))


def mask_of(project: ConnectedProject, looked: Looked, kind: Kind, row: Row) -> Mask | None:
    """The label map of a task, as its slice is shown. Raises AnnotationError; None where somebody
    has taken it away."""
    source, config = looked.stack.source, looked.config
    assert source is not None
    assert config is not None
    height, width = source.slice_shape(looked.view.axis)
    if kind == "labels":
        chosen = chosen_annotation(row)
        result: Any = None if chosen is None else chosen.result
    else:
        result = predicted(row, looked.view.version)
    if result is None:
        return None
    policy = config.unlabelled(project.settings.unlabelled)
    with reading():
        return label_map(result, config, height, width, policy).mask


def _file(
    planes: Iterable[Mask], looked: Looked, grid: Grid, classes: tuple[str, ...] | None = None
) -> bytes:
    """``planes`` along z as .nii.gz, lying where their volume lies."""
    source = looked.stack.source
    assert source is not None
    z, y, x = (size * step for size, step in zip(_voxel_size(source), grid.steps, strict=True))
    spec = VolumeSpec(
        grid.shape, np.dtype(np.uint8), (z, y, x), source.unit, classes,
        grid.affine(source.affine or _as_shown(_voxel_size(source))), source.frame,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="nextslice-") as folder:
        path = Path(folder, "volume.nii.gz")
        write_volume(path, planes, spec)
        return path.read_bytes()


def _voxel_size(source: Source) -> tuple[float, float, float]:
    return source.voxel_size or (1.0, 1.0, 1.0)


def _as_shown(size: tuple[float, float, float]) -> Affine:
    """A place for a volume whose file says none, so that slices lie as people see them in Label
    Studio: the first row at the top, the first column at the left."""
    z, y, x = size
    return ((0.0, 0.0, x, 0.0), (0.0, -y, 0.0, 0.0), (-z, 0.0, 0.0, 0.0))


class _Clock:
    """How long it may still take."""

    def __init__(self, volume: str) -> None:
        self._volume = volume
        self._until = time.monotonic() + _WITHIN_S

    def check(self) -> None:
        """Raise TakesTooLong when the time is over."""
        if time.monotonic() > self._until:
            raise TakesTooLong(
                f"{self._volume} was not read within {_WITHIN_S:g} s. Is its disk slow? Load the "
                "page again, or make an OME-Zarr of it"
            )
