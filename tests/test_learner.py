"""The learner learns, can be saved, and starts warm or afresh as it is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from al_strategies.learner import IGNORE, Learner, NotTrained
from ml_backend.segmentation import learner
from ml_backend.segmentation.checkpoints import CheckpointError
from ml_backend.segmentation.dataset import LabelledSlices, NothingLabelled
from ml_backend.segmentation.learner import LearnerConfig, NetworkLearner
from ml_backend.segmentation.preprocessing import Preprocessing
from ml_backend.segmentation.training import TrainingConfig
from tests.segmentation_phantom import CLASSES, Phantom

SHORT = LearnerConfig(training=TrainingConfig(steps=2, batch=2, crop=32))


def weights(learner: NetworkLearner) -> torch.Tensor:
    """What is trained from round to round: the expert is learned anew, in seconds."""
    network = learner.model.network
    return torch.cat([p.detach().flatten() for p in network.parameters() if p.requires_grad])


@pytest.fixture(scope="module")
def trained() -> NetworkLearner:
    """Three labelled slices, some seconds of training."""
    source = Phantom(8)
    config = LearnerConfig(training=TrainingConfig(steps=40, batch=4, crop=64))
    learner = NetworkLearner(CLASSES, config)
    learner.fit(source, source.ids[:3], seed=0)
    return learner


def test_it_is_a_learner() -> None:
    learner: Learner = NetworkLearner(CLASSES)

    assert callable(learner.fit)


def test_a_short_training_beats_chance_clearly_on_slices_it_has_not_seen(
    trained: NetworkLearner,
) -> None:
    source = Phantom(8)

    metrics = trained.evaluate(source, source.ids[3:])

    # Background alone everywhere gives an IoU of about 0.8 to one class of three: 0.27.
    assert metrics.miou > 0.5


def test_predictions_and_evidence_come_from_the_trained_weights(trained: NetworkLearner) -> None:
    source = Phantom(8)

    predictions = dict(trained.predict(source, source.ids[3:5]))
    evidence = trained.evidence(source, source.ids[3:5], frozenset({"entropy", "embedding"}))

    assert list(predictions) == source.ids[3:5] == list(evidence.ids)
    agreement = (predictions["z003"].mask == source.mask("z003")).mean()
    assert agreement > 0.8


def test_bytes_give_the_same_predictions_back(trained: NetworkLearner) -> None:
    source = Phantom(8)

    back = NetworkLearner.from_bytes(trained.to_bytes())

    before, after = (next(iter(x.predict(source, ["z005"])))[1] for x in (trained, back))
    assert back.classes == CLASSES
    assert np.array_equal(before.mask, after.mask)


def test_weights_of_other_classes_are_never_taken(trained: NetworkLearner) -> None:
    other = NetworkLearner(("background", "wood", "glue"))

    with pytest.raises(ValueError, match="background, wood, glue"):
        other.load_bytes(trained.to_bytes())
    with pytest.raises(CheckpointError):
        other.load_bytes(b"")


def test_the_report_holds_what_replays_the_training() -> None:
    source = Phantom(3)
    learner = NetworkLearner(CLASSES, SHORT)

    report = learner.fit(source, source.ids[:2], seed=5)

    assert (report.steps, report.slices) == (2, 2)
    assert report.seconds > 0
    assert report.settings["architecture"] == "hrnet_w18_small+filters"
    assert report.settings["seed"] == 5
    assert report.settings["training"]["crop"] == 32
    assert report.settings["warm_started"] is False


@pytest.mark.parametrize("labelled", [1, 2])
def test_a_network_that_has_hardly_learned_counts_for_nothing_beside_pixels_that_tell_all(
    labelled: int,
) -> None:
    """Also of a single label, whose one half tells how well the other is known. The pixel expert
    that decides alone is taught for longer."""
    source, lessons = Phantom(4), list[tuple[str, int]]()

    report = NetworkLearner(CLASSES, SHORT).fit(
        source, source.ids[:labelled], seed=0,
        progress=lambda step, done, total: lessons.append((step, total)),
    )  # fmt: skip

    assert report.settings["share_of_context"] == 0.0
    teachers = 4 * report.steps
    assert lessons[-1] == ("pixels", 8 * teachers)
    assert ("pixels", 2 * teachers) in lessons


def test_classes_that_nobody_labelled_take_no_steps() -> None:
    source = Phantom(1)

    def steps(classes: int, labelled: int) -> int:
        counts = np.zeros(classes, np.int64)
        counts[:labelled] = 100
        slices = LabelledSlices(source, source.ids, Preprocessing(0.0, 1.0), classes)
        slices.counts = counts
        learner = NetworkLearner(tuple(f"class {i}" for i in range(classes)))
        return learner._training(slices, 8).steps

    assert steps(classes=12, labelled=4) == steps(classes=4, labelled=4) == 298
    assert steps(classes=12, labelled=8) == 596


def test_the_same_seed_gives_the_same_weights() -> None:
    source = Phantom(2)

    def fitted(seed: int) -> torch.Tensor:
        learner = NetworkLearner(CLASSES, SHORT)
        learner.fit(source, source.ids, seed=seed)
        return weights(learner)

    assert torch.equal(fitted(1), fitted(1))
    assert not torch.equal(fitted(1), fitted(2))


def test_a_cold_fit_forgets_and_a_warm_one_goes_on(trained: NetworkLearner) -> None:
    source = Phantom(3)

    def distance(warm: bool) -> float:
        config = LearnerConfig(
            warm_start=warm, training=TrainingConfig(steps=1, batch=2, crop=32, learning_rate=1e-6)
        )
        learner = NetworkLearner.from_bytes(trained.to_bytes(), config)
        before = weights(learner)
        report = learner.fit(source, source.ids, seed=3)
        assert report.settings["warm_started"] is warm
        return float((weights(learner) - before).abs().mean())

    assert distance(warm=True) < 1e-4 < distance(warm=False)


def test_a_changed_architecture_is_not_warm_started(trained: NetworkLearner) -> None:
    config = LearnerConfig(architecture="fpn", warm_start=True, training=SHORT.training)
    learner = NetworkLearner.from_bytes(trained.to_bytes(), config)

    report = learner.fit(Phantom(2), ["z000"])

    assert report.settings["warm_started"] is False
    assert learner.model.architecture == "fpn"


def test_a_failed_training_keeps_the_weights_of_before(trained: NetworkLearner) -> None:
    source = Phantom(2)
    learner = NetworkLearner.from_bytes(trained.to_bytes(), SHORT)
    before = weights(learner)
    source.mask = lambda _: np.full((64, 80), IGNORE, np.uint8)  # type: ignore[method-assign]

    with pytest.raises(NothingLabelled):
        learner.fit(source, source.ids)

    assert torch.equal(weights(learner), before)


def test_a_pool_slice_that_cannot_be_read_is_named_and_stops_no_training(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Torn(Phantom):
        def image(self, slice_id: str) -> npt.NDArray[Any]:
            if slice_id == "z003":
                raise OSError("404")
            return super().image(slice_id)

    source, whole = Torn(4), Phantom(3)

    report = NetworkLearner(CLASSES, SHORT).fit(source, source.ids[:1])

    assert report.slices == 1
    assert "without slice z003: 404" in caplog.text
    expected = NetworkLearner(CLASSES, SHORT).fit(whole, whole.ids[:1])
    assert report.settings["preprocessing"] == expected.settings["preprocessing"]


def test_labelled_slices_that_cannot_be_used_are_left_out_where_somebody_is_told(
    trained: NetworkLearner,
) -> None:
    class Torn(Phantom):
        def image(self, slice_id: str) -> npt.NDArray[Any]:
            if slice_id == "z001":
                raise OSError("404")
            return super().image(slice_id)

        def mask(self, slice_id: str) -> npt.NDArray[np.uint8]:
            mask = super().mask(slice_id)
            if slice_id == "z003":
                return np.full_like(mask, IGNORE)
            return mask[:-1] if slice_id == "z002" else mask

    source = Torn(5)
    told: list[Any] = []
    learner = NetworkLearner.from_bytes(trained.to_bytes(), SHORT)

    report = learner.fit(source, source.ids, unusable=lambda i, error: told.append(i))
    judges = learner.usable(source, source.ids, lambda i, error: told.append(i))

    assert report.slices == 2
    assert judges == ["z000", "z004"]
    assert told == ["z001", "z002"] * 2
    assert learner.evaluate(source, judges).slices == 2
    with pytest.raises(OSError, match="404"):
        learner.fit(source, source.ids)


def test_pseudo_labels_train_too() -> None:
    source = Phantom(3)
    learner = NetworkLearner(CLASSES, SHORT)

    report = learner.fit(source, source.ids[:1], pseudo={"z002": source.mask("z002")})

    assert report.slices == 2


def test_progress_tells_of_loading_and_training() -> None:
    seen: list[tuple[str, int, int]] = []
    source = Phantom(2)

    plain = replace(SHORT, architecture="hrnet_w18_small")
    NetworkLearner(CLASSES, plain).fit(
        source, source.ids, progress=lambda *event: seen.append(event)
    )

    assert seen == [("load", 1, 2), ("load", 2, 2), ("train", 1, 2), ("train", 2, 2)]


def test_a_network_with_filters_is_taught_by_pixels_before_it_is_trained() -> None:
    seen: list[tuple[str, int, int]] = []
    source = Phantom(2)

    NetworkLearner(CLASSES, SHORT).fit(
        source, source.ids, progress=lambda *event: seen.append(event)
    )

    steps = [step for step, _, _ in seen]
    assert list(dict.fromkeys(steps)) == ["load", "pixels", "train"]
    assert steps.count("train") == 2


def test_slices_that_nobody_labelled_teach_and_those_of_others_do_not() -> None:
    """What the learner is given of a source is all that it looks at."""

    class Noted(Phantom):
        def image(self, slice_id: str) -> np.ndarray:
            looked.add(slice_id)
            return super().image(slice_id)

    looked: set[str] = set()
    source = Noted(6)

    NetworkLearner(CLASSES, SHORT).fit(source, source.ids[:1])

    assert looked == {*source.ids}


def test_without_weights_there_is_nothing_to_predict_with() -> None:
    learner = NetworkLearner(CLASSES)

    with pytest.raises(NotTrained, match="call fit"):
        learner.to_bytes()
    with pytest.raises(NotTrained):
        next(iter(learner.predict(Phantom(1), ["z000"])))


class Scaled(Phantom):
    """The same slices as native values of another scale."""

    def image(self, slice_id: str) -> npt.NDArray[np.float32]:
        return super().image(slice_id) * 1e4 + 3e4


def test_slices_of_another_grey_scale_are_not_seen_through_the_old_window(
    trained: NetworkLearner,
) -> None:
    config = LearnerConfig(warm_start=True, training=SHORT.training)
    learner = NetworkLearner.from_bytes(trained.to_bytes(), config)
    source = Scaled(2)

    report = learner.fit(source, ["z000"])

    assert report.settings["warm_started"] is False
    assert len(np.unique(learner.model.preprocessing(source.image("z000")))) > 100


class Strange(Phantom):
    """A slice of the pool is none: complex numbers."""

    def image(self, slice_id: str) -> npt.NDArray[Any]:
        image = super().image(slice_id)
        return image if slice_id == "z000" else image.astype(np.complex64)


def test_what_is_no_slice_does_not_stop_a_training_that_does_not_need_it() -> None:
    learner = NetworkLearner(CLASSES, SHORT)

    assert learner.fit(Strange(2), ["z000"]).slices == 1


def test_a_short_training_has_a_short_lesson_of_few_trees() -> None:
    brief, usual = (learner._pixel_config(TrainingConfig(steps=n), 8, 64) for n in (2, 100))
    assert (brief.steps, brief.trees, brief.unpruned) == (8, 1, 1)
    assert (usual.steps, usual.trees, usual.unpruned) == (400, 30, 50)
