"""HRNet with filters: what is drawn at full resolution, and that bands are what the whole is."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from al_strategies.evidence import Position
from al_strategies.learner import IGNORE
from ml_backend.segmentation.inference import fold_batch_norm
from ml_backend.segmentation.learner import LearnerConfig, NetworkLearner
from ml_backend.segmentation.networks import Lesson, build_network
from ml_backend.segmentation.networks import full_resolution as module
from ml_backend.segmentation.networks.full_resolution import FullResolutionHRNet
from ml_backend.segmentation.tiles import pad, padded_size


def trained(channels: int = 1) -> FullResolutionHRNet:
    """A network whose filters are fitted and whose batch norms have seen something."""
    torch.manual_seed(0)
    network = build_network("hrnet_w18_small+filters", 3, channels=channels)
    assert isinstance(network, FullResolutionHRNet)
    images = texture(4, channels)
    network.fit_filters(images)
    network.train()
    with torch.no_grad():
        for _ in range(3):
            masks = torch.zeros(4, 64, 96, dtype=torch.int64)
            network.sample(Lesson(images, masks, images), noise=0.1)
    network.eval().trained()
    return network


def texture(count: int, channels: int = 1, size: tuple[int, int] = (64, 96)) -> Tensor:
    noise = torch.randn((count, channels, *size), generator=torch.Generator().manual_seed(1))
    return F.avg_pool2d(noise, 3, 1, 1)


@pytest.mark.parametrize("band", [1 << 8, 1 << 10, 1 << 20])
def test_bands_are_what_the_whole_is(band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = trained(), texture(2)
    monkeypatch.setattr(module, "_BAND", band)
    valid = torch.ones(2, 16, 24, dtype=torch.bool)
    with torch.no_grad():
        read = network.read(images, valid, nullcontext(), features=True)
        whole = network.encode(images, valid)
    assert read.features is not None
    torch.testing.assert_close(read.logits, network.classify(whole.features), rtol=0, atol=1e-5)
    torch.testing.assert_close(read.features, F.avg_pool2d(whole.features, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(read.embedding, whole.embedding)


def test_folding_leaves_the_function() -> None:
    network, images = trained(), texture(1)
    with torch.no_grad():
        before, after = network(images), fold_batch_norm(network)(images)
    torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-4)


def test_filters_are_about_one_wide_on_what_they_were_fitted_on() -> None:
    network, images = trained(), texture(4)
    values = torch.cat([network.filters_at(i, torch.arange(64 * 96)) for i in images])
    assert values.median(0).values.abs().max() < 0.1
    assert values.std(0).min() > 0.5
    assert values.std(0).max() < 2


@pytest.mark.parametrize("size", [(4096, 64), (64, 4096), (512, 512)])
def test_filters_are_fitted_on_all_of_a_slice(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every so many pixels, counted row by row, may all be of one column."""
    network, seen = trained(), []
    taken = network.filters_at

    def spy(image: Tensor, pixels: Tensor) -> Tensor:
        seen.append(pixels)
        return taken(image, pixels)

    monkeypatch.setattr(network, "filters_at", spy)
    network.fit_filters([texture(1, size=size)[0]])
    (pixels,) = seen
    assert len(pixels) <= 2 * module._FITTED
    for places, length in ((pixels // size[1], size[0]), (pixels % size[1], size[1])):
        found = places.unique()
        step = -(-(max(size[0] * size[1], 1) ** 0.5) // module._FITTED**0.5)
        assert len(found) >= length / step - 1
        assert found.diff().max() <= step


def test_what_is_rare_in_a_constant_slice_is_taught_as_it_is_served() -> None:
    """Nearly all of it is one value, as where what is outside of a sample is set to zero."""
    network = trained()
    slices = torch.zeros(3, 1, 64, 96)
    slices[:, :, 20:30, 40:44] = 1.0
    network.fit_filters(slices)
    network.study(slices)
    served = torch.cat([network.filters_at(one, torch.arange(64 * 96)) for one in slices])
    studied = torch.cat(network._studied).float()
    torch.testing.assert_close(studied, served, rtol=1e-3, atol=1e-2)


def test_of_a_slice_with_neighbours_the_one_in_the_middle_has_filters() -> None:
    network, images = trained(channels=3), texture(2, channels=3)
    changed = images.clone()
    changed[:, 0] += 5
    for maps, others in zip(network.filters(images), network.filters(changed), strict=True):
        torch.testing.assert_close(maps, others)


@pytest.mark.parametrize("room", [1 << 20, 64 * 96])
def test_a_crop_is_taught_by_what_the_filters_say_of_its_whole_slice(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STUDIED", room)
    network, slices = trained(), texture(2)
    network.study(slices)
    places = torch.arange(64 * 96).view(64, 96)[16:48, 32:64].flip(0).T
    crops = slices[:, :, 16:48, 32:64].flip(2).mT
    masks = torch.zeros(2, 32, 32, dtype=torch.int64)
    lesson = Lesson(crops, masks, crops, slices=[0, 1], places=torch.stack([places, places]))
    y, x = torch.randint(32, (2, 2, 50))
    values = network._values(lesson, y, x)
    alone = network._values(lesson._replace(slices=None, places=None), y, x)
    for index, image in enumerate(slices):
        there = network.filters_at(image, places[y[index], x[index]])
        if index == 0 or room > 64 * 96:
            torch.testing.assert_close(values[index], there, rtol=0, atol=5e-3)
        else:  # no room for it: the edges of the crop are those of its filters
            torch.testing.assert_close(values[index], alone[index])
        assert (alone[index] - there).abs().max() > 0.1
    network.trained()
    torch.testing.assert_close(network._values(lesson, y, x), alone)


def test_one_bright_pixel_among_constant_ones_is_a_number_in_training() -> None:
    network = trained()
    constant = torch.zeros(1, 64, 96)
    network.fit_filters([constant])
    constant[0, 30, 40] = 1.0
    network.study([constant])
    places = torch.arange(64 * 96).view(1, 64, 96)
    masks = torch.zeros(1, 64, 96, dtype=torch.int64)
    lesson = Lesson(constant[None], masks, constant[None], slices=[0], places=places)
    y, x = torch.meshgrid(torch.arange(64), torch.arange(96), indexing="ij")
    assert network._values(lesson, y.reshape(1, -1), x.reshape(1, -1)).isfinite().all()


class Stripes:
    """Two classes in stripes of two pixels: finer than a quarter of the resolution can draw."""

    def __init__(self, slices: int = 4, size: int = 64) -> None:
        self.ids = [f"s{i}" for i in range(slices)]
        self._size = size

    def image(self, slice_id: str) -> np.ndarray:
        noise = np.random.default_rng(self.ids.index(slice_id)).normal(0, 10, (self._size,) * 2)
        return np.clip(100 + 60 * self.mask(slice_id) + noise, 0, 255).astype(np.uint8)

    def mask(self, slice_id: str) -> np.ndarray:
        place = np.arange(self._size) + self.ids.index(slice_id)
        return np.tile((place // 2 % 2).astype(np.uint8), (self._size, 1))

    def position(self, slice_id: str) -> Position:
        return Position("stripes", float(self.ids.index(slice_id)))


def test_it_draws_what_a_quarter_of_the_resolution_cannot() -> None:
    source = Stripes()
    short = {"steps": 60, "batch": 4, "crop": 64}

    def miou(architecture: str) -> float:
        learner = NetworkLearner(
            ("dark", "bright"), LearnerConfig(architecture=architecture, training=short)
        )
        learner.fit(source, source.ids[:2], seed=0)
        return learner.evaluate(source, source.ids[2:]).miou

    assert miou("hrnet_w18_small+filters") > 0.95 > miou("hrnet_w18_small")


@pytest.mark.parametrize("side", [7, 20, 100])
def test_the_filters_that_are_learned_from_are_those_that_are_served(side: int) -> None:
    network, image = trained(), texture(1, size=(side, side))[0]
    height, width = padded_size(image.shape[1:])
    with torch.no_grad():
        learned = network.filters_at(image, torch.arange(side * side))
        shown = torch.from_numpy(pad(image.numpy(), height, width))
        places = (torch.arange(side)[:, None] * width + torch.arange(side)).flatten()
        served = network.filters_at(shown, places)
    torch.testing.assert_close(learned, served, rtol=0, atol=1e-4)


@pytest.mark.parametrize("warped", [False, True])
def test_few_labelled_pixels_are_looked_at_and_no_others(warped: bool) -> None:
    network, images = trained(), texture(4)
    masks = torch.full((4, 64, 96), IGNORE, dtype=torch.int64)
    masks[:3, 20:28, 40:48] = 1  # the last crop has none
    lesson = Lesson(images, masks, images, warped, sparse=True)
    with torch.no_grad():
        _, targets = network.sample(lesson, noise=0.1)
    _, _, recalled = network.recall(lesson)
    for found in (targets[:, 0], recalled):
        assert (found[:3] == 1).all()
        assert (found[3] == IGNORE).all()
