"""HRNetV2 on timm's true branches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import timm
import torch
from torch import Tensor, nn

from ml_backend.segmentation.networks.base import Builder, SegmentationNetwork, upsample

__all__ = ["BUILDERS", "HRNetV2"]


class HRNetV2(SegmentationNetwork):
    """HRNetV2 (Sun et al. 2019, arXiv:1904.04514): four parallel branches, 1/4 to 1/32.

    Head: the branches upsampled to 1/4, concatenated, 1×1 + BN + ReLU, channel dropout, 1×1. HRNet
    has no dropout of its own: the one before the last 1×1 is what MC dropout samples. The
    embedding is the mean of the concatenated branches (270 numbers for w18).
    """

    norm_follows_convolution: ClassVar[bool] = True

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


BUILDERS: Mapping[str, Builder] = {
    name: Builder(HRNetV2, timm_model=name)
    for name in (
        "hrnet_w18_small",
        "hrnet_w18_small_v2",
        "hrnet_w18",
        "hrnet_w32",
        "hrnet_w48",
    )
}
