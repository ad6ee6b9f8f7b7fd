"""The queue on a real Label Studio: the right slice next, one version everywhere, repaired."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
import requests

from ml_backend.embedded.label_studio import Session
from ml_backend.embedded.processes import wait_until
from ml_backend.embedded.stack import Stack
from ml_backend.rounds import filling, reconcile
from ml_backend.rounds.adopt import adopt
from ml_backend.rounds.artefacts import DATASET, QUEUE, ROUND
from ml_backend.rounds.project_settings import change_settings
from ml_backend.rounds.service import WEBHOOK_HEADER, Service, webhook_secret
from ml_backend.studio import client, task_order
from ml_backend.studio.client import StudioError, not_annotated, with_version
from ml_backend.studio.counters import count_anew
from ml_backend.studio.label_config import bitmask_config
from ml_backend.studio.projects import register_backend, set_data
from ml_backend.studio.task_order import BackendLink
from tests.http_server import serving
from tests.integration.conftest import (
    CLASSES,
    PUBLISHED_TTL_S,
    RESERVE,
    K,
    LiveProject,
    invite,
    versions_agree,
)

pytestmark = pytest.mark.integration

MakeProject = Callable[..., LiveProject]


def test_adding_the_url_adopts_the_project(make_project: MakeProject, stack: Stack) -> None:
    project = make_project()

    live = project.service.studio.project(project.number)
    assert live.sampling == task_order.SAMPLING
    assert live.show_collab_predictions
    wait_until(lambda: versions_agree(project, stack), "one version everywhere", 120)
    assert project.published.model_version.startswith("nextslice-r000-")
    hooks = project.session.call("GET", f"/api/webhooks/?project={project.number}").json()
    assert [hook["headers"] for hook in hooks] == [
        {WEBHOOK_HEADER: webhook_secret(project.service.settings)}
    ]


def test_a_round_hands_out_the_selection_in_order_with_masks(
    make_project: MakeProject, stack: Stack
) -> None:
    project = make_project()

    cold = project.selection()
    assert project.label_round() == cold.chosen
    published = project.wait_for_round(1)

    assert published.round == 1
    assert published.weights == "round-0001/weights.safetensors"
    time.sleep(PUBLISHED_TTL_S)  # /setup may say what it has read that long
    assert versions_agree(project, stack)
    chosen = project.selection().chosen
    assert not set(chosen) & set(cold.chosen)
    annotator = project.annotator()
    task = annotator.next_task()
    assert task is not None
    assert task["id"] == chosen[0]
    (prediction,) = [
        p for p in annotator.open(task["id"])["predictions"]
        if p["model_version"] == published.model_version
    ]  # fmt: skip
    assert prediction["score"] == task_order.queue_score(0)
    assert {r["type"] for r in prediction["result"]} <= {"bitmasklabels"}
    assert prediction["result"], "a trained network predicts something on the cone"


def test_who_submits_while_the_task_is_changed_is_counted(make_project: MakeProject) -> None:
    # Label Studio writes the task as it was read a tenth of a second before: 4 to 17 of 40 were
    # not counted.
    project = make_project(40, connect=False)
    annotator = project.annotator()
    tasks = [row.id for row in project.studio.tasks(project.number)]
    for place, task in enumerate(tasks):
        wait_s = 0.03 + 0.01 * (place % 20)
        with ThreadPoolExecutor(1) as person:
            submitted = person.submit(_after, wait_s, annotator.send, task, [])
            assert set_data(project.studio, project.number, task, {"why": f"Place {place}."})
        submitted.result()

    rows = list(project.studio.tasks(project.number))
    assert [row.total_annotations for row in rows] == [1] * 40
    assert all(row.is_labeled for row in rows)
    assert [row.data["why"] for row in rows] == [f"Place {place}." for place in range(40)]


def _after(wait_s: float, call: Callable[..., int], *arguments: Any) -> int:
    time.sleep(wait_s)
    return call(*arguments)


def test_labels_that_label_studio_has_not_counted_begin_a_round(make_project: MakeProject) -> None:
    # As where they were submitted while it counted all tasks anew, for predictions that we stored.
    project = make_project()
    annotator = project.annotator()
    for _ in range(K):
        task = annotator.next_task()
        assert task is not None
        annotator.submit(task)
        lost = {"total_annotations": 0}
        project.studio.request("PATCH", f"api/tasks/{task['id']}/", json=lost)

    published = project.wait_for_round(1)

    labels = project.folder.round(published.round).need(DATASET).labels
    assert len(labels) == K
    labelled = [label.task for label in labels]
    rows = list(project.studio.tasks_by_id(project.number, labelled))
    assert [(row.total_annotations, row.is_labeled) for row in rows] == [(1, True)] * K


def test_what_nobody_has_counted_or_touched_is_asked_for_in_an_empty_project(
    make_project: MakeProject,
) -> None:
    # Label Studio compares ids of annotations with "" there, where they are asked for as a text.
    project = make_project(slices=0, connect=False)
    assert count_anew(project.studio, project.in_studio()) == []
    assert project.studio.count_tasks(project.number, client.untouched()) == 0


def test_interleaved_annotators_get_the_order_and_never_a_404(
    make_project: MakeProject, session: Session
) -> None:
    project = make_project(30)
    # As in a real one: slices are open while rounds are published.
    change_settings(project, {"open_minutes": "30"})
    people = invite(session, ["ann", "ben", "cem", "dee"])
    assert len(people) <= RESERVE
    annotators = [project.annotator(person) for person in people]
    queue = project.folder.round(0).need(QUEUE)

    # Everybody opens a slice before anybody submits: each gets another one, in queue order.
    opened = [annotator.next_task() for annotator in annotators]
    assert [t["id"] for t in opened if t] == [e.task for e in queue.entries[:4]]
    assert {t["queue"] for t in opened if t} == {"Active learning or random queue"}

    # They all submit at once and ask again, while rounds train and the queue moves underneath.
    for _ in range(4):
        time.sleep(4)  # nobody draws a mask in less
        for annotator, task in zip(annotators, opened, strict=True):
            assert task is not None
            annotator.submit(task)
        opened = [annotator.next_task() for annotator in annotators]
        assert all(task is not None for task in opened), "an annotator got a 404"
        assert len({t["id"] for t in opened if t}) == 4, "two annotators got the same slice"
        for task in opened:
            assert task is not None
            # Not task["predictions"]: that is of the project's version, which may just have moved.
            stored = session.call("GET", f"/api/predictions/?task={task['id']}").json()
            assert any(p["score"] < task_order.LIVE_SCORE for p in stored), (
                f"task {task['id']} is in no queue: random fallback"
            )


def test_skipped_slices_teach_nothing_and_wait_until_the_end(make_project: MakeProject) -> None:
    project = make_project()
    annotator = project.annotator()
    skipped = annotator.next_task()
    assert skipped is not None
    annotator.skip(skipped)
    assert project.studio.count_tasks(project.number, [not_annotated(), client.skipped()]) == 1
    project.label_round()
    project.wait_for_round(1)

    dataset = project.folder.round(1).need(DATASET)
    assert {t.id: t.state for t in dataset.tasks}[skipped["id"]] == "skipped"
    assert skipped["id"] not in {label.task for label in dataset.labels}
    selection = project.selection()
    assert skipped["id"] not in selection.chosen
    order = [*selection.chosen, *selection.reserve, *selection.backlog]
    assert skipped["id"] not in order[: len(order) - 1]


def test_a_switch_wins_against_clients_that_open_tasks(
    make_project: MakeProject, stack: Stack, session: Session
) -> None:
    project = make_project()
    stop = threading.Event()
    (person,) = invite(session, ["opener"])
    tasks = [t.id for t in project.service.studio.tasks(project.number)]

    def open_all_the_time() -> None:
        opener = project.annotator(person)
        for i in range(400):
            if stop.is_set():
                return
            opener.open(tasks[i % len(tasks)])

    opener = threading.Thread(target=open_all_the_time)
    opener.start()
    try:
        project.label_round()
        project.wait_for_round(1)
        wait_until(lambda: versions_agree(project, stack), "agreement while tasks are opened", 120)
    finally:
        stop.set()
        opener.join()
    assert versions_agree(project, stack)


@pytest.fixture
def switchable(make_project: MakeProject, stack: Stack) -> Iterator[LiveProject]:
    """A project with predictions of two versions, which nobody else switches."""
    project = make_project(4)
    wait_until(lambda: versions_agree(project, stack), "one version everywhere", 120)
    task = next(iter(project.studio.tasks(project.number))).id
    project.studio.import_predictions(
        project.number,
        [{"task": task, "model_version": v, "score": 0.5, "result": []} for v in TWO_VERSIONS],
    )
    with project.schedule.alone("switch", wait=True):
        yield project


TWO_VERSIONS = [task_order.round_version(900 + i, "abcdef") for i in range(2)]


def title_and_version(project: LiveProject) -> tuple[str | None, str | None]:
    backend = project.studio.find_backend(project.number, project.link.url)
    return backend.title if backend else None, project.in_studio().model_version


def test_a_switch_changes_the_project_only_where_a_new_title_would_not(
    switchable: LiveProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change writes the project's whole row as it was read a moment before."""
    studio, number, link = switchable.studio, switchable.number, switchable.link
    old, new = TWO_VERSIONS
    (backend,) = studio.backends(number)
    call = studio.call
    for title, version, changes in (
        (old, old, 0),
        (old, new, 0),  # a task was opened during the switch
        (new, old, 1),  # a person chose a version in the settings
        ("my model", "my model", 0),  # a person renamed the backend: the version goes with it
        ("my model", old, 1),
        (old, "", 1),
        (None, old, 1),  # a person removed the backend
    ):
        if title is None:
            studio.sdk.ml.delete(backend.id)
        else:
            task_order._rename(studio, number, backend, link, title)
        if studio.project(number).model_version != version:
            studio.update_project(number, model_version=version)
        assert title_and_version(switchable) == (title, version)
        asked: list[str] = []

        def counted(what: str, *arguments: Any, said: list[str] = asked, **fields: Any) -> Any:
            said.append(what)
            return call(what, *arguments, **fields)

        monkeypatch.setattr(studio, "call", counted)
        task_order.switch(studio, number, link, new)
        monkeypatch.undo()

        assert title_and_version(switchable) == (title and new, new)
        assert asked.count(f"update project {number}") == changes


