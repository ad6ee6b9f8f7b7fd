"""What a round makes of data that it cannot use, and how the loop gets on afterwards.

Rounds run whole, with a real network, store and Redis; only Label Studio stands in memory.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch

from ml_backend.api.serving import Serving
from ml_backend.errors import NextsliceError
from ml_backend.rounds import filling, jobs, publish, reconcile, switching
from ml_backend.rounds import round as round_module
from ml_backend.rounds.artefacts import DATASET, METRICS, QUEUE, ROUND, SELECTION, WEIGHTS, File
from ml_backend.rounds.claim import ClaimedRound
from ml_backend.rounds.live_masks import LiveMasks
from ml_backend.rounds.pauses import MAX_FAILURES, may_try_again
from ml_backend.rounds.project import ConnectedProject, TakenOff
from ml_backend.rounds.records import (
    DatasetRecord,
    MetricsRecord,
    ProjectRecord,
    RoundRecord,
    SelectionRecord,
)
from ml_backend.rounds.round import UnusableLabels, run_round
from ml_backend.rounds.schedule import GPU
from ml_backend.rounds.service import Service, slice_keys
from ml_backend.rounds.source import positions
from ml_backend.rounds.status import project_status
from ml_backend.rounds.store import StoreFault
from ml_backend.rounds.sync import sync
from ml_backend.rounds.unreadable import UnreadableSlices
from ml_backend.segmentation import inference
from ml_backend.segmentation.checkpoints import read_metadata
from ml_backend.segmentation.dataset import NothingLabelled
from ml_backend.segmentation.learner import NetworkLearner
from ml_backend.segmentation.room import OutOfMemory
from ml_backend.segmentation.validation import inside
from ml_backend.settings import Settings
from ml_backend.studio.annotations import label_map, regions
from ml_backend.studio.client import Backend, StudioError
from ml_backend.studio.images import decode_image
from ml_backend.studio.label_config import (
    LabelConfig,
    LabelConfigError,
    bitmask_config,
    parse_label_config,
)
from ml_backend.volumes.address import SliceAddress
from tests.memory_studio import MemoryStudio
from tests.segmentation_phantom import CLASSES, Phantom

KEY = "7.1763865028"
SLICES = 16
K = 3
PHANTOM = Phantom(SLICES)
IMPLICIT = bitmask_config(CLASSES[1:])
"""Unlabelled pixels are background."""
EXPLICIT = bitmask_config(CLASSES)
"""Unlabelled pixels are ignored."""

MakeProject = Callable[..., "MemoryProject"]


class MemoryProject(ConnectedProject):
    """A project that was just connected: round 0 is published."""

    def __init__(self, settings: Settings, config: str, annotated: Iterable[int] = ()) -> None:
        studio = MemoryStudio(config, SLICES, lambda i: PHANTOM.image(PHANTOM.ids[i]))
        super().__init__(Service(settings, studio=studio), KEY)
        self.update(lambda record: None, adopting=True)
        self.label(annotated)
        reconcile.count(self)
        self.forget_jobs()

    def label(self, tasks: Iterable[int]) -> None:
        """Somebody submits the true mask of each."""
        config = parse_label_config(self.studio.fields["label_config"])
        for task in tasks:
            self.studio.submit(task, regions(PHANTOM.mask(PHANTOM.ids[task]), config))

    def run(self) -> RoundRecord | None:
        return run_round(self, "test")

    def job(self) -> None:
        """The round as a gpu worker runs it."""
        jobs.round(KEY, "test")

    def starts_a_round(self) -> bool:
        """Whether a look at the project has a gpu worker run a round."""
        reconcile.count(self)
        waiting = bool(self.service.schedule.queue(GPU).job_ids)
        self.forget_jobs()
        return waiting

    def wait(self, seconds: float) -> None:
        """As if that much time had passed since the last attempt."""
        before = self.record
        self.note(failed_at=before.failed_at - seconds, began_at=before.began_at - seconds)

    def forget_jobs(self) -> None:
        self.service.schedule.queue(GPU).empty()

    def forget_images(self) -> None:
        """As on a machine that has read none yet."""
        for file in self.settings.cache_dir.rglob("*"):
            if file.is_file():
                file.unlink()

    def note(self, **fields: Any) -> None:
        self.folder.record = self.record.model_copy(update=fields)

    def dataset(self, number: int = 1) -> DatasetRecord:
        return self.folder.round(number).need(DATASET)

    def metrics(self, number: int = 1) -> MetricsRecord:
        return self.folder.round(number).need(METRICS)

    def selection(self, number: int = 1) -> SelectionRecord:
        return self.folder.round(number).need(SELECTION)

    def stored(self) -> dict[int, list[Any]]:
        """Task → regions of the published version."""
        version = self.published.model_version
        rows = [row for row in self.studio.imported if row["model_version"] == version]
        return {row["task"]: row["result"] for row in rows}


@pytest.fixture
def make_project(
    make_settings: Callable[..., Settings], redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> MakeProject:
    def make(
        config: str = IMPLICIT, annotated: Iterable[int] = (), **variables: Any
    ) -> MemoryProject:
        settings = make_settings(
            **{
                "REDIS_URL": redis_url,
                "NEXTSLICE_QUEUE_PREFIX": "recovery",
                "NEXTSLICE_STRATEGY": "entropy",
                "NEXTSLICE_K": K,
                "NEXTSLICE_RESERVE": 2,
                "NEXTSLICE_TRAIN_STEPS": 2,
                "NEXTSLICE_CROP": 32,
                "NEXTSLICE_PRETRAINED": "false",
                "NEXTSLICE_TRAIN_DEVICE": "cpu",
                **variables,
            }
        )
        project = MemoryProject(settings, config, annotated)
        monkeypatch.setattr(jobs, "_service", lambda: project.service)
        return project

    return make


# -- attempts that fail


def test_a_round_that_failed_for_its_labels_reads_them_again(make_project: MakeProject) -> None:
    project = make_project(EXPLICIT)
    project.studio.submit(0, [])
    with pytest.raises(NothingLabelled):
        project.job()
    assert project.record.failures == 1
    assert "NothingLabelled" in str(project.record.last_error)

    project.label([1, 2])
    project.job()

    record = project.folder.round(1).need(ROUND)
    assert record.annotated == 3
    assert project.published.round == 1
    assert (project.record.failures, project.record.unended) == (0, 0)
    assert project.record.last_error is None


def test_after_a_request_the_labels_are_read_again_too(make_project: MakeProject) -> None:
    project = make_project(EXPLICIT)
    project.studio.submit(0, [])
    with pytest.raises(NothingLabelled):
        project.job()
    project.note(failures=5)
    project.wait(3600)
    project.label([1])
    assert not project.starts_a_round()

    project.request_start()
    assert project.starts_a_round()
    project.job()

    assert project.published.round == 1


def fails_after_its_training(project: MemoryProject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(round_module, "queue_of", raising(ValueError("of the queue")))
        with pytest.raises(ValueError, match="of the queue"):
            project.job()
    project.note(failures=MAX_FAILURES)
    project.wait(3600)
    assert not project.starts_a_round()


def test_a_request_after_a_failure_is_met_by_the_round_that_goes_on(
    make_project: MakeProject,
) -> None:
    """Else the very same labels would be trained once more."""
    project = make_project()
    project.label(range(K))
    fails_after_its_training(project)

    project.request_start()
    assert project.starts_a_round()
    project.job()

    assert project.published.round == 1
    assert project.record.start_requested_at is None
    assert not project.starts_a_round()


def test_a_request_for_labels_that_the_failed_round_lacks_is_met_by_the_next(
    make_project: MakeProject,
) -> None:
    project = make_project()
    project.label(range(K))
    fails_after_its_training(project)

    project.label([K])
    project.request_start()
    project.job()
    assert project.published.round == 1
    assert project.starts_a_round()
    project.job()

    assert [label.task for label in project.dataset(2).labels] == [*range(K + 1)]
    assert not project.starts_a_round()


def test_a_request_while_a_round_trains_asks_for_another(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project()
    project.label(range(K))
    fit = NetworkLearner.fit

    def pressed(self: NetworkLearner, *args: Any, **kwargs: Any) -> Any:
        project.request_start()
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(NetworkLearner, "fit", pressed)
    project.job()

    assert project.published.round == 1
    assert project.starts_a_round()


def test_a_request_outlives_an_attempt_whose_dataset_cannot_be_kept(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project()
    project.label([0])
    project.request_start()
    write = ClaimedRound.write

    def full(self: ClaimedRound, file: File, data: bytes) -> None:
        if file.name == DATASET.name:
            raise StoreFault("No space left on device")
        write(self, file, data)

    with monkeypatch.context() as patch:
        patch.setattr(ClaimedRound, "write", full)
        with pytest.raises(StoreFault):
            project.job()
    assert not project.starts_a_round(), "there is a pause first"
    project.wait(60)
    assert project.starts_a_round()
    project.job()

    assert project.published.round == 1
    assert not project.starts_a_round()


def test_k_new_labels_are_a_reason_to_try_again_what_failed_too_often(
    make_project: MakeProject,
) -> None:
    project = make_project(EXPLICIT)
    project.studio.submit(0, [])
    with pytest.raises(NothingLabelled):
        project.job()
    project.note(failures=5)
    project.label(range(1, K))
    project.wait(3600)
    assert not project.starts_a_round()
    project.label([K])
    assert project.starts_a_round()
    project.note(failures=6, failed_at=time.time())
    assert not project.starts_a_round(), "after a pause again"


def test_a_config_that_could_not_be_used_for_hours_ends_no_project(
    make_project: MakeProject,
) -> None:
    """Its labels were not even read: that others are there says nothing."""
    project = make_project()
    project.label(range(K))
    good = project.studio.fields["label_config"]
    project.studio.fields["label_config"] = "<View><Text name='t' value='$text'/></View>"
    for _ in range(MAX_FAILURES + 1):
        with pytest.raises(LabelConfigError):
            project.job()
        project.wait(3600)
        assert project.starts_a_round()
    project.studio.fields["label_config"] = good

    project.job()

    assert project.published.round == 1


def test_an_attempt_that_goes_on_after_its_training_keeps_its_labels(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project()
    project.label(range(K))
    with monkeypatch.context() as patch:
        patch.setattr(NetworkLearner, "evidence", raising(OSError("the network is down")))
        with pytest.raises(OSError, match="the network is down"):
            project.job()
    seen = project.dataset()
    project.label([K])
    with monkeypatch.context() as patch:
        patch.setattr(NetworkLearner, "fit", raising(AssertionError("trained twice")))
        project.job()

    assert project.dataset() == seen
    assert project.published.round == 1


def older(data: bytes) -> bytes:
    """A checkpoint as if of a network that had one tensor less then."""
    tensors = safetensors.torch.load(data)
    tensors.popitem()
    return safetensors.torch.save(tensors, read_metadata(data))


def spoil(project: MemoryProject, how: str) -> None:
    """The weights of round 1 cannot be loaded any more."""
    folder = project.folder.round(1)
    if how == "gone":
        folder.remove(WEIGHTS)
        return
    data = folder.read(WEIGHTS)
    folder.write(WEIGHTS, older(data) if how == "older" else data[: len(data) // 2])


NOT_LOADED = {
    "older": "1 tensors missing",
    "cut off": "is cut off or damaged",
    "gone": "The file is not there any more",
}


@pytest.mark.parametrize(("how", "why"), NOT_LOADED.items())
def test_a_published_checkpoint_that_cannot_be_loaded_stops_no_round(
    make_project: MakeProject, caplog: pytest.LogCaptureFixture, how: str, why: str
) -> None:
    """The training begins afresh, as after a change of classes, and the record says why."""
    project = make_project(NEXTSLICE_STRATEGY="ceal", NEXTSLICE_WARM_START=True)
    project.label([*range(0, SLICES, 2)])
    project.job()
    assert project.selection().pseudo, "or there is nothing to be labelled by it"
    spoil(project, how)
    project.label([1, 3, 5])

    project.job()

    metrics = project.metrics(2)
    assert project.published.weights == "round-0002/weights.safetensors"
    assert project.folder.round(2).need(ROUND).flagged is None
    assert metrics.not_loaded is not None
    assert metrics.not_loaded.startswith("round-0001/weights.safetensors: ")
    assert why in metrics.not_loaded
    assert metrics.validation, "or there is nothing to compare by"
    assert (metrics.published_miou, metrics.published_weights) == (None, None)
    assert (metrics.pseudo, metrics.inherited) == ([], [])
    assert metrics.training["warm_started"] is False
    assert "round 2: the published checkpoint cannot be loaded" in caplog.text


def test_a_full_memory_is_no_reason_to_train_afresh(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project()
    project.label(range(K))
    project.job()
    project.label(range(K, 2 * K))

    with monkeypatch.context() as patch:
        patch.setattr(NetworkLearner, "from_bytes", raising(OutOfMemory("of the GPU")))
        with pytest.raises(OutOfMemory):
            project.job()

    project.job()
    assert project.metrics(2).not_loaded is None
    assert project.metrics(2).published_weights == "round-0001/weights.safetensors"


@pytest.mark.parametrize(("stopped", "how"), [("evidence", "older"), ("predict", "gone")])
def test_a_round_whose_own_weights_cannot_be_loaded_any_more_trains_again(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch, stopped: str, how: str
) -> None:
    """It was running, scoring or publishing, when nextslice was upgraded, and goes on after it."""
    project = make_project()
    project.label(range(K))
    with monkeypatch.context() as patch:
        patch.setattr(NetworkLearner, stopped, raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            project.job()
    assert project.folder.round(1).has(METRICS)
    spoil(project, how)

    project.job()

    assert project.published.weights == "round-0001/weights.safetensors"
    assert any(project.stored().values())


def raising(error: BaseException) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise error

    return call


def test_attempts_that_are_killed_are_made_again_after_longer_and_longer_pauses(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project()
    project.label(range(K))
    with monkeypatch.context() as patch:
        # As near to SIGKILL as a test in one process comes: no line of ours runs after it.
        patch.setattr(NetworkLearner, "fit", raising(KeyboardInterrupt()))
        for attempt in range(1, 8):
            with pytest.raises(KeyboardInterrupt):
                project.job()
            assert (project.record.unended, project.record.failures) == (attempt, 0)
            assert not project.starts_a_round()
            project.wait(30 * 2**attempt)
            assert project.starts_a_round()

    project.job()
    assert project.record.unended == 0


@pytest.mark.parametrize(("attempts", "minutes"), [(1, 1), (2, 2), (5, 16), (9, 60), (5000, 60)])
def test_the_pause_after_an_attempt_grows_to_an_hour(attempts: int, minutes: int) -> None:
    for counted in ({"failures": attempts}, {"unended": attempts}):
        last = time.time() - 60 * minutes
        for seconds, over in ((-5, True), (5, False)):
            moment = {"failed_at": last + seconds, "began_at": last + seconds}
            assert may_try_again(ProjectRecord(project=7, key=KEY, **counted, **moment)) is over


def test_a_round_that_was_published_meanwhile_is_not_followed_by_another(
    make_project: MakeProject,
) -> None:
    """A look that began before the publication asks for the round when its job is over."""
    project = make_project()
    project.label(range(K))
    reconcile.count(project)
    (asked,) = project.service.schedule.queue(GPU).jobs
    project.forget_jobs()
    assert asked.args == [KEY, "3 new annotations", 1]

    jobs.round(*asked.args)
    assert project.published.round == 1
    jobs.round(*asked.args)

    assert project.published.round == 1
    assert not project.folder.round(2).has(DATASET)


def test_a_round_that_is_published_as_its_job_begins_is_not_followed_by_another(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker was at it, and ends between the job's first look and its claim."""
    project = make_project()
    project.label(range(K))
    began = ProjectRecord.attempt_began

    def and_it_is_there(record: ProjectRecord, moment: float, number: int) -> None:
        monkeypatch.setattr(ProjectRecord, "attempt_began", began)
        assert project.run() is not None
        began(record, moment, number)

    monkeypatch.setattr(ProjectRecord, "attempt_began", and_it_is_there)
    jobs.round(KEY, "3 new annotations", 1)

    assert project.published.round == 1
    assert not project.folder.round(2).has(DATASET)
    assert (project.record.unended, project.record.attempted) == (0, None)


