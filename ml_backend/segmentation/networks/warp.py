"""Smooth random warps: what HRNet is shown in training instead of the crops themselves.

A few labelled slices show each shape a few times, and HRNet would learn those shapes by heart.
The filters of a pixel are not warped: interpolation takes away the noise that is there in use.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["gather", "random_warp"]

_TURN = math.radians(20)
_SCALE = 1.25
_STRETCH = 1.1
_BEND = 4 / 192
"""Standard deviation of the bend, as a part of the side."""
_COARSE = 5
"""Control points of the bend, on each side."""


def random_warp(batch: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """(batch, h, w, 2): where each pixel of a warped image of ``size`` (h, w) comes from, (x, y) as
    `F.grid_sample` counts. Turned by up to 20°, up to 1.25 times as large or small, up to 1.1 times
    as wide as high or the other way round, and bent."""
    turn = (torch.rand(batch, device=device) * 2 - 1) * _TURN
    scale = _SCALE ** (torch.rand(batch, device=device) * 2 - 1)
    stretch = _STRETCH ** (torch.rand(batch, device=device) * 2 - 1)
    cosine, sine, none = turn.cos() * scale, turn.sin() * scale, torch.zeros_like(turn)
    rows = [
        torch.stack([cosine * stretch, -sine * stretch, none], -1),
        torch.stack([sine / stretch, cosine / stretch, none], -1),
    ]
    plane = F.affine_grid(torch.stack(rows, 1), [batch, 1, *size], align_corners=False)
    points = torch.randn((batch, 2, _COARSE, _COARSE), device=device) * (2 * _BEND)
    bend = F.interpolate(points, size=size, mode="bicubic", align_corners=True)
    return plane + bend.permute(0, 2, 3, 1)


def gather(warp: Tensor, grid: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which pixel (y, x) of an image of ``height`` × ``width`` stands at each place of ``grid``
    (B, n, 2) in its ``warp``, the nearest, and whether there is one; all (B, n)."""
    maps = warp.permute(0, 3, 1, 2)
    source = F.grid_sample(maps, grid[:, None], padding_mode="border", align_corners=False)[:, :, 0]
    x, y = (((source[:, i] + 1) * n - 1) / 2 for i, n in enumerate((width, height)))
    x, y = x.round().long(), y.round().long()
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return y.clamp(0, height - 1), x.clamp(0, width - 1), inside