class SlowSetup(BaseHTTPRequestHandler):
    """An ML backend during whose /setup, while Label Studio changes its title, a person saves."""

    saves: ClassVar[Callable[[], None] | None] = None

    def do_GET(self) -> None:
        self._answer({"status": "UP"})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/setup" and SlowSetup.saves is not None:
            SlowSetup.saves()
        self._answer({"model_version": "any"})

    def _answer(self, body: dict[str, str]) -> None:
        sent = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *arguments: Any) -> None:
        pass


def test_what_a_person_saves_of_the_project_during_a_switch_stays(
    make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project(4, connect=False)
    studio, number = project.studio, project.number
    task = next(iter(studio.tasks(number))).id
    for version in TWO_VERSIONS:
        row = {"task": task, "model_version": version, "score": 0.5, "result": []}
        studio.import_predictions(number, [row])
    configs: list[str] = []

    def save() -> None:
        config = f'<View><Header value="{len(configs)}"/>{bitmask_config(CLASSES)}</View>'
        path = f"/api/projects/{number}/"
        assert project.session.call("PATCH", path, json={"label_config": config}).ok
        configs.append(config)

    rename = task_order._rename

    def beside(*arguments: Any) -> None:
        monkeypatch.setattr(SlowSetup, "saves", save)
        rename(*arguments)
        monkeypatch.setattr(SlowSetup, "saves", None)

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), SlowSetup)) as server:
        link = BackendLink(f"http://127.0.0.1:{server.server_port}")
        register_backend(studio, number, link)
        task_order.switch(studio, number, link, TWO_VERSIONS[0])
        monkeypatch.setattr(task_order, "_rename", beside)
        task_order.switch(studio, number, link, TWO_VERSIONS[1])
        seen = studio.project(number)

    assert len(configs) >= 3, "before, during and after the new title is taken"
    assert seen.label_config == configs[-1]
    assert seen.model_version == TWO_VERSIONS[1]