def test_a_process_that_ends_before_it_notes_its_success_holds_nothing_up(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project()
    project.label(range(K))

    def killed(_: ProjectRecord) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProjectRecord, "round_succeeded", killed)
        with pytest.raises(KeyboardInterrupt):
            project.job()
    assert project.published.round == 1
    assert [c.state for c in project_status(project).conditions] == ["waiting"]

    project.label(range(K, 2 * K))
    assert project.starts_a_round(), "no pause"
    assert project.record.unended == 0


def test_without_an_attempt_there_is_no_pause() -> None:
    record = ProjectRecord(project=7, key=KEY, failed_at=time.time(), began_at=time.time())
    assert may_try_again(record)


# -- annotations that cannot be used


def ellipse(**value: Any) -> dict[str, Any]:
    whole = {"x": 50, "y": 50, "radiusX": 9, "radiusY": 9, "ellipselabels": ["bone"]}
    return {"type": "ellipselabels", "value": {**whole, **value}}


def nested(depth: int) -> Any:
    found: Any = "bone"
    for _ in range(depth):
        found = [found]
    return found


STRANGE: list[tuple[Any, str]] = [
    ([{"type": "bitmasklabels", "original_width": 512.5, "value": {}}], "original_width"),
    ([{"type": "bitmasklabels", "value": None}], "value"),
    ([{"type": "bitmasklabels", "value": {"bitmasklabels": ["bone"]}}], "imageDataURL"),
    ([ellipse(x=1.7e308)], "value.x"),
    ([ellipse(radiusX=int("9" * 400))], "value.radiusX"),
    ([ellipse(ellipselabels=nested(5000))], "nested too deeply"),
]


