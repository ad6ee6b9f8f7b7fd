"""The pixel expert: what the texture around a pixel says of its class, learned in seconds.

Classifiers of single pixels on fixed filters are hard to beat on few labels of materials, and
several of them better than one, but too slow to ask for each pixel of a volume. So they teach: they
say what they believe of pixels of the pool that nobody labelled, and a small network learns that
beside the labels. It became better than those that taught it, and teaches in its turn: HRNet learns
from the labels and from what it believes of the pool (`training.Lesson`). Nothing of it is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from sklearn.ensemble import ExtraTreesClassifier
from torch import Tensor, nn
from torch.nn import functional as F

from al_strategies.learner import IGNORE, Progress
from ml_backend.segmentation.augmentation import Augmentation, resample
from ml_backend.segmentation.dataset import LabelledSlices
from ml_backend.segmentation.networks import SegmentationNetwork
from ml_backend.segmentation.networks.filters import FEATURES_PER_LEVEL
from ml_backend.segmentation.networks.full_resolution import FullResolutionHRNet
from ml_backend.segmentation.training import class_weights

__all__ = ["PixelConfig", "PixelExpert", "PoolLesson", "learn"]

_HIDDEN = 64


@dataclass(frozen=True)
class PixelConfig:
    """How the pixel expert is learned; see the module.

    ``per_slice``: pixels of a labelled slice at most, 2,000 at least where there are so many, and
    ``labelled`` in all. ``unlabelled``: pixels of the pool in all. ``trees`` are ``grown`` on so
    many pixels. Teachers take ``steps`` of ``batch`` pixels, the expert twice as many, under
    ``noise`` on values that are about 1 wide: it is what keeps eight slices from being learned by
    heart.
    """

    per_slice: int = 40_000
    labelled: int = 400_000
    unlabelled: int = 200_000
    trees: int = 30
    grown: int = 150_000
    steps: int = 400
    batch: int = 8192
    learning_rate: float = 1e-2
    noise: float = 0.2


class PixelExpert(nn.Module):
    """Filters (n, F) → logits (n, classes): two hidden layers."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(sum(FEATURES_PER_LEVEL), _HIDDEN, bias=False),
            nn.BatchNorm1d(_HIDDEN),
            nn.ReLU(),
            nn.Linear(_HIDDEN, _HIDDEN, bias=False),
            nn.BatchNorm1d(_HIDDEN),
            nn.ReLU(),
            nn.Linear(_HIDDEN, classes),
        )

    def forward(self, values: Tensor) -> Tensor:
        """Logits of values about 1 wide."""
        logits: Tensor = self.layers(values)
        return logits

    @torch.no_grad()
    def believe(self, values: Tensor) -> Tensor:
        """Probabilities (n, classes)."""
        parts = [self(part).softmax(1) for part in torch.split(values, 1 << 16)]
        return torch.cat(parts)


