"""The first rounds of a project: when they begin, and what they leave.

Rounds run whole, with a real network, store and Redis; only Label Studio stands in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from ml_backend.rounds import jobs, reconcile
from ml_backend.rounds import round as round_module
from ml_backend.rounds.artefacts import DATASET, EVIDENCE, QUEUE, ROUND
from ml_backend.rounds.early import is_early, next_round_at, same_order
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import (
    DatasetLabels,
    DatasetRecord,
    SelectionRecord,
    TaskRecord,
    TaskState,
)
from ml_backend.rounds.round import UnusableLabels
from ml_backend.rounds.schedule import GPU
from ml_backend.rounds.sync import new_labels
from ml_backend.segmentation.learner import NetworkLearner
from ml_backend.settings import Settings
from ml_backend.studio.failures import StudioError
from tests.test_recovery import IMPLICIT, KEY, STRANGE, MemoryProject, raising

K = 4
RESERVE = 2


@pytest.mark.parametrize(
    ("learned", "k", "early", "expected"),
    [
        (0, 8, (1, 2, 4), 1),
        (1, 8, (1, 2, 4), 2),
        (2, 8, (1, 2, 4), 4),
        (3, 8, (1, 2, 4), 4),
        (4, 8, (1, 2, 4), 8),
        (7, 8, (1, 2, 4), 8),
        (8, 8, (1, 2, 4), 16),
        (11, 8, (1, 2, 4), 19),
        (0, 8, (), 8),
        (3, 8, (), 11),
        (0, 2, (1,), 1),
        (1, 2, (1,), 2),
        (0, 3, (1, 2, 4), 1),
        (2, 3, (1, 2, 4), 3),
    ],
)
def test_rounds_begin_at_the_asked_numbers_and_then_at_every_k(
    learned: int, k: int, early: Sequence[int], expected: int
) -> None:
    assert next_round_at(learned, k, early) == expected


def test_a_round_is_early_below_k_labels_alone() -> None:
    assert [is_early(n, 4, (1, 2)) for n in range(6)] == [False, True, True, True, False, False]
    assert not is_early(1, 4, ())


def test_the_order_stays_without_what_was_labelled_and_skipped_slices_last() -> None:
    states: dict[int, TaskState] = {1: "labelled", 2: "pool", 3: "skipped", 4: "pool", 5: "drafted",
                                    6: "pool", 7: "pool"}  # fmt: skip
    dataset = DatasetRecord(
        round=1, classes=["background", "bone"], label_config="", fingerprint="", synced_at="",
        tasks=[TaskRecord(id=task, image="i", state=state) for task, state in states.items()],
    )  # fmt: skip
    before = SelectionRecord(
        strategy="strided", seed=3, chosen=[3, 1], reserve=[7, 8, 5], backlog=[2, 6, 4]
    )

    after = same_order(before, dataset, 2)

    assert (after.chosen, after.reserve, after.backlog) == ([7, 2], [6, 4, 3], [5])
    assert (after.strategy, after.seed) == ("strided", 3)


# -- as they run


@pytest.fixture
def project(
    make_settings: Callable[..., Settings], redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> MemoryProject:
    settings = make_settings(
        REDIS_URL=redis_url,
        NEXTSLICE_QUEUE_PREFIX="early",
        NEXTSLICE_EARLY_ROUNDS="1,2",
        NEXTSLICE_K=K,
        NEXTSLICE_RESERVE=RESERVE,
        NEXTSLICE_TRAIN_STEPS=2,
        NEXTSLICE_CROP=32,
        NEXTSLICE_PRETRAINED="false",
        NEXTSLICE_TRAIN_DEVICE="cpu",
    )
    project = MemoryProject(settings, IMPLICIT)
    monkeypatch.setattr(jobs, "_service", lambda: project.service)
    return project


def asked(project: MemoryProject) -> list[str]:
    """The gpu jobs that a look at the project asks for."""
    reconcile.count(project)
    names = [job.removeprefix("early-") for job in project.service.schedule.queue(GPU).job_ids]
    project.forget_jobs()
    return [name.partition("-7-")[0] for name in names]


def test_the_first_label_gives_masks_and_the_order_of_the_queue_stays(
    project: MemoryProject,
) -> None:
    order = project.selection(0)
    assert asked(project) == []
    first = order.chosen[0]

    project.label([first])
    assert asked(project) == ["round"]
    project.job()

    record, folder = project.folder.round(1).need(ROUND), project.folder.round(1)
    assert folder.need(DATASET).early
    assert (record.annotated, record.strategy) == (1, "strided")
    assert not folder.has(EVIDENCE), "nothing is scored"
    queue = folder.need(QUEUE)
    ranked = [*order.chosen, *order.reserve, *order.backlog]
    length = K + 2 * RESERVE
    assert [entry.task for entry in queue.entries] == ranked[1 : length + 1]
    assert [e.kind for e in queue.entries] == ["chosen"] * K + ["reserve"] * (length - K)
    drawn = project.stored()
    assert sorted(task for task, regions in drawn.items() if regions) == sorted(ranked[1 : K + 1])
    assert queue.pending == ranked[K + 1 : length + 1], "the others are handed out all the same"
    assert queue.unmasked == []


def test_the_masks_of_the_rest_follow_and_a_round_that_waits_goes_first(
    project: MemoryProject,
) -> None:
    order = project.selection(0)
    project.label(order.chosen[:1])
    project.job()
    project.forget_jobs()
    assert asked(project) == ["masks"]

    project.schedule.round("another one")
    jobs.masks(KEY)
    assert project.folder.round(1).need(QUEUE).pending, "the worker is left to the round"
    project.forget_jobs()
    lost = project.folder.round(1).need(QUEUE).pending[-1]
    project.studio.unreadable.add(lost)
    project.forget_images()
    jobs.masks(KEY)

    queue = project.folder.round(1).need(QUEUE)
    assert (queue.pending, queue.unmasked) == ([], [lost])
    drawn = project.stored()
    assert {task for task, regions in drawn.items() if not regions} == {lost}
    assert len(drawn) == len(queue.entries) == K + 2 * RESERVE
    assert asked(project) == []


def test_rounds_come_at_one_two_and_k_labels_and_the_last_is_a_whole_one(
    project: MemoryProject,
) -> None:
    begun: list[int] = []
    done: list[int] = []
    for labels in range(1, 2 * K + 1):
        chosen = project.selection(len(begun)).chosen
        done.append(next(task for task in chosen if task not in done))
        project.label(done[-1:])
        if "round" in asked(project):
            project.job()
            project.forget_jobs()
            begun.append(labels)

    assert begun == [1, 2, K, 2 * K]
    early = [project.dataset(number).early for number in range(1, 5)]
    assert early == [True, True, False, False]
    assert project.folder.round(3).has(EVIDENCE)
    assert project.selection(3).strategy == project.settings.strategy
    assert project.folder.round(3).need(QUEUE).pending == []


def test_a_short_round_that_k_labels_overtake_is_left_for_the_whole_one(
    project: MemoryProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(round_module, "_LOOK_S", 0.0)
    first, *others = project.selection(0).chosen
    counted: list[int] = []

    def label_meanwhile(connected: ConnectedProject, dataset: DatasetLabels) -> int:
        counted.append(len(dataset.labels))
        if others:
            project.label([others.pop()])
        return new_labels(connected, dataset)

    monkeypatch.setattr(round_module, "new_labels", label_meanwhile)
    project.label([first])
    project.job()
    assert counted == [], "somebody waits for a first mask"
    assert project.dataset(1).early

    project.label([others.pop()])
    project.job()

    assert counted[0] == 2
    assert len(counted) == K - 2
    record, dataset = project.folder.round(2).need(ROUND), project.dataset(2)
    assert (record.annotated, dataset.early) == (K, False)
    assert project.folder.round(2).has(EVIDENCE)
    assert not project.folder.round(3).has(DATASET)


def test_who_cannot_count_labels_goes_on_with_the_short_round(
    project: MemoryProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise StudioError("GET /api/tasks: refused")

    monkeypatch.setattr(round_module, "_LOOK_S", 0.0)
    monkeypatch.setattr(round_module, "new_labels", refused)
    chosen = project.selection(0).chosen
    for task in chosen[:2]:
        project.label([task])
        project.job()

    assert project.dataset(2).early
    assert project.folder.round(2).need(ROUND).annotated == 2


def test_who_asks_for_a_training_gets_a_whole_one(project: MemoryProject) -> None:
    project.label(project.selection(0).chosen[:1])
    project.request_start()
    project.job()

    assert not project.dataset(1).early
    assert project.folder.round(1).has(EVIDENCE)


def test_who_asks_for_a_training_before_there_is_a_label_gets_it_with_the_first(
    project: MemoryProject,
) -> None:
    project.request_start()
    reconcile.count(project)
    assert "round" not in asked(project)
    assert project.record.start_requested_at is not None

    project.label(project.selection(0).chosen[:1])
    project.job()

    assert not project.dataset(1).early
    assert project.record.start_requested_at is None


@pytest.mark.parametrize("fails", [False, True], ids=["before the round", "after an attempt"])
def test_who_asks_for_a_training_gets_it_also_where_the_only_label_goes_away(
    project: MemoryProject, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    first = project.selection(0).chosen[0]
    project.label([first])
    project.request_start()
    assert asked(project) == ["round"]
    if fails:
        with monkeypatch.context() as patch:
            patch.setattr(NetworkLearner, "fit", raising(OSError("the images are out of reach")))
            with pytest.raises(OSError, match="out of reach"):
                project.job()
    project.studio.delete_annotations([first])
    project.job()
    assert not project.folder.round(1).has(DATASET)
    assert project.record.start_requested_at is not None
    assert asked(project) == []

    project.label([first])
    assert asked(project) == ["round"]
    project.job()
    assert project.published.round == 1
    assert not project.dataset(1).early
    assert project.record.start_requested_at is None


@pytest.mark.parametrize("usable", [True, False], ids=["image out of reach", "label unusable"])
def test_who_asks_for_a_training_gets_a_whole_one_also_where_it_fails_at_first(
    project: MemoryProject, monkeypatch: pytest.MonkeyPatch, usable: bool
) -> None:
    first = project.selection(0).chosen[0]
    if usable:
        project.label([first])
    else:
        project.studio.submit(first, STRANGE[0][0])
    project.request_start()
    with monkeypatch.context() as patch:
        patch.setattr(NetworkLearner, "fit", raising(OSError("the images are out of reach")))
        with pytest.raises(OSError if usable else UnusableLabels):
            project.job()
    assert project.record.start_requested_at is None

    project.label([first])
    project.job()

    assert project.published.round == 1
    assert not project.dataset(1).early
    assert project.folder.round(1).has(EVIDENCE)
    assert asked(project) == []


def test_a_short_round_that_goes_on_is_not_the_one_that_was_asked_for(
    project: MemoryProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.label(project.selection(0).chosen[:1])
    with monkeypatch.context() as patch:
        patch.setattr(round_module, "queue_of", raising(ValueError("of the queue")))
        with pytest.raises(ValueError, match="of the queue"):
            project.job()
    project.request_start()
    project.job()
    assert project.dataset(1).early
    assert asked(project) == ["round"]
    project.job()

    assert not project.dataset(2).early
    assert project.folder.round(2).has(EVIDENCE)
    assert "round" not in asked(project)
