"""HRNet that decides at full resolution, in agreement with a classifier of single pixels.

HRNet's features are drawn at a part of the resolution, too coarse for an edge. The filters of a
pixel classifier (`filters`) are drawn at full resolution. Two small readers look at them: one
together with what HRNet makes of the surroundings, the other alone, which
`ml_backend.segmentation.pixels` teaches. Their geometric mean, each by its share
(`ml_backend.segmentation.agreement`), is the mean of their logits: one 1×1 convolution over the
features of both, behind a channel dropout as in every network here. So there is one set of
probabilities, and MC dropout, embeddings and BADGE mean what they do elsewhere.

Since the filters see what is fine, HRNet is shown the slice at half the resolution: a quarter of
the work, and twice as far around.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from al_strategies.learner import IGNORE
from ml_backend.segmentation.networks.base import (
    MULTIPLE,
    SCORING_STRIDE,
    Builder,
    Encoded,
    Lesson,
    Read,
    SegmentationNetwork,
    masked_mean,
    upsample,
)
from ml_backend.segmentation.networks.filters import FEATURES_PER_LEVEL, Levels, filter_levels
from ml_backend.segmentation.networks.hrnet import BUILDERS as HRNETS
from ml_backend.segmentation.networks.hrnet import HRNetV2
from ml_backend.segmentation.networks.reader import Folded, PixelReader, folded, second_layer
from ml_backend.segmentation.networks.warp import gather, random_warp

__all__ = ["BUILDERS", "SUFFIX", "WIDTH", "FullResolutionHRNet"]

SUFFIX = "+filters"
"""Of an HRNet's name: that HRNet with filters, decided at full resolution."""

WIDTH = 32
"""Of each of the two readers."""
_SHRUNK = 2
"""HRNet sees blocks of so many pixels a side as one."""
_SAMPLED = 1024
"""Pixels of a crop that a training step looks at: all of them cost four times as much and taught no
more."""
_HARDLY = 1e-6
"""How likely such a pixel is that nobody labelled: a crop may have none that somebody did."""
_BAND = 1 << 14
_GPU_BAND = 1 << 22
"""Pixels whose features are held at once while logits are made: a CPU's cache's worth, and what
keeps a GPU busy (not tried on one)."""
_FILTERED = 1 << 22
"""Pixels whose filters are held at once where single ones are looked at: they take a gigabyte."""
_STUDIED = 1 << 24
"""Pixels of labelled slices whose filters are kept while it is trained: a gigabyte."""
_LARGEST_HALF = 65504.0
_REACH = 64
"""How far a filter looks: 5 pixels, and as it is made of that 6 of 1/2, 8 of 1/4, and one more of
1/4 to be enlarged. A multiple of `MULTIPLE`."""
_FITTED = 4096
"""Pixels of an image that the filters are fitted on."""
_LEAST_SPREAD = 1e-3
"""Of grey values whose window is 2 wide."""
_CONTEXT_DROPOUT = 0.5
"""Of HRNet's features, in training."""
_EQUAL = 0.5
"""The share of each reader, until something is known of them."""
_DROPOUT = 0.1
"""Before the last layer: what MC dropout samples."""