@pytest.mark.parametrize("z", [math.inf, math.nan, pytest.param(int("9" * 400), id="400 nines")])
def test_a_z_that_is_no_number_stops_nothing(make_project: MakeProject, z: Any) -> None:
    project = make_project()
    project.label([0, 2])
    data = {"image": "/1.png", "volume": "phantom", "z": z}
    project.studio.request("PATCH", "api/tasks/1/", json={"data": data})

    assert project.run() is not None

    assert {task.id: task.z for task in project.dataset().tasks}[1] is None


@pytest.mark.parametrize(("result", "named"), STRANGE)
def test_an_annotation_that_cannot_be_read_is_named_and_stops_nothing(
    make_project: MakeProject, result: Any, named: str
) -> None:
    project = make_project()
    project.label([0, 2])
    project.studio.submit(1, result)

    assert project.run() is not None

    dataset = project.dataset()
    assert [label.task for label in dataset.labels] == [0, 2]
    (warning,) = dataset.warnings
    assert warning.startswith("task 1: its annotation cannot be used: ")
    assert named in warning


def test_a_label_that_becomes_unreadable_does_not_stop_the_count(
    make_project: MakeProject,
) -> None:
    project = make_project()
    project.label(range(K))
    project.run()

    project.studio.submit(0, STRANGE[0][0])
    project.label([K, K + 1])
    assert not project.starts_a_round()
    project.label([K + 2])
    assert project.starts_a_round()


