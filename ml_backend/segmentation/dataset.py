"""Labelled slices in memory, and the random crops of them that training sees.

`LabelledSlices` reads a `SliceSource` once, preprocesses and caches it; `Crops` is the endless
stream of batches. Rare classes are found: a part of the crops (``balance``) is placed on a pixel of
a class chosen with equal chances, so 1 % of degradation layer is not 1 % of the training.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from al_strategies.evidence import SliceId
from al_strategies.learner import IGNORE, InvalidMask, Progress, Unusable
from ml_backend.errors import NextsliceError
from ml_backend.segmentation.augmentation import Augmentation, resample
from ml_backend.segmentation.networks.base import Lesson
from ml_backend.segmentation.preprocessing import Preprocessing

__all__ = [
    "Crops",
    "ImagesAndMasks",
    "LabelledSlices",
    "NothingLabelled",
    "Pair",
    "prefetch",
    "read_pair",
]

_ANCHORS = 2048  # remembered pixels of each class and slice
_SPARSE = 1 / 8  # of all pixels
_CENTRED = 0.8  # an anchor lies in this central part of its crop's side

T = TypeVar("T")
Mask = npt.NDArray[np.uint8]


class NothingLabelled(NextsliceError, ValueError):
    """Not one labelled pixel in the slices to train on."""


class ImagesAndMasks(Protocol):
    """What is read of a `SliceSource` here."""

    def image(self, slice_id: SliceId) -> npt.NDArray[Any]:
        """The slice as read."""

    def mask(self, slice_id: SliceId) -> Mask:
        """(H, W): the class of each pixel, `IGNORE` where unlabelled."""


@dataclass(frozen=True)
class Pair:
    """A preprocessed slice and its mask."""

    image: Tensor  # (channels, H, W) float32
    mask: Tensor  # (H, W) uint8


def read_pair(
    source: ImagesAndMasks,
    slice_id: SliceId,
    preprocessing: Preprocessing,
    classes: int,
    pseudo: Mask | None = None,
) -> Pair:
    """The slice with its label, or with ``pseudo`` (H, W).

    Raises InvalidMask, and whatever the source raises.
    """
    image = preprocessing(source.image(slice_id))
    mask = np.asarray(source.mask(slice_id) if pseudo is None else pseudo)
    if mask.shape != image.shape[1:]:
        raise InvalidMask(
            f"The mask of slice {slice_id!r} has shape {mask.shape}, its image "
            f"{image.shape[1:]}; they must be equal."
        )
    wrong = mask[(mask >= classes) & (mask != IGNORE)]
    if wrong.size:
        raise InvalidMask(
            f"The mask of slice {slice_id!r} holds the class {int(wrong.max())}; there are "
            f"{classes} classes (0 … {classes - 1}) and {IGNORE} for unlabelled."
        )
    return Pair(torch.from_numpy(image), torch.from_numpy(mask.astype(np.uint8)))


class LabelledSlices:
    """Preprocessed slices with their masks, the most recently used of them in memory.

    ``pseudo``: id → (H, W) uint8 mask made by a model, used like a label; not of slices among
    ``ids``, since a person's label comes first. ``cache_bytes``: beyond it slices are read again
    when a crop needs them. Slices without a labelled pixel are left out. ``unusable``: is given
    each slice that cannot be read or whose mask does not fit, which is left out too; without it
    that is raised.

    ``counts`` (classes,) int64: labelled pixels of each class, ``pixels``: labelled or not, all
    slices together. ``largest``: the largest height and width.

    Raises NothingLabelled, InvalidMask; KeyError for an id the source has no mask for.
    """

    def __init__(
        self,
        source: ImagesAndMasks,
        ids: Sequence[SliceId],
        preprocessing: Preprocessing,
        classes: int,
        *,
        pseudo: Mapping[SliceId, Mask] | None = None,
        cache_bytes: int = 4 << 30,
        seed: int = 0,
        progress: Progress | None = None,
        unusable: Unusable | None = None,
    ) -> None:
        self._source = source
        labelled = set(ids)
        self._pseudo = {i: mask for i, mask in (pseudo or {}).items() if i not in labelled}
        self._preprocessing = preprocessing
        self._classes = classes
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[SliceId, Pair] = OrderedDict()
        self._cached = 0
        self.counts = np.zeros(classes, dtype=np.int64)
        self.pixels = 0
        self.largest = (0, 0)
        self.ids: list[SliceId] = []
        self._anchors: list[dict[int, npt.NDArray[np.int64]]] = []
        self._labelled: list[npt.NDArray[np.int64]] = []
        rng = np.random.default_rng(seed)
        every = [*ids, *self._pseudo]
        lost: list[Exception] = []
        for done, slice_id in enumerate(every, start=1):
            try:
                pair = self._read(slice_id)
            except Exception as error:
                if unusable is None:
                    raise
                unusable(slice_id, error)
                lost.append(error)
            else:
                self._index(slice_id, pair, rng)
            if progress is not None:
                progress("load", done, len(every))
        if not self.ids:
            raise _nothing_labelled(len(every), lost)

    def __len__(self) -> int:
        return len(self.ids)

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        """Image (channels, H, W) float32 and mask (H, W) uint8 of the slice at ``index``."""
        slice_id = self.ids[index]
        pair = self._cache.get(slice_id)
        if pair is None:
            pair = self._remember(slice_id, self._read(slice_id))
        else:
            self._cache.move_to_end(slice_id)
        return pair.image, pair.mask

    def images(self) -> Iterator[Tensor]:
        """The image of each slice."""
        return (self.pair(index)[0] for index in range(len(self)))

    @property
    def sparse(self) -> bool:
        """Whether so little of the slices is labelled that crops hardly meet it, as by strokes."""
        return bool(self.counts.sum() < _SPARSE * self.pixels)

    def present(self) -> list[int]:
        """Classes with at least one labelled pixel."""
        return [int(label) for label in np.flatnonzero(self.counts)]

    def holding(self, label: int) -> list[int]:
        """Indices of the slices in which class ``label`` is labelled."""
        return [i for i, anchors in enumerate(self._anchors) if label in anchors]

    def anchor(self, index: int, label: int | None, rng: np.random.Generator) -> tuple[int, int]:
        """A labelled pixel (y, x) of a slice: of class ``label``, or of any."""
        pixels = self._labelled[index] if label is None else self._anchors[index][label]
        y, x = pixels[rng.integers(len(pixels))]
        return int(y), int(x)

    def _read(self, slice_id: SliceId) -> Pair:
        pseudo = self._pseudo.get(slice_id)
        return read_pair(self._source, slice_id, self._preprocessing, self._classes, pseudo)

    def _remember(self, slice_id: SliceId, pair: Pair) -> Pair:
        self._cache[slice_id] = pair
        self._cached += pair.image.nbytes + pair.mask.nbytes
        while self._cached > self._cache_bytes and len(self._cache) > 1:
            _, oldest = self._cache.popitem(last=False)
            self._cached -= oldest.image.nbytes + oldest.mask.nbytes
        return pair

    def _index(self, slice_id: SliceId, pair: Pair, rng: np.random.Generator) -> None:
        mask = pair.mask.numpy()
        counts = np.bincount(mask.ravel(), minlength=IGNORE + 1)[: self._classes]
        if not counts.any():
            return
        anchors = {int(label): _some_pixels(mask == label, rng) for label in np.flatnonzero(counts)}
        self.ids.append(slice_id)
        self.counts += counts
        self.pixels += mask.size
        self.largest = (
            max(self.largest[0], mask.shape[0]),
            max(self.largest[1], mask.shape[1]),
        )
        self._anchors.append(anchors)
        self._labelled.append(_some_pixels(mask != IGNORE, rng))
        self._remember(slice_id, pair)


def _nothing_labelled(slices: int, lost: Sequence[Exception]) -> NothingLabelled:
    ignored = f"every pixel is {IGNORE}, which means ignored"
    if not lost:
        return NothingLabelled(
            f"None of the {slices} slices to train on has a labelled pixel ({ignored}). "
            "Label at least one slice."
        )
    return NothingLabelled(
        f"None of the {slices} slices to train on can be used: {len(lost)} are left out, the "
        f"others have no labelled pixel ({ignored}). Look at their images, and submit the "
        "annotations again to have their masks rendered anew, or label another slice. The last: "
        f"{lost[-1]}"
    )


def _some_pixels(chosen: npt.NDArray[np.bool_], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """At most `_ANCHORS` of the true pixels, as (n, 2) rows of (y, x)."""
    flat = np.flatnonzero(chosen)
    if len(flat) > _ANCHORS:
        flat = flat[np.sort(rng.choice(len(flat), _ANCHORS, replace=False))]
    return np.stack(np.unravel_index(flat, chosen.shape), axis=1)


class _Crop(NamedTuple):
    """Of which slice it is, and image, mask and ``places`` as `Lesson` has them; those empty where
    nobody asks for them."""

    of: int
    image: Tensor
    mask: Tensor
    places: Tensor


class Crops:
    """Endless batches of random crops; the same seed gives the same batches.

    ``crop``: side in pixels. ``balance``: the part of the crops placed on a class chosen with equal
    chances, the others on any labelled pixel, slice after slice. Yields images
    (batch, channels, crop, crop) float32, lit and plain, and masks (batch, crop, crop) int64, on
    ``device``; where ``located``, also which slices and places they are of.
    """

    def __init__(
        self,
        slices: LabelledSlices,
        *,
        crop: int,
        batch: int,
        augmentation: Augmentation,
        balance: float = 0.5,
        seed: int = 0,
        device: torch.device | None = None,
        located: bool = False,
    ) -> None:
        self._slices = slices
        self._located = located
        self._crop = crop
        self._batch = batch
        self._augmentation = augmentation
        self._balance = balance
        self._device = device or torch.device("cpu")
        self._rng = np.random.default_rng([seed, 1])
        self._generator = torch.Generator().manual_seed(seed)
        # Noise is drawn where it is used: on a GPU, not copied to it.
        self._noise = torch.Generator(self._device).manual_seed(seed)
        self._classes = slices.present()
        self._holding = {label: slices.holding(label) for label in self._classes}
        self._order: list[int] = []

    def __iter__(self) -> Iterator[Lesson]:
        while True:
            crops = [self._one() for _ in range(self._batch)]
            plain = torch.stack([crop.image for crop in crops])
            masks = torch.stack([crop.mask for crop in crops])
            images = self._augmentation.relight(plain, self._noise)
            lit = images.contiguous(memory_format=torch.channels_last)
            lesson = Lesson(
                lit, masks, plain, self._augmentation.context, sparse=self._slices.sparse
            )
            if self._located:
                places = torch.stack([crop.places for crop in crops])
                lesson = lesson._replace(slices=[crop.of for crop in crops], places=places)
            yield lesson

    def _one(self) -> _Crop:
        index, label = self._draw()
        image, mask = self._slices.pair(index)
        points = self._augmentation.grid(self._crop, self._generator, self._device)
        y, x = self._centre(self._slices.anchor(index, label, self._rng), mask.shape)
        points[..., 0] += x
        points[..., 1] += y
        places = _places(points, mask.shape) if self._located else points.new_empty(0)
        # Only the part of the slice that the crop needs goes to the device.
        rows, columns = (
            _window(points[..., 1], mask.shape[0]),
            _window(points[..., 0], mask.shape[1]),
        )
        points[..., 0] -= columns.start
        points[..., 1] -= rows.start
        seen = image[:, rows, columns].to(self._device), mask[rows, columns].to(self._device)
        return _Crop(index, *resample(*seen, points), places)

    def _draw(self) -> tuple[int, int | None]:
        if self._rng.random() < self._balance:
            label = self._classes[self._rng.integers(len(self._classes))]
            holding = self._holding[label]
            return holding[self._rng.integers(len(holding))], label
        if not self._order:
            self._order = self._rng.permutation(len(self._slices)).tolist()
        return self._order.pop(), None

    def _centre(self, anchor: tuple[int, int], shape: Sequence[int]) -> list[float]:
        """(y, x) of a crop that shows ``anchor`` and, where it can, nothing outside the slice.

        Between two pixels: a crop has an even side, so its pixels are pixels of the slice.
        """
        centre = []
        for position, length in zip(anchor, shape, strict=True):
            jitter = (self._rng.random() - 0.5) * self._crop * _CENTRED
            half = self._crop // 2
            inside = max(half, min(round(position + jitter), length - half))
            # A slice that is smaller lies where inference has it, in the corner: a network that may
            # not flip knows places by it.
            centre.append((inside if length > self._crop else half) - 0.5)
        return centre


def _places(points: Tensor, shape: Sequence[int]) -> Tensor:
    """The pixels (H, W) of a slice of ``shape`` nearest to ``points`` (H, W, 2), counted row by
    row."""
    x, y = (points[..., i].round().long().clamp_(0, shape[1 - i] - 1) for i in (0, 1))
    return y.mul_(shape[1]).add_(x)


def _window(positions: Tensor, length: int) -> slice:
    start = int(positions.min().floor().item()) - 1
    stop = int(positions.max().ceil().item()) + 2
    start = min(max(start, 0), length - 1)
    return slice(start, max(min(stop, length), start + 1))


def prefetch(batches: Iterator[T], depth: int = 2) -> Generator[T]:
    """``batches``, the next ``depth`` of them made by a thread while the caller computes.

    An exception in the thread is raised here. Closing the generator ends the thread.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(item: tuple[T | None, BaseException | None]) -> None:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            for batch in batches:
                put((batch, None))
                if stopped.is_set():
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=work, name="crops", daemon=True)
    thread.start()
    try:
        while True:
            batch, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            assert batch is not None
            yield batch
    finally:
        stopped.set()
        thread.join()
