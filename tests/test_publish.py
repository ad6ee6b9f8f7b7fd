"""The queue as it is stored: what somebody deletes of it stands again.

On a real Redis and store; on a real Label Studio: tests/integration/test_queue.py.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ml_backend.cli.rounds_list import rounds_table
from ml_backend.cli.tables import whole
from ml_backend.rounds import filling, jobs, publish, queue, reconcile, switching, tidying
from ml_backend.rounds.artefacts import DATASET, FURTHER, FURTHER_WEIGHTS, PUBLISHED, QUEUE, ROUND
from ml_backend.rounds.project import ConnectedProject, TakenOff
from ml_backend.rounds.records import (
    FurtherRecord,
    LabelRecord,
    Published,
    QueueEntry,
    QueueRecord,
)
from ml_backend.rounds.schedule import LOCKS
from ml_backend.rounds.service import Service
from ml_backend.settings import Settings
from ml_backend.studio import task_order
from ml_backend.studio.client import Backend, Project
from ml_backend.studio.label_config import bitmask_config
from ml_backend.studio.task_order import LIVE_SCORE
from tests.memory_studio import MemoryStudio

KEY = "7.1763865028"
SLICES = 24
K, RESERVE = 3, 2
OTHERS = {"task": 3, "model_version": "sam", "score": 0.4, "result": []}


class Queue(ConnectedProject):
    """A project whose round 0 is published, beside a prediction of another program."""

    def __init__(self, settings: Settings, *, backend: bool) -> None:
        studio = MemoryStudio(bitmask_config(["bone"]), SLICES, lambda _: np.zeros((8, 9)))
        if backend:
            studio.backend = Backend(id=1, url=settings.backend_url, title="nextslice")
        super().__init__(Service(settings, studio=studio), KEY)
        self.update(lambda record: None, adopting=True)
        reconcile.count(self)
        studio.imported.append(OTHERS)

    @property
    def version(self) -> str:
        assert self.published is not None
        return self.published.model_version

    @property
    def entries(self) -> list[QueueEntry]:
        return self.folder.round(0).need(QUEUE).entries

    def stored(self) -> dict[int, list[float]]:
        """Task → scores of the stored predictions of the published version."""
        found: dict[int, list[float]] = {}
        for row in self.studio.imported:
            if row["model_version"] == self.version:
                found.setdefault(row["task"], []).append(row["score"])
        return found

    def handed_out(self) -> list[int]:
        """The order in which Label Studio hands out what nobody has annotated."""
        rows = {row.id: row for row in self.studio.tasks(self.number)}
        scores = {t: min(s) for t, s in self.stored().items() if not rows[t].total_annotations}
        return sorted(scores, key=lambda task: scores[task])

    def delete_predictions(self, tasks: set[int]) -> None:
        """As *Delete predictions* in the Data Manager does for the tasks that are selected."""
        self.studio.imported[:] = [
            row
            for row in self.studio.imported
            if row["task"] not in tasks or row["model_version"] != self.version
        ]

    def open_live(self, task: int) -> None:
        """Somebody opens a task that has no prediction: one is made, and stored."""
        self.studio.import_predictions(
            self.number,
            [{"task": task, "model_version": self.version, "score": LIVE_SCORE, "result": []}],
        )

    def look(self) -> None:
        """What reconcile does at a project every half minute."""
        switching.repair(self, self.in_studio())
        reconcile.count(self)


@pytest.fixture(params=[True, False], ids=["with a backend", "without a backend"])
def project(
    request: pytest.FixtureRequest, make_settings: Callable[..., Settings], redis_url: str
) -> Queue:
    settings = make_settings(
        REDIS_URL=redis_url,
        NEXTSLICE_QUEUE_PREFIX="publish",
        NEXTSLICE_K=K,
        NEXTSLICE_RESERVE=RESERVE,
    )
    return Queue(settings, backend=request.param)


def test_a_queue_that_was_deleted_stands_again_within_two_looks(project: Queue) -> None:
    before, version = project.handed_out(), project.version
    entries = project.entries
    assert [e.task for e in entries] == before
    assert [e.kind for e in entries][:K] == ["chosen"] * K
    # All of them; Label Studio then forgets the project's version, and somebody opens two slices.
    project.delete_predictions(set(before))
    project.studio.fields["model_version"] = None
    project.open_live(before[1])
    project.open_live(20)

    for _ in range(2):
        project.look()

    assert project.handed_out() == [*before, 20]
    assert project.entries == entries
    assert {e.task: e.score for e in entries} == {t: min(project.stored()[t]) for t in before}
    assert project.in_studio().model_version == version
    assert [row for row in project.studio.imported if row["model_version"] == "sam"] == [OTHERS]
    stored = project.stored()
    project.look()
    assert project.stored() == stored, "a third look stores nothing more"


def test_what_was_deleted_of_a_long_queue_is_put_in_its_places(project: Queue) -> None:
    """As many live predictions as keep the queue's length leave the order to be repaired."""
    before = project.handed_out()
    project.delete_predictions(set(before[:K]))
    for task in [t for t in range(SLICES) if t not in before][: K + 1]:
        project.open_live(task)

    project.look()

    assert project.handed_out()[: len(before)] == before
    assert [len(scores) for scores in project.stored().values()] == [1] * (len(before) + K + 1)


