"""HRNet that decides at full resolution: its context, and what fixed filters say of each pixel.

HRNet's features are drawn at 1/4 of the resolution, too coarse for an edge. The filters of a pixel
classifier (`filters`) are drawn at full resolution; a small head reads both. It has one set of
probabilities, and the same last 1×1 convolution behind a channel dropout as every network here, so
MC dropout, embeddings and BADGE mean what they do elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ml_backend.segmentation.networks.base import (
    SCORING_STRIDE,
    Builder,
    Read,
    SegmentationNetwork,
    masked_mean,
    upsample,
)
from ml_backend.segmentation.networks.filters import FEATURES_PER_LEVEL, Levels, filter_levels
from ml_backend.segmentation.networks.hrnet import BUILDERS as HRNETS
from ml_backend.segmentation.networks.hrnet import HRNetV2

__all__ = ["BUILDERS", "SUFFIX", "FullResolutionHRNet", "Sampled"]

SUFFIX = "+filters"
"""Of an HRNet's name: that HRNet with filters and a head at full resolution."""

_HIDDEN = 64
_SAMPLED = 1024
"""Pixels of a crop that a training step looks at: all of them cost four times as much and taught no
more."""
_BAND = 1 << 12
"""Pixels whose features are held at once while logits are made: a cache's worth."""
_FITTED = 4096
"""Pixels of an image that the filters are fitted on."""
_CONTEXT_DROPOUT = 0.5
"""Of HRNet's features, in training."""
_DROPOUT = 0.1
"""Before the last layer: what MC dropout samples."""
_NOISE = 0.1
"""On the filters' values in training: few labels would have the head learn them by heart."""


class Sampled(NamedTuple):
    """A training step at some pixels of each crop: ``logits`` (B, classes, 1, n), the masks'
    ``classes`` (B, 1, n) there, and the ``filters`` (B, F, 1, n)."""

    logits: Tensor
    classes: Tensor
    filters: Tensor


