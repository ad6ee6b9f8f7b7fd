"""One forward a slice: segmentation, scores and embedding, for any number of slices of any size.

`gather_evidence` (the pool), `segment` (the selected slices), `segment_maps` (full volumes),
`segment_image` (one slice, serving) and `evaluate` share one path: the model's own `Preprocessing`,
padding to multiples of 32 that is left out of every score, tiles with overlap above a limit, and
slices read by threads ahead of the forward. Memory grows with slices × evidence, never with their
pixels. Where a device's memory is full all the same, it is done in smaller batches and tiles
(`Room`): OutOfMemory is raised where even the least is too much.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from al_strategies.evidence import (
    CONFIDENCE,
    EMBEDDING,
    FEATURES,
    GRADIENT,
    IOU,
    MC_ENTROPY,
    SCORES,
    Evidence,
    SliceId,
)
from al_strategies.learner import (
    IGNORE,
    Beliefs,
    Maps,
    Metrics,
    Prediction,
    Progress,
    SliceSource,
    Unreadable,
    UnreadableSlice,
    Votes,
)
from al_strategies.reducers import (
    LOGIT_EVIDENCE,
    folded_dropout_weights,
    gradient_embedding,
    mc_entropy,
    mean_iou,
    reduce_logits,
)
from ml_backend.pictures import small_picture
from ml_backend.segmentation.bands import beliefs_of, maps_of, mask_of
from ml_backend.segmentation.dataset import NothingLabelled
from ml_backend.segmentation.model import Model
from ml_backend.segmentation.networks import (
    MULTIPLE,
    SCORING_STRIDE,
    SegmentationNetwork,
    at_scoring_resolution,
)
from ml_backend.segmentation.preprocessing import FloatImage
from ml_backend.segmentation.room import Room
from ml_backend.segmentation.tiles import pad, padded_size, scored_length, spans
from ml_backend.segmentation.training import Precision, autocast

__all__ = [
    "EVIDENCE_NAMES",
    "InferenceConfig",
    "believe_image",
    "evaluate",
    "fold_batch_norm",
    "gather_evidence",
    "optimised",
    "segment",
    "segment_image",
    "segment_maps",
    "slices_per_batch",
]

EVIDENCE_NAMES = LOGIT_EVIDENCE | {EMBEDDING, MC_ENTROPY, GRADIENT, IOU}
"""Every evidence that `gather_evidence` can compute."""

# Bytes of slices that are read before they are needed, preprocessed: of 8,192² three.
_AHEAD = 1 << 30
_LEAST_TILE = 128
"""Where memory is full, tiles become no smaller: they would show too little around a pixel."""
_ADVICE = (
    "End what else uses it, take a smaller network (NEXTSLICE_ARCHITECTURE) or a smaller "
    "NEXTSLICE_MAX_TILE, or let the CPU do it (NEXTSLICE_TRAIN_DEVICE=cpu for rounds, "
    "PREDICT_DEVICE=cpu for /predict, --device cpu for segment)."
)
T = TypeVar("T")


@dataclass(frozen=True)
class InferenceConfig:
    """How slices are run through the network.

    ``batch_pixels``: slices of equal size are batched up to this many pixels. ``tile``: a slice
    with a longer side is cut into tiles of this side, which ``overlap`` by that many pixels
    (multiples of 32). ``threads`` read and preprocess slices ahead. ``passes``: of MC dropout.
    """

    batch_pixels: int = 1 << 18
    tile: int = 2048
    overlap: int = 256
    threads: int = 2
    passes: int = 20
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        if self.tile % MULTIPLE or self.overlap % MULTIPLE or not 0 < self.overlap < self.tile:
            raise ValueError(
                f"tile and overlap must be multiples of {MULTIPLE} with 0 < overlap < tile, found "
                f"{self.tile} and {self.overlap}."
            )
        for name in ("batch_pixels", "threads", "passes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}.")

    @classmethod
    def for_device(cls, device: str | torch.device, tile: int = 2048) -> InferenceConfig:
        """Small batches on a CPU, whose caches they fit; 8 megapixels at once on a GPU. Tiles of 64
        pixels or more overlap by 256 of them, or by half a tile."""
        overlap = min(256, _half(tile))
        if torch.device(device).type == "cpu":
            return cls(tile=tile, overlap=overlap)
        return cls(batch_pixels=1 << 23, tile=tile, overlap=overlap, threads=8)


def _half(tile: int) -> int:
    return tile // 2 // MULTIPLE * MULTIPLE


class _Slice(NamedTuple):
    id: SliceId
    image: FloatImage  # (channels, H, W), preprocessed


class _Output(NamedTuple):
    """``logits`` (B, C, h, w) at the network's stride, ``valid`` (B, H/4, W/4) bool, and
    ``evidence`` that needs features: name → (B,) or (B, D)."""

    logits: Tensor
    valid: Tensor
    evidence: dict[str, Tensor]

    def to(self, device: torch.device) -> _Output:
        """The same, in the memory of ``device``."""
        evidence = {name: value.to(device) for name, value in self.evidence.items()}
        return _Output(self.logits.to(device), self.valid.to(device), evidence)


def fold_batch_norm(network: SegmentationNetwork) -> SegmentationNetwork:
    """A copy in which every batch normalisation is part of the convolution before it.

    The same function up to rounding, about 15 % faster on a CPU. Evaluation only. For networks with
    `SegmentationNetwork.norm_follows_convolution`.
    """
    folded = copy.deepcopy(network).eval()
    for module in folded.modules():
        children = list(module.named_children())
        for (name, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and type(norm) is nn.BatchNorm2d:
                setattr(module, name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
    return folded


def optimised(model: Model) -> Model:
    """``model`` for inference alone: evaluation mode, channels_last, batch normalisation folded.

    Worth it for more than one slice; the weights are copied, ``model`` stays as it is.
    """
    network = model.network
    if network.norm_follows_convolution:
        network = fold_batch_norm(network)
    else:
        network = copy.deepcopy(network).eval()
    network.to(memory_format=torch.channels_last)
    return replace(model, network=network)


def gather_evidence(
    model: Model,
    source: SliceSource,
    ids: Sequence[SliceId],
    names: frozenset[str],
    config: InferenceConfig,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    unreadable: Unreadable | None = None,
) -> Evidence:
    """The evidence called ``names`` of every slice, from one forward each.

    All slices are judged under the same dropout masks, drawn from ``seed``, so the result does not
    depend on how the pool is batched or sharded. Scores are computed at 1/4 of the resolution.
    ``progress("score", done, total)`` after every batch. ``unreadable``: is given each slice that
    cannot be read, which is left out; without it that is raised.

    Raises ValueError for names that are not in `EVIDENCE_NAMES`, UnreadableSlice, and KeyError when
    ``iou`` is asked for slices without a mask.
    """
    unknown = sorted(names - EVIDENCE_NAMES)
    if unknown:
        raise ValueError(
            f"Unknown evidence {', '.join(unknown)}; a pass can give "
            f"{', '.join(sorted(EVIDENCE_NAMES))}."
        )
    run = _Run(model, config, names, seed)
    columns: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in names}
    found: list[SliceId] = []

    def take(slices: Sequence[_Slice], output: _Output) -> dict[str, npt.NDArray[np.float32]]:
        values = {**output.evidence, **run.reduce(output)}
        if IOU in names:
            values[IOU] = _iou(output, slices, source)
        return {name: values[name].float().cpu().numpy() for name in names}

    for slices, values in run(source, ids, take, unreadable):
        for name in names:
            columns[name].append(values[name])
        found += [s.id for s in slices]
        if progress is not None:
            progress("score", len(found), len(ids))
    if not found:
        return Evidence.empty()
    stacked = {name: np.concatenate(parts) for name, parts in columns.items()}
    return Evidence(
        ids=tuple(found),
        positions=tuple(source.position(i) for i in found),
        scores={name: v for name, v in stacked.items() if name in SCORES},
        features={name: v for name, v in stacked.items() if name in FEATURES},
    )


def segment(
    model: Model,
    source: SliceSource,
    ids: Sequence[SliceId],
    config: InferenceConfig,
    *,
    progress: Progress | None = None,
    step: str = "segment",
    unreadable: Unreadable | None = None,
    uncertainty: bool = False,
) -> Iterator[tuple[SliceId, Prediction]]:
    """The segmentation of each slice at its own size, in the order of ``ids``, one at a time.

    ``progress(step, done, total)`` after every slice. ``unreadable`` as in `gather_evidence`.
    ``uncertainty``: with that of `segment_maps`, made small. Raises UnreadableSlice.
    """
    run = _Run(model, config, frozenset({CONFIDENCE}), 0)
    take = partial(run.predictions, uncertainty=uncertainty)
    done = 0
    for slices, predictions in run(source, ids, take, unreadable):
        for slice_, prediction in zip(slices, predictions, strict=True):
            yield slice_.id, prediction
            done += 1
            if progress is not None:
                progress(step, done, len(ids))


def segment_maps(
    model: Model,
    source: SliceSource,
    ids: Sequence[SliceId],
    config: InferenceConfig,
    *,
    probability: bool = False,
    uncertainty: bool = False,
    votes: Votes | None = None,
) -> Generator[tuple[SliceId, Maps], None, None]:
    """`segment` with what a volume wants: full-resolution probabilities and their entropy.

    The masks are those of `segment`; with ``votes`` all maps come from the mean of the network's
    own probabilities and theirs. Raises UnreadableSlice.
    """
    run = _Run(model, config, frozenset(), 0)

    def take(slices: Sequence[_Slice], output: _Output) -> list[Maps]:
        found = []
        for slice_, logits in zip(slices, output.logits, strict=True):
            shape = slice_.image.shape[1:]
            if probability or uncertainty or votes is not None:
                found.append(maps_of(slice_.id, logits, shape, probability, uncertainty, votes))
            else:
                found.append(Maps(mask_of(logits, shape), None, None))
        return found

    for slices, maps in run(source, ids, take):
        yield from zip((s.id for s in slices), maps, strict=True)


def slices_per_batch(config: InferenceConfig, shape: Sequence[int]) -> int:
    """How many slices of (H, W) ``shape`` one forward takes."""
    height, width = padded_size(shape)
    return max(1, config.batch_pixels // (height * width))


def segment_image(
    model: Model,
    image: npt.NDArray[Any],
    config: InferenceConfig,
    *,
    progress: Progress | None = None,
) -> Prediction:
    """The segmentation of one slice as read: (H, W) or (H, W, 3 | 4), any real dtype.

    ``progress("predict", done, total)`` after every tile of one that is cut into tiles; what it
    raises is raised. Raises InvalidImage.
    """
    run = _Run(model, config, frozenset({CONFIDENCE}), 0, progress)
    prepared = _Slice(0, model.preprocessing(image))
    ((_, (prediction,)),) = run.batch([prepared], run.predictions)
    return prediction


def believe_image(
    model: Model,
    image: npt.NDArray[Any],
    config: InferenceConfig,
    *,
    progress: Progress | None = None,
) -> Beliefs:
    """`segment_image` with what stands behind its mask, for `ml_backend.segmentation.repair`.
    Raises InvalidImage."""
    run = _Run(model, config, frozenset(), 0, progress)
    prepared = _Slice(0, model.preprocessing(image))

    def take(slices: Sequence[_Slice], output: _Output) -> Beliefs:
        return beliefs_of(output.logits[0], slices[0].image.shape[1:])

    ((_, found),) = run.batch([prepared], take)
    return found


def evaluate(
    model: Model,
    source: SliceSource,
    ids: Sequence[SliceId],
    config: InferenceConfig,
    *,
    progress: Progress | None = None,
) -> Metrics:
    """IoU of each class over all labelled pixels of all slices together, and their mean.

    A class without a labelled pixel has none (NaN). Counted as 0 wherever one pixel is wrongly
    predicted as it, it would make the mean jump with classes that the slices cannot measure.

    Raises NothingLabelled without slices or without a labelled pixel, KeyError for a slice without
    mask.
    """
    classes = len(model.classes)
    confusion = np.zeros((classes, classes), dtype=np.int64)
    by_slice = []
    for slice_id, prediction in segment(
        model, source, ids, config, progress=progress, step="evaluate"
    ):
        truth = source.mask(slice_id)
        kept = truth != IGNORE
        pairs = truth[kept].astype(np.int64) * classes + prediction.mask[kept]
        of_slice = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
        confusion += of_slice
        by_slice.append(_mean(_class_iou(of_slice)))
    total = confusion.sum()
    if not total:
        raise NothingLabelled(
            f"There is no labelled pixel in the {len(ids)} slices to evaluate on."
        )
    iou = _class_iou(confusion)
    return Metrics(
        miou=_mean(iou),
        iou={name: float(v) for name, v in zip(model.classes, iou, strict=True)},
        accuracy=float(np.diag(confusion).sum() / total),
        slices=len(ids),
        by_slice=tuple(by_slice),
    )


def _class_iou(confusion: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(C,): of each class, NaN for one without a labelled pixel."""
    hits, labelled = np.diag(confusion), confusion.sum(1)
    union = np.maximum(confusion.sum(0) + labelled - hits, 1)
    return np.where(labelled > 0, hits / union, np.nan)