def test_annotations_none_of_which_can_be_used_are_a_failure(make_project: MakeProject) -> None:
    project = make_project()
    for task in range(K):
        project.studio.submit(task, STRANGE[0][0])
    assert project.starts_a_round()

    with pytest.raises(UnusableLabels, match=r"3 slices are annotated.*task 0.*\(and 2 more\)"):
        project.job()

    assert project.record.failures == 1
    assert not project.starts_a_round()
    project.wait(60)
    assert project.starts_a_round()
    project.label([K])
    project.job()
    assert [label.task for label in project.dataset().labels] == [K]


def test_unusable_annotations_that_were_deleted_leave_nothing_to_do(
    make_project: MakeProject,
) -> None:
    project = make_project()
    for task in range(K):
        project.studio.submit(task, STRANGE[0][0])
    with pytest.raises(UnusableLabels):
        project.job()
    project.studio.delete_annotations(range(K))

    project.job()

    assert project.record.last_error is None
    assert not project.folder.round(1).has(DATASET)
    assert not project.starts_a_round()


def test_unusable_annotations_are_not_new_labels_again_and_again(
    make_project: MakeProject,
) -> None:
    """All of one moment, as an import makes them: a look back always finds them."""
    project = make_project(annotated=())
    for task in range(SLICES):
        project.label([task]) if task >= K else project.studio.submit(task, STRANGE[0][0])
    project.studio.same_moment()
    assert project.starts_a_round()

    project.job()

    assert project.published.round == 1
    assert not project.starts_a_round()
    project.label(range(K))
    assert project.starts_a_round()


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "of an older nextslice"])
def test_after_label_studios_clock_was_put_back_rounds_begin_as_ever(
    make_project: MakeProject, noted: bool
) -> None:
    """Long before it passes the moment of the last dataset."""
    project = make_project()
    project.label(range(K))
    project.run()
    if not noted:
        older = project.dataset().model_copy(update={"unusable": None, "imageless": None})
        project.folder.round(1).save(DATASET, older)
    project.studio.turn_clock(-timedelta(days=1))

    project.label(range(K, 2 * K - 1))
    assert not project.starts_a_round()
    project.label([2 * K])
    assert project.starts_a_round()
    project.job()

    assert project.published.round == 2
    assert len(project.dataset(2).labels) == 2 * K
    assert not project.starts_a_round()
    project.label([2 * K + 1])
    assert not project.starts_a_round()


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "of an older nextslice"])
def test_what_is_unusable_is_no_new_label(make_project: MakeProject, noted: bool) -> None:
    project = make_project()
    project.studio.submit(9, STRANGE[0][0])
    project.label(range(K))
    project.studio.same_moment()
    project.run()
    assert project.dataset().unusable == [9]
    if not noted:
        older = project.dataset().model_copy(update={"unusable": None, "imageless": None})
        project.folder.round(1).save(DATASET, older)

    project.label(range(K, 2 * K - 1))
    assert not project.starts_a_round()
    project.label([2 * K])
    assert project.starts_a_round()


def test_a_start_without_an_annotation_is_no_failure(make_project: MakeProject) -> None:
    project = make_project()
    project.job()
    assert (project.record.failures, project.record.unended) == (0, 0)
    assert project.published.round == 0


def test_a_slice_annotated_while_the_tasks_are_read_is_labelled(make_project: MakeProject) -> None:
    project = make_project()
    project.label(range(K))
    read = project.studio.full_tasks

    def late(*arguments: Any) -> Any:
        project.label([9])
        return read(*arguments)

    project.studio.full_tasks = late  # type: ignore[method-assign]
    project.run()

    state = {task.id: task.state for task in project.dataset().tasks}
    assert state[9] == "labelled"
    assert 9 not in [*project.selection().chosen, *project.selection().reserve]