def test_reconcile_repairs_what_somebody_moved(make_project: MakeProject, stack: Stack) -> None:
    project = make_project(8)
    studio = project.service.studio
    backend = studio.find_backend(project.number, stack.backend_url)
    assert backend is not None
    studio.update_project(project.number, sampling="Sequential sampling")
    studio.sdk.ml.update(backend.id, title="renamed", url=backend.url, project=project.number)

    wait_until(
        lambda: (
            versions_agree(project, stack)
            and studio.project(project.number).sampling == task_order.SAMPLING
        ),
        "reconcile",
        240,
    )


def test_a_look_knows_how_many_annotations_are_wanted(
    make_project: MakeProject, service: Service
) -> None:
    project = make_project(4)
    for wanted in (1, 3):
        service.studio.update_project(project.number, maximum_annotations=wanted)
        reconcile.reconcile(service)
        assert project.record.wanted_annotations == wanted


def test_old_predictions_of_ours_go_and_others_stay(after_a_round: LiveProject) -> None:
    project, studio = after_a_round, after_a_round.service.studio
    old = project.folder.round(0).need(ROUND).model_version
    new = project.published.model_version

    wait_until(
        lambda: studio.count_tasks(project.number, [with_version(old)]) == 0, "tidying up", 240
    )

    assert studio.count_tasks(project.number, [with_version("sam")]) == 1
    assert studio.count_tasks(project.number, [with_version(new)])
    assert studio.project(project.number).model_version == new


