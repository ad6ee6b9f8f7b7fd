"""The networks: a map from name to builder, and `build_network` over it.

A new one is a file beside `hrnet` with its `SegmentationNetwork` and its ``BUILDERS``, named in
`NETWORKS`; `tests/test_networks.py` runs over it by itself. Knows PyTorch, timm and
segmentation-models-pytorch; no files, no slices.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache

from ml_backend.errors import EnvironmentFault
from ml_backend.segmentation.networks import full_resolution, hrnet, smp
from ml_backend.segmentation.networks.base import (
    MULTIPLE,
    SCORING_STRIDE,
    Builder,
    Encoded,
    Lesson,
    SegmentationNetwork,
    UnknownArchitecture,
    at_scoring_resolution,
    masked_mean,
    upsample,
)

__all__ = [
    "BUILD_ERRORS",
    "MULTIPLE",
    "NETWORKS",
    "SCORING_STRIDE",
    "Builder",
    "Encoded",
    "Lesson",
    "Pretrained",
    "SegmentationNetwork",
    "UnknownArchitecture",
    "WeightsUnavailable",
    "architecture_names",
    "at_scoring_resolution",
    "build_network",
    "default_architecture",
    "described_elsewhere",
    "masked_mean",
    "upsample",
]

logger = logging.getLogger(__name__)

Pretrained = bool | Literal["auto"]
"""``True``: ImageNet weights or an error; ``"auto"``: random ones when not reachable; ``False``:
random."""


class WeightsUnavailable(EnvironmentFault, OSError):
    """ImageNet weights that were asked for cannot be had."""


NETWORKS: Mapping[str, Builder] = {**hrnet.BUILDERS, **full_resolution.BUILDERS, **smp.BUILDERS}
"""Every architecture by its name."""


BUILD_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What timm and smp raise at names that they cannot build; not MemoryError, nor what ends a job."""


def architecture_names() -> tuple[str, ...]:
    """Names that `build_network` takes; one that takes an encoder may be followed by
    ``:<encoder>``."""
    return tuple(NETWORKS)


def described_elsewhere(architecture: str) -> bool:
    """Whether what its encoder is stands in a folder or a hub, as timm's ``tu-hf-hub:…`` and
    ``tu-local-dir:…``: a file of its weights cannot be read by itself."""
    return ":" in architecture.partition(":")[2]


def default_architecture(device: str | torch.device) -> str:
    """HRNet with filters: w18 on an accelerator, w18_small on a CPU."""
    name = "hrnet_w18_small" if torch.device(device).type == "cpu" else "hrnet_w18"
    return name + full_resolution.SUFFIX


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
    builder = _builder(architecture)
    if not pretrained:
        return builder.build(architecture, classes, channels, False)
    try:
        if pretrained == "auto" and builder.timm_model:
            _check_obtainable(builder.timm_model)
        return builder.build(architecture, classes, channels, True)
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
    return builder.build(architecture, classes, channels, False)


def _builder(architecture: str) -> Builder:
    name, colon, _ = architecture.partition(":")
    builder = NETWORKS.get(name)
    if builder is not None and (not colon or builder.takes_encoder):
        return builder
    plain, encoded = (
        [name for name, found in NETWORKS.items() if found.takes_encoder is takes]
        for takes in (False, True)
    )
    raise UnknownArchitecture(
        f"Unknown architecture {architecture!r}. Use one of {', '.join(plain)}, or of "
        f"{', '.join(encoded)}, the latter with an encoder if you like: 'unet:resnet34'."
    )


def _check_obtainable(model: str) -> None:
    """Raise OSError at once where timm would find out in 50 s of retries: no cache, no network."""
    if getproxies().keys() - {"no"}:  # it has no_proxy too, which names no proxy
        return
    configuration = timm.get_pretrained_cfg(model)
    repository = str(configuration.hf_hub_id) if configuration else model
    names = ("model.safetensors", "pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(repository, name), str) for name in names):
        return
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    with socket.create_connection((address.hostname or "", port), timeout=3):
        return
