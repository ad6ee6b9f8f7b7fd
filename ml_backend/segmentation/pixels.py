"""The pixel expert: what the texture around a pixel says of its class, learned in seconds.

Classifiers of single pixels on fixed filters are hard to beat on few labels of materials, and
several of them better than one, but too slow to ask for each pixel of a volume. So they teach: they
say what they believe of pixels of the pool that nobody labelled, and a small `PixelReader` learns
that beside the labels. It became better than those that taught it. HRNet, which has learned
something else from the same labels, is served in agreement with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.utils import check_random_state
from torch import Tensor
from torch.nn import functional as F

from al_strategies.learner import Progress
from ml_backend.segmentation.dataset import LabelledSlices
from ml_backend.segmentation.networks.full_resolution import WIDTH, FullResolutionHRNet
from ml_backend.segmentation.networks.reader import PixelReader
from ml_backend.segmentation.training import class_weights, seeded

__all__ = ["Learned", "PixelConfig", "learn"]

_TEACHERS = 64
"""Width of the small networks that teach."""
_OF_A_CLASS = 200
"""Pixels of a class in a slice that are learned from, however rare it is there."""
_LESS_NOISE = (1.0, 0.5, 0.25, 0.125)
"""Parts of the usual noise that are compared, as long as less is better."""
_BETTER = 0.02
"""By what part the loss on slices that were not learned from must fall."""
_TRIED_STEPS, _TRIED_BATCH = 150, 4096
"""Of a small network that is tried so: a second of a core for two of them."""
_FOREST = {RandomForestClassifier: 1, ExtraTreesClassifier: 2}
"""Which unpruned trees teach an expert that decides alone, and how many times ``unpruned``: one to
four minutes of a core on a few classes, ten on fifty."""
_AT_ONCE = 8
"""Most of them that are held: 135 MB each where fifty classes are hard to tell apart."""


@dataclass(frozen=True)
class PixelConfig:
    """How the pixel expert is learned; see the module.

    ``per_slice``: pixels of a labelled slice at most, 2,000 at least where there are so many, and
    ``labelled`` in all; more where a slice has many rare classes. ``unlabelled``: pixels of the
    pool in all, so ``per_unlabelled`` of each of its slices, within the same bounds. ``trees``, and
    ``unpruned`` ones of a forest, are ``grown`` on so many pixels. Teachers take ``steps`` of
    ``batch`` pixels, the expert twice as many under half the noise, one that decides alone eight
    times as many of half the batch under an eighth. ``noise`` on values that are about 1 wide keeps
    eight slices from being learned by heart; two need more.
    """

    per_slice: int = 100_000
    labelled: int = 800_000
    unlabelled: int = 600_000
    per_unlabelled: int = 2000
    trees: int = 30
    unpruned: int = 50
    grown: int = 200_000
    steps: int = 400
    batch: int = 8192
    learning_rate: float = 1e-2
    noise: float = 0.2


class Learned(NamedTuple):
    """``expert``; ``noise``: what its teachers learned under. ``unseen``: for each fold of the
    labelled slices a small reader that was not shown it, none without folds. ``alone``: makes an
    expert for where it decides alone: taught for longer, by many unpruned trees."""

    expert: PixelReader
    noise: float
    unseen: tuple[PixelReader, ...]
    alone: Callable[[], PixelReader]


def learn(
    network: FullResolutionHRNet,
    slices: LabelledSlices,
    pool: Iterable[Tensor],
    config: PixelConfig,
    *,
    folds: Sequence[int] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Learned:
    """Learn a pixel expert on the filters of ``network``, from ``slices`` and from what several
    classifiers of them believe of the ``pool``.

    ``pool``: images (channels, H, W) of slices that nobody labelled, preprocessed. ``folds``: of
    each of ``slices``, from 0; by them is chosen whether less noise than usual is better. The same
    seed and slices give the same weights on a CPU. ``progress("pixels", step, steps)``.
    """
    rng = np.random.default_rng([seed, 3])
    device = network.middle.device
    each = _labelled(network, slices, config, rng)
    known = _joined(each)
    # Without a pool they teach what they believe of the labelled pixels themselves.
    found = _unlabelled(network, pool, config, rng)
    asked = torch.cat(found) if found else known.values
    with seeded(seed, device):
        noise, unseen = _chosen_noise(each, folds, network.classes, config, progress)
    config = replace(config, noise=noise)
    with seeded(seed, device):
        teachers = _teachers(known, network.classes, config, seed, progress)
        told = _Taught(asked, _agreed([believe(asked) for believe in teachers]))
        expert = _expert(network.classes, [known, told], config, 2, progress)

    kept = _Taught(known.values.cpu(), known.targets.cpu())
    shown = asked.cpu()

    def alone() -> PixelReader:
        there = network.middle.device  # by now: where memory is full, it is another
        believed = _forest(shown, kept, network.classes, config, seed, progress)
        half = replace(config, batch=config.batch // 2)
        taught = [
            _Taught(part.values.to(there), part.targets.to(there))
            for part in (kept, _Taught(shown, believed))
        ]
        with seeded(seed, there):
            return _expert(network.classes, taught, half, 8, progress)

    return Learned(expert, noise, unseen, alone)


def _expert(
    classes: int,
    taught: Sequence[_Taught],
    config: PixelConfig,
    times: int,
    progress: Progress | None,
) -> PixelReader:
    """One that is ``taught`` for so many ``times`` as long as its teachers, under so much less
    noise."""
    expert = PixelReader(classes, WIDTH).to(taught[0].values.device)
    longer = replace(config, steps=times * config.steps, noise=config.noise / times)
    _train(expert, taught, _soft_entropy, longer, progress)
    return expert


def _chosen_noise(
    each: Sequence[_Taught],
    folds: Sequence[int],
    classes: int,
    config: PixelConfig,
    progress: Progress | None,
) -> tuple[float, tuple[PixelReader, ...]]:
    """The noise under which slices that were not learned from are known best, of what is usual and
    less, and who was shown all folds but one.

    Not more than usual: those who are shown half of the slices need more than who sees them all.
    """
    if len(set(folds)) < 2:
        return config.noise, ()
    brief = replace(
        config,
        steps=min(config.steps, _TRIED_STEPS),
        batch=min(config.batch, _TRIED_BATCH),
    )
    noise, least = config.noise, math.inf
    unseen: tuple[PixelReader, ...] = ()
    for part in _LESS_NOISE:
        tried = replace(brief, noise=part * config.noise)
        readers, loss = _tried(each, folds, classes, tried, progress)
        if loss > least * (1 - _BETTER):
            break
        noise, least, unseen = tried.noise, loss, readers
    return noise, unseen


def _tried(
    each: Sequence[_Taught],
    folds: Sequence[int],
    classes: int,
    config: PixelConfig,
    progress: Progress | None,
) -> tuple[tuple[PixelReader, ...], float]:
    """A reader for each fold, taught the others, and their cross-entropy on it."""
    readers, losses = [], []
    for fold in sorted(set(folds)):
        rest = _joined([part for part, own in zip(each, folds, strict=True) if own != fold])
        held = _joined([part for part, own in zip(each, folds, strict=True) if own == fold])
        reader = PixelReader(classes, WIDTH).to(rest.values.device)
        _train(reader, [rest], _soft_entropy, config, progress)
        believed = reader.believe(held.values).clamp_min(_IMPOSSIBLE).log()
        losses.append(-(held.targets * believed).sum(1))
        readers.append(reader)
    return tuple(readers), float(torch.cat(losses).mean())


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
) -> list[_Taught]:
    """Pixels of each of ``slices``."""
    each = max(2000, min(config.per_slice, config.labelled // len(slices)))
    found = []
    for index in range(len(slices)):
        image, mask = slices.pair(index)
        flat = mask.flatten()
        there = torch.nonzero(flat < network.classes).flatten().numpy()
        pixels = torch.from_numpy(_some_of_each(rng.permutation(there), flat.numpy(), each))
        classes = F.one_hot(flat[pixels].long(), network.classes).float()
        found.append(_Taught(_filters(network, image, pixels), classes.to(network.middle.device)))
    return found


def _joined(parts: Iterable[_Taught]) -> _Taught:
    return _Taught(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _some_of_each(
    pixels: npt.NDArray[np.int64], classes: npt.NDArray[np.uint8], number: int
) -> npt.NDArray[np.int64]:
    """The first ``number`` of ``pixels``, but of each of their ``classes`` `_OF_A_CLASS` or all: a
    crack of 50 pixels would not be among them."""
    if len(pixels) <= number:
        return pixels
    found = classes[pixels]
    labels = np.flatnonzero(np.bincount(found))
    few = [pixels[found == label][:_OF_A_CLASS] for label in labels]
    number = max(number, sum(map(len, few)))
    rows = np.concatenate([*few, pixels[:number]])
    _, first = np.unique(rows, return_index=True)
    kept: npt.NDArray[np.int64] = rows[np.sort(first)][:number]
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
        loss = _soft_loss(weights, int((counts > 0).sum())) if balanced else _soft_entropy
        _train(teacher, [known], loss, config, progress)
        networks.append(teacher.believe)
    trees = ExtraTreesClassifier(config.trees, min_samples_leaf=3, random_state=seed)
    return [*networks, _Trees(trees, known, classes, config)]


def _forest(
    values: Tensor,
    known: _Taught,
    classes: int,
    config: PixelConfig,
    seed: int,
    progress: Progress | None,
) -> Tensor:
    """What many trees of both kinds, as they grow, believe of ``values``: (n, classes)."""
    believed = values.new_zeros((len(values), classes))
    at_once = min(_AT_ONCE, torch.get_num_threads())
    done = 0
    numbers = {kind: times * config.unpruned for kind, times in _FOREST.items()}
    for kind, number in numbers.items():
        state = check_random_state(seed)  # one for all: the trees of one forest
        for first in range(0, number, at_once):  # unpruned, all of them may take many GB
            few = kind(min(at_once, number - first), random_state=state)
            share = few.n_estimators / number
            believed += share * _Trees(few, known, classes, config)(values)
            done += few.n_estimators
            if progress is not None:
                progress("pixels", done, sum(numbers.values()))
    return believed / len(numbers)


class _Trees:
    """Trees that are grown on a part of the pixels: (n, F) → (n, classes)."""

    def __init__(
        self,
        trees: ExtraTreesClassifier | RandomForestClassifier,
        known: _Taught,
        classes: int,
        config: PixelConfig,
    ) -> None:
        every = -(-len(known.values) // config.grown)
        values, labels = known.values[::every], known.targets[::every].argmax(1)
        self._classes = classes
        self._trees = trees.set_params(n_jobs=torch.get_num_threads())
        self._trees.fit(values.cpu().numpy(), labels.cpu().numpy())
        self._trees.n_jobs = 1  # several add up in the order in which they are done

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
_IMPOSSIBLE = 1e-6
"""What is held to be as good as impossible, and is not."""


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


def _soft_loss(weights: Tensor, present: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy under ``weights`` (classes,), and the mean Dice loss of the classes, of which
    so many are labelled anywhere."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        entropy = -(targets * weights * F.log_softmax(logits, 1)).sum() / len(targets)
        p = logits.softmax(1)
        held = targets.sum(0)
        dice = 1 - 2 * (p * targets).sum(0) / (p.sum(0) + held).clamp_min(1e-7)
        return entropy + (dice * (held > 1)).sum() / present

    return loss
