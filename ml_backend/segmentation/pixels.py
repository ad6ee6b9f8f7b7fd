"""The pixel expert: what the texture around a pixel says of its class, learned in seconds.

Classifiers of single pixels on fixed filters are hard to beat on few labels of materials, and
several of them better than one, but too slow to ask for each pixel of a volume. So they teach: they
say what they believe of pixels of the pool that nobody labelled, and a small `PixelReader` learns
that beside the labels. It became better than those that taught it. HRNet, which has learned
something else from the same labels, is served in agreement with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.ensemble import ExtraTreesClassifier
from torch import Tensor
from torch.nn import functional as F

from al_strategies.learner import Progress
from ml_backend.segmentation.dataset import LabelledSlices
from ml_backend.segmentation.networks.full_resolution import WIDTH, FullResolutionHRNet
from ml_backend.segmentation.networks.reader import PixelReader
from ml_backend.segmentation.training import class_weights

__all__ = ["PixelConfig", "learn"]

_TEACHERS = 64
"""Width of the small networks that teach."""
_OF_A_CLASS = 200
"""Pixels of a class in a slice that are learned from, however rare it is there."""


@dataclass(frozen=True)
class PixelConfig:
    """How the pixel expert is learned; see the module.

    ``per_slice``: pixels of a labelled slice at most, 2,000 at least where there are so many, and
    ``labelled`` in all; more where a slice has many rare classes. ``unlabelled``: pixels of the
    pool in all, so ``per_unlabelled`` of each of its slices, within the same bounds. ``trees`` are
    ``grown`` on so many pixels. Teachers take ``steps`` of ``batch`` pixels, the expert twice as
    many under half the noise. ``noise`` on values that are about 1 wide keeps eight slices from
    being learned by heart; two need more.
    """

    per_slice: int = 40_000
    labelled: int = 400_000
    unlabelled: int = 200_000
    per_unlabelled: int = 2000
    trees: int = 30
    grown: int = 150_000
    steps: int = 400
    batch: int = 8192
    learning_rate: float = 1e-2
    noise: float = 0.2


def learn(
    network: FullResolutionHRNet,
    slices: LabelledSlices,
    pool: Iterable[Tensor],
    config: PixelConfig,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> PixelReader:
    """Learn a pixel expert on the filters of ``network``, from ``slices`` and from what several
    classifiers of them believe of the ``pool``.

    ``pool``: images (channels, H, W) of slices that nobody labelled, preprocessed. The same seed
    and slices give the same weights on a CPU. ``progress("pixels", step, steps)``.
    """
    rng = np.random.default_rng([seed, 3])
    device = network.middle.device
    known = _labelled(network, slices, config, rng)
    # Without a pool they teach what they believe of the labelled pixels themselves.
    found = _unlabelled(network, pool, config, rng)
    asked = torch.cat(found) if found else known.values
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        teachers = _teachers(known, network.classes, config, seed, progress)
        told = _Taught(asked, _agreed([believe(asked) for believe in teachers]))
        expert = PixelReader(network.classes, WIDTH).to(device)
        longer = replace(config, steps=2 * config.steps, noise=config.noise / 2)
        _train(expert, [known, told], _soft_entropy, longer, progress)
    return expert


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
        pixels = torch.from_numpy(_some_of_each(rng.permutation(there), flat.numpy(), each))
        classes = F.one_hot(flat[pixels].long(), network.classes).float()
        found.append(_Taught(_filters(network, image, pixels), classes.to(network.middle.device)))
    return _Taught(*(torch.cat(column) for column in zip(*found, strict=True)))


def _some_of_each(
    pixels: npt.NDArray[np.int64], classes: npt.NDArray[np.uint8], number: int
) -> npt.NDArray[np.int64]:
    """The first ``number`` of ``pixels``, but of each of their ``classes`` `_OF_A_CLASS` or all: a
    crack of 50 pixels would not be among them."""
    if len(pixels) <= number:
        return pixels
    found = classes[pixels]
    few = [pixels[found == label][:_OF_A_CLASS] for label in np.unique(found)]
    rows = np.concatenate([*few, pixels])
    _, first = np.unique(rows, return_index=True)
    kept: npt.NDArray[np.int64] = rows[np.sort(first)][: max(number, sum(map(len, few)))]
    return kept


def _unlabelled(
    network: FullResolutionHRNet,
    pool: Iterable[Tensor],
    config: PixelConfig,
    rng: np.random.Generator,
) -> list[Tensor]:
    each = max(2000, min(config.per_slice, config.per_unlabelled))
    found = []
    for image in pool:
        count = image.shape[1] * image.shape[2]
        pixels = torch.from_numpy(rng.integers(count, size=min(each, count)))
        found.append(_filters(network, image, pixels))
    return found


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
        teacher = PixelReader(classes, _TEACHERS).to(counts.device)
        loss = _soft_loss(weights) if balanced else _soft_entropy
        _train(teacher, [known], loss, config, progress)
        networks.append(teacher.believe)
    return [*networks, _Trees(known, classes, config, seed)]


class _Trees:
    """Extremely randomised trees, on a part of the pixels: (n, F) → (n, classes)."""

    def __init__(self, known: _Taught, classes: int, config: PixelConfig, seed: int) -> None:
        every = -(-len(known.values) // config.grown)
        values, labels = known.values[::every], known.targets[::every].argmax(1)
        self._classes = classes
        self._trees = ExtraTreesClassifier(
            config.trees,
            min_samples_leaf=3,
            n_jobs=torch.get_num_threads(),
            random_state=seed,
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
    expert: PixelReader,
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


def _soft_loss(weights: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy under ``weights`` (classes,), and the Dice loss of the classes there are."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        entropy = -(targets * weights * F.log_softmax(logits, 1)).sum() / len(targets)
        p = logits.softmax(1)
        held = targets.sum(0)
        dice = 1 - 2 * (p * targets).sum(0) / (p.sum(0) + held).clamp_min(1e-7)
        return entropy + (dice * (held > 1)).mean()

    return loss
