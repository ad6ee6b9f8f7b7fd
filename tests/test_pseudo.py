"""CEAL in the live loop: what the model labels for one training, and what never gets out of it.

Rounds run whole, with a real network, store and Redis; only Label Studio stands in memory.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from al_strategies.evidence import Position
from ml_backend.cli.rounds_list import rounds_table
from ml_backend.rounds import hold_out, training
from ml_backend.rounds.artefacts import (
    DATASET,
    MASKS,
    METRICS,
    PUBLISHED,
    QUEUE,
    ROUND,
    SELECTION,
    WEIGHTS,
)
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.pseudo import pseudo_labels, pseudo_slices
from ml_backend.rounds.records import (
    DatasetRecord,
    LabelRecord,
    MetricsRecord,
    Published,
    RoundRecord,
    SelectionRecord,
    TaskRecord,
)
from ml_backend.rounds.round import run_round
from ml_backend.rounds.service import Service
from ml_backend.rounds.source import ProjectSource
from ml_backend.segmentation.learner import LearnerConfig, NetworkLearner
from ml_backend.segmentation.training import TrainingConfig
from ml_backend.segmentation.validation import ZBlock
from ml_backend.settings import Settings
from ml_backend.studio.annotations import regions
from ml_backend.studio.label_config import bitmask_config, parse_label_config
from tests.memory_studio import MemoryStudio
from tests.segmentation_phantom import CLASSES, Phantom

KEY = "7.1763865028"
CONFIG = bitmask_config(CLASSES[1:])
FINGERPRINT = parse_label_config(CONFIG).fingerprint
SLICES = 20
K = 3
LABELLED = range(12)
BLOCK = {"volume": "phantom", "low": 3.0, "high": 6.0}
"""Held out with `LABELLED`'s 2 … 7 in it."""
SKIPPED, DRAFTED, GONE = 17, 18, 99
OPEN = [16, 13]
PHANTOM = Phantom(SLICES)

LiveRound = Callable[..., "Live"]


class Live(ConnectedProject):
    """A project whose round 1 is published, with the labels of round 2 synced."""

    def __init__(self, settings: Settings, weights: bytes, wanted: list[int]) -> None:
        studio: Any = MemoryStudio(CONFIG, SLICES, lambda i: PHANTOM.image(PHANTOM.ids[i]))
        super().__init__(Service(settings, studio=studio), KEY)
        self.weights = weights
        first = self.folder.round(1)
        first.write(WEIGHTS, weights)
        first.save(
            SELECTION,
            SelectionRecord(strategy="ceal", seed=1, chosen=[], reserve=[], pseudo=wanted),
        )
        first.save(METRICS, MetricsRecord(blocks=[BLOCK], validation=[3, 5]))
        self.folder.published = Published(
            round=1,
            model_version="nextslice-r001-abcdef",
            classes=list(CLASSES),
            fingerprint=FINGERPRINT,
            weights="round-0001/weights.safetensors",
        )
        self.label(LABELLED)

    def label(self, ids: Iterable[int]) -> None:
        """Round 2's dataset: people have labelled ``ids``."""
        labels = []
        for i in ids:
            folder, file = self.folder.round(2), MASKS[i]
            folder.save(file, PHANTOM.mask(PHANTOM.ids[i]))
            mask = folder.relative(file)
            labels.append(LabelRecord(task=i, annotation=i, updated_at="", hash="", mask=mask))
            self.studio.submit(i, [])
        states = dict.fromkeys((label.task for label in labels), "labelled")
        states |= {SKIPPED: "skipped", DRAFTED: "drafted"}
        self.dataset = DatasetRecord(
            round=2,
            classes=list(CLASSES),
            label_config=CONFIG,
            fingerprint=FINGERPRINT,
            synced_at="",
            tasks=[
                TaskRecord(
                    id=i,
                    image=f"/{i}.png",
                    volume="phantom",
                    z=float(i),
                    state=states.get(i, "pool"),  # type: ignore[arg-type]
                )
                for i in range(SLICES)
            ],
            labels=labels,
        )
        self.folder.round(2).save(DATASET, self.dataset)

    @property
    def source(self) -> ProjectSource:
        return ProjectSource(self.dataset, self.folder, self.images)

    def publish(self, **changes: Any) -> None:
        published = self.folder.published
        assert published is not None
        self.folder.published = published.model_copy(update=changes)

    def run(self, **options: Any) -> RoundRecord:
        record = run_round(self, "test", **options)
        assert record is not None
        return record

    def train(self, **options: Any) -> training.Outcome:
        """The training step alone; nothing is written."""
        published = self.folder.published
        assert published is not None
        blocks = hold_out.blocks_of(self.folder, self.dataset, published, 2)
        return training.train(
            self.settings, self.folder, self.dataset, published, self.source, blocks, 2, **options
        )

    def metrics(self) -> MetricsRecord:
        return self.folder.round(2).need(METRICS)


