"""Warps of what HRNet is shown: a place in the warped image has the pixel that is found for it."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from al_strategies.learner import IGNORE
from ml_backend.segmentation.networks import Lesson, build_network
from ml_backend.segmentation.networks import full_resolution as module
from ml_backend.segmentation.networks.full_resolution import FullResolutionHRNet
from ml_backend.segmentation.networks.warp import gather, random_warp

HEIGHT, WIDTH = 48, 64


def still(batch: int, size: tuple[int, int]) -> torch.Tensor:
    eye = torch.eye(2, 3).expand(batch, 2, 3)
    return F.affine_grid(eye, [batch, 1, *size], align_corners=False)


def places(batch: int) -> torch.Tensor:
    """All pixels, as `F.grid_sample` counts."""
    return still(1, (HEIGHT, WIDTH)).reshape(1, -1, 2).expand(batch, -1, 2)


def ramps() -> torch.Tensor:
    """(2, H, W): each pixel says where it is."""
    return torch.stack(
        torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    ).float()


def test_without_a_warp_each_place_has_its_own_pixel() -> None:
    y, x, inside = gather(still(2, (24, 32)), places(2), HEIGHT, WIDTH)
    inner = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    inner[1:-1, 1:-1] = True  # at the rim a grid at half the resolution says nothing
    rows, columns = ramps().long()
    assert inside.all()
    for index in range(2):
        assert torch.equal(y[index].view(HEIGHT, WIDTH)[inner], rows[inner])
        assert torch.equal(x[index].view(HEIGHT, WIDTH)[inner], columns[inner])


def test_a_place_in_the_warped_image_shows_the_pixel_that_is_found_for_it() -> None:
    torch.manual_seed(0)
    warp = random_warp(8, (HEIGHT, WIDTH), torch.device("cpu"))
    shown = F.grid_sample(
        ramps().expand(8, -1, -1, -1), warp, padding_mode="border", align_corners=False
    )
    y, x, inside = gather(warp, places(8), HEIGHT, WIDTH)
    assert 0.5 < inside.float().mean() < 1
    found = torch.stack([y, x], 1).view(8, 2, HEIGHT, WIDTH)
    apart = (shown - found).abs().amax(1)[inside.view(8, HEIGHT, WIDTH)]
    assert apart.max() < 0.51


def test_warps_differ_and_are_smooth() -> None:
    torch.manual_seed(0)
    warp = random_warp(2, (HEIGHT, WIDTH), torch.device("cpu"))
    pixel = torch.tensor([2 / WIDTH, 2 / HEIGHT])
    moved = (warp - still(2, (HEIGHT, WIDTH))) / pixel
    assert (moved[0] - moved[1]).abs().max() > 1
    assert moved.diff(dim=1).abs().max() < 1
    assert moved.diff(dim=2).abs().max() < 1


def test_what_a_warp_brings_in_from_outside_teaches_nothing() -> None:
    torch.manual_seed(0)
    network = build_network("hrnet_w18_small+filters", 2, channels=1)
    assert isinstance(network, FullResolutionHRNet)
    images = torch.randn(4, 1, 64, 64)
    masks = torch.ones(4, 64, 64, dtype=torch.int64)
    _, targets = network.sample(Lesson(images, masks, images, warped=True), noise=0.1)
    assert targets.shape == (4, 1, module._SAMPLED)
    assert set(targets.unique().tolist()) == {1, IGNORE}
