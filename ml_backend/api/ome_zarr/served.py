"""The images that an address opens: the scan of a volume, its labels and what is predicted of it,
made of its slices a tile at a time."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from al_strategies.learner import IGNORE
from ml_backend.api.dashboard.grid import Grid, chosen_slices
from ml_backend.api.dashboard.views import Kind, Looked, cut_from
from ml_backend.api.dashboard.volumes import ProjectVolumes, TooManyVolumes, has_mask, mask_of
from ml_backend.api.ome_zarr.images import Image, label_image, scan_image
from ml_backend.api.ome_zarr.planes import Planes, scan_plane
from ml_backend.api.places import a_place
from ml_backend.api.server import CHUNKS
from ml_backend.disk_cache import DiskCache
from ml_backend.errors import NextsliceError
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.service import Service, slice_keys
from ml_backend.rounds.stacks import Stack, places_along
from ml_backend.volumes.address import SliceAddress
from ml_backend.volumes.roots import NoSuchVolume
from ml_backend.volumes.volume import VolumeSpec, axis_index, slice_shape
from ml_backend.volumes.volume_address import VolumeAddress

__all__ = ["Served", "ServedVolumes"]

logger = logging.getLogger(__name__)

_FORM = 1
"""Raised whenever the same volume and labels would give other bytes."""
_FRESH_S = 5.0
"""A viewer asks for hundreds of chunks, which need not all look whether the file is still so."""
_KEPT = 32

Tile = npt.NDArray[Any]
_Three = tuple[int, int, int]


class Served(Protocol):
    """An image, and the tiles of its slices."""

    @property
    def image(self) -> Image: ...

    def tile(self, level: int, place: int, rows: slice, columns: slice) -> Tile | None:
        """A part of the slice at ``place`` along the image's axis; None: all of it is 0."""


class ServedVolumes:
    """What the addresses of one process open. Safe to use from many threads."""

    def __init__(self, service: Service, volumes: ProjectVolumes) -> None:
        self._service = service
        self._volumes = volumes
        self._planes = Planes(DiskCache(service.settings.cache_dir, service.settings.cache_gib))
        self._places = threading.BoundedSemaphore(CHUNKS)
        self._lock = threading.Lock()
        self._opened: dict[tuple[VolumeAddress, Kind], tuple[float, Served]] = {}

    def place(self) -> AbstractContextManager[None]:
        """One of the `CHUNKS` places for requests. Raises TooManyVolumes when all are taken."""
        full = TooManyVolumes(f"{CHUNKS} chunks are asked for at once: ask again")
        return a_place(self._places, full)

    def address(self, token: str) -> VolumeAddress:
        """What ``token`` opens. Raises AddressRefused; SettingsError without any secret."""
        return VolumeAddress.parse(token, slice_keys(self._service.settings))

    def kinds(self, address: VolumeAddress) -> list[Kind]:
        """Which label images there are now. Raises as `open`."""
        tags = self._looked(address).view.tags
        return [kind for kind in tags if kind != "scan"]

    def open(self, address: VolumeAddress, kind: Kind) -> Served:
        """Raises NoSuchVolume for what is no volume of the project, or not predicted, SourceError
        for one that cannot be read as it was imported, StoreError, and NextsliceError where Label
        Studio does not say what is labelled."""
        key = (address, kind)
        with self._lock:
            until, found = self._opened.get(key, (0.0, None))
        if found is None or time.monotonic() >= until:
            found = self._scan(address) if kind == "scan" else self._labels(address, kind)
            with self._lock:
                self._opened.pop(key, None)
                while len(self._opened) >= _KEPT:
                    self._opened.pop(next(iter(self._opened)))
                self._opened[key] = time.monotonic() + _FRESH_S, found
        return found

    def _labels(self, address: VolumeAddress, kind: Kind) -> Served:
        scan = self.open(address, "scan")
        looked = self._looked(address)
        if kind not in looked.view.tags:
            if looked.view.unanswered:
                raise NextsliceError(looked.view.unanswered)
            raise NoSuchVolume("nothing is predicted yet: that begins with the first training")
        return _Labels(self._project(address), looked, kind, scan.image.spec, self._planes)

    def _looked(self, address: VolumeAddress) -> Looked:
        looked = self._volumes.looked(self._project(address), address.volume, address.axis)
        if looked is None:
            raise _no_volume(address)
        return looked

    def _scan(self, address: VolumeAddress) -> Served:
        project = self._project(address)
        stacks = self._volumes.stacks(project)
        name = stacks.find(address.volume, address.axis)
        if name is None:
            raise _no_volume(address)
        tasks = stacks.groups[name]
        one = cut_from(project, Stack(*name, *places_along(tasks)), tasks)
        as_stored = replace(one, options=replace(one.options, flip=""))
        return _Scan.of(self._service, as_stored, self._planes)

    def _project(self, address: VolumeAddress) -> ConnectedProject:
        if address.project not in self._service.project_keys():
            raise NoSuchVolume(f"project {address.project} is not known here (any more)")
        return ConnectedProject(self._service, address.project)


