"""The pixel expert: what a few labelled pixels say of texture, alone and beside HRNet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier

from al_strategies.evidence import Position
from ml_backend.segmentation import pixels
from ml_backend.segmentation.dataset import LabelledSlices
from ml_backend.segmentation.networks import build_network
from ml_backend.segmentation.networks.full_resolution import FullResolutionHRNet
from ml_backend.segmentation.networks.reader import PixelReader
from ml_backend.segmentation.pixels import PixelConfig, learn
from ml_backend.segmentation.preprocessing import Preprocessing
from ml_backend.segmentation.training import TrainingConfig, train

QUICK = PixelConfig(steps=200, batch=2048, trees=5, unpruned=20)


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


def believed(expert: PixelReader, network: FullResolutionHRNet, slice_id: str) -> torch.Tensor:
    return expert.believe(network.filters_at(shown(slice_id), torch.arange(64 * 64)))


class Crack(Textures):
    """A third class of 20 pixels in a slice of the first."""

    def mask(self, slice_id: str) -> np.ndarray:
        mask = super().mask(slice_id)
        mask[30, 10:30] = 2
        return mask


@pytest.mark.parametrize("seed", range(5))
def test_a_class_of_few_pixels_is_learned_from_all_of_them(
    network: FullResolutionHRNet, seed: int
) -> None:
    slices = LabelledSlices(Crack(), Crack.ids[:2], preprocessing(), 3)
    config = PixelConfig(per_slice=2000)
    known = pixels._joined(pixels._labelled(network, slices, config, np.random.default_rng(seed)))
    assert known.targets.sum(0)[2] == 2 * 20
    assert len(known.targets) == 2 * 2000
    drawn = known.targets[20:2000].mean(0)
    assert abs(drawn[0] - 0.5) < 0.05, "the others as they come"


def test_no_teacher_alone_rules_a_class_out() -> None:
    beliefs = [torch.tensor([row]) for row in ([1.0, 0.0], [0.4, 0.6])]
    assert pixels._agreed(beliefs)[0, 1] > 0.01


@pytest.mark.parametrize("pool", [[], ["t1", "t2"]], ids=["labels alone", "with a pool"])
def test_it_tells_textures_of_one_grey_value_apart(
    network: FullResolutionHRNet, pool: list[str]
) -> None:
    expert, *_ = learn(network, labelled(), [shown(i) for i in pool], QUICK, seed=0)

    found = believed(expert, network, "t3")

    truth = torch.from_numpy(SOURCE.mask("t3").ravel())
    assert (found.argmax(1) == truth).float().mean() > 0.88  # edges have both textures in reach
    assert found[:, 2].max() < 0.2, "a class that nobody labelled"
    torch.testing.assert_close(found.sum(1), torch.ones(len(found)))


def test_the_same_seed_gives_the_same_expert(network: FullResolutionHRNet) -> None:
    first, again, other = (
        believed(learn(network, labelled(), [shown("t1")], QUICK, seed=seed).expert, network, "t3")
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_served_probabilities_are_the_geometric_mean_of_both(
    network: FullResolutionHRNet,
) -> None:
    expert, *_ = learn(network, labelled(), [], QUICK, seed=0)
    torch.nn.init.normal_(network.reader.last.weight, generator=torch.Generator().manual_seed(0))
    image = shown("t1")[None]
    with torch.no_grad():
        network.eval().trained()
        alone = network(image).mul(2).softmax(1)  # half of the logits, an expert without opinion
        network.agree_with(expert)
        served = network(image).softmax(1)
    believes = expert.believe(network.filters_at(image[0], torch.arange(64 * 64)))
    believes = believes.T.reshape(1, 3, 64, 64)

    mean = (alone.log() + believes.log()).div(2).softmax(1)

    torch.testing.assert_close(served, mean, rtol=0, atol=1e-4)
    assert (served - alone).abs().max() > 0.05


def test_what_the_expert_says_is_not_trained_by_the_network(network: FullResolutionHRNet) -> None:
    network.agree_with(learn(network, labelled(), [], QUICK, seed=0).expert)
    before = {name: value.clone() for name, value in network.expert.state_dict().items()}
    network.train()

    train(network, labelled(), TrainingConfig(steps=2, batch=2, crop=64), seed=0)

    for name, value in network.expert.state_dict().items():
        torch.testing.assert_close(value, before[name])


class Bands(Textures):
    """Grey rises from row to row, and every eighth of it is the other class."""

    shift = 0.0

    def image(self, slice_id: str) -> np.ndarray:
        index = self.ids.index(slice_id)
        rng = np.random.default_rng(index)
        grey = np.arange(64)[:, None] / 64 + rng.normal(0, 0.002, (64, 64))
        return (grey + self.shift * (index // 2)).astype(np.float32)

    def mask(self, slice_id: str) -> np.ndarray:
        bands = (np.arange(64) // 8 % 2).astype(np.uint8)
        return np.repeat(bands[:, None], 64, axis=1)


class Shifted(Bands):
    """The same, in half of the slices a third of a band brighter."""

    shift = 1 / 24


@pytest.mark.parametrize(("source", "less"), [(Bands(), True), (Shifted(), False)])
def test_less_noise_is_learned_under_where_unseen_slices_are_known_better_so(
    source: Textures, less: bool
) -> None:
    torch.manual_seed(0)
    preprocessing = Preprocessing.fit(source.image(i) for i in source.ids)
    network = build_network("hrnet_w18_small+filters", 3)
    assert isinstance(network, FullResolutionHRNet)
    slices = LabelledSlices(source, source.ids, preprocessing, 3)
    network.fit_filters(slices.images())

    learned = learn(network, slices, [], QUICK, folds=[0, 0, 1, 1], seed=0)

    assert (learned.noise < QUICK.noise) is less
    assert len(learned.unseen) == 2
    without_folds = learn(network, slices, [], QUICK, seed=0)
    assert (without_folds.noise, without_folds.unseen) == (QUICK.noise, ())


def test_an_expert_that_decides_alone_is_taught_by_many_trees_beside_the_labels(
    network: FullResolutionHRNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What balances classes costs more than it gives on textures; beside HRNet it is worth its
    place."""

    def third_class(values: torch.Tensor, *_: object) -> torch.Tensor:
        return torch.eye(3)[torch.full((len(values),), 2)]

    monkeypatch.setattr(pixels, "_forest", third_class)
    learned = learn(network, labelled(), [shown("t1")], QUICK, seed=0)

    beside, alone = (
        believed(expert, network, "t2")[:, 2] for expert in (learned.expert, learned.alone())
    )
    assert beside.mean() < 0.1
    assert 0.15 < alone.mean() < 0.8, "the labels say otherwise"


