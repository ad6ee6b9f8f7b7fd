"""A plain U-Net whose first level has the resolution of the slice, trained as long as it is given.

Four levels of 32 to 256 channels, batch normalisation, cross-entropy + Dice, AdamW under a cosine
that ends with the time; crops of 128 with flips, quarter turns, another brightness and contrast,
and noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from al_strategies.evidence import SliceId
from al_strategies.learner import IGNORE, SliceSource
from benchmarks.peers.protocol import Mask, Task, cpu_seconds

__all__ = ["UNet"]

_CROP, _BATCH = 128, 4
_WIDTHS = (32, 64, 128, 256)
_RATE, _DECAY = 1e-3, 1e-4
_DEFAULT_SECONDS = 120.0


def _block(given: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (given, width):
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class _Network(nn.Module):
    """(B, 1, H, W) → (B, classes, H, W); H and W are multiples of 8."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            _block(given, width) for given, width in zip((1, *_WIDTHS), _WIDTHS, strict=False)
        )
        self.up = nn.ModuleList(
            _block(deep + width, width)
            for deep, width in zip(_WIDTHS[:0:-1], _WIDTHS[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(_WIDTHS[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2, mode="bilinear"), skip], 1))
        scores: Tensor = self.head(x)
        return scores


class UNet:
    """Grey values are standardised by the labelled slices together, or each slice by itself where
    they are not comparable."""

    def __init__(self, device: str = "cpu") -> None:
        self.idle_s = 0.0
        self.steps: int | None = None
        self._device = torch.device(device)
        self._network: _Network | None = None
        self._scale: tuple[float, float] | None = None

    def fit(self, task: Task) -> None:
        torch.manual_seed(task.seed)
        rng = np.random.default_rng(task.seed)
        images, masks = task.images, task.masks
        grey = np.concatenate([image.ravel() for image in images]).astype(np.float32)
        self._scale = (float(grey.mean()), float(grey.std()) or 1.0) if task.absolute else None
        slices = [
            (_padded(self._standard(image), _CROP, 0.0), _padded(mask, _CROP, IGNORE))
            for image, mask in zip(images, masks, strict=True)
        ]
        network = _Network(len(task.classes)).to(self._device).train()
        optimizer = torch.optim.AdamW(network.parameters(), _RATE, weight_decay=_DECAY)
        self.steps = 0
        budget, started = task.seconds or _DEFAULT_SECONDS, cpu_seconds()
        while (spent := (cpu_seconds() - started) / budget) < 1:
            for group in optimizer.param_groups:
                group["lr"] = _RATE * (1 + math.cos(math.pi * spent)) / 2
            x, y = self._batch(slices, rng)
            optimizer.zero_grad()
            _loss(network(x), y).backward()
            optimizer.step()
            self.steps += 1
        self._network = network.eval()

    def predict(self, source: SliceSource, ids: Sequence[SliceId]) -> Iterator[Mask]:
        assert self._network is not None, "fit() comes first"
        for slice_id in ids:
            image = self._standard(source.image(slice_id))
            height, width = image.shape
            wider = np.pad(image, ((0, -height % 8), (0, -width % 8)), mode="symmetric")
            with torch.inference_mode():
                scores = self._network(torch.from_numpy(wider).to(self._device)[None, None])
            yield scores[0, :, :height, :width].argmax(0).byte().cpu().numpy()

    def _standard(self, image: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        image = image.astype(np.float32)
        mean, deviation = self._scale or (float(image.mean()), float(image.std()) or 1.0)
        return ((image - mean) / deviation).astype(np.float32)

    def _batch(
        self, slices: list[tuple[npt.NDArray[Any], Mask]], rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        pairs = [_crop(*slices[rng.integers(len(slices))], rng) for _ in range(_BATCH)]
        images, masks = (np.stack(part) for part in zip(*pairs, strict=True))
        x = torch.from_numpy(images).to(self._device)[:, None]
        return x, torch.from_numpy(masks.astype(np.int64)).to(self._device)


def _padded(values: npt.NDArray[Any], side: int, value: float) -> npt.NDArray[Any]:
    missing = [(0, max(0, side - length)) for length in values.shape]
    return np.pad(values, missing, constant_values=value)


def _crop(
    image: npt.NDArray[np.float32], mask: Mask, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float32], Mask]:
    """A random crop, flipped, turned, and in another light."""
    top, left = (int(rng.integers(length - _CROP + 1)) for length in image.shape)
    place = slice(top, top + _CROP), slice(left, left + _CROP)
    x, y = image[place], mask[place]
    turns, flipped = int(rng.integers(4)), bool(rng.integers(2))
    x, y = np.rot90(x, turns), np.rot90(y, turns)
    if flipped:
        x, y = x[:, ::-1], y[:, ::-1]
    light = x * rng.uniform(0.9, 1.1) + rng.uniform(-0.1, 0.1)
    noise = rng.normal(0, rng.uniform(0, 0.1), x.shape)
    return (light + noise).astype(np.float32), np.ascontiguousarray(y)


def _loss(scores: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy + Dice over the labelled pixels and the classes that the batch holds."""
    labelled = masks != IGNORE
    known = torch.where(labelled, masks, 0)
    entropy = F.cross_entropy(scores, known, reduction="none")[labelled].sum()
    truth = F.one_hot(known, scores.shape[1]).movedim(-1, 1) * labelled[:, None]
    found = scores.softmax(1) * labelled[:, None]
    dims = (0, 2, 3)
    dice = 1 - 2 * (found * truth).sum(dims) / (found.sum(dims) + truth.sum(dims)).clamp_min(1e-6)
    held = truth.sum(dims) > 0
    dice_loss = dice[held].mean() if held.any() else scores.sum() * 0
    return entropy / labelled.sum().clamp_min(1) + dice_loss
