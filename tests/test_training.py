"""Losses see labelled pixels only, the seed decides, and a small training learns."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from al_strategies.learner import IGNORE
from ml_backend.segmentation.augmentation import Augmentation
from ml_backend.segmentation.dataset import LabelledSlices
from ml_backend.segmentation.networks import SegmentationNetwork, build_network
from ml_backend.segmentation.preprocessing import Preprocessing
from ml_backend.segmentation.training import (
    SegmentationLoss,
    StepsThatFit,
    TrainingConfig,
    TrainingDiverged,
    autocast,
    class_weights,
    train,
)
from tests.segmentation_phantom import Phantom

CPU = torch.device("cpu")
TINY = TrainingConfig(steps=3, batch=2, crop=32)


def slices(seed: int = 0) -> LabelledSlices:
    source = Phantom(slices=3)
    return LabelledSlices(source, source.ids, Preprocessing(0, 1000), 3, seed=seed)


def network(seed: int = 0) -> SegmentationNetwork:
    torch.manual_seed(seed)
    return build_network("hrnet_w18_small", 3)


@pytest.mark.parametrize("dice", [0.0, 1.0])
def test_ignored_pixels_give_zero_gradient(dice: float) -> None:
    logits = torch.randn(2, 3, 8, 8, requires_grad=True)
    masks = torch.randint(0, 3, (2, 8, 8))
    masks[:, 4:] = IGNORE

    SegmentationLoss(torch.ones(3), dice)(logits, masks).backward()

    assert logits.grad is not None
    assert (logits.grad[:, :, 4:] == 0).all()
    assert (logits.grad[:, :, :4] != 0).any()


def test_the_loss_is_that_of_the_labelled_part_alone() -> None:
    logits, masks = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    half = masks.clone()
    half[:, 4:] = IGNORE
    loss = SegmentationLoss(torch.tensor([0.5, 1.0, 2.0]))

    assert loss(logits, half) == pytest.approx(float(loss(logits[:, :, :4], masks[:, :4])))


def test_the_loss_is_weighted_cross_entropy_plus_dice() -> None:
    logits, masks = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    weights = torch.tensor([0.5, 1.0, 2.0])
    p = logits.softmax(1)
    onehot = torch.nn.functional.one_hot(masks, 3).permute(0, 3, 1, 2)

    chosen = (p * onehot).sum(1)
    entropy = -(weights[masks] * chosen.log()).mean()
    overlap = 2 * (p * onehot).sum((0, 2, 3)) / (p + onehot).sum((0, 2, 3))
    expected = entropy + 0.7 * (1 - overlap).mean()

    assert float(SegmentationLoss(weights, 0.7)(logits, masks)) == pytest.approx(float(expected))


def test_classes_that_nobody_labels_do_not_dilute_the_dice_loss() -> None:
    logits, masks = torch.randn(2, 3, 8, 8), torch.randint(3, (2, 8, 8))
    unlikely = torch.full((2, 7, 8, 8), -30.0)

    few = SegmentationLoss(torch.ones(3), present=range(3))(logits, masks)
    many = SegmentationLoss(torch.ones(10), present=range(3))(
        torch.cat([logits, unlikely], 1), masks
    )

    assert float(many) == pytest.approx(float(few))


def test_a_batch_without_labels_has_no_loss() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)

    loss = SegmentationLoss(torch.ones(3))(logits, torch.full((1, 4, 4), IGNORE))
    loss.backward()

    assert loss.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_class_weights_follow_the_formula() -> None:
    counts = np.array([900, 100, 0])

    # K = 2 labelled classes, f = 0.9 and 0.1: w = √(1 / (K f)).
    assert class_weights(counts) == pytest.approx([np.sqrt(1 / 1.8), np.sqrt(1 / 0.2), 1.0])
    assert class_weights(np.array([5, 5, 5])) == pytest.approx([1, 1, 1])


def test_class_weights_are_clipped() -> None:
    assert class_weights(np.array([10**9, 1])).tolist() == pytest.approx([np.sqrt(0.5), 5.0])


def test_the_same_seed_gives_the_same_weights_and_another_one_does_not() -> None:
    def weights(seed: int) -> torch.Tensor:
        trained = network()
        train(trained, slices(seed), TINY, seed=seed)
        return torch.cat([p.detach().flatten() for p in trained.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_training_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    train(network_without_seed(), slices(), TINY)

    assert torch.equal(torch.rand(3), expected)


def network_without_seed() -> SegmentationNetwork:
    with torch.random.fork_rng(devices=[]):
        return build_network("hrnet_w18_small", 3)


def test_progress_and_losses_tell_of_every_step() -> None:
    seen: list[tuple[str, int, int]] = []

    run = train(network(), slices(), TINY, progress=lambda *event: seen.append(event))

    assert seen == [("train", 1, 3), ("train", 2, 3), ("train", 3, 3)]
    assert run.steps == 3
    assert [step for step, _ in run.losses] == [3]
    assert run.losses[-1][1] > 0


def test_training_lowers_the_loss_and_ends_in_evaluation_mode() -> None:
    trained = network()
    config = TrainingConfig(steps=15, batch=2, crop=64, augmentation=Augmentation.none())

    run = train(trained, slices(), config)

    assert not trained.training
    assert run.losses[-1][1] < 0.8 * run.losses[0][1]


def test_a_diverging_training_says_what_to_change() -> None:
    broken = network()
    torch.nn.init.constant_(broken.classifier.weight, float("nan"))

    with pytest.raises(TrainingDiverged, match="Lower the learning rate"):
        train(broken, slices(), TINY)


def test_bfloat16_is_used_where_asked_for() -> None:
    layer = torch.nn.Linear(4, 4)
    with autocast(CPU, "bfloat16"):
        assert layer(torch.ones(1, 4)).dtype == torch.bfloat16
    with autocast(CPU, "auto"):
        assert layer(torch.ones(1, 4)).dtype == torch.float32


def test_a_bfloat16_training_step_runs_and_keeps_float32_weights() -> None:
    trained = network()
    config = TrainingConfig(steps=1, batch=2, crop=32, precision="bfloat16")

    run = train(trained, slices(), config)

    assert np.isfinite(run.losses[-1][1])
    assert {p.dtype for p in trained.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch": 1},
        {"crop": 100},
        {"warm_up": 1.0},
        {"balance": 2.0},
        {"precision": "float8"},
        {"seconds": 0},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainingConfig(**wrong)  # type: ignore[arg-type]


def test_defaults_fit_the_device_and_the_slices() -> None:
    small = TrainingConfig.for_device("cpu", (101, 122), 4)
    large = TrainingConfig.for_device("cpu", (1500, 1500), 80)
    gpu = TrainingConfig.for_device("cuda", (1500, 1500), 80)

    assert small.crop <= 128
    assert small.crop % 32 == 0
    assert large.crop < gpu.crop
    assert small.steps < large.steps < gpu.steps


def test_more_classes_take_more_steps() -> None:
    def steps(labelled: int, classes: int) -> int:
        return TrainingConfig.at_full_resolution("cpu", (122, 101), labelled, classes).steps

    assert steps(8, 1) == steps(8, 4) == 298
    assert (steps(8, 6), steps(8, 10)) == (447, 745)
    assert steps(384, 40) == 2000


def walked(steps: int, seconds: float | None, *paces: float) -> tuple[list[int], int]:
    """Where each step was on the schedule of ``steps``, and how many were made, where they take
    ``paces`` seconds, the last of them again and again."""
    fit = StepsThatFit(steps, seconds, began=0.0)
    places, moment, step = [0], 0.0, 0
    while step < fit.steps:
        step += 1
        moment += paces[min(step, len(paces)) - 1]
        places.append(fit.next_place(step, moment))
    return places[:-1], step


@pytest.mark.parametrize("seconds", [None, 21.0, 1000.0])
def test_steps_that_fit_are_those_of_a_training_without_a_limit(seconds: float | None) -> None:
    places, made = walked(20, seconds, 2.0, 1.0)
    assert made == 20
    assert places == list(range(20))


@pytest.mark.parametrize(
    ("seconds", "paces", "most"),
    [
        (30.0, (1.0,), 31),
        (30.0, (8.0, 1.0), 24),
        (30.0, (1.0,) * 10 + (2.0,), 22),
        (30.0, (2.0,) * 10 + (1.0,), 22),
        (0.5, (1.0,), 2),
        (2.5, (1.0,), 4),
    ],
)
def test_fewer_steps_go_through_the_whole_schedule_in_time(
    seconds: float, paces: tuple[float, ...], most: int
) -> None:
    places, made = walked(200, seconds, *paces)
    taken = sum(paces[min(step, len(paces)) - 1] for step in range(1, made + 1))
    assert made <= most
    assert taken <= max(seconds, paces[0]) + paces[-1], "one step more than fits, at most"
    assert taken >= seconds - 2 * paces[-1], "and none less"
    assert places[0] == 0
    assert places == sorted(places)
    assert places[-1] == 199, "the last step has the learning rate of the last of all"


def test_a_training_ends_in_time_with_the_smallest_learning_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def noted(self: torch.optim.AdamW, *arguments: Any, **options: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    seen: list[tuple[str, int, int]] = []
    config = replace(TINY, steps=3_000, seconds=2.0)
    began = time.monotonic()
    run = train(network(), slices(), config, progress=lambda *event: seen.append(event))
    assert time.monotonic() - began < 120
    assert run.steps == len(rates) == seen[-1][1] == seen[-1][2]
    assert run.steps < 3_000
    assert rates[-1] < 1e-4 * config.learning_rate


def test_gradients_are_clipped_and_kernels_alone_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    decays: dict[bool, set[float]] = {True: set(), False: set()}
    step = torch.optim.AdamW.step

    def noted(self: torch.optim.AdamW, *arguments: Any, **options: Any) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                decays[parameter.ndim > 1].add(group["weight_decay"])
        found = [
            p.grad.norm() for g in self.param_groups for p in g["params"] if p.grad is not None
        ]
        norms.append(float(torch.stack(found).norm()))
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    train(network(), slices(), replace(TINY, steps=2, clip=1e-3, weight_decay=0.3))
    assert norms == [pytest.approx(1e-3, rel=1e-2)] * 2
    assert decays == {True: {0.3}, False: {0.0}}


@pytest.mark.parametrize(("steps", "studied"), [(1, False), (40, True)])
def test_whole_slices_are_studied_where_that_saves_more_than_it_costs(
    steps: int, studied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build_network("hrnet_w18_small+filters", 3)
    known: list[bool] = []
    study = built.study

    def noted(images: Iterable[Tensor]) -> bool:
        known.append(study(images))
        return known[-1]

    monkeypatch.setattr(built, "study", noted)
    train(built, slices(), replace(TINY, steps=steps))
    assert known == [True] * studied
