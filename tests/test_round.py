"""What a round decides by itself; the round as a whole is held by the integration tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from al_strategies.evidence import Position, SliceId
from al_strategies.holdout import ZBlock
from al_strategies.learner import FitReport, Metrics
from ml_backend.rounds import learners, training
from ml_backend.rounds.artefacts import METRICS, WEIGHTS
from ml_backend.rounds.hold_out import blocks_of
from ml_backend.rounds.records import (
    DatasetRecord,
    LabelRecord,
    MetricsRecord,
    Published,
    TaskRecord,
)
from ml_backend.rounds.source import PROJECT_VOLUME, positions
from ml_backend.rounds.store import ProjectStore, Store
from ml_backend.settings import Settings


def dataset(*tasks: TaskRecord) -> DatasetRecord:
    return DatasetRecord(
        round=0, classes=["background", "bone"], label_config="", fingerprint="", synced_at="",
        tasks=list(tasks),
    )  # fmt: skip


def volume(name: str, slices: int, first: int = 0) -> list[TaskRecord]:
    return [TaskRecord(id=first + z, image="i", volume=name, z=float(z)) for z in range(slices)]


def test_positions_come_from_the_tasks() -> None:
    found = positions(dataset(TaskRecord(id=5, image="i", volume="a", z=7.5)))
    assert found == {5: Position("a", 7.5)}


def test_without_a_z_the_place_in_task_order_stands_in() -> None:
    found = positions(dataset(*(TaskRecord(id=i, image="i") for i in (30, 10, 20))))
    assert found == {
        10: Position(PROJECT_VOLUME, 0.0),
        20: Position(PROJECT_VOLUME, 1.0),
        30: Position(PROJECT_VOLUME, 2.0),
    }


# -- which checkpoint is served


class Graded:
    """Stands where the network does: IoU 1 on the slices that it has learned from, on others the
    ``grade`` that its training was to give."""

    grade = 0.0

    def __init__(self, classes: tuple[str, ...], *_: Any) -> None:
        self.classes = classes
        self.model: tuple[float, Collection[SliceId]] = (0.0, ())

    def fit(self, source: Any, labelled: Sequence[SliceId], **_: Any) -> Any:
        warm = bool(self.model[1])
        self.model = (self.grade, {*self.model[1], *labelled})
        return FitReport(1, len(labelled), 0.0, settings={"warm_started": warm})

    def start_from(self, other: Graded) -> None:
        self.model = other.model

    def usable(self, source: Any, ids: Sequence[SliceId], _: Any) -> list[SliceId]:
        return list(ids)

    def evaluate(self, source: Any, ids: Sequence[SliceId], **_: Any) -> Metrics:
        grade, learned = self.model
        each = tuple(1.0 if i in learned else grade for i in ids)
        iou = float(np.mean(each))
        return Metrics(miou=iou, iou={"bone": iou}, accuracy=iou, slices=len(ids), by_slice=each)

    def to_bytes(self) -> bytes:
        return json.dumps([self.model[0], sorted(self.model[1])]).encode()  # type: ignore[type-var]  # int

    @classmethod
    def from_bytes(cls, data: bytes, *_: Any) -> Graded:
        found = cls(("background", "bone"))
        grade, learned = json.loads(data)
        found.model = (grade, set(learned))
        return found


ORDER = [int(i) for i in np.random.default_rng(0).permutation(128)]


class Rounds:
    """A project whose trainings end as well as they are told to, on the first n of ``ORDER``."""

    def __init__(self, settings: Settings, project: ProjectStore) -> None:
        self.settings, self.project = settings, project
        self.published = Published(
            round=0, model_version="r0", classes=["background", "bone"], fingerprint=""
        )

    def train(
        self, labels: int, grade: float, blocks: Sequence[ZBlock] | None = None
    ) -> MetricsRecord:
        """The next round's training, then what `round` does with it. ``blocks``: what it holds out,
        if not what `blocks_of` says."""
        number = self.published.round + 1
        Graded.grade = grade
        data = dataset(*volume("v", 128)).model_copy(
            update={
                "round": number,
                "labels": [
                    LabelRecord(task=i, annotation=i, updated_at="", hash="", mask="")
                    for i in ORDER[:labels]
                ],
            }
        )
        source: Any = None  # nothing is read
        if blocks is None:
            blocks = blocks_of(self.project, data, self.published, self.settings.seed)
        outcome = training.train(
            self.settings, self.project, data, self.published, source, blocks, seed=number
        )
        folder = self.project.round(number)
        folder.write(WEIGHTS, outcome.weights)
        folder.save(METRICS, outcome.metrics)
        flagged = outcome.metrics.flagged
        weights = self.published.weights if flagged else f"{folder.name}/weights.safetensors"
        self.published = self.published.model_copy(
            update={"round": number, "model_version": f"r{number}", "weights": weights,
                    "flagged": flagged}
        )  # fmt: skip
        return outcome.metrics


@pytest.fixture(params=[False, True], ids=["afresh", "warm"])
def rounds(
    request: pytest.FixtureRequest,
    make_settings: Callable[..., Settings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Rounds:
    monkeypatch.setitem(learners.KINDS, "network", Graded)
    settings = make_settings(NEXTSLICE_WARM_START=request.param, NEXTSLICE_TRAIN_DEVICE="cpu")
    return Rounds(settings, Store(str(tmp_path)).project("host", "7.1"))


def test_after_a_flag_honest_successors_are_served(rounds: Rounds) -> None:
    """In a project from before blocks were fixed at adoption, round 1 has trained on slices of the
    block held out since. It goes on being served."""
    first = rounds.train(8, 0.8, blocks=())
    assert first.validation == []
    worse = rounds.train(25, 0.5, blocks=[ZBlock("v", 0, 50)])
    assert worse.flagged is not None
    assert worse.flagged.startswith("mIoU 0.")
    assert "the published checkpoint of round 1 has 0.800" in worse.flagged
    assert rounds.published.weights == "round-0001/weights.safetensors"
    seen = set(first.trained) & set(worse.validation)
    assert seen, "or this test shows nothing"

    third = rounds.train(33, 0.8)

    assert seen <= set(third.validation)
    assert third.blocks == worse.blocks
    assert third.published_miou == pytest.approx(0.8), "of slices that round 1 has not seen"
    assert third.flagged is None
    assert rounds.published.weights == "round-0003/weights.safetensors"
    fourth = rounds.train(41, 0.5)
    assert fourth.flagged is not None
    assert "of round 3 has" in fourth.flagged


def test_a_pseudo_labelled_slice_that_is_lost_is_no_part_of_the_round(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lost, kept = ORDER[-2:]
    mask = np.zeros((1, 1), np.uint8)
    monkeypatch.setattr(training, "_pseudo_labels", lambda *_: ({lost: mask, kept: mask}, []))
    fit = Graded.fit

    def losing(self: Graded, *args: Any, unusable: Any, **options: Any) -> Any:
        unusable(lost, OSError("404"))
        return fit(self, *args, **options)

    monkeypatch.setattr(Graded, "fit", losing)

    metrics = rounds.train(8, 0.8)

    assert (metrics.pseudo, metrics.left_out) == ([kept], [])
    assert f"not pseudo-labelled: slice {lost}: 404" in caplog.text


def test_a_second_bad_checkpoint_is_measured_against_the_one_that_is_served(
    rounds: Rounds,
) -> None:
    first = rounds.train(8, 0.8)
    rounds.train(33, 0.5)

    third = rounds.train(41, 0.6)

    assert third.flagged is not None
    assert "the published checkpoint of round 1 has 0.800" in third.flagged
    assert rounds.published.weights == "round-0001/weights.safetensors"
    warm = rounds.settings.warm_start
    assert third.inherited == (sorted(first.trained) if warm else [])
