"""The networks: HRNetV2 on timm's true branches, and others of segmentation-models-pytorch.

Every network here has one interface, so that a single forward gives the segmentation, the scores
of the strategies and the embedding: `SegmentationNetwork.encode` (features before the last 1×1
convolution, and the embedding), `SegmentationNetwork.classify` (that 1×1 convolution, behind a
channel dropout) and `SegmentationNetwork.forward` (logits at full resolution).

It knows PyTorch, timm and segmentation-models-pytorch; no files, no slices.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

import segmentation_models_pytorch as smp
import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache
from torch import Tensor, nn
from torch.nn import functional as F

from ml_backend.errors import EnvironmentFault, NextsliceError

__all__ = [
    "HRNET_ARCHITECTURES",
    "MULTIPLE",
    "SCORING_STRIDE",
    "SMP_ARCHITECTURES",
    "Encoded",
    "Pretrained",
    "SegmentationNetwork",
    "UnknownArchitecture",
    "architecture_names",
    "at_scoring_resolution",
    "build_network",
    "default_architecture",
    "masked_mean",
    "upsample",
]

logger = logging.getLogger(__name__)

Pretrained = bool | Literal["auto"]
"""``True``: ImageNet weights or an error; ``"auto"``: random ones when not reachable; ``False``:
random."""

MULTIPLE = 32
"""Inputs have sides that are multiples of this: the coarsest branch works at 1/32."""

SCORING_STRIDE = 4
"""Scores are computed on logits at 1/4 of the slice's resolution, whatever the network."""

HRNET_ARCHITECTURES = (
    "hrnet_w18_small",
    "hrnet_w18_small_v2",
    "hrnet_w18",
    "hrnet_w32",
    "hrnet_w48",
)

# Left out: DPT needs a vision transformer of fixed input size, PAN inputs of at least 128 pixels.
SMP_ARCHITECTURES = (
    "unet",
    "unetplusplus",
    "manet",
    "linknet",
    "fpn",
    "pspnet",
    "deeplabv3",
    "deeplabv3plus",
    "upernet",
    "segformer",
)

_DEFAULT_ENCODER = "resnet18"
_DROPOUT = 0.5


class UnknownArchitecture(NextsliceError, ValueError):
    """The name of an architecture that cannot be built; the message lists those that can."""


class WeightsUnavailable(EnvironmentFault, OSError):
    """ImageNet weights that were asked for cannot be had."""


class Encoded(NamedTuple):
    """What one forward leaves before the classifier.

    ``features`` (B, D, h, w): input of the last 1×1 convolution, at the network's own output
    stride (1/4 for HRNet). ``embedding`` (B, E) float32: the mean over the slice, padding left
    out, of the network's multi-resolution features.
    """

    features: Tensor
    embedding: Tensor


class SegmentationNetwork(nn.Module):
    """What every network of this package is; subclasses implement `_encode`.

    ``architecture``: the name that `build_network` builds it from. ``embedding_size``: E.
    """

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

    def features(self, images: Tensor) -> Tensor:
        """`Encoded.features` alone."""
        return self._encode(images)[0]

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, classes, h, w) at the resolution of ``features``; dropout when training."""
        return self.classifier(self.dropout(features))  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes, H, W) float32 at full resolution."""
        return upsample(self.classify(self.features(images)).float(), images.shape[-2:])