def _mean(iou: npt.NDArray[np.float64]) -> float:
    known = iou[~np.isnan(iou)]
    return float(known.mean()) if known.size else math.nan


class _Run:
    """One pass: the model, what is wanted of it, and the dropout masks that all slices share."""

    def __init__(
        self,
        model: Model,
        config: InferenceConfig,
        names: frozenset[str],
        seed: int,
        progress: Progress | None = None,
    ) -> None:
        self._model, self._progress = model, progress
        self._network: SegmentationNetwork = model.network.eval()
        self._config = config
        self._names = names
        self._room = Room(model.device, "inference", (1, min(_LEAST_TILE, config.tile)), _ADVICE)
        self._folded: Tensor | None = None
        if MC_ENTROPY in names:
            self._folded = folded_dropout_weights(
                self._network.classifier.weight.detach().flatten(1).cpu(),
                self._network.dropout.p,
                config.passes,
                torch.Generator().manual_seed(seed),
            ).to(model.device)

    def __call__(
        self,
        source: SliceSource,
        ids: Sequence[SliceId],
        take: Callable[[Sequence[_Slice], _Output], T],
        unreadable: Unreadable | None = None,
    ) -> Iterator[tuple[Sequence[_Slice], T]]:
        """Batches of slices with what ``take`` makes of their outputs, in the order of ``ids``."""
        read = _read_ahead(source, ids, self._model, self._config.threads, unreadable)
        for slices in _batches(read, self._config.batch_pixels):
            yield from self.batch(slices, take)

    def batch(
        self, slices: Sequence[_Slice], take: Callable[[Sequence[_Slice], _Output], T]
    ) -> list[tuple[Sequence[_Slice], T]]:
        """Slices of equal padded size, as many at a time as there is room for. What ``take`` needs
        of the device counts; it may be called for the same slices again."""

        def work(batch: int, side: int) -> list[tuple[Sequence[_Slice], T]]:
            parts = [slices[i : i + batch] for i in range(0, len(slices), batch)]
            return [(part, take(part, self.forward(part, side))) for part in parts]

        largest = max(padded_size(slices[0].image.shape[1:]))
        return self._room.run(len(slices), min(self._config.tile, largest), work)

    def predictions(
        self, slices: Sequence[_Slice], output: _Output, *, uncertainty: bool = False
    ) -> list[Prediction]:
        """Masks of the slices' own sizes, with what `CONFIDENCE` says of them."""
        confidences = self.reduce(output)[CONFIDENCE].tolist()
        found = []
        for slice_, logits, confidence in zip(slices, output.logits, confidences, strict=True):
            shape = slice_.image.shape[1:]
            if not uncertainty:
                found.append(Prediction(mask_of(logits, shape), confidence))
                continue
            maps = maps_of(
                slice_.id, logits, shape, probability=False, uncertainty=True, votes=None
            )
            assert maps.uncertainty is not None
            found.append(Prediction(maps.mask, confidence, small_picture(maps.uncertainty)))
        return found

    @torch.inference_mode()
    def reduce(self, output: _Output) -> dict[str, Tensor]:
        """The evidence that comes from logits."""
        names = self._names & LOGIT_EVIDENCE
        if not names:
            return {}
        logits = at_scoring_resolution(output.logits, output.valid.shape[-2:])
        return reduce_logits(logits, output.valid, names)

    @torch.inference_mode()
    def forward(self, slices: Sequence[_Slice], tile: int) -> _Output:
        """The output of slices whose padded sizes are equal, in tiles of ``tile`` at most."""
        height, width = padded_size(slices[0].image.shape[1:])
        stack = torch.from_numpy(np.stack([pad(s.image, height, width) for s in slices]))
        valid = torch.zeros(
            (len(slices), height // SCORING_STRIDE, width // SCORING_STRIDE), dtype=torch.bool
        )
        for row, s in enumerate(slices):
            rows, columns = (scored_length(length) for length in s.image.shape[1:])
            valid[row, :rows, :columns] = True
        if max(height, width) <= tile:
            return self._forward(stack, valid)
        return self._forward_tiles(stack, valid, tile)

    def _forward(self, images: Tensor, valid: Tensor) -> _Output:
        device = self._model.device
        if device.type == "cuda":
            images = images.pin_memory()
        images = images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        valid = valid.to(device)
        wanted = bool(self._names & {MC_ENTROPY, GRADIENT})
        precision = autocast(device, self._config.precision)
        read = self._network.read(images, valid, precision, features=wanted)
        evidence = {EMBEDDING: read.embedding} if EMBEDDING in self._names else {}
        if read.features is not None:
            evidence |= self._from_features(read.features, read.logits, valid)
        return _Output(read.logits, valid, evidence)

    def _from_features(self, features: Tensor, logits: Tensor, valid: Tensor) -> dict[str, Tensor]:
        evidence = {}
        if self._folded is not None:
            evidence[MC_ENTROPY] = mc_entropy(
                features,
                self._folded,
                self._network.classifier.bias,
                valid,
                passes=self._config.passes,
            )
        if GRADIENT in self._names:
            at_scoring = at_scoring_resolution(logits, valid.shape[-2:])
            evidence[GRADIENT] = gradient_embedding(features.float(), at_scoring, valid)
        return evidence

    def _forward_tiles(self, images: Tensor, valid: Tensor, tile: int) -> _Output:
        """Tile by tile: logits blended where tiles overlap; what comes from features is the mean
        over tiles of equal rights, where each pixel counts in the one tile that owns it.

        Where tiles are smaller than asked for, they are put together in the memory of the CPU.
        """
        height, width = images.shape[-2:]
        device = self._model.device if tile == self._config.tile else torch.device("cpu")
        overlap = min(self._config.overlap, _half(tile))
        blended: Tensor | None = None
        weights = torch.zeros(())
        evidence: dict[str, Tensor] = {}
        counts = valid.flatten(1).sum(1).to(device)
        down = spans(height, tile, overlap)
        across = spans(width, tile, overlap)
        for row, rows in enumerate(down):
            for column, columns in enumerate(across):
                owned = torch.zeros_like(valid)
                owned[:, rows.owned, columns.owned] = valid[:, rows.owned, columns.owned]
                window = (slice(None), rows.scored, columns.scored)
                part = self._forward(
                    images[:, :, rows.pixels, columns.pixels], owned[window].contiguous()
                ).to(device)
                stride = (rows.pixels.stop - rows.pixels.start) // part.logits.shape[-2]
                if blended is None:
                    shape = (height // stride, width // stride)
                    blended = part.logits.new_zeros((*part.logits.shape[:2], *shape))
                    weights = part.logits.new_zeros(shape)
                place = (..., rows.at(stride), columns.at(stride))
                ramp = rows.ramp(stride, device)[:, None] * columns.ramp(stride, device)
                blended[place] += part.logits * ramp
                weights[place] += ramp
                share = owned.flatten(1).sum(1).to(device) / counts
                for name, value in part.evidence.items():
                    scaled = value.float() * share.reshape(-1, *[1] * (value.ndim - 1))
                    scaled[share == 0] = 0  # a tile of padding alone has no mean
                    evidence[name] = evidence[name] + scaled if name in evidence else scaled
                if self._progress is not None:
                    done = row * len(across) + column + 1
                    self._progress("predict", done, len(down) * len(across))
        assert blended is not None
        return _Output(blended.div_(weights), valid.to(device), evidence)


def _iou(output: _Output, slices: Sequence[_Slice], source: SliceSource) -> Tensor:
    """Mean IoU of each slice with its true mask at the scoring resolution; 1, the least that an
    oracle can want, where a sparse mask has no labelled pixel there."""
    size = output.valid.shape[-2:]
    prediction = at_scoring_resolution(output.logits, size).argmax(1).cpu()
    truth = torch.full(prediction.shape, IGNORE, dtype=torch.int64)
    for row, slice_ in enumerate(slices):
        mask = source.mask(slice_.id)
        height, width = padded_size(mask.shape)
        padded = np.pad(
            mask,
            ((0, height - mask.shape[0]), (0, width - mask.shape[1])),
            constant_values=IGNORE,
        )
        middle = SCORING_STRIDE // 2 - 1
        truth[row] = torch.from_numpy(
            padded[middle::SCORING_STRIDE, middle::SCORING_STRIDE].astype(np.int64)
        )
    found = mean_iou(prediction, truth, truth != IGNORE, output.logits.shape[1])
    return found.nan_to_num(nan=1.0)


def _read_ahead(
    source: SliceSource,
    ids: Sequence[SliceId],
    model: Model,
    threads: int,
    unreadable: Unreadable | None,
) -> Iterator[_Slice]:
    """Preprocessed slices in the order of ``ids``, the next few read by ``threads``: as many as
    `_AHEAD` bytes hold of such as the largest so far."""

    def read(slice_id: SliceId) -> _Slice:
        try:
            return _Slice(slice_id, model.preprocessing(source.image(slice_id)))
        except Exception as error:
            raise UnreadableSlice(slice_id, error) from error

    with ThreadPoolExecutor(threads, thread_name_prefix="slices") as pool:
        waiting, most, largest = iter(ids), 1, 1
        ahead: deque[Future[_Slice]] = deque(pool.submit(read, i) for i in islice(waiting, 1))
        try:
            while ahead:
                first = ahead.popleft()
                more = islice(waiting, max(0, most - len(ahead)))
                ahead.extend(pool.submit(read, i) for i in more)
                try:
                    slice_ = first.result()
                except UnreadableSlice as error:
                    if unreadable is None:
                        raise
                    unreadable(error)
                else:
                    largest = max(largest, slice_.image.nbytes)
                    most = max(1, min(2 * threads, _AHEAD // largest))
                    more = islice(waiting, max(0, most - len(ahead)))
                    ahead.extend(pool.submit(read, i) for i in more)
                    yield slice_
        finally:
            for future in ahead:
                future.cancel()


def _batches(slices: Iterable[_Slice], pixels: int) -> Iterator[list[_Slice]]:
    """Neighbours of equal padded size together, up to ``pixels``, at least one a batch."""
    batch: list[_Slice] = []
    for slice_ in slices:
        height, width = padded_size(slice_.image.shape[1:])
        full = (len(batch) + 1) * height * width > pixels
        if batch and (full or padded_size(batch[0].image.shape[1:]) != (height, width)):
            yield batch
            batch = []
        batch.append(slice_)
    if batch:
        yield batch
