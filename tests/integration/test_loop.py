"""Rounds on a real Label Studio: one training a storm, the labels that were drawn, nothing lost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ml_backend.embedded.label_studio import Session
from ml_backend.embedded.processes import ProcessGroup, kill_tree, wait_until
from ml_backend.embedded.stack import Stack, settings_from, start_worker
from ml_backend.rounds.artefacts import DATASET, QUEUE, ROUND, WEIGHTS
from ml_backend.rounds.queue import pending
from ml_backend.rounds.service import Service
from ml_backend.rounds.source import ProjectSource
from ml_backend.studio import client
from ml_backend.studio.client import StudioError, annotated, ids_in, not_annotated
from ml_backend.studio.label_config import brush_config
from ml_backend.studio.projects import register_backend
from ml_backend.studio.task_order import BackendLink
from tests.integration.conftest import (
    CLASSES,
    RESERVE,
    K,
    LiveProject,
    another_service,
    disc,
    invite,
)

pytestmark = pytest.mark.integration

MakeProject = Callable[..., LiveProject]


def test_the_labels_of_a_round_are_what_was_drawn(after_a_round: LiveProject) -> None:
    project = after_a_round
    dataset = project.folder.round(1).need(DATASET)
    source = ProjectSource(dataset, project.folder, project.images)
    assert len(dataset.labels) == K
    for label in dataset.labels:
        z = int(source.position(label.task).z)
        np.testing.assert_array_equal(source.mask(label.task), disc(z)[1])
        np.testing.assert_array_equal(source.image(label.task), disc(z)[0])


def test_brush_labels_work_the_same(make_project: MakeProject) -> None:
    project = make_project(12, config=brush_config(CLASSES))
    project.label_round()
    published = project.wait_for_round(1)

    dataset = project.folder.round(1).need(DATASET)
    source = ProjectSource(dataset, project.folder, project.images)
    for label in dataset.labels:
        z = int(source.position(label.task).z)
        np.testing.assert_array_equal(source.mask(label.task), disc(z)[1])
    first = project.annotator().open(project.selection().chosen[0])
    (prediction,) = [
        p for p in first["predictions"] if p["model_version"] == published.model_version
    ]
    assert {r["type"] for r in prediction["result"]} <= {"brushlabels"}


def test_a_storm_of_submissions_makes_one_training(
    make_project: MakeProject, session: Session
) -> None:
    project = make_project(30)
    people = invite(session, [f"s{i}" for i in range(4)])
    annotators = [project.annotator(person) for person in people]
    tasks = [annotator.next_task() for annotator in annotators]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda pair: pair[0].submit(pair[1]), zip(annotators, tasks, strict=True)))
    published = project.wait_for_round(1)
    time.sleep(2 * project.service.settings.reconcile_s)

    assert project.published == published, "a second training followed"
    dataset = project.folder.round(1).need(DATASET)
    assert 3 <= len(dataset.labels) <= 4


def test_a_changed_and_a_deleted_annotation_are_in_the_next_round(
    make_project: MakeProject,
) -> None:
    project = make_project()
    tasks = project.label_round()
    project.wait_for_round(1)
    before = {x.task: x for x in project.folder.round(1).need(DATASET).labels}

    deleted, changed, kept = tasks
    studio = project.service.studio
    studio.sdk.annotations.delete(id=before[deleted].annotation)
    studio.sdk.annotations.update(id=before[changed].annotation, result=[])
    project.label_round()
    project.wait_for_round(2)

    dataset = project.folder.round(2).need(DATASET)
    after = {label.task: label for label in dataset.labels}
    assert deleted not in after
    assert {t.id: t.state for t in dataset.tasks}[deleted] == "pool"
    assert after[kept] == before[kept]
    assert after[changed].hash != before[changed].hash
    source = ProjectSource(dataset, project.folder, project.images)
    assert not source.mask(changed).any(), "submitted empty: all background"


def test_a_task_that_is_deleted_while_pages_are_read_hides_no_other(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project(9, connect=False)
    studio = project.service.studio
    there = [row.id for row in studio.tasks(project.number)]
    assert len(there) == 9
    monkeypatch.setattr(client, "TASK_PAGE", 3)

    seen = []
    for row in studio.tasks(project.number, [not_annotated(), ids_in(there)]):
        seen.append(row.id)
        if len(seen) == 2:
            studio.request("DELETE", f"api/tasks/{there[0]}/")

    assert seen == there


def test_start_training_does_not_wait_for_k(make_project: MakeProject, stack: Stack) -> None:
    project = make_project(12)
    project.annotator().label_next()
    backend = project.service.studio.find_backend(project.number, stack.backend_url)
    assert backend is not None

    answer = project.session.call("POST", f"/api/ml/{backend.id}/train", json={})

    assert answer.status_code == 200
    assert project.wait_for_round(1).round == 1
    record = project.folder.round(1).need(ROUND)
    assert record.annotated == 1
    assert record.reason == "start training"


def test_a_killed_worker_leaves_the_old_round_and_the_next_goes_on(
    make_project: MakeProject, stack: Stack, group: ProcessGroup
) -> None:
    project = make_project(16)
    slow = {**stack.env, "NEXTSLICE_TRAIN_STEPS": "100000", "NEXTSLICE_QUEUE_PREFIX": "killed"}
    victim_service = Service(settings_from(slow))
    for _ in range(K - 1):
        project.annotator().label_next()
    worker = start_worker(group, "gpu", slow)
    group.forget(worker)
    victim_service.schedule.of(project.key).round("to be killed")
    folder = project.folder.round(1)
    try:
        wait_until(
            lambda: getattr(victim_service.schedule.of(project.key).round_progress(), "step", None)
            == "train",
            "the training to begin", 400,
        )  # fmt: skip
    finally:
        kill_tree(worker)
    assert folder.has(DATASET)
    assert not folder.has(WEIGHTS)
    assert project.published.round == 0
    dataset = folder.read(DATASET)

    project.annotator().label_next()
    published = project.wait_for_round(1)

    assert published.round == 1
    assert folder.read(DATASET) == dataset, "it went on from the finished sync"


def test_basic_auth_reaches_everything(
    make_project: MakeProject, stack: Stack, group: ProcessGroup
) -> None:
    login = {"BASIC_AUTH_USER": "labelstudio", "BASIC_AUTH_PASS": "s3cret"}
    with another_service(stack, group, "guarded", **login) as (service, url):
        project = make_project(12, connect=False).seen_by(service)
        with pytest.raises(StudioError, match="authentication parameters"):
            register_backend(service.studio, project.number, BackendLink(url))
        register_backend(
            service.studio, project.number, BackendLink(url, ("labelstudio", "s3cret"))
        )
        project.wait_for_round(0)
        wait_until(
            lambda: bool(
                project.session.call("GET", f"/api/webhooks/?project={project.number}").json()[0][
                    "headers"
                ]
            ),
            "the webhook's secret", 120,
        )  # fmt: skip
        project.label_round()
        published = project.wait_for_round(1)
        backend = service.studio.find_backend(project.number, url)
        assert backend is not None
        assert backend.title == published.model_version
        task = project.annotator().open(project.selection().chosen[0])
        assert [p["model_version"] for p in task["predictions"]].count(published.model_version) == 1


def test_pseudo_labels_train_the_next_round_and_label_studio_never_sees_them(
    make_project: MakeProject, stack: Stack, group: ProcessGroup
) -> None:
    ceal = {"NEXTSLICE_STRATEGY": "ceal_confident"}
    with another_service(stack, group, "ceal", **ceal) as (service, url):
        project = make_project(16, connect=False).seen_by(service)
        register_backend(service.studio, project.number, BackendLink(url))
        project.wait_for_round(0)
        labelled = project.label_round()
        project.wait_for_round(1)
        wanted = project.selection().pseudo
        labelled += project.label_round()
        project.wait_for_round(2)

        folder = project.folder.round(2)
        record = folder.need(ROUND)
        assert record.pseudo, "the network of round 1 labelled slices for round 2"
        assert set(record.pseudo) <= set(wanted) - set(labelled)
        assert record.annotated == len(labelled) == 2 * K
        dataset = folder.need(DATASET)
        assert {label.task for label in dataset.labels} == set(labelled)
        seen = service.studio.tasks(project.number, [annotated()])
        assert sorted(task.id for task in seen) == sorted(labelled)
        # Round 3 comes after K more labels of people, not sooner: pseudo-labels do not count.
        wait_until(lambda: project.schedule.round_progress() is None, "the job to end", 240)
        assert project.published.round == 2


def test_after_the_first_label_the_queue_gets_its_masks_in_place(
    make_project: MakeProject, stack: Stack, group: ProcessGroup
) -> None:
    early = {"NEXTSLICE_EARLY_ROUNDS": "1", "NEXTSLICE_TRAIN_STEPS": "30"}
    with another_service(stack, group, "early", **early) as (service, url):
        project = make_project(24, connect=False).seen_by(service)
        register_backend(service.studio, project.number, BackendLink(url))
        project.wait_for_round(0)
        order = project.selection()
        project.annotator().label_next()
        published = project.wait_for_round(1)
        wait_until(lambda: not pending(project, published), "the masks of the rest", 240)

        queue = project.folder.round(1).need(QUEUE)
        ranked = [*order.chosen, *order.reserve, *order.backlog]
        assert [e.task for e in queue.entries] == ranked[1 : K + 2 * RESERVE + 1]
        stored = {
            task["id"]: [
                (round(found["score"], 6), bool(found["result"]))
                for found in task["predictions"]
                if found["model_version"] == published.model_version
            ]
            for task in service.studio.full_tasks_by_id(
                project.number, [entry.task for entry in queue.entries]
            )
        }
        assert stored == {entry.task: [(entry.score, True)] for entry in queue.entries}
        assert project.in_studio().model_version == published.model_version
        following = project.annotator().next_task()
        assert following is not None
        assert following["id"] == order.chosen[1]


def test_rounds_replay_from_their_record(after_a_round: LiveProject) -> None:
    project = after_a_round
    folder = project.folder.round(1)
    record = json.loads(folder.read(ROUND))
    assert record["settings"]["seed"] == project.service.settings.seed
    assert record["settings"]["strategy"] == project.service.settings.strategy
    dataset = folder.need(DATASET)
    for label in dataset.labels:
        assert label.updated_at
        assert project.folder.read_at(label.mask)[:8] == b"\x89PNG\r\n\x1a\n"