@pytest.fixture(scope="module")
def weights() -> bytes:
    """A checkpoint that tells the classes apart somewhat."""
    config = LearnerConfig(training=TrainingConfig(steps=20, batch=2, crop=64))
    learner = NetworkLearner(CLASSES, config)
    learner.fit(PHANTOM, PHANTOM.ids[:3])
    return learner.to_bytes()


@pytest.fixture
def make_live(make_settings: Callable[..., Settings], redis_url: str, weights: bytes) -> LiveRound:
    def make(wanted: list[int], **variables: Any) -> Live:
        settings = make_settings(
            **{
                "REDIS_URL": redis_url,
                "NEXTSLICE_STRATEGY": "ceal",
                "NEXTSLICE_K": K,
                "NEXTSLICE_RESERVE": 4,
                "NEXTSLICE_TRAIN_STEPS": 2,
                "NEXTSLICE_CROP": 32,
                "NEXTSLICE_PRETRAINED": "false",
                "NEXTSLICE_TRAIN_DEVICE": "cpu",
                **variables,
            }
        )
        return Live(settings, weights, wanted)

    return make


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[dict[Any, npt.NDArray[np.uint8]]]:
    """The pseudo-labels of every training, as the learner was given them."""
    seen: list[dict[Any, npt.NDArray[np.uint8]]] = []
    fit = NetworkLearner.fit

    def spy(self: NetworkLearner, *args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["pseudo"])
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(NetworkLearner, "fit", spy)
    return seen