def test_another_reading_of_regions_renders_every_label_anew(make_project: MakeProject) -> None:
    """The same annotation, and a control that turns out to draw nothing but prompts."""
    control = '<RectangleLabels name="box" toName="image"><Label value="bone"/></RectangleLabels>'
    config = IMPLICIT.replace("</View>", control + "</View>")
    project = make_project(config)
    corner = {"x": 0, "y": 0, "width": 50, "height": 50, "rectanglelabels": ["bone"]}
    box = {"type": "rectanglelabels", "from_name": "box", "value": corner}
    truth = PHANTOM.mask(PHANTOM.ids[0])
    project.studio.submit(0, [box, *regions(truth, parse_label_config(config))])
    before = project.run()
    assert before is not None
    (old,) = project.dataset().labels
    assert not np.array_equal(mask_of(project, old.mask), truth)

    project.studio.fields["label_config"] = config.replace('name="box"', 'name="box" smartOnly="1"')
    dataset = synced(project)

    (new,), (warning,) = dataset.labels, dataset.warnings
    assert np.array_equal(mask_of(project, new.mask), truth)
    assert "it is a prompt" in warning
    assert dataset.fingerprint == project.dataset().fingerprint  # the model stays good


def test_another_meaning_of_unlabelled_pixels_renders_every_label_anew(
    make_project: MakeProject,
) -> None:
    project = make_project(EXPLICIT)
    half = PHANTOM.mask(PHANTOM.ids[0]).copy()
    half[:32] = 255
    project.studio.submit(0, regions(half, parse_label_config(EXPLICIT)))
    before = project.run()
    assert before is not None
    settings = project.settings.model_copy(update={"unlabelled": "background"})
    anew = ConnectedProject(Service(settings, studio=project.studio), KEY)

    dataset = sync(anew, anew.in_studio(), project.folder.round(2), project.dataset())

    (old,), (new,) = project.dataset().labels, dataset.labels
    assert dataset.unlabelled == "background"
    assert new.mask != old.mask
    assert mask_of(project, old.mask).max() == 255
    assert mask_of(project, new.mask).max() < 255


def synced(project: MemoryProject) -> DatasetRecord:
    """The sync of round 2, after round 1."""
    return sync(project, project.in_studio(), project.folder.round(2), project.dataset())


def test_a_mask_that_is_gone_with_its_round_is_rendered_anew(make_project: MakeProject) -> None:
    project = make_project()
    project.label(range(K))
    project.run()
    before = {label.task: label for label in project.dataset().labels}
    project.label([K])
    folder = project.folder.round(1)
    folder.store.remove(f"{project.folder.path}/{before[1].mask}")

    dataset = synced(project)

    after = {label.task: label for label in dataset.labels}
    assert {task: after[task].mask for task in (0, 2)} == {t: before[t].mask for t in (0, 2)}
    assert after[1].mask.startswith("round-0002/masks/1-")
    assert after[1].hash == before[1].hash
    np.testing.assert_array_equal(mask_of(project, after[1].mask), PHANTOM.mask(PHANTOM.ids[1]))


@pytest.mark.parametrize("size", [(128, 160), (64, 160)])
def test_a_task_that_gets_another_slice_gets_another_mask_or_none(
    make_project: MakeProject, size: tuple[int, int]
) -> None:
    """Its annotation stays as it is; where its proportions are not those of the slice, it is left
    out."""
    project = make_project()
    project.label(range(K))
    project.run()
    project.studio.show("/other.png", np.zeros(size, np.uint16))
    data = {"image": "/other.png", "z": 1.0}
    project.studio.request("PATCH", "api/tasks/1/", json={"data": data})

    dataset = synced(project)

    before = {label.task: label for label in project.dataset().labels}
    after = {label.task: label for label in dataset.labels}
    assert [after[i].mask for i in (0, 2)] == [before[i].mask for i in (0, 2)]
    if size == (128, 160):
        assert mask_of(project, after[1].mask).shape == size
        assert dataset.warnings == []
    else:
        assert 1 not in after
        assert "task 1: its annotation cannot be used" in dataset.warnings[0]


def mask_of(project: MemoryProject, path: str) -> npt.NDArray[Any]:
    return decode_image(project.folder.read_at(path), path)


def test_slices_without_a_labelled_pixel_judge_nothing(make_project: MakeProject) -> None:
    project = make_project(EXPLICIT)
    blocks = project.selection(0).blocks
    held_out = inside(range(12), positions(project.dataset(0)), blocks)  # type: ignore[arg-type]
    assert len(held_out) >= 1
    project.label(i for i in range(12) if i not in held_out)
    for task in held_out:
        project.studio.submit(int(task), [])

    record = project.run()

    assert record is not None
    metrics = project.metrics()
    assert metrics.validation == []
    assert metrics.miou is None
    assert not set(metrics.trained) & set(held_out)


def test_a_round_says_what_the_labels_cost_that_it_is_the_first_to_train_on(
    make_project: MakeProject,
) -> None:
    project = make_project()
    project.label((0, 3, 6))
    project.run()
    version = project.published.model_version
    shown = project.stored()
    masked = next(task for task in project.selection().chosen if shown[task])
    config = parse_label_config(project.studio.fields["label_config"])
    submitted = PHANTOM.mask(PHANTOM.ids[masked]).copy()
    submitted[:8, :8] = 1  # what the learner cannot have known
    project.studio.submit(masked, regions(submitted, config))
    project.run()

    first, second = project.metrics(1).effort, project.metrics(2).effort

    assert [effort.task for effort in first] == [0, 3, 6]
    drawn = [int(np.count_nonzero(PHANTOM.mask(PHANTOM.ids[task]))) for task in (0, 3, 6)]
    assert [effort.corrected for effort in first] == drawn, "they were opened blank"
    assert [effort.task for effort in second] == [masked]
    assert second[0].model_version == version
    opened = label_map(shown[masked], config, *submitted.shape).mask
    assert second[0].corrected == np.count_nonzero(opened != submitted) > 32