def test_slices_that_somebody_annotated_are_not_put_back(project: Queue) -> None:
    before = project.handed_out()
    project.studio.submit(before[0], [])
    project.delete_predictions(set(before[:2]))

    project.look()

    assert before[0] not in project.stored()
    assert project.handed_out()[0] == before[1]


def test_a_slice_that_was_opened_live_is_topped_up_to_its_place(project: Queue) -> None:
    before = project.handed_out()
    for task in before[:K]:
        project.studio.submit(task, [])
    waiting = next(row.id for row in project.studio.tasks(project.number) if row.id not in before)
    project.open_live(waiting)
    for task in before[K:]:
        project.studio.submit(task, [])

    filling.top_up(project)

    scores = {entry.task: entry.score for entry in project.entries}
    assert min(project.stored()[waiting]) == scores[waiting] < LIVE_SCORE


@pytest.mark.parametrize(
    ("seconds", "sizes"), [(0.1, [4, 8, 16, 32, 40]), (30, [4] * 25)], ids=["quick", "slow"]
)
def test_a_queue_is_filled_in_large_chunks_where_that_is_quick(
    monkeypatch: pytest.MonkeyPatch, seconds: float, sizes: list[int]
) -> None:
    """Of 100 slices that are missing; a chunk is predicted in one request, and stored in a few."""
    clock = itertools.count(0, seconds)
    monkeypatch.setattr(filling.time, "monotonic", lambda: next(clock))
    assert [len(chunk) for chunk in filling._chunks(range(100), math.inf)] == sizes


