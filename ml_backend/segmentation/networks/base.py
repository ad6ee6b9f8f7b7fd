"""What every network is: one interface, so that a single forward gives all that is wanted of it.

`SegmentationNetwork.encode` (features before the last 1×1 convolution, and the embedding),
`SegmentationNetwork.classify` (that 1×1 convolution, behind a channel dropout) and
`SegmentationNetwork.forward` (logits at full resolution). A `Builder` makes the networks of a name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ml_backend.errors import NextsliceError

__all__ = [
    "MULTIPLE",
    "SCORING_STRIDE",
    "Builder",
    "Encoded",
    "Lesson",
    "Read",
    "SegmentationNetwork",
    "UnknownArchitecture",
    "at_scoring_resolution",
    "masked_mean",
    "upsample",
]

MULTIPLE = 32
"""Inputs have sides that are multiples of this: the coarsest branch works at 1/32."""

SCORING_STRIDE = 4
"""Scores are computed on logits at 1/4 of the slice's resolution, whatever the network."""

_DROPOUT = 0.5


class UnknownArchitecture(NextsliceError, ValueError):
    """The name of an architecture that cannot be built; the message lists those that can."""


@dataclass(frozen=True)
class Builder:
    """How the networks of a name are built: ``build(architecture, classes, channels, pretrained)``.

    ``takes_encoder``: the name may be followed by ``:<encoder>``; ``build`` gets all of it, and
    raises UnknownArchitecture for an encoder that there is not. ``timm_model``: of timm, whose
    ImageNet weights it starts from, so what they need can be looked up first.
    """

    build: Callable[[str, int, int, bool], SegmentationNetwork]
    takes_encoder: bool = False
    timm_model: str = ""


class Encoded(NamedTuple):
    """What one forward leaves before the classifier.

    ``features`` (B, D, h, w): input of the last 1×1 convolution, at the network's own output
    stride (1/4 for HRNet). ``embedding`` (B, E) float32: the mean over the slice, padding left
    out, of the network's multi-resolution features.
    """

    features: Tensor
    embedding: Tensor


class Lesson(NamedTuple):
    """What a training step learns from: crops.

    ``images`` (B, channels, H, W), ``masks`` (B, H, W) int64 with `IGNORE`; ``plain``: the images
    with their grey values as they are, before they were lit otherwise. ``warped``: what a network
    makes of the surroundings is to be learned from warped crops; see `FullResolutionHRNet.sample`.
    ``slices``: which of the labelled slices each is of, ``places`` (B, H, W) int64: which of its
    pixels, counted row by row, each pixel is, or is next to. None: of no slice. ``sparse``: little
    of the slices is labelled, as by strokes, so that only that is to be looked at: drawn blindly it
    would hardly be met.
    """

    images: Tensor
    masks: Tensor
    plain: Tensor
    warped: bool = False
    slices: Sequence[int] | None = None
    places: Tensor | None = None
    sparse: bool = False


class Read(NamedTuple):
    """What inference takes of one forward.

    ``logits`` (B, classes, h, w) float32 at the network's own output stride, ``embedding`` as
    `Encoded`'s, ``features`` (B, D, H/4, W/4) where they were asked for.
    """

    logits: Tensor
    embedding: Tensor
    features: Tensor | None


class SegmentationNetwork(nn.Module):
    """What every network of this package is; subclasses implement `_encode`.

    ``architecture``: the name that it is built from. ``embedding_size``: E.
    """

    norm_follows_convolution: ClassVar[bool] = False
    """Whether each batch normalisation is registered right behind the convolution whose output it
    takes, so that inference can fold the one into the other."""

    def __init__(
        self,
        architecture: str,
        *,
        classes: int,
        channels: int,
        width: int,
        embedding_size: int,
        dropout: float = _DROPOUT,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.classes = classes
        self.channels = channels
        self.embedding_size = embedding_size
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(width, classes, kernel_size=1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def _encode(self, images: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """Features (B, D, h, w), and the maps (B, E_i, h_i, w_i) whose means are the embedding."""
        raise NotImplementedError

    def encode(self, images: Tensor, valid: Tensor | None = None) -> Encoded:
        """One forward up to the classifier.

        ``images`` (B, channels, H, W), sides multiples of `MULTIPLE`. ``valid`` (B, H', W') bool at
        any resolution: False where a slice was padded; those pixels stay out of the embedding.
        """
        features, maps = self._encode(images)
        return Encoded(features, torch.cat([masked_mean(m, valid) for m in maps], dim=1))

    def read(
        self,
        images: Tensor,
        valid: Tensor,
        precision: AbstractContextManager[Any],
        *,
        features: bool,
    ) -> Read:
        """One forward for inference. ``valid`` (B, H/4, W/4) bool; ``precision``: the context that
        all but the last layer runs in, since scores differ by less than bfloat16 resolves."""
        with precision:
            encoded = self.encode(images, valid)
        logits = self.classify(encoded.features.float())
        size = valid.shape[-2:]
        scored = at_scoring_resolution(encoded.features, size) if features else None
        return Read(logits, encoded.embedding, scored)

    def sample(self, lesson: Lesson, noise: float) -> tuple[Tensor, Tensor]:
        """Logits (B, classes, h, w) and targets (B, h, w) of a training step, of all pixels or of
        some. ``noise``: on the values of fixed filters, where the network has some."""
        return self(lesson.images), lesson.masks

    def study(self, images: Iterable[Tensor]) -> bool:
        """Before the steps: a network may look at the labelled slices whole, ``images``
        (channels, H, W) each, in the order that `Lesson.slices` counts in. Whether it did, and
        wants to be told of which of them each crop is."""
        return False

    def trained(self) -> None:
        """After a training: what is derived from the weights is derived again."""

    def fit_filters(self, images: Iterable[Tensor]) -> None:
        """Before a training: a network with fixed filters takes their ranges from ``images``
        (channels, H, W)."""

    def features(self, images: Tensor) -> Tensor:
        """`Encoded.features` alone."""
        return self._encode(images)[0]

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, classes, h, w) at the resolution of ``features``; dropout when training."""
        return self.classifier(self.dropout(features))  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes, H, W) float32 at full resolution."""
        return upsample(self.classify(self.features(images)).float(), images.shape[-2:])


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, h, w) → (B, C, *size), bilinear between pixel centres; the same tensor if it fits."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def at_scoring_resolution(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, h, w) of any network's stride → (B, C, *size), ``size`` 1/4 of the slice's.

    Finer maps are averaged over blocks, coarser ones upsampled. Both commute with the last 1×1
    convolution, so logits and features are brought there alike.
    """
    if maps.shape[-1] > size[-1]:
        return F.adaptive_avg_pool2d(maps, (size[0], size[1]))
    return upsample(maps, size)


def masked_mean(maps: Tensor, valid: Tensor | None) -> Tensor:
    """Mean (B, C) float32 of ``maps`` (B, C, h, w) over the pixels that are ``valid``.

    ``valid`` (B, H, W) bool at another resolution counts by the area it covers.
    """
    maps = maps.float()
    if valid is None:
        return maps.mean(dim=(2, 3))
    weights = F.adaptive_avg_pool2d(valid.unsqueeze(1).float(), (maps.shape[2], maps.shape[3]))
    total = weights.sum(dim=(2, 3)).clamp_min(torch.finfo(torch.float32).tiny)
    return (maps * weights).sum(dim=(2, 3)) / total