def test_connecting_twice_changes_nothing(make_project: MakeProject, stack: Stack) -> None:
    project = make_project(8)
    studio = project.service.studio
    wait_until(lambda: versions_agree(project, stack), "one version everywhere", 120)

    def state() -> object:
        live = project.session.call("GET", f"/api/projects/{project.number}/").json()
        hooks = project.session.call("GET", f"/api/webhooks/?project={project.number}").json()
        return (
            {k: live[k] for k in ("model_version", "sampling", "label_config", "task_number")},
            hooks,
            [b.model_dump() for b in studio.backends(project.number)],
            project.published,
            project.folder.record,
            studio.count_tasks(project.number, [with_version(project.published.model_version)]),
        )

    wait_until(  # the top-up after adoption is not what is tested here
        lambda: studio.count_tasks(project.number, [with_version("nextslice-r000")]) == 8,
        "the queue to be full", 240,
    )  # fmt: skip
    before = state()
    assert not register_backend(studio, project.number, BackendLink(stack.backend_url))
    adopt(project, stack.backend_url)
    assert state() == before


def test_a_renamed_class_retires_the_checkpoint(make_project: MakeProject, stack: Stack) -> None:
    project = make_project()
    project.label_round()
    first = project.wait_for_round(1)

    renamed = bitmask_config(["bone", "screw"])
    project.service.studio.update_project(project.number, label_config=renamed)
    wait_until(lambda: project.published.retired is not None, "the checkpoint to be retired", 240)

    published = project.published
    assert published.weights is None
    assert published.model_version != first.model_version
    assert "screw" in (published.retired or "")
    time.sleep(PUBLISHED_TTL_S)  # /setup may say what it has read that long
    assert versions_agree(project, stack)
    task = project.annotator().next_task()
    assert task is not None
    results = {p["model_version"]: p["result"] for p in task["predictions"]}
    assert results[published.model_version] == []