class FullResolutionHRNet(SegmentationNetwork):
    """See the module. Before `fit_filters` the filters' values are taken as they come, before
    `agree_with` the reader with context decides alone."""

    norm_follows_convolution: ClassVar[bool] = True

    def __init__(self, architecture: str, classes: int, channels: int, pretrained: bool) -> None:
        context = HRNetV2(architecture.removesuffix(SUFFIX), classes, channels, pretrained)
        width = context.embedding_size
        super().__init__(
            architecture,
            classes=classes,
            channels=channels,
            width=2 * WIDTH,
            embedding_size=width,
            dropout=_DROPOUT,
        )
        self.branches, self.fuse = context.branches, context.fuse
        self.project = nn.Conv2d(width, WIDTH, kernel_size=1, bias=False)
        self.reader = PixelReader(classes, WIDTH)
        self.expert = PixelReader(classes, WIDTH).requires_grad_(False)
        nn.init.zeros_(self.expert.last.weight)
        nn.init.zeros_(self.expert.last.bias)
        self.classifier.requires_grad_(False)
        self.middle: Tensor
        self.spread: Tensor
        self.register_buffer("middle", torch.zeros(sum(FEATURES_PER_LEVEL)))
        self.register_buffer("spread", torch.ones(sum(FEATURES_PER_LEVEL)))
        self._studied: list[Tensor] = []
        self.trained()

    def agree_with(self, expert: PixelReader) -> None:
        """Take a copy of ``expert``, of `WIDTH`, which has learned on these filters."""
        self.expert.load_state_dict(expert.state_dict())
        self.expert.eval()
        self.weigh(_EQUAL)

    @torch.no_grad()
    def weigh(self, share: float) -> None:
        """The last layer: the mean of what both readers say, that with context by this ``share``,
        the expert by the rest."""
        ours, theirs, rest = self.reader.last, self.expert.last, 1 - share
        weight = torch.cat([share * ours.weight, rest * theirs.weight], 1)
        self.classifier.weight.copy_(weight[:, :, None, None])
        assert self.classifier.bias is not None
        self.classifier.bias.copy_(share * ours.bias + rest * theirs.bias)

    def trained(self) -> None:
        """Decide with both readers alike, and forget what was studied."""
        self.weigh(_EQUAL)
        self._studied = []

    # -- the filters

    def fit_filters(self, images: Iterable[Tensor]) -> None:
        """Take middle and spread of each filter from ``images`` (channels, H, W): the median, and
        a quarter of what lies between the 3rd and the 97th percentile, a thousandth at least: where
        nearly all of a slice is one value, what is not would be millions wide."""
        self.middle.zero_()
        self.spread.fill_(1)
        values = []
        for image in images:
            height, width = image.shape[1:]
            step = math.ceil(math.sqrt(height * width / _FITTED))
            rows, columns = (
                torch.arange(0, length, step, device=self.middle.device)
                for length in (height, width)
            )
            pixels = (rows[:, None] * width + columns).flatten()
            values.append(self.filters_at(image.to(pixels.device), pixels))
        found = torch.cat(values)
        found = found[:: -(-len(found) // (1 << 18))]  # torch.quantile takes no more than 2^24
        low, middle, high = torch.quantile(found, found.new_tensor([0.03, 0.5, 0.97]), dim=0)
        self.middle.copy_(middle)
        self.spread.copy_(((high - low) / 4).clamp_min(_LEAST_SPREAD))

    def filters(self, images: Tensor) -> Levels:
        """The filters' values of ``images`` (B, channels, H, W), each around 0 and about 1 wide.

        Of a slice with neighbours they are those of the slice in the middle.
        """
        sizes = list(FEATURES_PER_LEVEL)
        middles, spreads = torch.split(self.middle, sizes), torch.split(self.spread, sizes)
        return Levels(*map(_normalised, _plain_filters(images), middles, spreads))

    def filters_at(self, image: Tensor, pixels: Tensor) -> Tensor:
        """(n, F) float32: the filters at ``pixels`` (n,), places in ``image`` (channels, H, W)
        counted row by row."""
        height, width = image.shape[1:]
        y, x = pixels // width, pixels % width
        # Whole multiples, so that the last band is mirrored as the whole slice is.
        step = max(1, _FILTERED // (width * MULTIPLE)) * MULTIPLE
        if height <= step:
            return self._filters_at(image, y, x)
        found = self.middle.new_empty((len(pixels), len(self.middle)))
        for top in range(0, height, step):
            there = torch.nonzero((y >= top) & (y < top + step)).flatten()
            if len(there):
                first = max(0, top - _REACH)
                band = image[:, first : top + step + _REACH]
                found[there] = self._filters_at(band, y[there] - first, x[there])
        return found

    def _filters_at(self, image: Tensor, y: Tensor, x: Tensor) -> Tensor:
        padded = _mirrored(image[None].float())  # as it is when it is used
        grid = _grid(y, x, padded.shape[2], padded.shape[3])
        return torch.cat([_at(maps, grid[None, None])[0, :, 0] for maps in self.filters(padded)]).T

    # -- training

    @torch.no_grad()
    def study(self, images: Iterable[Tensor]) -> bool:
        """Keep the filters at all pixels of as many ``images`` as fit (`_STUDIED`): they are made
        once, and those of a crop alone know nothing beyond its edge."""
        self._studied = []
        left = _STUDIED
        for image in images:
            pixels = torch.arange(image.shape[1] * image.shape[2], device=self.middle.device)
            left -= len(pixels)
            if left < 0:
                break
            values = self.filters_at(image.to(pixels.device), pixels)
            self._studied.append(values.clamp_(-_LARGEST_HALF, _LARGEST_HALF).half())
        return bool(self._studied)

    def _values(self, lesson: Lesson, y: Tensor, x: Tensor) -> Tensor:
        """(B, n, F): the filters at the pixels ``y``, ``x`` (B, n) of crops."""
        batch, height, width = lesson.masks.shape
        values = self.middle.new_empty((batch, y.shape[1], len(self.middle)))
        studied = dict(enumerate(self._studied))
        known = {i: studied[s] for i, s in enumerate(lesson.slices or ()) if s in studied}
        if lesson.places is not None:
            places = lesson.places.flatten(1).gather(1, y * width + x)
            for i, rows in known.items():
                values[i] = rows[places[i]]
        strange = [i for i in range(batch) if i not in known]
        if strange:
            grid = _grid(y[strange], x[strange], height, width)[:, None]
            levels = self.filters(lesson.plain[strange])
            values[strange] = torch.cat([_at(maps, grid)[:, :, 0] for maps in levels], 1).mT
        return values

    def sample(self, lesson: Lesson, noise: float) -> tuple[Tensor, Tensor]:
        """Logits (B, classes, 1, n) of the reader with context and targets (B, 1, n), at pixels
        drawn from each crop.

        HRNet sees the crops as they are lit, and warped where that is asked for; the filters as
        they are: the noise and the interpolation that HRNet should not mind would drown what they
        see. They have ``noise`` of their own on values that are about 1 wide, or few labels would
        be learned by heart.
        """
        _, hidden, targets = self._look(lesson, noise)
        hidden = hidden.view(len(targets), _SAMPLED, WIDTH).transpose(1, 2)[:, :, None]
        last = self.reader.last
        logits = F.conv2d(self.dropout(hidden), last.weight[:, :, None, None], last.bias)
        return logits, targets[:, None]

    @torch.no_grad()
    def recall(self, lesson: Lesson) -> tuple[Tensor, Tensor, Tensor]:
        """What the reader with context says of pixels that it has learned from: filters (B, n, F),
        logits (B, n, classes) and targets (B, n) at pixels drawn from each crop of ``lesson``, as
        it is. In evaluation mode."""
        plain = lesson._replace(images=lesson.plain, warped=False)
        values, hidden, targets = self._look(plain, noise=0.0)
        return values, self.reader.last(hidden).view(*targets.shape, -1), targets

    def _look(self, lesson: Lesson, noise: float) -> tuple[Tensor, Tensor, Tensor]:
        """At pixels drawn from each crop: filters (B, n, F) under ``noise``, what the reader with
        context makes of them (B n, WIDTH), targets (B, n)."""
        batch, height, width = lesson.masks.shape
        picked = torch.randint(height * width, (batch, _SAMPLED), device=lesson.masks.device)
        seen, warp = F.avg_pool2d(lesson.images.float(), _SHRUNK), None
        if lesson.warped:
            warp = random_warp(batch, (seen.shape[2], seen.shape[3]), seen.device)
            seen = F.grid_sample(seen, warp, padding_mode="reflection", align_corners=False)
        if lesson.sparse:
            every = torch.arange(height * width, device=picked.device).expand(batch, -1)
            labelled = _stood(lesson.masks, warp, every).targets != IGNORE
            picked = torch.multinomial(labelled + _HARDLY, _SAMPLED, replacement=True)
        places, y, x, targets = _stood(lesson.masks, warp, picked)
        coarse, _ = self._context(seen)
        values = self._values(lesson, y, x)
        if noise:
            values = values + noise * torch.randn_like(values)
        context = _rows(_at(coarse, places[:, None]))
        return values, self.reader.hidden(values.flatten(0, 1), context), targets

    def _coarse(self, images: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """(B, WIDTH, H/4, W/4): what HRNet adds to the reader, and its branches."""
        return self._context(F.avg_pool2d(images, _SHRUNK))

    def _context(self, small: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """`_coarse` of images that are shrunk."""
        quarter = [_SHRUNK * length // SCORING_STRIDE for length in small.shape[-2:]]
        maps: list[Tensor] = self.branches(_mirrored(small))
        size = maps[0].shape[-2:]
        fused = self.fuse(torch.cat([maps[0], *(upsample(m, size) for m in maps[1:])], 1))
        added = self.project(F.dropout2d(fused, _CONTEXT_DROPOUT, self.training))
        enlarged = upsample(added, [_SHRUNK * length for length in size])
        return enlarged[:, :, : quarter[0], : quarter[1]], maps

    # -- use

    def _encode(self, images: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        coarse, maps = self._coarse(images)
        rows = slice(0, images.shape[-2])
        levels = _plain_filters(images)
        return self._features(coarse.float(), levels, rows, self._folded()), maps

    def encode(self, images: Tensor, valid: Tensor | None = None) -> Encoded:
        """See `SegmentationNetwork`."""
        return super().encode(images, None if valid is None else _valid(valid))

    def _folded(self) -> Folded:
        return folded(self.middle, self.spread, self.reader, self.expert)

    def read(
        self,
        images: Tensor,
        valid: Tensor,
        precision: AbstractContextManager[Any],
        *,
        features: bool,
    ) -> Read:
        """As the other networks', slice by slice and band by band: features of all pixels at once
        would take a quarter of a gigabyte for 1,024², and more time."""
        with precision:
            coarse, maps = self._coarse(images)
            embedding = torch.cat([masked_mean(m, _valid(valid)) for m in maps], dim=1)
        batch, _, height, width = images.shape
        logits = coarse.new_empty((batch, self.classes, height, width), dtype=torch.float32)
        scored = logits.new_empty((batch, 2 * WIDTH, *coarse.shape[-2:])) if features else None
        for index, rows, band in self._bands(images, coarse.float()):
            logits[index, :, rows] = self.classify(band)[0]
            if scored is not None:
                coarser = slice(rows.start // SCORING_STRIDE, rows.stop // SCORING_STRIDE)
                scored[index, :, coarser] = F.avg_pool2d(band, SCORING_STRIDE)[0]
        return Read(logits, embedding, scored)

    def _bands(self, images: Tensor, coarse: Tensor) -> Iterator[tuple[int, slice, Tensor]]:
        """Which of ``images``, which of its rows, and what the last layer takes there."""
        height, width = images.shape[-2:]
        weights = self._folded()
        band = _BAND if images.device.type == "cpu" else _GPU_BAND
        step = max(1, band // (width * SCORING_STRIDE)) * SCORING_STRIDE
        for index in range(len(images)):
            one = slice(index, index + 1)
            levels = _plain_filters(images[one])
            for top in range(0, height, step):
                rows = slice(top, min(height, top + step))
                yield index, rows, self._features(coarse[one], levels, rows, weights)

    @torch.no_grad()
    def _features(self, coarse: Tensor, levels: Levels, rows: slice, weights: Folded) -> Tensor:
        """(B, 2 WIDTH, rows, W): what the last layer takes. Without gradients: it is `sample` that
        is trained."""
        full, half, quarter, context = (
            _near(maps, rows, stride)
            for maps, stride in zip((*levels, coarse), (1, 2, 4, 4), strict=True)
        )
        at_full, at_half, at_quarter = weights.levels
        hidden = F.conv2d(quarter, at_quarter)
        hidden[:, :WIDTH] += context * weights.scale[:WIDTH]
        size = [2 * length for length in half.shape[-2:]]
        hidden = upsample(hidden, size).add_(upsample(F.conv2d(half, at_half), size))
        hidden = _cut(hidden, rows).add_(F.conv2d(full, at_full, weights.bias)).relu_()
        return second_layer(hidden, weights)

    def classify(self, features: Tensor) -> Tensor:
        """See `SegmentationNetwork`. Of few classes a product is twice as fast as a convolution."""
        last = self.classifier
        rows = self.dropout(features).permute(0, 2, 3, 1)
        return F.linear(rows, last.weight[:, :, 0, 0], last.bias).permute(0, 3, 1, 2)


def _mirrored(images: Tensor) -> Tensor:
    """``images`` (B, channels, h, w), mirrored at the lower and right edge, again and again where
    they are small, to the sides that networks take."""
    for axis in (2, 3):
        length = images.shape[axis]
        if missing := -length % MULTIPLE:
            places = torch.arange(length + missing, device=images.device) % (2 * length)
            places = torch.minimum(places, 2 * length - 1 - places)
            images = images.index_select(axis, places)
    return images.contiguous(memory_format=torch.channels_last)


class _Stood(NamedTuple):
    """Pixels of crops, (B, n): ``places`` (B, n, 2) in what is shown, which pixel ``y``, ``x`` of
    the crop stands there, and its class."""

    places: Tensor
    y: Tensor
    x: Tensor
    targets: Tensor


def _stood(masks: Tensor, warp: Tensor | None, picked: Tensor) -> _Stood:
    """What stands at the pixels ``picked`` (B, n), counted row by row, of crops with ``masks``
    (B, H, W) that are shown in their ``warp``."""
    height, width = masks.shape[1:]
    y, x = picked // width, picked % width
    places = _grid(y, x, height, width)
    if warp is None:
        return _Stood(places, y, x, masks.flatten(1).gather(1, picked))
    y, x, inside = gather(warp, places, height, width)
    targets = masks.flatten(1).gather(1, y * width + x)
    return _Stood(places, y, x, targets.masked_fill(~inside, IGNORE))


def _valid(valid: Tensor) -> Tensor:
    """``valid`` (B, H/4, W/4) of images that were shrunk and `_mirrored`: what was added is not."""
    unit = _SHRUNK * MULTIPLE // SCORING_STRIDE
    missing = [-length % unit for length in valid.shape[-2:]]
    return F.pad(valid, (0, missing[1], 0, missing[0]))


def _plain_filters(images: Tensor) -> Levels:
    """As they come, of the slice in the middle."""
    middle = images.shape[1] // 2
    with torch.autocast(images.device.type, enabled=False):
        return filter_levels(images[:, middle : middle + 1].float().contiguous())


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


def _near(maps: Tensor, rows: slice, stride: int) -> Tensor:
    """Of ``maps`` at 1/``stride`` those that ``rows`` at full resolution need: where they will be
    enlarged, those of one pixel at 1/4 more on each side."""
    more = 0 if stride == 1 else SCORING_STRIDE
    first, last = max(rows.start - more, 0) // stride, (rows.stop + more) // stride
    part = maps[:, :, first : min(last, maps.shape[2])]
    return part.contiguous(memory_format=torch.channels_last)


def _cut(maps: Tensor, rows: slice) -> Tensor:
    """Of what is enlarged of `_near` those that were asked for."""
    skip = min(rows.start, SCORING_STRIDE)
    return maps[:, :, skip : skip + rows.stop - rows.start]


def _rows(maps: Tensor) -> Tensor:
    """(B, C, 1, n) → (B n, C)."""
    return maps[:, :, 0].transpose(1, 2).flatten(0, 1)


BUILDERS: Mapping[str, Builder] = {
    name + SUFFIX: Builder(FullResolutionHRNet, timm_model=name) for name in HRNETS
}