def a_mask(data: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


# -- which slices


def dataset(**states: str) -> DatasetRecord:
    tasks = [TaskRecord(id=int(name[1:]), image="i", state=s) for name, s in states.items()]  # type: ignore[arg-type]
    return DatasetRecord(
        round=2, classes=[], label_config="", fingerprint="", synced_at="", tasks=tasks
    )


PLACES = {i: Position("v", float(i)) for i in range(10)}


def test_slices_that_a_person_has_looked_at_are_dropped_and_the_order_stays() -> None:
    seen = dataset(_1="pool", _2="labelled", _3="skipped", _4="drafted", _5="pool")

    assert pseudo_slices([5, 2, 3, 9, 4, 1], seen, PLACES, []) == [5, 1]


def test_slices_in_a_held_out_block_are_dropped() -> None:
    pool = dataset(**{f"_{i}": "pool" for i in range(6)})

    assert pseudo_slices(range(6), pool, PLACES, [ZBlock("v", 2.0, 4.0)]) == [0, 1, 5]
    assert pseudo_slices(range(6), pool, PLACES, [ZBlock("w", 2.0, 4.0)]) == list(range(6))
    assert pseudo_slices(range(6), pool, PLACES, [ZBlock("v")]) == []


# -- what the model makes of them


def test_a_pseudo_label_is_the_models_own_mask(weights: bytes) -> None:
    learner = NetworkLearner.from_bytes(weights)
    steps: list[tuple[str, int, int]] = []

    masks = pseudo_labels(learner, PHANTOM, ["z005", "z003"], lambda *step: steps.append(step))

    assert list(masks) == ["z005", "z003"]
    for slice_id, mask in masks.items():
        predicted = learner.predict_image(PHANTOM.image(slice_id)).mask
        np.testing.assert_array_equal(mask, predicted)
    assert steps == [("pseudo-label", 1, 2), ("pseudo-label", 2, 2)]


def test_unreadable_slices_are_left_out_and_named(
    weights: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Phantom):
        def image(self, slice_id: str) -> npt.NDArray[Any]:
            if slice_id in ("z001", "z004"):
                raise OSError("disk on fire")
            return super().image(slice_id)

    masks = pseudo_labels(
        NetworkLearner.from_bytes(weights), Broken(6), ["z000", "z001", "z002", "z004", "z005"]
    )

    assert list(masks) == ["z000", "z002", "z005"]
    assert "'z001' cannot be read: OSError: disk on fire" in caplog.text
    assert "'z004'" in caplog.text


# -- the round


def test_pseudo_labels_train_the_round_and_are_in_its_record_alone(
    make_live: LiveRound, fitted: list[dict[Any, Any]]
) -> None:
    # 5 and 11 have been labelled since.
    live = make_live([*OPEN, 5, 11, SKIPPED, DRAFTED, GONE])
    steps: list[str] = []

    record = live.run(progress=lambda step, done, total: steps.append(step))

    (given,) = fitted
    published = NetworkLearner.from_bytes(live.weights)
    assert list(given) == OPEN
    for task, mask in given.items():
        np.testing.assert_array_equal(mask, published.predict_image(live.source.image(task)).mask)
        kept = live.folder.read_at(f"round-0002/pseudo/{task}.png")
        np.testing.assert_array_equal(a_mask(kept), mask)
    assert record.pseudo == live.metrics().pseudo == OPEN
    assert record.annotated == len(LABELLED)
    assert not set(OPEN) & {*live.metrics().trained, *live.metrics().validation}
    assert steps.index("train") < steps.index("pseudo-label") < steps.index("load")
    assert live.folder.store.names(f"{live.folder.path}/round-0002/pseudo") == ["13.png", "16.png"]


def test_nothing_of_them_is_published(make_live: LiveRound) -> None:
    opened = [16, 14]
    live = make_live(opened)
    # Nothing unseen to compare on, or two steps of training would be flagged and not served.
    live.folder.round(1).save(METRICS, MetricsRecord(blocks=[BLOCK], trained=[*LABELLED]))

    record = live.run()

    queue = live.folder.round(2).need(QUEUE)
    stored = {row["task"]: row["result"] for row in live.studio.imported}
    assert record.weights == "round-0002/weights.safetensors"
    assert list(stored) == [entry.task for entry in queue.entries]
    # They are still in the pool and may be handed out, like any other slice: with the new mask.
    assert set(opened) <= set(stored)
    served = NetworkLearner.from_bytes(live.folder.read_at(record.weights))
    config = parse_label_config(CONFIG)
    for task, result in stored.items():
        mask = served.predict_image(live.source.image(task)).mask
        assert values(result) == values(regions(mask, config))
    for task in opened:
        pseudo = a_mask(live.folder.read_at(f"round-0002/pseudo/{task}.png"))
        assert values(stored[task]) != values(regions(pseudo, config))
    written = (live.folder.read_at("round-0002/queue.json"), live.folder.read(PUBLISHED))
    assert "pseudo" not in json.dumps(live.studio.imported) + repr(written)


def values(result: list[dict[str, Any]]) -> list[Any]:
    """Regions without their random ids."""
    return [(region["type"], region["value"]) for region in result]


def test_slices_in_the_held_out_block_do_not_train(
    make_live: LiveRound, fitted: list[dict[Any, Any]]
) -> None:
    live = make_live([4, 6, 13])
    live.label([i for i in LABELLED if i not in (4, 6)])  # pool slices inside the block

    outcome = live.train()

    assert outcome.metrics.blocks == [ZBlock(**BLOCK)]
    assert outcome.metrics.pseudo == list(fitted[0]) == list(outcome.pseudo) == [13]


@pytest.mark.parametrize(
    "changes", [{"weights": None, "retired": "a class was renamed"}, {"fingerprint": "others"}]
)
def test_a_checkpoint_of_other_classes_labels_nothing(
    make_live: LiveRound, fitted: list[dict[Any, Any]], changes: dict[str, Any]
) -> None:
    live = make_live(OPEN)
    live.publish(**changes)

    assert live.train().metrics.pseudo == []
    assert fitted == [{}]


def test_the_weights_that_are_served_make_them(
    make_live: LiveRound, fitted: list[dict[Any, Any]]
) -> None:
    """The published round's own checkpoint may have been flagged: an older one goes on."""
    live = make_live(OPEN)
    live.folder.round(0).write(WEIGHTS, live.weights)
    live.folder.round(1).write(WEIGHTS, b"flagged, never loaded")
    live.publish(weights="round-0000/weights.safetensors", flagged="worse")

    live.train()

    assert list(fitted[0]) == OPEN


def test_an_unreadable_slice_does_not_fail_the_training(make_live: LiveRound) -> None:
    # Warm: a fresh start fits its preprocessing on a sample of all slices, these among them.
    live = make_live([13, 14, 16], NEXTSLICE_WARM_START=True)
    live.studio.unreadable = {14}

    assert live.train().metrics.pseudo == [13, 16]


def test_the_published_selection_decides_not_todays_strategy(
    make_live: LiveRound, fitted: list[dict[Any, Any]]
) -> None:
    live = make_live(OPEN, NEXTSLICE_STRATEGY="random")

    record = live.run()

    assert list(fitted[0]) == record.pseudo == OPEN
    assert record.strategy == "random"
    assert live.folder.round(2).need(SELECTION).pseudo == []


def test_they_change_neither_the_validation_nor_what_is_compared(make_live: LiveRound) -> None:
    with_them, without = make_live(OPEN).train().metrics, make_live([]).train().metrics

    assert with_them.pseudo == OPEN
    assert (with_them.trained, with_them.validation) == (without.trained, without.validation)
    assert with_them.published_miou == without.published_miou is not None


@pytest.mark.parametrize("warm", [False, True])
def test_checkpoints_compare_only_on_what_neither_has_learned(
    make_live: LiveRound, warm: bool
) -> None:
    live = make_live([], NEXTSLICE_WARM_START=warm)
    held_out = live.train().metrics.validation
    seen = {"trained": held_out[:1], "pseudo": held_out[1:2], "inherited": held_out[2:]}
    live.folder.round(1).save(METRICS, MetricsRecord(blocks=[BLOCK], **seen))

    metrics = live.train().metrics

    assert metrics.validation == held_out
    assert metrics.published_miou is None
    assert metrics.inherited == (held_out if warm else [])


# -- a kill, an old record, the list


def test_a_training_that_was_killed_makes_them_anew(
    make_live: LiveRound, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = make_live(OPEN)
    with monkeypatch.context() as patch:
        patch.setattr(NetworkLearner, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            live.run()
    assert not live.folder.store.exists(f"{live.folder.round(2).path}/pseudo")

    assert live.run().pseudo == OPEN


def test_a_round_that_goes_on_after_its_training_still_lists_them(
    make_live: LiveRound, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = make_live(OPEN)
    with monkeypatch.context() as patch:
        patch.setattr(NetworkLearner, "evidence", killed)
        with pytest.raises(KeyboardInterrupt):
            live.run()

    with monkeypatch.context() as patch:
        patch.setattr(NetworkLearner, "fit", killed)
        assert live.run().pseudo == OPEN


def killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_records_from_before_there_were_pseudo_labels_are_read() -> None:
    assert MetricsRecord.model_validate_json('{"trained": [1, 2]}').pseudo == []
    old = '{"round": 1, "model_version": "v", "classes": [], "fingerprint": "f"}'
    assert RoundRecord.model_validate_json(old).pseudo == []


@pytest.mark.parametrize(("pseudo", "shown"), [([], "16"), ([1, 2, 3], "16 + 3 pseudo")])
def test_the_list_of_rounds_tells_labels_from_pseudo_labels(
    make_settings: Callable[..., Settings], pseudo: list[int], shown: str
) -> None:
    folder = ConnectedProject(Service(make_settings()), KEY).folder
    record = RoundRecord(
        round=1, model_version="v", classes=[], fingerprint="f", annotated=16, pseudo=pseudo
    )
    folder.round(1).save(ROUND, record)

    table = rounds_table(folder)

    column = next(c for c in table.columns if c.header == "annotated")
    assert list(column.cells) == [shown]
