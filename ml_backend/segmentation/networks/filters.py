"""What surrounds each pixel, at six scales: the fixed features of a pixel classifier, in torch.

At each scale the Gaussian, the gradient's magnitude and the two eigenvalues of the Hessian, and
between the scales those of the structure tensor: what ilastik offers. Three dense convolutions on a
pyramid give them all, in a tenth of the time of separable filters at full resolution.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["FEATURES_PER_LEVEL", "Levels", "filter_levels"]

FEATURES_PER_LEVEL = (12, 8, 12)
"""How many maps `filter_levels` gives at full resolution, 1/2 and 1/4."""

_TINY = 1e-10


class Levels(NamedTuple):
    """Maps (B, 12, H, W), (B, 8, H/2, W/2) and (B, 12, H/4, W/4)."""

    full: Tensor
    half: Tensor
    quarter: Tensor


def filter_levels(plane: Tensor) -> Levels:
    """The features of ``plane`` (B, 1, H, W) float32, sides multiples of 4, mirrored beyond.

    Gaussians of 0.7, 1 and 1.6 pixels at full resolution; of about 3.5 at 1/2, made of the one of
    1.6; of about 5 and 10 at 1/4, made of that of 3.5.
    """
    fine = _convolved(plane, _FULL)
    coarsest = fine[:, -6:]
    middle = _convolved(F.avg_pool2d(coarsest[:, :1], 2), _HALF)
    coarse = _convolved(F.avg_pool2d(middle[:, :1], 2), _QUARTER)
    half = [_structure(coarsest, pool=2), _invariants(middle), _structure(middle)]
    return Levels(
        _invariants(fine),
        torch.cat(half, 1),
        torch.cat([_invariants(coarse), _structure(coarse)], 1),
    )


def _derivatives(sigma: float, radius: int) -> Tensor:
    """(6, 1, K, K): the Gaussian of ``sigma`` and its derivatives x, y, xx, xy, yy. Each is exact
    on the polynomial that it measures, however coarsely it is sampled."""
    x = torch.arange(-radius, radius + 1, dtype=torch.float64)
    smooth = torch.exp(-x * x / (2 * sigma**2))
    smooth = smooth / smooth.sum()
    slope = x * smooth
    slope = slope / (slope * x).sum()
    bend = (x * x / sigma**4 - 1 / sigma**2) * smooth
    bend = bend - smooth * bend.sum()
    bend = bend / ((bend * x * x).sum() / 2)
    pairs = [(smooth, smooth), (smooth, slope), (slope, smooth)]
    pairs += [(smooth, bend), (slope, slope), (bend, smooth)]
    return torch.stack([torch.outer(y, x) for y, x in pairs])[:, None].float()


_FULL = torch.cat([_derivatives(sigma, 5) for sigma in (0.7, 1.0, 1.6)])
_HALF = _derivatives(1.5, 5)
_QUARTER = torch.cat([_derivatives(0.86, 7), _derivatives(2.33, 7)])


def _convolved(maps: Tensor, kernels: Tensor) -> Tensor:
    radius = kernels.shape[-1] // 2
    mode = "reflect" if radius < min(maps.shape[-2:]) else "replicate"
    padded = F.pad(maps, (radius, radius, radius, radius), mode=mode)
    return F.conv2d(padded, kernels.to(maps))


def _invariants(derivatives: Tensor) -> Tensor:
    """(B, 4 n, h, w) of (B, 6 n, h, w): what does not change when the image is turned."""
    smooth, dx, dy, dxx, dxy, dyy = _by_scale(derivatives)
    magnitude = (dx * dx + dy * dy + _TINY).sqrt()
    return torch.cat([smooth, magnitude, *_eigenvalues(dxx, dxy, dyy)], 1)


def _structure(derivatives: Tensor, pool: int = 1) -> Tensor:
    """(B, 2 n, h, w): roots of the structure tensor's eigenvalues, the mean over 3 × 3 pixels."""
    _, dx, dy, *_ = _by_scale(derivatives)
    products = torch.cat([dx * dx, dx * dy, dy * dy], 1)
    products = F.avg_pool2d(products, pool) if pool > 1 else products
    products = F.avg_pool2d(F.pad(products, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return torch.cat([e.clamp_min(_TINY).sqrt() for e in _eigenvalues(*products.chunk(3, 1))], 1)


def _by_scale(derivatives: Tensor) -> tuple[Tensor, ...]:
    batch, count, height, width = derivatives.shape
    return derivatives.view(batch, count // 6, 6, height, width).unbind(2)


def _eigenvalues(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The larger and the smaller one of the symmetric matrices [[a, b], [b, c]]."""
    middle, half = (a + c) / 2, (a - c) / 2
    distance = (half * half + b * b + _TINY).sqrt()
    return middle + distance, middle - distance