class _Head(nn.Module):
    """What is summed of 1×1 convolutions of each level, BN + ReLU, 1×1 + BN + ReLU."""

    def __init__(self) -> None:
        super().__init__()
        full, half, quarter = FEATURES_PER_LEVEL
        # Ahead of the convolutions: `_folded` folds them, and nobody else must.
        self.first, self.third = nn.BatchNorm2d(_HIDDEN), nn.BatchNorm2d(_HIDDEN)
        self.at_full = nn.Conv2d(full, _HIDDEN, kernel_size=1, bias=False)
        self.at_half = nn.Conv2d(half, _HIDDEN, kernel_size=1, bias=False)
        self.at_quarter = nn.Conv2d(quarter, _HIDDEN, kernel_size=1, bias=False)
        self.second = nn.Conv2d(_HIDDEN, _HIDDEN, kernel_size=1, bias=False)
        # As one convolution of all filters would begin.
        bound = sum(FEATURES_PER_LEVEL) ** -0.5
        for level in (self.at_full, self.at_half, self.at_quarter):
            nn.init.uniform_(level.weight, -bound, bound)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, hidden, h, w) of the sum of what the levels give."""
        return F.relu(self.third(self.second(F.relu(self.first(hidden)))))


class FullResolutionHRNet(SegmentationNetwork):
    """See the module. Before `fit_filters` the filters' values are taken as they come."""

    norm_follows_convolution: ClassVar[bool] = True

    def __init__(self, architecture: str, classes: int, channels: int, pretrained: bool) -> None:
        context = HRNetV2(architecture.removesuffix(SUFFIX), classes, channels, pretrained)
        width = context.embedding_size
        super().__init__(
            architecture,
            classes=classes,
            channels=channels,
            width=_HIDDEN,
            embedding_size=width,
            dropout=_DROPOUT,
        )
        self.branches, self.fuse = context.branches, context.fuse
        self.project = nn.Conv2d(width, _HIDDEN, kernel_size=1, bias=False)
        self.head = _Head()
        self.middle: Tensor
        self.spread: Tensor
        self.register_buffer("middle", torch.zeros(sum(FEATURES_PER_LEVEL)))
        self.register_buffer("spread", torch.ones(sum(FEATURES_PER_LEVEL)))

    # -- the filters

    def fit_filters(self, images: Iterable[Tensor]) -> None:
        """Take middle and spread of each filter from ``images`` (channels, H, W): the median, and
        a quarter of what lies between the 3rd and the 97th percentile."""
        self.middle.zero_()
        self.spread.fill_(1)
        values = []
        for image in images:
            count = image.shape[1] * image.shape[2]
            pixels = torch.arange(0, count, -(-count // _FITTED), device=self.middle.device)
            values.append(self.filters_at(image.to(pixels.device), pixels))
        found = torch.cat(values)
        found = found[:: -(-len(found) // (1 << 18))]  # torch.quantile takes no more than 2^24
        low, middle, high = torch.quantile(found, found.new_tensor([0.03, 0.5, 0.97]), dim=0)
        self.middle.copy_(middle)
        self.spread.copy_((high - low) / 4 + 1e-6)

    def filters(self, images: Tensor) -> Levels:
        """The filters' values of ``images`` (B, channels, H, W), each around 0 and about 1 wide.

        Of a slice with neighbours they are those of the slice in the middle.
        """
        middle = images.shape[1] // 2
        with torch.autocast(images.device.type, enabled=False):
            levels = filter_levels(images[:, middle : middle + 1].float().contiguous())
            sizes = list(FEATURES_PER_LEVEL)
            middles, spreads = torch.split(self.middle, sizes), torch.split(self.spread, sizes)
            return Levels(*map(_normalised, levels, middles, spreads))

    def filters_at(self, image: Tensor, pixels: Tensor) -> Tensor:
        """(n, F) float32: the filters at ``pixels`` (n,), places in ``image`` (channels, H, W)
        counted row by row."""
        height, width = image.shape[1:]
        missing = [-length % SCORING_STRIDE for length in (width, height)]
        padded = F.pad(image[None].float(), (0, missing[0], 0, missing[1]), mode="replicate")
        grid = _grid(pixels // width, pixels % width, padded.shape[2], padded.shape[3])
        return torch.cat([_at(maps, grid[None, None])[0, :, 0] for maps in self.filters(padded)]).T

    # -- training

    def sample(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, classes, 1, n) and targets (B, 1, n) at pixels drawn from each crop."""
        found = self.sampled(images, masks, images)
        return found.logits, found.classes

    def sampled(self, images: Tensor, masks: Tensor, lit: Tensor) -> Sampled:
        """Of crops ``images`` (B, channels, H, W) with ``masks`` (B, H, W). HRNet sees them as
        ``lit``: noise that it should not mind would drown what the filters see."""
        batch, height, width = masks.shape
        picked = torch.randint(height * width, (batch, _SAMPLED), device=masks.device)
        grid = _grid(picked // width, picked % width, height, width)[:, None]
        coarse, _ = self._coarse(lit)
        hidden = _at(coarse, grid)
        values = [_at(maps, grid) for maps in self.filters(images)]
        for at_level, convolution in zip(values, self._levels(), strict=True):
            hidden = hidden + convolution(at_level + _NOISE * torch.randn_like(at_level))
        classes = masks.flatten(1).gather(1, picked)[:, None]
        return Sampled(self.classify(self.head(hidden)), classes, torch.cat(values, 1))

    def _coarse(self, images: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """(B, hidden, H/4, W/4): what HRNet adds to the head, and its branches."""
        maps: list[Tensor] = self.branches(images)
        size = maps[0].shape[-2:]
        fused = self.fuse(torch.cat([maps[0], *(upsample(m, size) for m in maps[1:])], 1))
        return self.project(F.dropout2d(fused, _CONTEXT_DROPOUT, self.training)), maps

    def _levels(self) -> tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d]:
        return self.head.at_full, self.head.at_half, self.head.at_quarter

    # -- use

    def _encode(self, images: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        coarse, maps = self._coarse(images)
        rows = slice(0, images.shape[-2])
        return self._features(coarse.float(), self.filters(images), rows, _folded(self.head)), maps

    def read(
        self,
        images: Tensor,
        valid: Tensor,
        precision: AbstractContextManager[Any],
        *,
        features: bool,
    ) -> Read:
        """As the other networks', band by band: features of all pixels at once would take a
        quarter of a gigabyte for 1,024², and more time."""
        with precision:
            coarse, maps = self._coarse(images)
            embedding = torch.cat([masked_mean(m, valid) for m in maps], dim=1)
        bands = [
            (self.classify(band), F.avg_pool2d(band, SCORING_STRIDE) if features else None)
            for band in self._bands(coarse.float(), self.filters(images))
        ]
        scored = [pooled for _, pooled in bands if pooled is not None]
        return Read(
            torch.cat([logits for logits, _ in bands], 2),
            embedding,
            torch.cat(scored, 2) if scored else None,
        )

    def _bands(self, coarse: Tensor, levels: Levels) -> Iterator[Tensor]:
        height, width = levels.full.shape[-2:]
        weights = _folded(self.head)
        rows = max(1, _BAND // (len(coarse) * width * SCORING_STRIDE)) * SCORING_STRIDE
        for top in range(0, height, rows):
            yield self._features(coarse, levels, slice(top, min(height, top + rows)), weights)

    def _features(self, coarse: Tensor, levels: Levels, rows: slice, weights: _Folded) -> Tensor:
        """(B, hidden, rows, W): what the last layer takes."""
        full, half, quarter, extra = (
            _rows(maps, rows, stride)
            for maps, stride in zip((*levels, coarse), (1, 2, 4, 4), strict=True)
        )
        hidden = F.conv2d(quarter, weights.quarter) + extra * weights.scale
        size = [2 * length for length in half.shape[-2:]]
        hidden = upsample(hidden, size) + upsample(F.conv2d(half, weights.half), size)
        hidden = (_cut(hidden, rows) + F.conv2d(full, weights.full, weights.bias)).relu()
        return F.conv2d(hidden, weights.second, weights.second_bias).relu()


def _normalised(maps: Tensor, middle: Tensor, spread: Tensor) -> Tensor:
    return (maps - middle[:, None, None]) / spread[:, None, None]


def _grid(y: Tensor, x: Tensor, height: int, width: int) -> Tensor:
    """(…, 2): the middles of pixels as `F.grid_sample` counts."""
    return torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)


def _at(maps: Tensor, grid: Tensor) -> Tensor:
    """(B, C, 1, n) float32: ``maps`` (B, C, h, w) at ``grid`` (B, 1, n, 2), bilinear between
    pixels."""
    return F.grid_sample(
        maps.float(), grid.float(), mode="bilinear", padding_mode="border", align_corners=False
    )


def _rows(maps: Tensor, rows: slice, stride: int) -> Tensor:
    """Of ``maps`` at 1/``stride`` those that ``rows`` at full resolution need: where they will be
    enlarged, those of one pixel at 1/4 more on each side."""
    more = 0 if stride == 1 else SCORING_STRIDE
    first, last = max(rows.start - more, 0) // stride, (rows.stop + more) // stride
    part = maps[:, :, first : min(last, maps.shape[2])]
    return part.contiguous(memory_format=torch.channels_last)


def _cut(maps: Tensor, rows: slice) -> Tensor:
    """Of enlarged `_rows` those that were asked for."""
    skip = min(rows.start, SCORING_STRIDE)
    return maps[:, :, skip : skip + rows.stop - rows.start]


class _Folded(NamedTuple):
    """The head's 1×1 convolutions with the batch normalisation behind them."""

    full: Tensor
    half: Tensor
    quarter: Tensor
    scale: Tensor
    bias: Tensor
    second: Tensor
    second_bias: Tensor


def _folded(head: _Head) -> _Folded:
    scale, bias = _scale_and_bias(head.first)
    second_scale, second_bias = _scale_and_bias(head.third)
    full, half, quarter, second = (
        convolution.weight * factor[:, None, None, None]
        for convolution, factor in (
            (head.at_full, scale),
            (head.at_half, scale),
            (head.at_quarter, scale),
            (head.second, second_scale),
        )
    )
    return _Folded(full, half, quarter, scale[:, None, None], bias, second, second_bias)


def _scale_and_bias(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - norm.running_mean * scale


BUILDERS: Mapping[str, Builder] = {
    name + SUFFIX: Builder(FullResolutionHRNet, timm_model=name) for name in HRNETS
}