def test_predict_gives_nothing_for_what_cannot_be_predicted(
    after_a_round: LiveProject, stack: Stack
) -> None:
    project, published = after_a_round, after_a_round.published
    good = next(iter(project.service.studio.tasks(project.number, [not_annotated()])))
    tasks = [
        {"id": good.id, "data": good.data},
        {"id": 10**9, "data": {"image": "/data/upload/1/no-such-file.png"}},
        {"id": 10**9 + 1, "data": {"picture": "x"}},
        {"id": "text", "data": {"image": 5}},
    ]
    body = {
        "tasks": tasks,
        "project": project.key,
        "label_config": bitmask_config(CLASSES),
        "params": {},
    }
    answer = requests.post(f"{stack.backend_url}/predict", json=body, timeout=240).json()
    results = answer["results"]
    assert results[0]["result"]
    assert results[0]["model_version"] == published.model_version
    assert results[1:] == [[], [], []]


def test_label_studio_stores_nothing_of_what_cannot_be_predicted(
    after_a_round: LiveProject,
) -> None:
    """It asks again when the task is opened: the image may be there by then."""
    project, studio = after_a_round, after_a_round.service.studio
    data = {"image": "/data/upload/1/no-such-file.png", "volume": "cone", "z": 999}
    task = project.session.call(
        "POST", f"/api/projects/{project.number}/tasks/", json={"data": data}
    ).json()["id"]
    project.session.call("GET", f"/api/tasks/{task}/?project={project.number}")
    (row,) = studio.full_tasks_by_id(project.number, [task])
    project.session.call("DELETE", f"/api/tasks/{task}/")
    assert row["predictions"] == []


def test_the_queue_is_topped_up_after_its_last_score(make_project: MakeProject) -> None:
    project = make_project(40)
    ahead = K + 2 * RESERVE
    folder = project.folder.round(0)
    published = folder.need(QUEUE).entries
    assert [e.kind for e in published] == ["chosen"] * K + ["reserve"] * 2 * RESERVE

    for _ in range(K - 1):
        project.annotator().label_next()
    version = project.published.model_version

    def free() -> int:  # an entry is noted before its prediction is stored
        return task_order.queue_length(project.service.studio, project.number, version)

    wait_until(lambda: free() >= ahead, "the top-up", 240)
    wait_until(lambda: filling.top_up(project) == 0, "the end of the top-up", 240)

    entries = folder.need(QUEUE).entries
    assert len(entries) > ahead
    assert entries[:ahead] == published
    assert {e.kind for e in entries[ahead:]} == {"top-up"}
    assert [e.score for e in entries] == sorted(e.score for e in entries)
    assert len({e.task for e in entries}) == len(entries)
    assert free() >= ahead


def test_predictions_that_a_repeated_request_stored_twice_change_nothing(
    make_project: MakeProject,
) -> None:
    project = make_project(6, connect=False)
    studio, version = project.service.studio, "nextslice-r000-twice"
    task_order.prepare(studio, studio.project(project.number))
    order = [row.id for row in studio.tasks(project.number)][::-1]
    rows = [
        {
            "task": task,
            "model_version": version,
            "score": task_order.queue_score(place),
            "result": [],
        }
        for place, task in enumerate(order)
    ]
    for _ in range(2):
        studio.import_predictions(project.number, rows)
    task_order.switch(studio, project.number, None, version)

    assert task_order.queue_length(studio, project.number, version) == len(order)
    annotator = project.annotator()
    for place, task in enumerate(order[:3]):
        opened = annotator.next_task()
        assert opened is not None
        assert opened["id"] == task
        annotator.skip(opened)
        assert task_order.queue_length(studio, project.number, version) == len(order) - place - 1
    assert task_order.remove_predictions(studio, project.number, version) == 2 * len(order)


