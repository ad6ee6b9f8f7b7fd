"""The pixel expert: what a few labelled pixels say of texture, and how it teaches a network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from al_strategies.evidence import Position
from al_strategies.learner import IGNORE
from ml_backend.segmentation.augmentation import Augmentation
from ml_backend.segmentation.dataset import LabelledSlices
from ml_backend.segmentation.networks import build_network
from ml_backend.segmentation.networks.full_resolution import FullResolutionHRNet
from ml_backend.segmentation.pixels import PixelConfig, PixelExpert, PoolLesson, learn
from ml_backend.segmentation.preprocessing import Preprocessing

QUICK = PixelConfig(steps=200, batch=2048, trees=5)


class Textures:
    """Fine noise on the left and coarse noise on the right, of one mean and spread: no grey value
    tells them apart. The third class is never there."""

    ids = tuple(f"t{i}" for i in range(4))

    def image(self, slice_id: str) -> np.ndarray:
        rng = np.random.default_rng(self.ids.index(slice_id))
        fine = rng.normal(0, 1, (64, 64))
        coarse = np.kron(rng.normal(0, 1, (16, 16)), np.ones((4, 4)))
        return np.where(self.mask(slice_id) == 0, fine, coarse).astype(np.float32)

    def mask(self, slice_id: str) -> np.ndarray:
        mask = np.zeros((64, 64), np.uint8)
        mask[:, 32:] = 1
        return mask

    def position(self, slice_id: str) -> Position:
        return Position("textures", float(self.ids.index(slice_id)))


SOURCE = Textures()


@pytest.fixture
def network() -> FullResolutionHRNet:
    torch.manual_seed(0)
    network = build_network("hrnet_w18_small+filters", 3)
    assert isinstance(network, FullResolutionHRNet)
    slices = labelled()
    network.fit_filters(slices.pair(i)[0] for i in range(len(slices)))
    return network


def preprocessing() -> Preprocessing:
    return Preprocessing.fit(SOURCE.image(i) for i in SOURCE.ids)


def labelled() -> LabelledSlices:
    return LabelledSlices(SOURCE, SOURCE.ids[:1], preprocessing(), 3)


def shown(slice_id: str) -> torch.Tensor:
    return torch.from_numpy(preprocessing()(SOURCE.image(slice_id)))


def believed(expert: PixelExpert, network: FullResolutionHRNet, slice_id: str) -> torch.Tensor:
    return expert.believe(network.filters_at(shown(slice_id), torch.arange(64 * 64)))


@pytest.mark.parametrize("pool", [[], ["t1", "t2"]], ids=["labels alone", "with a pool"])
def test_it_tells_textures_of_one_grey_value_apart(
    network: FullResolutionHRNet, pool: list[str]
) -> None:
    expert = learn(network, labelled(), [shown(i) for i in pool], QUICK, seed=0)

    found = believed(expert, network, "t3")

    truth = torch.from_numpy(SOURCE.mask("t3").ravel())
    assert (found.argmax(1) == truth).float().mean() > 0.88  # edges have both textures in reach
    assert found[:, 2].max() < 0.2, "a class that nobody labelled"
    torch.testing.assert_close(found.sum(1), torch.ones(len(found)))


def test_the_same_seed_gives_the_same_expert(network: FullResolutionHRNet) -> None:
    first, again, other = (
        believed(learn(network, labelled(), [shown("t1")], QUICK, seed=seed), network, "t3")
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_slice_smaller_than_a_crop_teaches_nothing_from_beyond_its_edge(
    network: FullResolutionHRNet,
) -> None:
    expert = learn(network, labelled(), [], QUICK, seed=0)
    lesson = PoolLesson(
        expert, [shown("t1")[:, :40, :48]], torch.ones(3), 64, Augmentation.none(), 0
    )

    image, inside = lesson._one(torch.device("cpu"))

    assert image.shape == (1, 64, 64)
    assert int((inside != IGNORE).sum()) == 40 * 48


@pytest.mark.parametrize("pool", [[], ["t1"]])
def test_a_lesson_ignores_what_nobody_labelled(
    network: FullResolutionHRNet, pool: list[str]
) -> None:
    expert = learn(network, labelled(), [], QUICK, seed=0)
    lesson = PoolLesson(expert, [shown(i) for i in pool], torch.ones(3), 64, Augmentation.none(), 0)
    images = torch.stack([shown("t0"), shown("t2")])
    masks = torch.full((2, 64, 64), IGNORE)
    masks[0, :, 0] = 0
    network.train()

    loss = lesson(network, images, masks)
    loss.backward()

    assert torch.isfinite(loss)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in network.parameters())
