"""Slices of the queue as small pictures, the published mask over them."""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ml_backend.api.places import a_place
from ml_backend.api.server import PICTURES
from ml_backend.disk_cache import DiskCache
from ml_backend.errors import NextsliceError, TryAgainLater
from ml_backend.grey import finite_sample, from_low, grey_window
from ml_backend.pictures import encode_png, small_size
from ml_backend.rounds.artefacts import UNCERTAINTY
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.queue import known_queue
from ml_backend.rounds.records import Published
from ml_backend.rounds.service import Service
from ml_backend.rounds.uncertainty_pictures import picture_name
from ml_backend.studio.annotations import label_map
from ml_backend.studio.label_config import LabelConfig, label_colour, parse_label_config

__all__ = [
    "NoSuchSlice", "Picture", "Thumbnails", "TooManyPictures", "predicted", "thumbnail",
    "uncertainty",
]  # fmt: skip

_OPACITY = 0.5
_WAIT_S = 10.0
_DRAWN_AT_ONCE = 4
"""Each takes the memory of its slice, and a core."""


class NoSuchSlice(NextsliceError, LookupError):
    """The project has no such task, or the task no image."""


class TooManyPictures(TryAgainLater, RuntimeError):
    """More pictures are asked for at once than have threads; the message says what to do."""


@dataclass(frozen=True)
class Picture:
    """A PNG of a slice. ``lasting``: as long as its version is published it stays as it is."""

    png: bytes
    lasting: bool = True


class Thumbnails:
    """Pictures of slices, kept on disk. Safe to use from many threads."""

    def __init__(self, service: Service) -> None:
        settings = service.settings
        self._cache = DiskCache(settings.cache_dir, settings.cache_gib)
        self._places = threading.BoundedSemaphore(PICTURES)
        self._drawing = threading.BoundedSemaphore(_DRAWN_AT_ONCE)

    def place(self) -> AbstractContextManager[None]:
        """One of the `PICTURES` places. Raises TooManyPictures when all are taken."""
        full = TooManyPictures(f"{PICTURES} pictures are asked for at once: load it again")
        return a_place(self._places, full)

    def picture(self, project: ConnectedProject, task: int) -> Picture:
        """The slice of ``task`` with what is published of it. Raises NextsliceError where it cannot
        be had, NoSuchSlice where there is none, TooManyPictures as `place`."""
        published = project.published
        version = "none" if published is None else published.model_version
        name = f"thumbnails/{project.key}/{version}/{task}.png"
        data = self._cache.read(name)
        if data is not None:
            return Picture(data)
        with self.place(), self._drawing:
            data = self._cache.read(name)
            if data is not None:
                return Picture(data)
            # before the task is read: of a mask that comes meanwhile, none is seen yet
            settled = published is not None and _settled(project, published, task)
            data, result = _drawn(project, task, version)
            drawing = published is not None and published.weights is not None
            lasting = not drawing or bool(result) or (settled and result is not None)
            if lasting:
                self._cache.keep(name, data)
            return Picture(data, lasting)


def _settled(project: ConnectedProject, published: Published, task: int) -> bool:
    """Whether the queue has the slice of ``task``, and no mask of it is still to come."""
    queue = known_queue(project.folder.round(published.round))
    if queue is None or queue.model_version != published.model_version:
        return False
    return task in {entry.task for entry in queue.entries} - {*queue.pending}


def _drawn(project: ConnectedProject, task: int, version: str) -> tuple[bytes, Any]:
    """The picture, and the regions over it: `predicted`."""
    row = next(iter(project.studio.full_tasks_by_id(project.number, [task])), None)
    config = parse_label_config(project.in_studio().label_config)
    url = None if row is None else config.image_of(row["data"])
    if row is None or not isinstance(url, str):
        raise NoSuchSlice(f"task {task} of project {project.number} is not there, or has no image")
    image = project.images.image(task, url, _WAIT_S)
    result = predicted(row, version)
    mask = None if result is None else _mask(result, config, image)
    return thumbnail(image, mask), result


def predicted(row: Mapping[str, Any], version: str | None) -> Any:
    """The regions that are stored of a task, as JSON, by the network of ``version``; None: none."""
    stored = [p for p in row.get("predictions") or () if p.get("model_version") == version]
    return stored[-1].get("result") or () if stored else None


def _mask(
    result: Any, config: LabelConfig, image: npt.NDArray[Any]
) -> npt.NDArray[np.uint8] | None:
    try:
        return label_map(result, config, image.shape[0], image.shape[1]).mask
    except NextsliceError:  # somebody else's prediction under our version: shown without
        return None


def uncertainty(project: ConnectedProject, task: int) -> bytes:
    """A PNG of how uncertain the published network is of the slice of ``task``, black for certain
    and white for as uncertain as can be. Raises NoSuchSlice where none is kept, StoreError."""
    published = project.published
    found = None
    if published is not None and published.weights is not None:
        name = picture_name(published.model_version, task)
        found = project.folder.round(published.round).load(UNCERTAINTY[name])
    if found is None:
        raise NoSuchSlice(
            f"no picture is kept of how uncertain the network is of task {task}: only of what its "
            "round put into the queue, since rounds keep them"
        )
    return encode_png(found)


def thumbnail(image: npt.NDArray[Any], mask: npt.NDArray[np.uint8] | None) -> bytes:
    """A PNG of at most 256 pixels a side: ``image`` (H, W) or (H, W, C), ``mask`` (H, W) class
    indices over it, background and what nobody labelled left as they are."""
    shown = Image.fromarray(_eight_bits(image)).convert("RGB")
    size = small_size(*shown.size)
    picture = np.asarray(shown.resize(size, Image.Resampling.BOX), dtype=np.float32)
    if mask is not None:
        small = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        painted = (small > 0) & (small < 255)
        over = _colours()[np.clip(small, 1, 254).astype(int) - 1]
        mixed = picture * (1 - _OPACITY) + over * _OPACITY
        picture = np.where(painted[..., np.newaxis], mixed, picture)
    buffer = io.BytesIO()
    Image.fromarray(picture.round().astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _eight_bits(image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """As a screen shows it: bytes as they are, other values between two percentiles."""
    plane = image[:, :, 0] if image.ndim == 3 and image.shape[2] < 3 else image[..., :3]
    plane = image if image.ndim == 2 else plane
    if plane.dtype == np.uint8:
        return plane
    values = plane if plane.ndim == 2 else plane.mean(axis=2)
    sample = finite_sample(values)
    low, high = grey_window(sample if sample.size else np.zeros(1))
    scaled = np.nan_to_num(from_low(values, low, 255.0 / (high - low)))
    return np.clip(scaled, 0, 255).astype(np.uint8)


@cache
def _colours() -> npt.NDArray[np.int64]:
    """(254, 3): of the classes from the second on; the first is the background."""
    return np.array([_rgb(label_colour(i)) for i in range(254)], np.int64)


def _rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
