"""The contract of every kind of learner that the factory knows: a new kind needs no other test.

What is particular to a kind is tested beside it, as the network's in `test_learner`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from al_strategies.evidence import FEATURES, SCORES, SliceId
from al_strategies.learner import (
    IGNORE,
    InvalidMask,
    Learner,
    NotTrained,
    UnreadableSlice,
    Votes,
)
from ml_backend.rounds.learners import KINDS, LearnerConfig, load_learner, new_learner
from ml_backend.segmentation.training import TrainingConfig
from ml_backend.settings import Settings
from tests.segmentation_phantom import CLASSES, Phantom

SHORT = LearnerConfig(training=TrainingConfig(steps=4, batch=2, crop=32))
SHAPE = (64, 80)
SOURCE = Phantom(6)


class Torn(Phantom):
    """z001 cannot be read, z002 has a mask of another size, nothing is labelled in z003."""

    def image(self, slice_id: str) -> npt.NDArray[Any]:
        if slice_id == "z001":
            raise OSError("404")
        return super().image(slice_id)

    def mask(self, slice_id: str) -> npt.NDArray[np.uint8]:
        mask = super().mask(slice_id)
        if slice_id == "z003":
            return np.full_like(mask, IGNORE)
        return mask[:-1] if slice_id == "z002" else mask


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def make(kind: str) -> Callable[..., Learner]:
    def make(classes: tuple[str, ...] = CLASSES, config: LearnerConfig = SHORT) -> Learner:
        return new_learner(classes, config, "cpu", kind)

    return make


@pytest.fixture(scope="module")
def trained(make: Callable[..., Learner]) -> Learner:
    learner = make()
    learner.fit(SOURCE, SOURCE.ids[:3], seed=0)
    return learner


def masks(learner: Learner) -> dict[SliceId, npt.NDArray[np.uint8]]:
    return {i: found.mask for i, found in learner.predict(SOURCE, SOURCE.ids)}


def entropies(learner: Learner) -> npt.NDArray[Any]:
    return learner.evidence(SOURCE, SOURCE.ids, frozenset({"entropy"})).scores["entropy"]


# -- before it is trained


def test_without_weights_nothing_is_said_of_a_slice(make: Callable[..., Learner]) -> None:
    learner = make()
    asked: dict[str, Callable[[], object]] = {
        "evidence": lambda: learner.evidence(SOURCE, ["z000"], frozenset({"entropy"})),
        "predict": lambda: next(iter(learner.predict(SOURCE, ["z000"]))),
        "predict_image": lambda: learner.predict_image(SOURCE.image("z000")),
        "believe_image": lambda: learner.believe_image(SOURCE.image("z000")),
        "maps": lambda: next(learner.maps(SOURCE, ["z000"])),
        "usable": lambda: learner.usable(SOURCE, ["z000"], lambda *_: None),
        "evaluate": lambda: learner.evaluate(SOURCE, ["z000"]),
        "to_bytes": learner.to_bytes,
        "neighbours": lambda: learner.neighbours,
        "grey_window": lambda: learner.grey_window,
        "start_from": lambda: make().start_from(learner),
    }

    assert learner.classes == CLASSES
    for name, ask in asked.items():
        with pytest.raises(NotTrained):
            pytest.fail(f"{name} gave {ask()}")


# -- fit


def test_what_is_believed_of_a_slice_is_what_its_mask_was_made_of(trained: Learner) -> None:
    image = SOURCE.image(SOURCE.ids[4])

    mask, believed = trained.believe_image(image)

    assert (mask == trained.predict_image(image).mask).all()
    assert believed.shape == (len(CLASSES), *SHAPE)
    assert believed.dtype == np.float16
    assert np.exp(believed.astype(np.float64)).sum(0) == pytest.approx(1.0, abs=2e-3)
    standing = np.take_along_axis(believed, mask[None].astype(np.int64), 0)[0]
    assert (standing == believed.max(0)).all()


def test_a_fit_reports_what_it_did(make: Callable[..., Learner]) -> None:
    seen: list[tuple[str, int, int]] = []

    report = make().fit(
        SOURCE,
        SOURCE.ids[:2],
        pseudo={"z004": SOURCE.mask("z004")},
        progress=lambda *event: seen.append(event),
    )

    assert report.slices == 3
    assert report.seconds > 0
    assert report.warm_started is False
    assert seen
    assert all(0 < done <= total for _, done, total in seen)


def test_the_seed_decides_what_is_learned(make: Callable[..., Learner]) -> None:
    def learned(seed: int) -> npt.NDArray[Any]:
        learner = make()
        learner.fit(SOURCE, SOURCE.ids[:2], seed=seed)
        return entropies(learner)

    first = learned(1)

    assert np.array_equal(learned(1), first)
    assert not np.array_equal(learned(2), first)


def test_slices_that_cannot_be_used_are_named_and_left_out(
    make: Callable[..., Learner], trained: Learner
) -> None:
    source, told = Torn(6), []
    learner = make()

    report = learner.fit(source, source.ids[:5], unusable=lambda *one: told.append(one))
    judges = trained.usable(source, source.ids[:5], lambda *one: told.append(one))

    assert report.slices == 2
    assert judges == ["z000", "z004"]
    assert [slice_id for slice_id, _ in told] == ["z001", "z002"] * 2
    assert [isinstance(error, InvalidMask) for _, error in told] == [False, True] * 2
    with pytest.raises(OSError, match="404"):
        make().fit(source, source.ids[:2])
    with pytest.raises(InvalidMask):
        make().fit(source, ["z000", "z002"])


def test_a_training_that_fails_keeps_what_was_learned(make: Callable[..., Learner]) -> None:
    learner = make()
    learner.fit(SOURCE, SOURCE.ids[:2], seed=0)
    before = entropies(learner)

    with pytest.raises(ValueError, match="label"):
        learner.fit(Torn(6), ["z003"])

    assert np.array_equal(entropies(learner), before)


def test_a_learner_goes_on_from_another_and_leaves_it_alone(
    make: Callable[..., Learner], trained: Learner
) -> None:
    learner, before = make(), entropies(trained)
    learner.start_from(trained)
    assert np.array_equal(entropies(learner), before)

    report = learner.fit(SOURCE, SOURCE.ids[:2], seed=5)

    assert report.warm_started is True
    assert not np.array_equal(entropies(learner), before)
    assert np.array_equal(entropies(trained), before)
    with pytest.raises(ValueError, match="background, wood"):
        make(("background", "wood")).start_from(trained)


# -- what it says of slices


def test_it_leaves_all_evidence_that_a_strategy_can_want(trained: Learner) -> None:
    ids = ["z004", "z000", "z003"]

    evidence = trained.evidence(SOURCE, ids, SCORES | FEATURES)

    assert list(evidence.ids) == ids
    assert evidence.positions == tuple(SOURCE.position(i) for i in ids)
    assert set(evidence.scores) == SCORES
    assert set(evidence.features) == FEATURES
    assert {values.shape for values in evidence.scores.values()} == {(3,)}
    assert all(v.ndim == 2 and len(v) == 3 for v in evidence.features.values())
    for name in ("class_fractions", "class_scores"):
        assert evidence.features[name].shape == (3, len(CLASSES))
    everything = (*evidence.scores.values(), *evidence.features.values())
    assert all(np.isfinite(values).all() for values in everything)


def test_it_leaves_what_was_asked_for_alone(trained: Learner) -> None:
    evidence = trained.evidence(SOURCE, ["z001"], frozenset({"margin", "embedding"}))

    assert set(evidence.scores) == {"margin"}
    assert set(evidence.features) == {"embedding"}
    with pytest.raises(ValueError, match="no_such_evidence"):
        trained.evidence(SOURCE, ["z001"], frozenset({"no_such_evidence"}))


def test_the_same_seed_gives_the_same_evidence(trained: Learner) -> None:
    def drawn(seed: int) -> npt.NDArray[Any]:
        names = frozenset({"mc_entropy"})
        return trained.evidence(SOURCE, SOURCE.ids, names, seed=seed).scores["mc_entropy"]

    assert np.array_equal(drawn(3), drawn(3))


def test_predictions_come_in_the_order_asked_for_at_the_slices_own_size(trained: Learner) -> None:
    ids = ["z005", "z001", "z003"]

    found = list(trained.predict(SOURCE, ids))

    assert [slice_id for slice_id, _ in found] == ids
    for slice_id, prediction in found:
        assert (prediction.mask.shape, prediction.mask.dtype) == (SHAPE, np.uint8)
        assert prediction.mask.max() < len(CLASSES)
        assert 1 / len(CLASSES) <= prediction.confidence <= 1
        alone = trained.predict_image(SOURCE.image(str(slice_id)))
        assert (alone.mask == prediction.mask).mean() > 0.999
        assert alone.confidence == pytest.approx(prediction.confidence, rel=1e-3)


def test_slices_that_cannot_be_read_are_named_and_left_out(trained: Learner) -> None:
    source = Torn(6)
    told: list[UnreadableSlice] = []
    ids = ["z000", "z001", "z004"]

    evidence = trained.evidence(source, ids, frozenset({"entropy"}), unreadable=told.append)
    predicted = [i for i, _ in trained.predict(source, ids, unreadable=told.append)]

    assert list(evidence.ids) == predicted == ["z000", "z004"]
    assert [error.slice_id for error in told] == ["z001", "z001"]
    for ask in (
        lambda: trained.evidence(source, ids, frozenset({"entropy"})),
        lambda: list(trained.predict(source, ids)),
        lambda: list(trained.maps(source, ids)),
    ):
        with pytest.raises(UnreadableSlice, match="'z001' cannot be read: OSError: 404"):
            ask()


def test_metrics_are_those_of_its_predictions_over_all_labelled_pixels(trained: Learner) -> None:
    truth = {i: SOURCE.mask(i) for i in SOURCE.ids}
    truth["z002"][:20] = IGNORE
    source = Phantom(6)
    source.mask = truth.__getitem__  # type: ignore[method-assign]

    metrics = trained.evaluate(source, source.ids)

    predicted, true = (np.stack(list(m.values())) for m in (masks(trained), truth))
    labelled = true != IGNORE
    predicted, true = predicted[labelled], true[labelled]
    both = [((predicted == c) & (true == c)).sum() for c in range(len(CLASSES))]
    either = [((predicted == c) | (true == c)).sum() for c in range(len(CLASSES))]
    assert metrics.iou == pytest.approx(dict(zip(CLASSES, np.divide(both, either), strict=True)))
    assert metrics.miou == pytest.approx(np.divide(both, either).mean())
    assert metrics.accuracy == pytest.approx((predicted == true).mean())
    assert metrics.slices == 6


# -- whole volumes


def test_maps_are_its_predictions_with_the_probabilities_behind_them(trained: Learner) -> None:
    ids = ["z003", "z001"]

    found = dict(trained.maps(SOURCE, ids, probability=True, uncertainty=True))

    assert list(found) == ids
    for slice_id, maps in found.items():
        assert np.array_equal(maps.mask, masks(trained)[slice_id])
        assert maps.probabilities is not None
        assert maps.uncertainty is not None
        assert maps.probabilities.shape == (len(CLASSES), *SHAPE)
        assert maps.uncertainty.shape == SHAPE
        p = maps.probabilities / 255
        assert np.abs(p.sum(0) - 1).max() <= len(CLASSES) / 255
        entropy = -(p * np.log(np.maximum(p, 1e-9))).sum(0) / np.log(len(CLASSES))
        assert np.abs(maps.uncertainty / 255 - entropy).max() < 0.05
    plain = next(trained.maps(SOURCE, ids))[1]
    assert (plain.probabilities, plain.uncertainty) == (None, None)


def test_votes_of_others_count_as_much_as_its_own(trained: Learner) -> None:
    class Implant:
        voters = 9

        def __call__(self, slice_id: SliceId, rows: slice) -> npt.NDArray[np.float32]:
            found = np.zeros((len(CLASSES), rows.stop - rows.start, SHAPE[1]), np.float32)
            found[2] = self.voters
            return found

    votes: Votes = Implant()

    ((_, maps),) = trained.maps(SOURCE, ["z000"], probability=True, votes=votes)

    assert (maps.mask == 2).all()
    assert maps.probabilities is not None
    assert (maps.probabilities[2] >= 0.9 * 255 - 1).all()


def test_it_says_what_a_volume_has_to_know(trained: Learner) -> None:
    black, white = trained.grey_window
    grey = np.concatenate([SOURCE.image(i).ravel() for i in SOURCE.ids])

    assert grey.min() <= black < white <= grey.max()
    assert trained.neighbours == 0
    assert trained.slices_per_batch(SHAPE) >= 1
    settings = trained.inference_settings
    assert json.loads(json.dumps(settings)) == settings


# -- as bytes


def test_bytes_give_the_same_learner_back(
    make: Callable[..., Learner], trained: Learner, kind: str
) -> None:
    data, learner = trained.to_bytes(), make()

    learner.load_bytes(data)
    loaded = KINDS[kind].from_bytes(data, SHORT, "cpu")

    assert loaded.classes == learner.classes == CLASSES
    for back in (learner, loaded):
        assert back.to_bytes() == data
        assert np.array_equal(entropies(back), entropies(trained))
        again = masks(back)
        assert all(np.array_equal(again[i], mask) for i, mask in masks(trained).items())


def test_bytes_of_other_classes_or_of_no_learner_are_refused(
    make: Callable[..., Learner], trained: Learner
) -> None:
    other = make(("background", "wood", "glue"))

    with pytest.raises(ValueError, match="background, wood, glue"):
        other.load_bytes(trained.to_bytes())
    for data in (b"", b"PK\x03\x04" + bytes(99), trained.to_bytes()[:-1]):
        with pytest.raises(ValueError, match=r"checkpoint|safetensors"):
            make().load_bytes(data)


def test_the_published_checkpoint_is_loaded_whatever_its_kind(
    trained: Learner, make_settings: Callable[..., Settings]
) -> None:
    loaded = load_learner(make_settings(), trained.to_bytes(), "cpu")

    assert loaded.classes == CLASSES
    assert np.array_equal(entropies(loaded), entropies(trained))
