"""What is simulated on: slices with true masks, split into a pool and test slices along z."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from al_strategies.evidence import Position, SliceId
from al_strategies.holdout import held_out_block
from al_strategies.learner import IGNORE, Progress, SliceSource
from ml_backend.errors import NextsliceError
from ml_backend.rounds.service import volume_roots
from ml_backend.settings import load_settings
from ml_backend.volumes.folder import FolderSource
from ml_backend.volumes.formats.tiled import FORMAT as TILED
from ml_backend.volumes.pair import VolumePair
from ml_backend.volumes.phantom import phantom
from ml_backend.volumes.volume import Bounds, ReadOptions

__all__ = [
    "Contents",
    "Data",
    "DataError",
    "DataSpec",
    "load_data",
    "phantom_folder",
    "phantom_has_test_split",
]


class DataError(NextsliceError, ValueError):
    """Data that no experiment can be made of; the message says what is missing."""


@dataclass(frozen=True)
class DataSpec:
    """Where the slices are; what an experiment's record needs to find them again.

    ``path``: a folder with ``images/`` and ``masks/``, or a volume (any that `open_volume` reads)
    whose labels are ``labels``, cut along ``axis`` (0: z). ``dataset``, ``labels_dataset``: which
    of several in an HDF5 or Zarr file; ``channel``, ``time``: which of several of the volume,
    ``labels_channel``, ``labels_time`` of its labels.
    ``fraction`` of each volume's slices are held out in one block for testing, around the relative
    place ``centre`` along z, ``gap`` z units on each side of it dropped; a folder whose
    ``volumes.json`` names the splits *train* and *test* is split as it says; one that names others
    without these is refused.
    """

    path: str
    labels: str | None = None
    axis: int = 0
    fraction: float = 0.2
    gap: float = 5.0
    centre: float = 0.5
    dataset: str | None = None
    labels_dataset: str | None = None
    channel: int | None = None
    time: int | None = None
    labels_channel: int | None = None
    labels_time: int | None = None


class _Named(SliceSource, Protocol):
    @property
    def classes(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Contents:
    """What `Data.read` found.

    ``digest``: SHA-256 of ids, images and masks of both parts: the same data, the same digest.
    ``missing_in_pool``, ``missing_in_test``: classes without a pixel there; the first cannot be
    learned, the second are not measured. ``unlabelled``: slices of the pool whose mask has not one
    labelled pixel, so that they teach nothing and cannot be judged.
    """

    digest: str
    missing_in_pool: tuple[str, ...]
    missing_in_test: tuple[str, ...]
    unlabelled: tuple[SliceId, ...]


@dataclass(frozen=True)
class Data:
    """Slices, class names and two parts: ``pool`` may be annotated, ``test`` is measured on.

    ``named``: the parts are those that ``volumes.json`` names, not blocks along z.
    """

    source: SliceSource
    classes: tuple[str, ...]
    pool: tuple[SliceId, ...]
    test: tuple[SliceId, ...]
    named: bool = False

    def positions(self, ids: tuple[SliceId, ...]) -> dict[str, tuple[str, float]]:
        """Slice id → (volume, z)."""
        places = ((i, self.source.position(i)) for i in ids)
        return {str(i): (place.volume, place.z) for i, place in places}

    def read(self, progress: Progress | None = None) -> Contents:
        """Look at every pixel of both parts once. Raises DataError when a whole part is without a
        labelled pixel."""
        total = hashlib.sha256()
        pixels = {part: np.zeros(len(self.classes), np.int64) for part in ("pool", "test")}
        unlabelled: list[SliceId] = []
        ids = [(i, "pool") for i in self.pool] + [(i, "test") for i in self.test]
        for done, (slice_id, part) in enumerate(ids, start=1):
            image, mask = self.source.image(slice_id), self.source.mask(slice_id)
            total.update(str(slice_id).encode())
            for values in (image, mask):
                total.update(f"{values.dtype.str}{values.shape}".encode())
                total.update(np.ascontiguousarray(values).tobytes())
            found = np.bincount(mask.ravel(), minlength=len(self.classes))[: len(self.classes)]
            pixels[part] += found
            if part == "pool" and not found.any():
                unlabelled.append(slice_id)
            if progress is not None:
                progress("read", done, len(ids))
        for part, what in (("pool", "to choose from"), ("test", "to test on")):
            if not pixels[part].any():
                raise DataError(
                    f"none of the slices {what} has a labelled pixel: expected masks with class "
                    f"ids, found {IGNORE} (unlabelled) alone; --held-out-at moves a test block"
                )
        return Contents(
            digest=total.hexdigest(),
            missing_in_pool=self._missing(pixels["pool"]),
            missing_in_test=self._missing(pixels["test"]),
            unlabelled=tuple(unlabelled),
        )

    def without(self, slices: tuple[SliceId, ...]) -> Data:
        """The same with a pool that lacks ``slices``."""
        left = set(slices)
        return replace(self, pool=tuple(i for i in self.pool if i not in left))

    def _missing(self, pixels: npt.NDArray[np.int64]) -> tuple[str, ...]:
        return tuple(name for name, count in zip(self.classes, pixels, strict=True) if not count)


def load_data(spec: DataSpec) -> Data:
    """The slices of ``spec``.

    Raises FolderError, VolumeError, HoldOutError, and DataError without a mask, also in a split
    that is named, or when the masks know only one class.
    """
    data = _load(spec)
    if len(data.classes) < 2:
        raise DataError(
            f"the masks of {spec.labels or spec.path} hold nothing but 0 (background) and "
            f"{IGNORE} (unlabelled), so there is nothing to learn: write class ids, 1 for the "
            "first class after the background"
        )
    return data


def _bounds(path: str) -> Bounds:
    """Its own folder; for an array on a server, what the settings say of servers."""
    if not path.lower().endswith(TILED.endings):
        return Bounds()
    roots = volume_roots(load_settings())
    return Bounds(tiled=roots.tiled, tiled_key=roots.tiled_key, timeout_s=roots.timeout_s)


def _load(spec: DataSpec) -> Data:
    if spec.labels is not None:
        pair = VolumePair(
            spec.path,
            spec.labels,
            axis=spec.axis,
            options=ReadOptions(
                spec.dataset,
                bounds=_bounds(spec.path),
                oriented=True,
                channel=spec.channel,
                time=spec.time,
            ),
            labels_options=ReadOptions(
                spec.labels_dataset,
                bounds=_bounds(spec.labels),
                oriented=True,
                channel=spec.labels_channel,
                time=spec.labels_time,
            ),
        )
        return _split(pair, {i: pair.position(i) for i in pair.ids}, spec)
    if not Path(spec.path).exists():
        raise DataError(f"{spec.path} does not exist: expected a folder or a volume")
    if not (Path(spec.path) / "images").is_dir():
        raise DataError(
            f"{spec.path} has no folder images/: give a folder with images/NAME.png and "
            "masks/NAME.png, or, where it is a volume, its label volume as well (--labels)"
        )
    folder = FolderSource(spec.path)
    known = folder.labelled
    if not known:
        raise DataError(
            f"{spec.path} has no masks: a simulation needs the truth, as masks/NAME.png beside "
            "images/NAME.png"
        )
    splits = folder.splits
    if "train" in splits and "test" in splits:
        pool, test = (_with_masks(spec, name, splits[name], known) for name in ("train", "test"))
        return Data(folder, folder.classes, pool, test, named=True)
    if splits.keys() - {"train"}:
        raise DataError(
            f"{spec.path}: volumes.json names the splits {', '.join(sorted(splits))}, expected "
            "both train (to choose from) and test, spelt so. Name them, or take the splits out to "
            "test on a block of each volume"
        )
    return _split(folder, {i: folder.position(i) for i in folder.ids if i in known}, spec)


def _with_masks(
    spec: DataSpec, name: str, ids: tuple[SliceId, ...], known: frozenset[SliceId]
) -> tuple[SliceId, ...]:
    """The slices of the split ``name`` that have a mask. Raises DataError when none has."""
    if not ids:
        raise DataError(
            f"{spec.path}: volumes.json names volumes of the split {name}, and no image is of one "
            "of them: images are called VOLUME_NAME.png, with the volume's name as in "
            "volumes.json. Mend the names, or take the splits out of it to test on a block of each "
            "volume"
        )
    found = tuple(i for i in ids if i in known)
    if not found:
        raise DataError(
            f"{spec.path}: volumes.json names {len(ids)} slices as the split {name}, and none of "
            "them has a mask: add masks/NAME.png for them, or take the splits out of volumes.json "
            "to test on a block of each volume"
        )
    return found


def _split(source: _Named, places: dict[SliceId, Position], spec: DataSpec) -> Data:
    pool, test = held_out_block(places, fraction=spec.fraction, gap=spec.gap, centre=spec.centre)
    return Data(source, source.classes, pool, test)


def phantom_has_test_split(size: str) -> bool:
    """Whether the phantom ``size`` says which slices are for testing. OptionError: no such size."""
    return bool(phantom(size).splits["test"])


def phantom_folder(size: str, home: Path, progress: Progress | None, jobs: int) -> Path:
    """The phantom ``size`` as a folder under ``home``, generated where it is not there yet."""
    return phantom(size).write(home / f"phantom-{size}", progress, jobs=jobs)