def learn(
    network: FullResolutionHRNet,
    slices: LabelledSlices,
    pool: Sequence[Tensor],
    config: PixelConfig,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> PixelExpert:
    """Learn a pixel expert on the filters of ``network``, from ``slices`` and from what several
    classifiers of them believe of the ``pool``.

    ``pool``: images (channels, H, W) of slices that nobody labelled, preprocessed. The same seed
    and slices give the same weights on a CPU. ``progress("pixels", step, steps)``.
    """
    rng = np.random.default_rng([seed, 3])
    device = network.middle.device
    known = _labelled(network, slices, config, rng)
    # Without a pool they teach what they believe of the labelled pixels themselves.
    asked = _unlabelled(network, pool, config, rng) if pool else known.values
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        teachers = _teachers(known, network.classes, config, seed, progress)
        told = _Taught(asked, _agreed([believe(asked) for believe in teachers]))
        expert = PixelExpert(network.classes).to(device)
        longer = replace(config, steps=2 * config.steps, noise=config.noise / 2)
        _train(expert, [known, told], _soft_entropy, longer, progress)
    return expert


class PoolLesson:
    """A training step on the labels and, as many crops again, on what an expert believes of the
    pool: the filters that the network looks at are what the expert is asked of.

    ``pool``: as for `learn`. ``weights`` (classes,): of the cross-entropy.
    """

    def __init__(
        self,
        expert: PixelExpert,
        pool: Sequence[Tensor],
        weights: Tensor,
        crop: int,
        augmentation: Augmentation,
        seed: int,
    ) -> None:
        self._expert = expert
        self._pool = pool
        self._loss = soft_loss(weights)
        self._crop = crop
        self._augmentation = augmentation
        self._rng = np.random.default_rng([seed, 4])
        self._generator = torch.Generator().manual_seed(seed + 1)
        self._noise = torch.Generator(weights.device).manual_seed(seed + 1)

    def labelled(self, batch: int) -> int:
        """Half of the crops, all of them without a pool."""
        return batch - batch // 2 if self._pool else batch

    def __call__(self, network: SegmentationNetwork, images: Tensor, masks: Tensor) -> Tensor:
        """The loss of both; see `training.Lesson`."""
        assert isinstance(network, FullResolutionHRNet)
        labelled = len(images)
        if self._pool:
            more = [self._one(images.device) for _ in range(labelled)]
            images = torch.cat([images, torch.stack([image for image, _ in more])])
            masks = torch.cat([masks, torch.stack([inside for _, inside in more])])
        lit = self._augmentation.relight(images, self._noise)
        found = network.sampled(images, masks, lit.contiguous(memory_format=torch.channels_last))
        classes = found.classes[:labelled]
        targets = F.one_hot(classes.clamp_max(network.classes - 1), network.classes).float()
        values = found.filters[labelled:].permute(0, 2, 3, 1)
        believed = self._expert.believe(values.flatten(0, 2)).view(
            *values.shape[:3], network.classes
        )
        there = found.classes != IGNORE
        logits = found.logits.permute(0, 2, 3, 1)[there].float()
        return self._loss(logits, torch.cat([targets, believed])[there])

    def _one(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """A crop of the pool (channels, crop, crop), and (crop, crop): `IGNORE` outside of it."""
        image = self._pool[int(self._rng.integers(len(self._pool)))]
        points = self._augmentation.grid(self._crop, self._generator, device)
        half = self._crop // 2
        for axis, length in ((1, image.shape[1]), (0, image.shape[2])):
            free = max(length - self._crop, 0)
            middle = half + self._rng.integers(free + 1)
            points[..., axis] += middle - 0.5
        inside = torch.zeros(image.shape[1:], dtype=torch.uint8, device=device)
        return resample(image.to(device), inside, points)


# -- pixels


class _Taught(NamedTuple):
    """``values`` (n, F) of pixels and what they are, ``targets`` (n, classes): probabilities."""

    values: Tensor
    targets: Tensor


def _labelled(
    network: FullResolutionHRNet,
    slices: LabelledSlices,
    config: PixelConfig,
    rng: np.random.Generator,
) -> _Taught:
    each = max(2000, min(config.per_slice, config.labelled // len(slices)))
    found = []
    for index in range(len(slices)):
        image, mask = slices.pair(index)
        flat = mask.flatten()
        there = torch.nonzero(flat < network.classes).flatten().numpy()
        pixels = torch.from_numpy(rng.permutation(there)[:each])
        classes = F.one_hot(flat[pixels].long(), network.classes).float()
        found.append(_Taught(_filters(network, image, pixels), classes.to(network.middle.device)))
    return _Taught(*(torch.cat(column) for column in zip(*found, strict=True)))


def _unlabelled(
    network: FullResolutionHRNet,
    pool: Sequence[Tensor],
    config: PixelConfig,
    rng: np.random.Generator,
) -> Tensor:
    each = max(2000, min(config.per_slice, config.unlabelled // len(pool)))
    counts = [image.shape[1] * image.shape[2] for image in pool]
    picked = [torch.from_numpy(rng.integers(count, size=min(each, count))) for count in counts]
    found = [_filters(network, *pair) for pair in zip(pool, picked, strict=True)]
    return torch.cat(found)


@torch.no_grad()
def _filters(network: FullResolutionHRNet, image: Tensor, pixels: Tensor) -> Tensor:
    """(n, F): the filters' values at ``pixels``, places in the image row by row."""
    device = network.middle.device
    return network.filters_at(image.to(device), pixels.to(device))


# -- teachers, and what learns from them


def _teachers(
    known: _Taught, classes: int, config: PixelConfig, seed: int, progress: Progress | None
) -> list[Callable[[Tensor], Tensor]]:
    """Two small networks, of the loss of pixels and of that of classes, and randomised trees."""
    counts = known.targets.sum(0)
    weights = torch.from_numpy(class_weights(counts.cpu().numpy())).to(counts)
    networks = []
    for balanced in (False, True):
        expert = PixelExpert(classes).to(counts.device)
        loss = soft_loss(weights) if balanced else _soft_entropy
        _train(expert, [known], loss, config, progress)
        networks.append(expert.believe)
    return [*networks, _Trees(known, classes, config, seed)]


class _Trees:
    """Extremely randomised trees, on a part of the pixels: (n, F) → (n, classes)."""

    def __init__(self, known: _Taught, classes: int, config: PixelConfig, seed: int) -> None:
        every = -(-len(known.values) // config.grown)
        values, labels = known.values[::every], known.targets[::every].argmax(1)
        self._classes = classes
        self._trees = ExtraTreesClassifier(
            config.trees, min_samples_leaf=3, n_jobs=-1, random_state=seed
        ).fit(values.cpu().numpy(), labels.cpu().numpy())

    def __call__(self, values: Tensor) -> Tensor:
        found = values.new_zeros((len(values), self._classes))
        beliefs = self._trees.predict_proba(values.cpu().numpy())
        found[:, self._trees.classes_] = torch.from_numpy(beliefs).to(found)
        return found


def _agreed(beliefs: Sequence[Tensor]) -> Tensor:
    """The geometric mean of probabilities (n, classes), which none of them decides by a 0."""
    mean = sum(((p + _FLOOR).log() for p in beliefs), torch.zeros(())) / len(beliefs)
    return mean.softmax(1)


_FLOOR = 1e-3


def _train(
    expert: PixelExpert,
    taught: Sequence[_Taught],
    loss: Callable[[Tensor, Tensor], Tensor],
    config: PixelConfig,
    progress: Progress | None,
) -> None:
    """Train ``expert`` in equal parts on all that it is ``taught``."""
    expert.train()
    optimizer = torch.optim.AdamW(
        expert.parameters(), config.learning_rate, weight_decay=1e-2, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.steps + 1, pct_start=0.15
    )
    for step in range(1, config.steps + 1):
        batch = [_some(part, config.batch // len(taught)) for part in taught]
        values, targets = (torch.cat(column) for column in zip(*batch, strict=True))
        error = loss(expert(values + config.noise * torch.randn_like(values)), targets)
        optimizer.zero_grad(set_to_none=True)
        error.backward()  # type: ignore[no-untyped-call]  # torch has no types here
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress("pixels", step, config.steps)
    expert.eval()


def _some(part: _Taught, count: int) -> _Taught:
    rows = torch.randint(len(part.values), (count,), device=part.values.device)
    return _Taught(part.values[rows], part.targets[rows])


def _soft_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of ``logits`` (n, classes) with ``targets``, probabilities."""
    return -(targets * F.log_softmax(logits, 1)).sum() / len(targets)


def soft_loss(weights: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy under ``weights`` (classes,), and the Dice loss of the classes there are."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        entropy = -(targets * weights * F.log_softmax(logits, 1)).sum() / len(targets)
        p = logits.softmax(1)
        held = targets.sum(0)
        dice = 1 - 2 * (p * targets).sum(0) / (p.sum(0) + held).clamp_min(1e-7)
        return entropy + (dice * (held > 1)).mean()

    return loss