def test_a_top_up_ends_before_its_lock_is_void(
    project: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where each request takes minutes; the next look goes on."""
    before, clock, store = project.handed_out(), [0.0], filling._store
    project.delete_predictions(set(before))

    def slow(*arguments: Any, **options: Any) -> int:
        clock[0] += 250.0
        return store(*arguments, **options)

    monkeypatch.setattr(filling, "_PREDICT_CHUNK", 1)
    monkeypatch.setattr(filling, "_store", slow)
    monkeypatch.setattr(filling.time, "monotonic", lambda: clock[0])

    assert filling.top_up(project) < len(before)
    assert clock[0] < LOCKS["top-up"]
    while filling.top_up(project):
        pass
    assert project.handed_out() == before


def test_top_ups_that_overlap_keep_what_each_has_noted(
    project: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock of one that lost Redis for half a minute is void, and another one begins."""
    folder, theirs = project.folder.round(0), QueueEntry(task=99, score=0.5, kind="top-up")
    real = filling._append

    def append(*arguments: Any, **options: Any) -> int:
        there = folder.need(QUEUE)
        if theirs not in there.entries:
            folder.save(QUEUE, there.model_copy(update={"entries": [*there.entries, theirs]}))
        return real(*arguments, **options)

    monkeypatch.setattr(filling, "_append", append)
    for task in project.handed_out()[:-1]:
        project.studio.submit(task, [])

    before = len(project.entries)
    appended = filling.top_up(project)

    noted = [entry.task for entry in project.entries]
    assert appended > 0
    assert theirs.task in noted
    assert len(noted) == len(set(noted)) > before + 1


def test_a_top_up_stores_nothing_of_a_version_that_is_no_longer_served(
    project: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, lost = project.version, filling._lost
    project.delete_predictions(set(project.handed_out()))

    def meanwhile(*arguments: Any) -> Any:
        serve_another(project, datetime.now(UTC))
        return lost(*arguments)

    monkeypatch.setattr(filling, "_lost", meanwhile)

    assert filling.top_up(project) == 0
    assert stored_of(project, old) == set()


def test_what_was_published_while_a_round_predicted_is_served(project: Queue) -> None:
    before, first = project.published, project.folder.round(0).need(ROUND)
    assert before is not None
    record = first.model_copy(update={"round": 1, "model_version": "nextslice-r001-abcdef"})
    other = before.model_copy(update={"model_version": "nextslice-r000-fedcba"})
    place = QueueEntry(task=5, score=0.5, kind="chosen")
    queued = QueueRecord(model_version=record.model_version, entries=[place])

    def predict(tasks: list[int]) -> list[tuple[int, list[Any]]]:
        project.folder.published = other
        return [(task, []) for task in tasks]

    found = publish.publish(project, project.folder.round(1), record, queued, before, predict)

    assert found == other == project.folder.published
    assert project.studio.project(project.number).model_version == before.model_version


# -- a project that is taken off


def take_off(project: Queue) -> Callable[..., None]:
    """Moves the project's folder out of the store, as docs/setup.md says it."""
    folder = Path(project.settings.store, project.folder.path)

    def move(*_: Any) -> None:
        folder.rename(folder.parent.with_name("taken-off"))

    return move


def test_classes_that_change_while_it_is_taken_off_retire_nothing(
    project: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.studio.fields["label_config"] = bitmask_config(["bone", "implant"])
    there, fields = list(project.studio.imported), dict(project.studio.fields)
    monkeypatch.setattr(reconcile, "explain_change", take_off(project))
    monkeypatch.setattr(jobs, "_project", lambda key: project)

    jobs.count(KEY)

    assert not project.service.store.exists(project.folder.path)
    assert (project.studio.imported, project.studio.fields) == (there, fields)


def test_a_look_during_which_it_is_taken_off_ends_in_a_word(
    project: Queue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What the look reads next is not there: not the step that writes it, the project is gone."""
    off, seen = take_off(project), project.in_studio()

    def in_studio() -> Project:
        off()
        return seen

    monkeypatch.setattr(project, "in_studio", in_studio)
    monkeypatch.setattr(jobs, "_project", lambda key: project)
    with caplog.at_level(logging.INFO):
        jobs.count(KEY)
    assert "it was taken off meanwhile" in caplog.text
    assert not project.service.store.exists(project.folder.path)


@pytest.mark.parametrize("switched", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_what_is_taken_off_before_its_switch_is_noted_stays_off(
    project: Queue, monkeypatch: pytest.MonkeyPatch, switched: bool, first: bool
) -> None:
    folder, fields = project.folder.round(0), dict(project.studio.fields)
    record, before = folder.need(ROUND), project.published
    if first:
        project.folder.remove(PUBLISHED)
        before = None
    if switched:
        monkeypatch.setattr(task_order, "switch", take_off(project))
    else:
        take_off(project)()

    with pytest.raises(TakenOff, match="nextslice connect"):
        switching.serve(project, record, before, None)

    assert not project.service.store.exists(project.folder.path)
    assert project.studio.fields == fields


# -- a store that has lost queue.json


def lose_the_record(project: Queue, *, damaged: bool = False) -> None:
    folder = project.folder.round(0)
    if damaged:
        folder.write(QUEUE, b"{half of")
    else:
        folder.remove(QUEUE)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_queue_whose_record_is_lost_is_known_again_within_two_looks(
    project: Queue, damaged: bool
) -> None:
    entries, order, stored = project.entries, project.handed_out(), project.stored()
    project.open_live(20)
    lose_the_record(project, damaged=damaged)

    for _ in range(2):
        project.look()

    assert project.entries == entries
    assert project.handed_out() == [*order, 20]
    assert project.stored() == stored | {20: [LIVE_SCORE]}, "nothing is stored twice"


def test_what_else_reads_a_damaged_record_goes_on_without_it(project: Queue) -> None:
    """A look makes it again for the published round alone; not before, and for no older one."""
    before, folder = project.published, project.folder.round(0)
    version, queue = project.version, folder.need(QUEUE)
    lose_the_record(project, damaged=True)

    assert tidying.tidy(project) == 0
    assert version in whole(rounds_table(project.folder))
    trained = folder.need(ROUND).model_copy(update={"weights": "round-0000/weights.safetensors"})
    publish.publish(project, folder, trained, queue, before, lambda _: [])

    assert folder.need(QUEUE) == queue


def test_what_is_appended_after_tasks_were_deleted_stands_behind_what_was_selected(
    project: Queue,
) -> None:
    entries, order = project.entries, project.handed_out()
    lose_the_record(project)
    for task in order[:4]:
        project.studio.delete_task(task)

    for _ in range(2):
        project.look()

    appended = [entry for entry in project.entries if entry.kind == "top-up"]
    assert len(appended) >= 4
    assert min(entry.score for entry in appended) > entries[-1].score
    assert [entry.task for entry in project.entries][: len(order) - 4] == order[4:]


def test_it_is_topped_up_again(project: Queue) -> None:
    order = project.handed_out()
    lose_the_record(project)
    for task in order[:-1]:
        project.studio.submit(task, [])

    for _ in range(2):
        project.look()

    assert project.handed_out()[0] == order[-1]
    assert len(project.handed_out()) >= queue.queue_target(project.settings)
    assert [e.kind for e in project.entries][: len(order)] == ["chosen"] * K + ["reserve"] * (
        len(order) - K
    )


def test_predictions_that_are_gone_as_well_stand_where_they_were_selected(project: Queue) -> None:
    order = project.handed_out()
    lose_the_record(project)
    project.delete_predictions({order[0], order[3], order[4]})

    for _ in range(2):
        project.look()

    assert project.handed_out() == order
    assert [e.task for e in project.entries] == order


def test_a_record_and_all_predictions_that_are_gone_come_back_as_they_were(project: Queue) -> None:
    entries = project.entries
    lose_the_record(project)
    project.delete_predictions({entry.task for entry in entries})

    for _ in range(2):
        project.look()

    assert project.entries == entries
    assert {t: min(s) for t, s in project.stored().items()} == {e.task: e.score for e in entries}


def test_classes_that_change_after_it_was_lost_keep_the_order(project: Queue) -> None:
    order = project.handed_out()
    lose_the_record(project)
    project.studio.fields["label_config"] = bitmask_config(["bone", "implant"])

    project.look()

    assert project.published is not None
    assert project.published.retired
    assert project.handed_out() == order


# -- predictions of versions that are no longer served


def test_predictions_stay_until_what_they_cost_to_correct_is_measured(project: Queue) -> None:
    old, order = project.version, project.handed_out()
    measured, late, begun = order[:3]
    for task in (measured, late):
        project.studio.submit(task, [])
    project.studio.drafted = {begun}
    dataset = project.folder.round(0).need(DATASET)
    label = LabelRecord(task=measured, annotation=1000 * measured, updated_at="", hash="", mask="")
    committed = project.folder.round(0).need(ROUND)
    project.folder.round(1).save(DATASET, dataset.model_copy(update={"labels": [label]}))
    now_there = Published(
        round=1,
        model_version="nextslice-r001-abcdef",
        classes=committed.classes,
        fingerprint=committed.fingerprint,
    )
    project.folder.published = now_there

    tidying.tidy(project)

    left = {row["task"] for row in project.studio.imported if row["model_version"] == old}
    assert left == {late, begun}
    assert OTHERS in project.studio.imported


def test_a_draft_keeps_its_prediction_where_somebody_else_has_submitted(project: Queue) -> None:
    """With two annotations a slice, the next person's is begun beside the first one's."""
    old = project.version
    task = project.handed_out()[0]
    project.studio.submit(task, [])
    project.studio.drafted = {task}
    label = LabelRecord(task=task, annotation=1000 * task, updated_at="", hash="", mask="")
    serve_another(project, datetime.now(UTC) - timedelta(minutes=31), labels=[label])

    tidying.tidy(project)

    assert stored_of(project, old) == {task}


def serve_another(
    project: Queue,
    switched: datetime,
    *,
    committed: datetime | None = None,
    number: int = 1,
    labels: Sequence[LabelRecord] = (),
) -> None:
    """Round ``number`` is published, ``switched`` to then; ``committed`` then, or a second before
    the switch."""
    dataset, first = (project.folder.round(0).need(name) for name in (DATASET, ROUND))
    said = {"round": number, "model_version": f"nextslice-r{number:03}-abcdef"}
    moment = committed or switched - timedelta(seconds=1)
    folder = project.folder.round(number)
    folder.save(DATASET, dataset.model_copy(update={"labels": [*labels]}))
    folder.save(ROUND, first.model_copy(update={**said, "committed_at": moment.isoformat()}))
    project.folder.published = Published(
        **said,
        classes=first.classes,
        fingerprint=first.fingerprint,
        published_at=switched.isoformat(),
    )


def stored_of(project: Queue, version: str) -> set[int]:
    """The tasks with a stored prediction of ``version``."""
    return {row["task"] for row in project.studio.imported if row["model_version"] == version}


def store(project: Queue, version: str) -> None:
    rows = [{"task": 5, "model_version": version, "score": 0.5, "result": []}]
    project.studio.import_predictions(project.number, rows)


@pytest.mark.parametrize(("minutes", "stays"), [(1, True), (29, True), (31, False)])
def test_masks_of_slices_that_may_be_open_stay_half_an_hour(
    project: Queue, minutes: int, stays: bool
) -> None:
    """Label Studio refuses an annotation whose prediction is gone: what a person has drawn on."""
    project.settings = project.settings.model_copy(update={"open_minutes": 30.0})
    old, queue = project.version, len(project.stored())
    serve_another(project, datetime.now(UTC) - timedelta(minutes=minutes))

    tidying.tidy(project)

    left = [row for row in project.studio.imported if row["model_version"] == old]
    assert len(left) == (queue if stays else 0)


def test_masks_of_rounds_that_follow_fast_are_removed_later(
    project: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.settings = project.settings.model_copy(update={"open_minutes": 30.0})
    moment, first = datetime.now(UTC), project.version
    clock = SimpleNamespace(time=lambda: moment.timestamp())
    monkeypatch.setattr(tidying, "time", clock)
    for number in range(1, 34):
        serve_another(project, moment, number=number)
        store(project, project.version)
        tidying.tidy(project)
        moment += timedelta(minutes=1) if number < 30 else timedelta(days=1)
        if number == 25:
            assert stored_of(project, first), "it may be open"

    tidying.tidy(project)

    left = {row["model_version"] for row in project.studio.imported}
    assert left == {project.version, "sam", "deleted"}
    assert project.record.untidied == 33


def test_the_half_hour_begins_with_the_switch_however_long_that_took(project: Queue) -> None:
    """Masks of a large queue, or an outage, may lie between a round's commit and its switch."""
    project.settings = project.settings.model_copy(update={"open_minutes": 30.0})
    now = datetime.now(UTC)
    first, unadopted = project.version, task_order.PENDING_VERSION
    store(project, unadopted)
    at_first = project.folder.round(0).need(ROUND)
    long_ago = (now - timedelta(hours=5)).isoformat()
    project.folder.round(0).save(ROUND, at_first.model_copy(update={"committed_at": long_ago}))
    tidying.tidy(project)
    assert stored_of(project, unadopted), "round 0 was published in this moment"

    serve_another(project, now, committed=now - timedelta(minutes=40))
    tidying.tidy(project)
    assert len(stored_of(project, first)) == queue.queue_target(project.settings)

    further = "nextslice-r001-fedcba"  # the training that went on after round 1 was served last
    project.folder.round(1).save(FURTHER, FurtherRecord(model_version=further))
    store(project, further)
    serve_another(project, now, committed=now - timedelta(minutes=40), number=2)
    tidying.tidy(project)
    assert stored_of(project, further)
    assert not stored_of(project, first), "round 1 was served before round 2 was committed"

    assert not stored_of(project, unadopted)

    for minutes, stays in ((29, True), (31, False)):
        serve_another(project, now, committed=now - timedelta(minutes=minutes), number=3)
        tidying.tidy(project)
        assert bool(stored_of(project, further)) is stays


# -- a version that was on for a moment, and never published


def end_before_it_is_published(project: Queue, monkeypatch: pytest.MonkeyPatch) -> str:
    """Switch to a version of its own, and be killed before `published.json`; the version."""

    def killed(*_: object) -> Published:
        raise KeyboardInterrupt

    before, folder = project.published, project.folder.round(0)
    assert before is not None
    version = "nextslice-r000-fedcba"
    folder.save(FURTHER, FurtherRecord(model_version=version))
    with monkeypatch.context() as patch:
        patch.setattr(switching, "_published", killed)
        with pytest.raises(KeyboardInterrupt):
            publish.republish(
                project, before, folder.relative(FURTHER_WEIGHTS), version, lambda _: []
            )
    assert project.in_studio().model_version == version
    assert project.version != version
    return version


@pytest.mark.parametrize("first", ["the look", "the tidy-up"])
def test_masks_of_a_switch_that_did_not_end_stay_while_they_may_be_open(
    project: Queue, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Label Studio refuses an annotation whose prediction is gone, and for half a minute it was the
    version that people were given."""
    project.settings = project.settings.model_copy(update={"open_minutes": 30.0})
    moment = datetime.now(UTC) + timedelta(hours=2)  # round 0 was published long ago
    clock = SimpleNamespace(time=lambda: moment.timestamp(), monotonic=time.monotonic)
    for module in (tidying, filling):
        monkeypatch.setattr(module, "time", clock)
    order = project.handed_out()
    version = end_before_it_is_published(project, monkeypatch)
    if first == "the tidy-up":
        tidying.tidy(project)
        assert stored_of(project, version) == {*order}

    for _ in range(2):
        project.look()
    tidying.tidy(project)

    assert project.in_studio().model_version == project.version
    assert project.handed_out() == order
    assert stored_of(project, version) == {*order}

    moment += timedelta(minutes=31)
    tidying.tidy(project)
    assert not stored_of(project, version)
    assert stored_of(project, project.version) == {*order}


def test_a_version_that_is_served_at_the_second_try_is_no_longer_withdrawn(
    project: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = end_before_it_is_published(project, monkeypatch)
    for _ in range(2):
        project.look()
    folder, before = project.folder.round(0), project.published
    assert [*folder.need(QUEUE).withdrawn] == [version]
    assert before is not None

    weights = folder.relative(FURTHER_WEIGHTS)
    assert publish.republish(project, before, weights, version, lambda _: [])

    assert project.version == version
    assert folder.need(QUEUE).withdrawn == {}