@pytest.mark.parametrize("pool", [[], ["t1", "t2"]], ids=["labels alone", "with a pool"])
def test_an_expert_that_decides_alone_tells_textures_apart(
    network: FullResolutionHRNet, pool: list[str]
) -> None:
    alone = learn(network, labelled(), [shown(i) for i in pool], QUICK, seed=0).alone

    found = believed(alone(), network, "t3")

    truth = torch.from_numpy(SOURCE.mask("t3").ravel())
    assert (found.argmax(1) == truth).float().mean() > 0.88
    assert found[:, 2].max() < 0.2, "a class that nobody labelled"
    assert torch.equal(found, believed(alone(), network, "t3"))


def test_many_trees_are_those_of_one_forest_a_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of them, unpruned, took 13 GB with fifty classes, and minutes without a look at what else
    waits for the worker."""
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.normal(size=(400, 6)).astype(np.float32))
    labels = torch.from_numpy(rng.integers(3, size=400))
    known = pixels._Taught(values, torch.nn.functional.one_hot(labels, 4).float())
    grown: list[int] = []

    class Counted(pixels._Trees):
        def __init__(self, trees: RandomForestClassifier, *arguments: Any) -> None:
            grown.append(trees.n_estimators)
            super().__init__(trees, *arguments)

    monkeypatch.setattr(pixels, "_Trees", Counted)
    heard: list[tuple[str, int, int]] = []

    def progress(step: str, done: int, total: int) -> None:
        heard.append((step, done, total))

    asked = torch.from_numpy(rng.normal(size=(50, 6)).astype(np.float32))
    found = pixels._forest(asked, known, 4, PixelConfig(), 7, progress)

    whole = [
        kind(50 * times, random_state=7)
        .fit(values.numpy(), labels.numpy())
        .predict_proba(asked.numpy())
        for kind, times in pixels._FOREST.items()
    ]
    np.testing.assert_allclose(found[:, :3].numpy(), np.mean(whole, 0), atol=1e-6)
    assert not found[:, 3].any(), "a class that nobody labelled"
    assert max(grown) <= min(8, torch.get_num_threads())
    assert len(heard) == len(grown)
    assert heard[-1] == ("pixels", 150, 150)


def test_an_expert_that_decides_alone_is_taught_where_the_network_is_by_then(
    network: FullResolutionHRNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the memory of its device was full, and the CPU goes on: it failed there again, and
    the trained network was lost."""
    learned = learn(network, labelled(), [shown("t1")], QUICK, seed=0)
    where: list[str] = []

    def noted(expert: PixelReader, taught: list[pixels._Taught], *_: object) -> None:
        parts = [expert.parameters(), *taught]
        where.extend(tensor.device.type for part in parts for tensor in part)

    monkeypatch.setattr(pixels, "_train", noted)
    network.to("meta")  # stands for another device than that of the time before
    learned.alone()
    assert set(where) == {"meta"}


def test_classes_that_nobody_labels_do_not_dilute_what_teaches_the_classes_alike() -> None:
    logits, targets = torch.randn(64, 3), torch.nn.functional.one_hot(torch.arange(64) % 3, 3)
    more = torch.nn.functional.pad(logits, (0, 7), value=-30.0)
    none = torch.nn.functional.pad(targets, (0, 7))

    few = pixels._soft_loss(torch.ones(3), 3)(logits, targets)
    many = pixels._soft_loss(torch.ones(10), 3)(more, none)

    torch.testing.assert_close(many, few)