# -- slices that cannot be read


def test_unreadable_slices_are_left_out_in_one_pass(
    make_project: MakeProject, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project()
    project.label(range(K))
    project.studio.unreadable = {5, 6, 11}
    forwards: list[int] = []
    evidence = NetworkLearner.evidence

    def spy(self: NetworkLearner, *args: Any, **kwargs: Any) -> Any:
        forwards.append(1)
        return evidence(self, *args, **kwargs)

    monkeypatch.setattr(NetworkLearner, "evidence", spy)
    with caplog.at_level(logging.WARNING):
        project.run()

    selection = project.selection()
    ranked = {*selection.chosen, *selection.reserve, *selection.backlog}
    assert ranked == set(range(K, SLICES)) - {5, 6, 11}
    assert len(forwards) == 1
    assert caplog.text.count("left out of the selection") == 3


def test_a_slice_that_cannot_be_read_any_more_is_published_without_a_mask(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project()
    project.label(range(K))
    with monkeypatch.context() as patch:
        patch.setattr(NetworkLearner, "predict", raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            project.run()
    gone = project.selection().chosen[1]
    project.studio.unreadable = {gone}
    project.forget_images()

    project.run()

    assert project.published.round == 1
    stored = project.stored()
    assert set(project.selection().chosen) <= set(stored)
    assert stored[gone] == []


def test_a_rest_that_cannot_be_read_does_not_hold_a_round_up(make_project: MakeProject) -> None:
    project = make_project()
    project.label(range(SLICES - 2))
    project.studio.unreadable = {SLICES - 2, SLICES - 1}

    project.run()

    assert project.published.round == 1
    assert project.selection().chosen == []
    filling.top_up(project)
    assert set(project.stored()) == project.studio.unreadable


def goes_on_without_slice_1(project: MemoryProject, caplog: pytest.LogCaptureFixture) -> None:
    """Round 2 of a project whose slice 1 has been lost since round 1."""
    project.forget_images()
    project.label([K])
    with caplog.at_level(logging.WARNING):
        project.job()

    assert project.published.round == 2
    assert project.metrics(2).trained == [0, 2, K]
    assert project.metrics(2).left_out == [1]
    assert "slice 1 is left out of training and validation" in caplog.text


def test_a_labelled_slice_whose_image_is_gone_is_left_out_by_name(
    make_project: MakeProject, caplog: pytest.LogCaptureFixture
) -> None:
    project = make_project()
    project.label(range(K))
    project.job()
    project.studio.unreadable = {1}
    goes_on_without_slice_1(project, caplog)
    assert [label.task for label in project.dataset(2).labels] == [0, 1, 2, K]
    assert "answered 404" in caplog.text
    assert caplog.text.count("left out of training") == 1

    project.label([K + 1])
    project.job()
    assert "task 1: its annotation cannot be used" in project.dataset(3).warnings[0]

    project.studio.unreadable = set()
    project.label([K + 2])
    project.job()
    assert project.metrics(4).trained == list(range(K + 3))


def test_a_labelled_slice_that_changes_its_size_is_left_out_and_then_rendered_anew(
    make_project: MakeProject, caplog: pytest.LogCaptureFixture
) -> None:
    project = make_project()
    project.label(range(K))
    project.job()
    project.studio.show("/1.png", np.zeros((128, 160), np.uint16))
    goes_on_without_slice_1(project, caplog)
    assert "shape (64, 80), its image (128, 160)" in caplog.text

    project.label([K + 1])
    project.job()
    masks = {label.task: label.mask for label in project.dataset(3).labels}
    assert mask_of(project, masks[1]).shape == (128, 160)
    assert masks[0] == f"round-0001/{masks[0].partition('/')[2]}"
    assert project.metrics(3).trained == list(range(K + 2))
    assert project.metrics(3).left_out == []


@pytest.mark.parametrize("lost", ["image", "size"])
def test_a_slice_that_is_lost_judges_no_checkpoint(make_project: MakeProject, lost: str) -> None:
    project = make_project()
    project.label(range(12))
    project.job()
    held_out = project.metrics().validation
    assert len(held_out) >= 2
    project.forget_images()
    if lost == "image":
        project.studio.unreadable = {held_out[0]}
    else:
        project.studio.show(f"/{held_out[0]}.png", np.zeros((128, 160), np.uint16))
    project.label([12])
    project.job()

    metrics = project.metrics(2)
    assert metrics.validation == [i for i in held_out if i != held_out[0]]
    assert metrics.left_out == held_out[:1]
    assert metrics.published_miou is not None
    assert project.published.round == 2


@pytest.mark.parametrize("gone", [[0, 1], [*range(2, 12)], [*range(12)]])
def test_where_many_images_are_gone_the_attempt_fails_and_is_made_again(
    make_project: MakeProject, gone: list[int]
) -> None:
    """That is a server that does not answer, not a lost image."""
    project = make_project()
    project.label(range(12))
    project.job()
    project.studio.unreadable = set(gone)
    project.forget_images()
    project.label([12])
    with pytest.raises(UnreadableSlices, match=r"2 of the 13 labelled slices.*answered 404"):
        project.job()

    assert project.published.round == 1
    assert project.record.failures == 1
    assert not project.folder.round(2).has(METRICS)
    project.wait(60)
    assert project.starts_a_round()
    project.studio.unreadable = set()
    project.job()
    assert project.metrics(2).left_out == []
    assert project.published.round == 2


def test_without_a_slice_that_can_be_trained_on_the_error_says_why(
    make_project: MakeProject,
) -> None:
    project = make_project(annotated=())
    project.label(range(2))
    project.job()
    for task in range(2):
        project.studio.show(f"/{task}.png", np.zeros((128, 160), np.uint16))
    project.forget_images()
    project.request_start()
    with pytest.raises(NothingLabelled, match=r"2 slices .* 2 are left out.*\(128, 160\)"):
        project.job()

    # The very same annotation, submitted again.
    project.label([0])
    project.job()
    assert project.metrics(2).trained == [0]
    assert project.metrics(2).left_out == [1]


def test_another_strategy_scores_again(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project()
    project.label(range(K))
    with monkeypatch.context() as patch:
        for module in ("round", "hold_out"):
            name = f"ml_backend.rounds.{module}.get_strategy"
            patch.setattr(name, lambda _: interrupted())
        with pytest.raises(KeyboardInterrupt):
            project.run()
    object.__setattr__(project.settings, "strategy", "coreset")

    record = project.run()

    assert record is not None
    assert record.strategy == "coreset"


def interrupted() -> Any:
    """A strategy that gets as far as its evidence."""

    class Interrupted:
        evidence = ("entropy",)
        labelled_evidence = ()

        def select(self, query: Any) -> Any:
            raise KeyboardInterrupt

    return Interrupted()


# -- nothing is left to annotate


@pytest.mark.parametrize("connected", [True, False])
def test_the_last_labels_make_a_round_that_is_published(
    make_project: MakeProject, connected: bool
) -> None:
    project = make_project()
    if connected:
        project.studio.backend = Backend(id=1, url="http://nextslice", title="nextslice")
    project.label(range(SLICES))

    record = project.run()

    assert record is not None
    assert record.annotated == SLICES
    published = project.published
    assert (published.round, published.model_version) == (1, record.model_version)
    if connected:
        assert project.studio.fields["model_version"] == record.model_version
        assert project.studio.backend.title == record.model_version
    switching.repair(project, project.in_studio())
    assert project.published == published


def test_a_project_that_is_annotated_already_is_adopted_and_trained(
    make_project: MakeProject,
) -> None:
    project = make_project(annotated=range(SLICES))
    assert project.published.round == 0
    assert project.starts_a_round()
    project.job()
    assert project.published.round == 1


def test_classes_change_when_nothing_is_left_to_annotate(make_project: MakeProject) -> None:
    project = make_project()
    project.label(range(SLICES))
    project.run()
    project.studio.fields["label_config"] = bitmask_config(["bone", "screw"])

    reconcile.count(project)

    assert project.published.retired is not None
    assert project.published.weights is None


# -- side by side


def test_a_round_of_the_new_classes_that_is_published_meanwhile_is_served(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look has seen the new classes, and waits while the round that learned them ends."""
    project = make_project()
    project.label(range(K))
    project.run()
    project.studio.fields["label_config"] = bitmask_config(["bone", "screw"])
    project.label(range(K, 2 * K))

    def takes_long(project: MemoryProject, _: LabelConfig) -> None:
        project.run()

    monkeypatch.setattr(reconcile, "look_for_images", takes_long)
    reconcile.count(project)

    published = project.published
    assert published.round == 2
    assert published.classes == ["background", "bone", "screw"]
    assert published.weights == project.folder.round(2).relative(WEIGHTS)
    assert published.retired is None


def test_classes_that_were_seen_before_a_round_was_published_retire_nothing(
    make_project: MakeProject,
) -> None:
    """A look at many projects has read all configs when it began."""
    project = make_project()
    seen = project.in_studio()
    project.studio.fields["label_config"] = bitmask_config(["bone", "screw"])
    project.label(range(K))
    project.run()
    before = project.published
    assert before.weights is not None

    reconcile.count(project, seen)

    assert project.published == before


def test_a_queue_that_is_retired_meanwhile_is_not_filled(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project()
    project.label(range(K))
    project.run()
    old = project.published
    folder = project.folder.round(1)
    # The queue runs low: what it holds was annotated.
    project.label(entry.task for entry in folder.need(QUEUE).entries[:5])

    def retires(self: LiveMasks, rows: list[Any]) -> dict[int, Any]:
        publish.retire(project, old, "another class", ["background", "screw"], "f" * 8)
        return {row.id: [] for row in rows}

    monkeypatch.setattr(LiveMasks, "of", retires)
    before = len([r for r in project.studio.imported if r["model_version"] == old.model_version])

    assert filling.top_up(project) == 0

    queue = folder.need(QUEUE)
    assert queue.model_version == project.published.model_version != old.model_version
    after = len([r for r in project.studio.imported if r["model_version"] == old.model_version])
    assert after == before


@pytest.mark.parametrize("asked", [jobs.round, jobs.masks, jobs.count, jobs.tidy, jobs.start])
def test_a_job_of_a_project_that_is_gone_leaves_the_one_with_its_number_alone(
    make_project: MakeProject, asked: Callable[..., None]
) -> None:
    """Label Studio was set up afresh while the job waited for a worker."""
    project = make_project(annotated=range(4), NEXTSLICE_OPEN_MINUTES=0)
    project.run()
    project.label(range(4, 8))
    folder = project.folder.round(1)
    queue = folder.need(QUEUE)
    folder.save(QUEUE, queue.model_copy(update={"pending": [queue.entries[0].task]}))
    there, fields = list(project.studio.imported), dict(project.studio.fields)
    project.studio.set_up_afresh()

    with pytest.raises(StudioError, match=r"Project 7\.1763865028 is gone"):
        asked(*[KEY, "test"][: 2 if asked is jobs.round else 1])

    assert (project.studio.imported, project.studio.fields) == (there, fields)
    assert project.published.round == 1
    assert project.service.schedule.queue(GPU).job_ids == []


def test_a_round_that_has_trained_while_label_studio_was_set_up_afresh_is_not_published(
    make_project: MakeProject,
) -> None:
    project = make_project(annotated=range(4))
    there = list(project.studio.imported)

    def trains(step: str, done: int, total: int) -> None:
        if step == "select":
            project.studio.set_up_afresh()

    with pytest.raises(StudioError, match="is gone"):
        run_round(project, "test", trains)

    assert project.folder.round(1).has(ROUND)
    assert project.studio.imported == there
    assert project.published.round == 0


@pytest.mark.parametrize("step", ["train", "select", "publish"])
def test_a_project_that_is_taken_off_during_a_round_stays_off(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: str
) -> None:
    """As docs/setup.md says it: the backend deleted, the project's folder moved away."""
    project = make_project(annotated=range(K))
    folder = Path(project.settings.store, project.folder.path)
    there, fields = list(project.studio.imported), dict(project.studio.fields)

    def progress(now: str, done: int, total: int) -> None:
        if now == step and folder.exists():
            folder.rename(tmp_path / "taken-off")

    monkeypatch.setattr(jobs, "_job_progress", lambda settings: progress)
    with suppress(NextsliceError):  # where a file of the round is read
        jobs.round(KEY, "3 new annotations", 1)

    assert (tmp_path / "taken-off").exists()
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    assert project.service.project_keys() == []
    assert project.studio.fields == fields
    if step != "publish":
        assert project.studio.imported == there
    with pytest.raises(TakenOff, match="nextslice connect"):
        ConnectedProject(project.service, KEY).request_start()
    assert not project.adopted


def test_one_project_that_fails_does_not_stop_the_others(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    project = make_project()
    looked: list[str] = []

    def count(project: ConnectedProject, _: Any) -> None:
        looked.append(project.key)
        raise ValueError("something nobody thought of")

    monkeypatch.setattr(reconcile, "count", count)
    monkeypatch.setattr(switching, "repair", lambda *_: None)
    monkeypatch.setattr(reconcile, "protect_webhook", lambda *_: False)
    here = project.studio.project(7)
    other = here.model_copy(update={"id": 8})
    for seen in (other, here):
        ConnectedProject(project.service, seen.key).update(lambda record: None, adopting=True)
    project.studio.projects = lambda: iter([here, other])  # type: ignore[attr-defined]

    reconcile.reconcile(project.service)

    assert looked == [here.key, other.key]
    assert caplog.text.count("reconcile failed") == 2


def test_colours_are_no_neighbours(make_settings: Callable[..., Settings], redis_url: str) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    studio: Any = MemoryStudio(IMPLICIT, 1, lambda _: rgb)
    service = Service(make_settings(REDIS_URL=redis_url), studio=studio)
    images = ConnectedProject(service, KEY).images

    assert images.around(0, "/a.png", 0).shape == (6, 8, 3)
    np.testing.assert_allclose(
        images.around(0, "/a.png", 1), rgb @ np.array([0.299, 0.587, 0.114]), atol=1e-3
    )


def test_predictions_end_before_label_studio_stops_waiting(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project()
    project.label(range(K))
    project.run()
    serving = Serving(project.service)
    tasks = [{"id": i, "data": {"image": f"/{i}.png"}} for i in (5, 99, 7, 8)]
    clock = [0.0]
    monkeypatch.setattr("ml_backend.api.serving._seconds", lambda: clock[0])

    def slowly(mask: npt.NDArray[Any], config: LabelConfig) -> list[dict[str, Any]]:
        clock[0] += 79.0 if clock[0] == 0.0 else 2.0
        return regions(mask, config)

    monkeypatch.setattr("ml_backend.api.serving.regions", slowly)

    answers = serving.predict(KEY, tasks, IMPLICIT)

    assert [bool(answer) for answer in answers] == [True, False, True, False]
    assert answers[1] == answers[3] == []


def test_a_slice_that_takes_longer_than_label_studio_waits_is_left_out(
    make_project: MakeProject,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By its first tile, and from then on before it is begun, until it is tried again."""
    project = make_project(NEXTSLICE_MAX_TILE=64)  # two tiles a slice
    project.label(range(K))
    project.run()
    serving = Serving(project.service)
    clock, tile_s, tiles = [0.0], [50.0], [0]
    monkeypatch.setattr("ml_backend.api.serving._seconds", lambda: clock[0])
    forward = inference._Run._forward

    def slowly(run: Any, images: Any, valid: Any) -> Any:
        clock[0] += tile_s[0]
        tiles[0] += 1
        return forward(run, images, valid)

    monkeypatch.setattr(inference._Run, "_forward", slowly)

    def masks(*tasks: int) -> list[bool]:
        asked = [{"id": i, "data": {"image": f"/{i}.png"}} for i in tasks]
        return [bool(answer) for answer in serving.predict(KEY, asked, IMPLICIT)]

    assert (masks(5), tiles[0]) == ([False], 1)
    assert "task 5 is left out: the network takes some 100 s for its 64 x 80 pixels" in caplog.text
    assert (masks(7, 8), tiles[0], clock[0]) == ([False, False], 1, 50.0)
    clock[0] += 601
    tile_s[0] = 30.0
    assert (masks(5), tiles[0]) == ([True], 3)
    assert (masks(7, 8), tiles[0]) == ([True, False], 5)


def test_an_address_signed_with_another_secret_is_not_downloaded(
    make_settings: Callable[..., Settings], redis_url: str
) -> None:
    backend = make_settings(LABEL_STUDIO_API_KEY="the backend's token", REDIS_URL=redis_url)
    studio: Any = MemoryStudio(IMPLICIT, 1, lambda i: PHANTOM.image(PHANTOM.ids[i]))
    settings = make_settings(LABEL_STUDIO_API_KEY="the worker's", REDIS_URL=redis_url)
    worker = ConnectedProject(Service(settings, studio=studio), KEY)
    address = SliceAddress("scans/a.tif", "z", 0)

    ours = address.url(backend.slices_url, slice_keys(backend))
    with pytest.raises(StudioError, match="NEXTSLICE_SLICE_SECRET"):
        worker.images.image(0, ours)

    elsewhere = address.url("http://another.example", slice_keys(backend))
    assert worker.images.image(0, elsewhere).shape == (64, 80)
