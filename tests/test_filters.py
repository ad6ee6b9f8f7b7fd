"""The filters of the full-resolution networks, against what calculus says of simple images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ml_backend.segmentation.networks.filters import FEATURES_PER_LEVEL, filter_levels

STRIDES = (1, 2, 4)


def grid(size: int = 64) -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return y.float(), x.float()


def inner(maps: Tensor) -> Tensor:
    """Away from the edges, where images are mirrored."""
    margin = maps.shape[-1] * 3 // 8
    return maps[0, :, margin:-margin, margin:-margin]


def test_each_level_has_its_maps_at_its_resolution() -> None:
    levels = filter_levels(torch.zeros(2, 1, 64, 96))
    for maps, count, stride in zip(levels, FEATURES_PER_LEVEL, STRIDES, strict=True):
        assert maps.shape == (2, count, 64 // stride, 96 // stride)


def test_of_a_constant_nothing_but_the_gaussians_remains() -> None:
    full, half, quarter = filter_levels(torch.full((1, 1, 64, 64), 3.0))
    assert inner(full)[:3].numpy() == pytest.approx(3.0, abs=1e-5)
    for rest in (inner(full)[3:], inner(half)[:2], inner(half)[3:], inner(quarter)[2:]):
        assert rest.abs().max() < 5e-3


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (0.0, 2.0), (3.0, 4.0)])
def test_of_a_slope_the_gradient_is_its_own(a: float, b: float) -> None:
    y, x = grid()
    full, half, quarter = filter_levels((a * x + b * y)[None, None])
    slope = (a * a + b * b) ** 0.5
    assert inner(full)[3:6].numpy() == pytest.approx(slope, rel=1e-4)
    assert inner(half)[3].numpy() == pytest.approx(2 * slope, rel=1e-3)
    assert inner(quarter)[2:4].numpy() == pytest.approx(4 * slope, rel=1e-2)


def test_of_a_parabola_the_eigenvalues_are_its_curvatures() -> None:
    y, x = grid()
    full, _, _ = filter_levels((x * x / 2 + 3 * y * y / 2)[None, None])
    larger, smaller = inner(full)[6:9], inner(full)[9:12]
    assert larger.numpy() == pytest.approx(3.0, rel=1e-3)
    assert smaller.numpy() == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("turn", [lambda t: t.flip(-1), lambda t: t.rot90(1, (-2, -1))])
def test_they_turn_with_the_image(turn: object) -> None:
    assert callable(turn)
    image = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for maps, turned in zip(filter_levels(image), filter_levels(turn(image)), strict=True):
        torch.testing.assert_close(turn(maps), turned, rtol=1e-3, atol=1e-4)


def test_a_slice_smaller_than_a_kernel_has_them_too() -> None:
    levels = filter_levels(torch.randn(1, 1, 8, 8))
    assert all(torch.isfinite(maps).all() for maps in levels)
