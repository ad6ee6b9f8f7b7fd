"""Training a network on labelled slices: losses, schedule, precision; quick on two CPU cores too.

AdamW under a one-cycle schedule on cross-entropy + Dice, both blind to `IGNORE` pixels, over random
crops (`ml_backend.segmentation.dataset`). The length is a number of steps, not of epochs: with four
or forty labelled slices an annotator waits the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from segmentation_models_pytorch.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional as F

from al_strategies.learner import IGNORE, HearsLoss, Progress
from ml_backend.errors import NextsliceError
from ml_backend.segmentation.augmentation import Augmentation
from ml_backend.segmentation.dataset import Crops, LabelledSlices, prefetch
from ml_backend.segmentation.networks import MULTIPLE, Lesson, SegmentationNetwork
from ml_backend.segmentation.networks.full_resolution import SUFFIX
from ml_backend.segmentation.room import Room

__all__ = [
    "Precision",
    "SegmentationLoss",
    "StepsThatFit",
    "TrainingConfig",
    "TrainingDiverged",
    "TrainingRun",
    "autocast",
    "class_weights",
    "needed_crop",
    "seeded",
    "train",
    "usual_precision",
]

logger = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bfloat16"]
"""``"auto"``: bfloat16 on a CUDA device that has it (Ampere and later), float32 elsewhere."""

_REPORT_EVERY = 10
_LEAST = (2, 64)
"""Crops of a batch and pixels a side, where memory is full: less teaches too little."""
_ADVICE = (
    "End what else uses it, set NEXTSLICE_CROP lower, take a smaller network "
    "(NEXTSLICE_ARCHITECTURE), or train on the CPU (NEXTSLICE_TRAIN_DEVICE=cpu)."
)


class TrainingDiverged(NextsliceError, RuntimeError):
    """The loss is no longer a number; the message says at which step and what to change."""


_FEW_CLASSES = 4
"""The background among them: from there on a training's steps grow with the classes."""
_MOST_STEPS = 2000
"""Some three minutes of two cores."""


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how a network is trained. `TrainingConfig.for_device` gives sensible values.

    ``steps`` optimiser steps on ``batch`` crops of ``crop`` pixels a side (a multiple of 32).
    ``balance``: the part of the crops placed on classes with equal chances. ``dice``: weight of the
    Dice loss beside the cross-entropy. ``clip``: largest gradient norm. ``warm_up``: the part of
    the steps in which the learning rate rises. ``filter_noise``: see `SegmentationNetwork.sample`.
    ``seconds``: that a training may take; where so many steps do not fit, fewer are made.
    """

    steps: int = 250
    batch: int = 8
    crop: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    warm_up: float = 0.15
    balance: float = 0.3
    dice: float = 1.0
    clip: float = 5.0
    filter_noise: float = 0.1
    seconds: float | None = None
    precision: Precision = "auto"
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "crop"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}.")
        if self.batch < 2:
            raise ValueError("batch must be at least 2: batch normalisation needs more than one.")
        if self.crop % MULTIPLE:
            raise ValueError(f"crop must be a multiple of {MULTIPLE}, found {self.crop}.")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"seconds must be more than 0, found {self.seconds}.")
        if not 0 < self.warm_up < 1:
            raise ValueError(f"warm_up is a part of the steps in (0, 1), found {self.warm_up}.")
        if not 0 <= self.balance <= 1:
            raise ValueError(f"balance is a part of the crops in [0, 1], found {self.balance}.")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(
                f"precision must be auto, float32 or bfloat16, found {self.precision!r}."
            )

    @classmethod
    def usual(
        cls,
        architecture: str,
        device: str | torch.device,
        slice_size: tuple[int, int],
        labelled: int,
        classes: int,
    ) -> TrainingConfig:
        """Defaults of ``architecture`` for ``labelled`` slices of ``slice_size`` (H, W), in which
        ``classes`` are labelled."""
        if architecture.endswith(SUFFIX):
            return cls.at_full_resolution(device, slice_size, labelled, classes)
        return cls.for_device(device, slice_size, labelled)

    @classmethod
    def for_device(
        cls, device: str | torch.device, slice_size: tuple[int, int], labelled: int
    ) -> TrainingConfig:
        """Defaults for ``labelled`` slices of ``slice_size`` (H, W): about a minute on two CPU
        cores, a few on a GPU.

        A crop is never larger than the slice needs. More labelled slices take more steps. On a CPU
        crops are small: for the same pixels, twice the steps on crops of 128 gave a better mIoU
        than crops of 192.
        """
        on_cpu = torch.device(device).type == "cpu"
        largest = 128 if on_cpu else 512
        crop = min(largest, needed_crop(slice_size))
        # The work of a step falls with the crop's area: small slices can afford more crops of it.
        batch = min(16 if on_cpu else 64, max(8, round(8 * (largest / crop) ** 2)))
        steps = (220 if on_cpu else 1000) + min(labelled, 40) * (4 if on_cpu else 25)
        return cls(
            steps=steps,
            batch=batch if on_cpu else max(16, batch),
            crop=crop,
        )

    @classmethod
    def at_full_resolution(
        cls, device: str | torch.device, slice_size: tuple[int, int], labelled: int, classes: int
    ) -> TrainingConfig:
        """Defaults of networks with filters, for ``labelled`` slices of ``slice_size`` (H, W), in
        which ``classes`` are labelled.

        The fewer slices, the sooner they are known by heart: the fewer steps of fewer crops, and
        the more noise on what the filters say. Many are worth twice the time, and many classes
        take longer to be told apart. Grey values and textures mean something: crops are hardly lit
        otherwise.
        """
        usual = cls.for_device(device, slice_size, labelled)
        steps = min(1200, 100 + 70 * labelled**0.5 + 8 * max(0, labelled - 32))
        steps = min(_MOST_STEPS, round(steps * max(1.0, classes / _FEW_CLASSES)))
        on_cpu = torch.device(device).type == "cpu"
        batch = max(16, usual.batch)
        # On CPUs that multiply matrices of it, a step in bfloat16 takes half as long.
        multiplied = on_cpu and torch.cpu._is_amx_tile_supported()
        return replace(
            usual,
            steps=steps if on_cpu else 3 * steps,
            batch=min(batch, max(8, 2 * labelled)) if on_cpu else batch,
            filter_noise=min(0.5, max(0.05, 0.8 / max(1, labelled))),
            precision="bfloat16" if multiplied else "auto",
            augmentation=Augmentation.faint(),
        )

    def settings(self) -> dict[str, Any]:
        """JSON-able; what a record needs to replay the training."""
        return asdict(self)


def needed_crop(slice_size: tuple[int, int]) -> int:
    """The side of a crop that shows a slice of ``slice_size`` (H, W) whole: 64 at least."""
    return max(-(-max(slice_size) // MULTIPLE) * MULTIPLE, 2 * MULTIPLE)


@dataclass(frozen=True)
class TrainingRun:
    """``steps``: that were made, of those of ``config`` as many as fitted. ``losses``: a thinned
    curve of (step, mean loss since the last point). ``config``: what it was trained by, of fewer or
    smaller crops than asked for where the memory did not hold what is ``too_much``."""

    steps: int
    seconds: float
    losses: tuple[tuple[int, float], ...]
    config: TrainingConfig
    too_much: tuple[str, ...] = ()


class SegmentationLoss(nn.Module):
    """Weighted cross-entropy plus ``dice`` × Dice loss, over the labelled pixels alone.

    ``weights`` (classes,): of the cross-entropy, see `class_weights`. The Dice loss is
    segmentation-models-pytorch's, over the whole batch, and the mean of the classes ``present``
    (None: of all): those that nobody labels would take its weight away. One that the batch does not
    label counts as 0. A batch without a labelled pixel has loss 0.
    """

    def __init__(
        self, weights: Tensor, dice: float = 1.0, present: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("weights", weights.float())
        self.weights: Tensor
        self.dice = dice
        classes = None if present is None else list(present)
        self._dice_loss = DiceLoss("multiclass", classes, ignore_index=IGNORE)

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """``logits`` (B, C, H, W), ``masks`` (B, H, W) int64 with `IGNORE` → a scalar."""
        logits = logits.float()
        labelled = (masks != IGNORE).sum().clamp_min(1)
        # Divided by the number of labelled pixels, as `class_weights` is normalised for: torch's
        # own mean divides by the weights that the batch happens to hold, 0 / 0 without a label.
        entropy = F.cross_entropy(
            logits, masks, weight=self.weights, ignore_index=IGNORE, reduction="sum"
        )
        loss = entropy / labelled
        if self.dice > 0:
            loss = loss + self.dice * self._dice_loss(logits, masks)
        return loss


def class_weights(counts: npt.NDArray[np.int64], *, limit: float = 5.0) -> npt.NDArray[np.float32]:
    """Weights (classes,) of the cross-entropy from the labelled pixels of each class.

    With f_c the part of the labelled pixels that are of class c and K the number of classes that
    are labelled at all: w_c = clip(√(1 / (K f_c)), 1/limit, limit). A class that is not labelled
    has weight 1, which no pixel uses. Equally frequent classes have weight 1; the root moderates,
    because rare classes are also sampled more often and the Dice loss weighs classes alike.
    """
    counts = np.asarray(counts, dtype=np.float64)
    present = counts > 0
    weights = np.ones(len(counts))
    share = counts[present] / max(counts.sum(), 1.0)
    weights[present] = np.clip(np.sqrt(1.0 / (present.sum() * share)), 1.0 / limit, limit)
    return weights.astype(np.float32)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """The context a forward runs in: bfloat16 where ``precision`` asks for it, else nothing."""
    wanted = _settled(device, precision) == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16) if wanted else nullcontext()


def usual_precision(architecture: str, device: str) -> Precision:
    """What trainings of ``architecture`` compute in on ``device``, which is here, where nobody has
    asked for another: float32 or bfloat16."""
    config = TrainingConfig.usual(architecture, device, (MULTIPLE, MULTIPLE), 1, 2)
    return _settled(torch.device(device), config.precision)


def _settled(device: torch.device, precision: Precision) -> Precision:
    """What "auto" is on ``device``."""
    if precision != "auto":
        return precision
    # Before Ampere torch emulates it, without cuDNN; is_bf16_supported says yes there too.
    fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bfloat16" if fast else "float32"


def train(
    network: SegmentationNetwork,
    slices: LabelledSlices,
    config: TrainingConfig,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    began: float | None = None,
) -> TrainingRun:
    """Train ``network`` in place, on the device it is on, and leave it in evaluation mode.

    The same seed, slices, config and number of threads give the same weights on a CPU.
    ``progress("train", step, steps)`` after every step. ``began``: since when the config's seconds
    count (`time.monotonic`); None: since now. Where the memory of the device is full it
    begins again with fewer crops, then with smaller ones.

    Raises TrainingDiverged, OutOfMemory.
    """
    began = time.monotonic() if began is None else began
    device = network.classifier.weight.device
    before = {name: value.to("cpu", copy=True) for name, value in network.state_dict().items()}
    room = Room(device, "the training", (_LEAST[0], min(_LEAST[1], config.crop)), _ADVICE)

    def work(batch: int, crop: int) -> TrainingRun:
        network.load_state_dict(before)
        smaller = replace(config, batch=batch, crop=crop)
        return _train(network, slices, smaller, device, seed, progress, began)

    run = room.run(config.batch, config.crop, work)
    return replace(run, too_much=tuple(room.tried))


def _train(
    network: SegmentationNetwork,
    slices: LabelledSlices,
    config: TrainingConfig,
    device: torch.device,
    seed: int,
    progress: Progress | None,
    began: float,
) -> TrainingRun:
    started = time.perf_counter()
    network.to(memory_format=torch.channels_last)
    network.train()
    crops = Crops(
        slices,
        crop=config.crop,
        batch=config.batch,
        augmentation=config.augmentation,
        balance=config.balance,
        seed=seed,
        device=device,
        located=_worth_a_study(slices, config, device) and network.study(slices.images()),
    )
    batches = iter(crops)
    # On a CPU a thread would only take a core from the forward.
    source = _made_ahead(batches, device) if device.type == "cuda" else _inline(batches)
    with closing(source), seeded(seed, device), _fast_convolutions(device):
        fit = StepsThatFit(config.steps, config.seconds, began)
        losses = _loop(network, source, slices, config, progress, fit)
    network.eval()
    network.trained()
    return TrainingRun(fit.steps, time.perf_counter() - started, tuple(losses), config)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch draws by ``seed`` here, and afterwards goes on as if it had drawn nothing."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _worth_a_study(slices: LabelledSlices, config: TrainingConfig, device: torch.device) -> bool:
    """Whether looking at whole slices, once, costs less than what it saves at each crop: a pixel of
    theirs takes four times as long. A GPU has other uses for its memory."""
    height, width = slices.largest
    seen = config.steps * config.batch * config.crop**2
    return device.type == "cpu" and 4 * len(slices) * height * width <= seen


def _loop(
    network: SegmentationNetwork,
    batches: Iterator[Lesson],
    slices: LabelledSlices,
    config: TrainingConfig,
    progress: Progress | None,
    fit: StepsThatFit,
) -> list[tuple[int, float]]:
    device = network.classifier.weight.device
    weights = torch.from_numpy(class_weights(slices.counts))
    criterion = SegmentationLoss(weights, config.dice, slices.present()).to(device)
    optimizer = torch.optim.AdamW(
        _parameter_groups(network, config.weight_decay),
        lr=config.learning_rate,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.steps + 1, pct_start=config.warm_up
    )
    losses: list[tuple[int, float]] = []
    since: list[Tensor] = []
    listening: object = progress
    step = 0
    while step < fit.steps:
        step += 1
        with autocast(device, config.precision):
            logits, targets = network.sample(next(batches), config.filter_noise)
        loss = criterion(logits, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.clip)
        optimizer.step()
        place = fit.next_place(step, time.monotonic())
        while schedule.last_epoch < place:
            schedule.step()
        since.append(loss.detach())
        # Reading a loss waits for the GPU, so it is not read at every step.
        if step % _REPORT_EVERY == 0 or step == fit.steps:
            losses.append((step, float(torch.stack(since).mean())))
            since.clear()
            _check_loss(*losses[-1], config)
            if isinstance(listening, HearsLoss):
                listening.told_loss(losses[-1][1])
        if progress is not None:
            progress("train", step, fit.steps)
    return losses


class StepsThatFit:
    """How many of ``steps`` are made in ``seconds`` from ``began`` on (`time.monotonic`), by the
    pace that they have, and where on the schedule of all of them each is.

    ``seconds``: None: as many as they take. Fewer steps go through the whole schedule in longer
    strides, so that the last has the smallest learning rate all the same; where all fit, nothing
    is changed. One step more than fits may be made, which is that last one.
    """

    def __init__(self, steps: int, seconds: float | None, began: float) -> None:
        self.steps = self._all = steps
        self._until = None if seconds is None else began + seconds
        self._place = 0.0
        self._timed: tuple[int, float] | None = None

    def next_place(self, step: int, moment: float) -> int:
        """Where the step after ``step`` is, which was done at ``moment``: from 0 to ``steps``."""
        if self._until is not None:
            self.steps = self._fitting(step, moment, self._until)
        left = self.steps - step - 1
        if left < 1:
            self._place = max(self._place, self._all - 1 - left)
        else:
            self._place += (self._all - 1 - self._place) / (left + 1)
        return round(self._place)

    def _fitting(self, step: int, moment: float, until: float) -> int:
        more = 0
        if self._timed is None:  # the first takes longer than any other
            self._timed = step, moment
            more = self._all if moment < until else 0
        elif moment < until:
            first, since = self._timed
            pace = max((moment - since) / (step - first), 1e-9)
            more = int((until - moment) / pace)
        if step < self.steps:
            more = max(1, more)
        return min(self._all, step + more)


def _check_loss(step: int, loss: float, config: TrainingConfig) -> None:
    if not np.isfinite(loss):
        raise TrainingDiverged(
            f"The loss became {loss} by step {step} of {config.steps}. Lower the learning rate "
            f"(now {config.learning_rate:g}) or train in float32 (precision is now "
            f"{config.precision!r})."
        )


def _parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for kernels, none for biases and batch normalisation."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _fast_convolutions(device: torch.device) -> AbstractContextManager[Any]:
    if device.type != "cuda":
        return nullcontext()
    # All crops have one size, so cuDNN's search for the fastest kernel is paid once.
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True)


def _inline(batches: Iterator[Lesson]) -> Generator[Lesson]:
    yield from batches


def _made_ahead(batches: Iterator[Lesson], device: torch.device) -> Generator[Lesson]:
    """``batches``, made by a thread on a CUDA stream of its own: on that of the training each copy
    of a crop would wait for the steps that are queued there."""

    def made() -> Iterator[tuple[Lesson, torch.cuda.Event]]:
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no types here
        with torch.cuda.stream(stream):
            for batch in batches:
                yield batch, stream.record_event()

    with closing(prefetch(made())) as source:
        for batch, ready in source:
            stream = torch.cuda.current_stream(device)
            stream.wait_event(ready)
            for tensor in (batch.images, batch.masks, batch.plain):
                tensor.record_stream(stream)
            yield batch