class HRNetV2(SegmentationNetwork):
    """HRNetV2 (Sun et al. 2019, arXiv:1904.04514): four parallel branches, 1/4 to 1/32.

    Head: the branches upsampled to 1/4, concatenated, 1×1 + BN + ReLU, channel dropout, 1×1. HRNet
    has no dropout of its own: the one before the last 1×1 is what MC dropout samples. The
    embedding is the mean of the concatenated branches (270 numbers for w18).
    """

    def __init__(self, architecture: str, classes: int, channels: int, pretrained: bool) -> None:
        branches: Any = timm.create_model(
            architecture,
            pretrained=pretrained,
            features_only=True,
            # "" are the true branches; timm's default inflates them to 128 … 1024 channels.
            feature_location="",
            out_indices=(1, 2, 3, 4),
            in_chans=channels,
        )
        width = sum(branches.feature_info.channels())
        super().__init__(
            architecture, classes=classes, channels=channels, width=width, embedding_size=width
        )
        self.branches = branches
        self.fuse = nn.Sequential(
            nn.Conv2d(width, width, kernel_size=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )

    def _encode(self, images: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        maps: list[Tensor] = self.branches(images)
        size = maps[0].shape[-2:]
        stacked = torch.cat([maps[0], *(upsample(m, size) for m in maps[1:])], dim=1)
        return self.fuse(stacked), maps


class SMPNetwork(SegmentationNetwork):
    """Encoder and decoder of segmentation-models-pytorch under our own 1×1 classifier.

    Its 3×3 segmentation head is replaced, so that MC dropout folds here as it does in HRNetV2.
    The embedding is the mean of the encoder's deepest features.
    """

    def __init__(self, architecture: str, classes: int, channels: int, pretrained: bool) -> None:
        decoder, _, encoder = architecture.partition(":")
        # Encoders of timm ("tu-…") carry their weights' tag in the name and take True for it.
        weights = (True if encoder.startswith("tu-") else "imagenet") if pretrained else None
        try:
            model = smp.create_model(
                decoder,
                encoder_name=encoder or _DEFAULT_ENCODER,
                encoder_weights=weights,
                in_channels=channels,
                classes=classes,
            )
        except KeyError as error:
            raise UnknownArchitecture(
                f"segmentation-models-pytorch has no encoder {encoder!r} for {decoder!r}. Use for "
                f"example '{decoder}:resnet34' or '{decoder}:tu-<timm model>'."
            ) from error
        super().__init__(
            architecture,
            classes=classes,
            channels=channels,
            width=model.segmentation_head[0].in_channels,
            embedding_size=model.encoder.out_channels[-1],
        )
        self.encoder = model.encoder
        self.decoder = model.decoder

    def _encode(self, images: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        maps = self.encoder(images)
        return self.decoder(maps), maps[-1:]


def architecture_names() -> tuple[str, ...]:
    """Names that `build_network` takes; one of smp may be followed by ``:<encoder>``."""
    return HRNET_ARCHITECTURES + SMP_ARCHITECTURES


def default_architecture(device: str | torch.device) -> str:
    """``hrnet_w18`` on an accelerator, ``hrnet_w18_small`` on a CPU."""
    return "hrnet_w18_small" if torch.device(device).type == "cpu" else "hrnet_w18"


def build_network(
    architecture: str, classes: int, *, channels: int = 1, pretrained: Pretrained = False
) -> SegmentationNetwork:
    """A network with random weights in its head, and in the rest too unless ``pretrained``.

    ``architecture``: one of `architecture_names`, e.g. ``"hrnet_w18"``, ``"unet"``,
    ``"unet:resnet34"``. ``classes`` ≥ 2. ImageNet weights come from timm's hub: with
    ``pretrained=True`` a failed download raises WeightsUnavailable; with ``"auto"`` that they
    cannot be had is logged as a warning, after three seconds where there is no network, and the
    network starts from random weights.

    Raises UnknownArchitecture, ValueError (classes or channels), WeightsUnavailable (see above).
    """
    if classes < 2:
        raise ValueError(f"A segmentation needs at least 2 classes, found {classes}.")
    if channels < 1:
        raise ValueError(f"A network needs at least 1 input channel, found {channels}.")
    kind = _kind(architecture)
    if not pretrained:
        return kind(architecture, classes, channels, False)
    try:
        if pretrained == "auto":
            _check_obtainable(architecture)
        return kind(architecture, classes, channels, True)
    except UnknownArchitecture:
        raise
    # The hub's client raises anything from OSError to RuntimeError when it is not reachable.
    except Exception as error:
        message = (
            f"ImageNet weights for {architecture!r} could not be loaded through timm's hub client "
            f"({type(error).__name__}: {error})."
        )
        if pretrained != "auto":
            raise WeightsUnavailable(
                f"{message} Make them reachable (network, or the hub's cache folder), or set "
                "pretrained to 'auto' or False to train from random weights."
            ) from error
    logger.warning("%s Training starts from random weights instead.", message)
    return kind(architecture, classes, channels, False)


def _check_obtainable(architecture: str) -> None:
    """Raise OSError at once where timm would find out in 50 s of retries: no cache, no network."""
    if architecture not in HRNET_ARCHITECTURES or getproxies():
        return
    configuration = timm.get_pretrained_cfg(architecture)
    repository = str(configuration.hf_hub_id) if configuration else architecture
    names = ("model.safetensors", "pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(repository, name), str) for name in names):
        return
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    with socket.create_connection((address.hostname or "", port), timeout=3):
        return


def _kind(architecture: str) -> type[HRNetV2] | type[SMPNetwork]:
    if architecture in HRNET_ARCHITECTURES:
        return HRNetV2
    if architecture.partition(":")[0] in SMP_ARCHITECTURES:
        return SMPNetwork
    raise UnknownArchitecture(
        f"Unknown architecture {architecture!r}. Use one of {', '.join(HRNET_ARCHITECTURES)}, or "
        f"of {', '.join(SMP_ARCHITECTURES)}, the latter with an encoder if you like: "
        "'unet:resnet34'."
    )


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