def test_a_lost_webhook_is_made_up_for(make_project: MakeProject) -> None:
    project = make_project()
    hooks = project.session.call("GET", f"/api/webhooks/?project={project.number}").json()
    for hook in hooks:
        project.session.call("DELETE", f"/api/webhooks/{hook['id']}/")
    project.label_round()
    assert project.wait_for_round(1).round == 1


def test_the_last_labels_are_learned_and_served(make_project: MakeProject, stack: Stack) -> None:
    """A version without a prediction, since nothing is left to predict, is one that Label Studio
    refuses until the backend has its name."""
    project = make_project(K)
    project.label_round()

    assert project.wait_for_round(1).weights is not None
    assert project.service.studio.count_tasks(project.number, [not_annotated()]) == 0
    wait_until(lambda: versions_agree(project, stack), "one version everywhere", 120)


def test_a_project_that_is_annotated_already_is_adopted(
    make_project: MakeProject, stack: Stack
) -> None:
    project = make_project(K, connect=False)
    project.label_round()

    register_backend(project.service.studio, project.number, BackendLink(stack.backend_url))

    assert project.wait_for_round(1).weights is not None
    wait_until(lambda: versions_agree(project, stack), "one version everywhere", 120)


def test_a_project_that_is_gone_is_left_alone(
    make_project: MakeProject, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    project, other = make_project(4), make_project(4)
    project.session.call("DELETE", f"/api/projects/{project.number}/")
    service.studio.update_project(other.number, sampling="Sequential sampling")
    with pytest.raises(StudioError, match=f"has no project {project.number}"):
        project.in_studio()

    with caplog.at_level("INFO", "ml_backend.rounds.reconcile"):
        reconcile.reconcile(service)

    (said,) = [text for text in caplog.messages if project.key in text]
    assert said.startswith("deleted, or not to be seen with this token: ")
    assert other.key not in said
    assert service.studio.project(other.number).sampling == task_order.SAMPLING


def test_predictions_that_somebody_deletes_are_stored_again(
    make_project: MakeProject, stack: Stack
) -> None:
    """As *Delete predictions* in the Data Manager does, for a few slices and then for all."""
    project = make_project()
    studio = project.service.studio
    project.label_round()
    version = project.wait_for_round(1).model_version
    entries = {e.task: e.score for e in project.folder.round(1).need(QUEUE).entries}
    chosen = project.selection().chosen
    other = next(row.id for row in studio.tasks(project.number) if row.id not in entries)
    studio.sdk.predictions.create(task=other, model_version="sam", score=0.5, result=[])

    def stored() -> dict[int, tuple[float, int]]:
        """Task → score and number of regions of what is stored of the queue."""
        rows = studio.full_tasks_by_id(project.number, entries)
        found = [(row["id"], p) for row in rows for p in row["predictions"]]
        mine = [(task, p) for task, p in found if p["model_version"] == version]
        return {task: (p["score"], len(p["result"])) for task, p in mine}

    before = stored()
    assert {task: score for task, (score, _) in before.items()} == entries
    assert any(regions for _, regions in before.values())
    for selected in (chosen[:2], list(entries)):
        assert project.session.call(
            "POST",
            f"/api/dm/actions?id=delete_tasks_predictions&project={project.number}",
            json={"selectedItems": {"all": False, "included": selected}},
        ).ok
        # Two looks, 5 s each, and the time of the backend for the masks.
        wait_until(lambda: stored() == before, "the queue to stand again", 400)
        wait_until(lambda: versions_agree(project, stack), "one version everywhere", 120)
        assert studio.count_tasks(project.number, [with_version("sam")]) == 1

    task = project.annotator().next_task()
    assert task is not None
    assert task["id"] == chosen[0]