def _no_volume(address: VolumeAddress) -> NoSuchVolume:
    return NoSuchVolume(f"project {address.project} has no volume {address.volume!r} (any more)")


@dataclass(frozen=True)
class _Scan:
    """The grey values of the volume that the slice ``address`` is of, as its file has them."""

    service: Service
    address: SliceAddress
    image: Image
    tag: str
    planes: Planes

    @classmethod
    def of(cls, service: Service, address: SliceAddress, planes: Planes) -> _Scan:
        volumes = service.volumes
        state = volumes.state(address)
        with volumes.volume(address.volume, address.options) as volume:
            spec = VolumeSpec(
                volume.shape, volume.dtype, volume.voxel_size, volume.unit, None, volume.affine,
                volume.frame, volume.origin,
            )  # fmt: skip
        image = scan_image(spec, volumes.window(address))
        return cls(service, address, image, _tag(state, address.options, spec), planes)

    def tile(self, level: int, place: int, rows: slice, columns: slice) -> Tile | None:
        """Level 0 lies in the volume's file, the others are kept on disk as well."""
        one, dtype = self.image.levels[level], self.image.spec.dtype
        on_disk = ((one.shape[1], one.shape[2]), dtype) if level else None
        make = partial(self._plane, level, place)
        plane = self.planes.get(f"{self.tag}/{level}/{place}", make, on_disk)
        return plane[rows, columns]

    def _plane(self, level: int, place: int) -> Tile:
        with self.service.volumes.volume(self.address.volume, self.address.options) as volume:
            return scan_plane(volume, self.image.levels[level], place)


class _Labels:
    """Class ids of the slices that have a mask of ``kind``; 0, the background, also stands for
    whatever nobody labelled."""

    def __init__(
        self,
        project: ConnectedProject,
        looked: Looked,
        kind: Kind,
        scan: VolumeSpec,
        planes: Planes,
    ) -> None:
        view = looked.view
        self._project, self._looked, self._kind, self._planes = project, looked, kind, planes
        self._axis = axis_index(view.axis)
        self._tasks = {one.at: one.task for one in view.slices if has_mask(one, kind)}
        self.image = label_image(kind, scan, self._axis, view.classes)

    def tile(self, level: int, place: int, rows: slice, columns: slice) -> Tile | None:
        """Of several slices that one stands for, the one nearest to the middle; of each pixel's
        cell the middle one."""
        shape, view = self.image.spec.shape, self._looked.view
        grid = Grid(shape, self.image.levels[level].factors)
        at = chosen_slices(grid, view.axis, self._tasks).get(place)
        if at is None:
            return None
        size = slice_shape(shape, self._axis)
        name = f"{view.tags[self._kind]}/{self._tasks[at]}"
        make = partial(self._mask, self._tasks[at], size)
        mask = self._planes.get(name, make, (size, np.dtype(np.uint8)))
        in_rows, in_columns = (grid.middles(i) for i in range(3) if i != self._axis)
        return mask[np.ix_(in_rows[rows], in_columns[columns])]

    def _mask(self, task: int, size: tuple[int, int]) -> Tile:
        """From Label Studio, as it lies in the file; zeros for one that cannot be read."""
        project = self._project
        row = next(iter(project.studio.full_tasks_by_id(project.number, [task])), None)
        mask = None
        try:
            if row is not None:
                mask = mask_of(project, self._looked, self._kind, row)
        except NextsliceError as error:
            logger.warning("%s of task %d are left out: %s", self._kind, task, error)
        if mask is None:
            return np.zeros(size, np.uint8)
        return self._looked.stack.straight(np.where(mask == IGNORE, 0, mask).astype(np.uint8))


def _tag(*parts: object) -> str:
    return hashlib.sha256(repr((_FORM, *parts)).encode()).hexdigest()[:32]
