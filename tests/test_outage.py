"""Rounds through an outage: none is committed over a pool that it has not seen."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from al_strategies.evidence import Evidence, Position
from al_strategies.learner import Unreadable, UnreadableSlice
from ml_backend.api.serving import Serving
from ml_backend.cli.rounds_list import rounds_table
from ml_backend.cli.tables import whole
from ml_backend.rounds import coverage, reconcile
from ml_backend.rounds.artefacts import DATASET, EVIDENCE, METRICS, QUEUE, ROUND, SELECTION
from ml_backend.rounds.attempt import attempt
from ml_backend.rounds.pauses import MAX_FAILURES
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.round import run_round
from ml_backend.rounds.scoring import whole_pool
from ml_backend.rounds.service import slice_keys
from ml_backend.rounds.status import project_status
from ml_backend.rounds.unreadable import UnreadableSlices
from ml_backend.segmentation.learner import NetworkLearner
from ml_backend.settings import Settings
from ml_backend.studio import download
from ml_backend.studio.failures import ImageUnavailable, StudioError
from ml_backend.volumes.address import SliceAddress
from tests.http_studio import CONFIG, PHANTOM, SLICES, HttpStudio, phantom_project, phantom_server

LABELLED = 3
POOL = range(LABELLED, SLICES)


@pytest.fixture
def server() -> Iterator[HttpStudio]:
    with phantom_server() as running:
        yield running


@pytest.fixture
def make_project(
    server: HttpStudio, make_settings: Callable[..., Settings], redis_url: str
) -> Callable[..., ConnectedProject]:
    def make(labels: int = LABELLED, **variables: object) -> ConnectedProject:
        variables |= {"REDIS_URL": redis_url, "NEXTSLICE_IMAGE_HOSTS": "127.0.0.1"}
        return phantom_project(server, make_settings, range(labels), **variables)

    return make


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What happens in each pause, instead of waiting; and hosts are asked at once."""
    events: list[Callable[[], None]] = []
    monkeypatch.setattr(download, "_QUIET_S", 0.0)
    monkeypatch.setattr(coverage, "_wait", lambda seconds: events.pop(0)() if events else None)
    return events


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The slices of each pass over the pool."""
    asked: list[list[int]] = []
    evidence = NetworkLearner.evidence

    def spy(self: NetworkLearner, source: Any, ids: Sequence[int], *args: Any, **more: Any) -> Any:
        asked.append(list(ids))
        return evidence(self, source, ids, *args, **more)

    monkeypatch.setattr(NetworkLearner, "evidence", spy)
    return asked


def dead_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


class Outage:
    """From slice ``first`` on, nothing can be had of ``server``: it answers ``how`` instead, or
    (refused) sends to where nobody listens."""

    def __init__(self, server: HttpStudio, how: str, first: int = LABELLED + 1) -> None:
        self.server = server
        paths = [f"/{task}.png" for task in range(first, SLICES)]
        if how == "refused":
            port = dead_port()
            server.moved = {path: f"http://127.0.0.1:{port}{path}" for path in paths}
        else:
            server.fault = lambda path: int(how) if path in paths else None

    def end(self) -> None:
        self.server.moved.clear()
        self.server.fault = lambda path: None


@pytest.mark.parametrize("how", ["500", "429", "401", "refused"])
def test_an_outage_while_the_pool_is_scored_costs_no_slice(
    server: HttpStudio, make_project: Callable[..., ConnectedProject], how: str,
    pauses: list[Callable[[], None]], passes: list[list[int]],
) -> None:  # fmt: skip
    project = make_project()
    outage = Outage(server, how)
    pauses += [lambda: None, outage.end]

    record = run_round(project, "test")

    assert record is not None
    assert record.unseen == []
    selection = project.folder.round(1).need(SELECTION)
    assert {*selection.chosen, *selection.reserve, *selection.backlog} == set(POOL)
    assert list(project.folder.round(1).need(EVIDENCE).ids) == list(range(SLICES))
    rest = list(range(LABELLED + 1, SLICES))
    assert passes == [list(range(SLICES)), rest, rest]


def test_an_outage_that_lasts_ends_the_attempt_and_the_next_goes_on(
    server: HttpStudio, make_project: Callable[..., ConnectedProject],
    pauses: list[Callable[[], None]], passes: list[list[int]],
) -> None:  # fmt: skip
    project = make_project()
    outage = Outage(server, "500")
    reason = rf"8 of the project's {SLICES} slices cannot be read.*answered 500"
    with pytest.raises(UnreadableSlices, match=reason):
        run_round(project, "test")

    folder = project.folder.round(1)
    assert not folder.has(SELECTION)
    assert not folder.has(ROUND)
    assert project.published.round == 0  # type: ignore[union-attr]
    assert list(folder.need(EVIDENCE).ids) == [0, 1, 2, 3]
    outage.end()
    passes.clear()

    record = run_round(project, "test")

    assert passes == [list(range(LABELLED + 1, SLICES))]
    assert record is not None
    assert record.unseen == []


def test_a_slice_that_is_lost_is_named_and_counted(
    server: HttpStudio, make_project: Callable[..., ConnectedProject],
    pauses: list[Callable[[], None]], passes: list[list[int]],
) -> None:  # fmt: skip
    project = make_project()
    server.fault = lambda path: 404 if path in ("/5.png", "/9.png") else None

    record = run_round(project, "test")

    assert record is not None
    assert record.unseen == [5, 9]
    assert len(passes) == 1, "it is not waited for"
    assert "2 slices could not be read: 5, 9" in " ".join(
        whole(rounds_table(project.folder)).split()
    )


def test_tasks_that_were_deleted_since_hold_no_round_up(
    server: HttpStudio, make_project: Callable[..., ConnectedProject],
    pauses: list[Callable[[], None]],
) -> None:  # fmt: skip
    """More than a quarter of the images is gone for good, and a person does what the error asks."""
    project = make_project()
    gone = [5, 7, 9, 10]
    server.fault = lambda path: 404 if path in {f"/{i}.png" for i in gone} else None
    with pytest.raises(UnreadableSlices, match=rf"4 of the project's {SLICES} slices.*Delete the"):
        attempt(project, "test")
    said = " ".join(condition.says for condition in project_status(project).conditions)
    assert "It is tried again from" in said
    assert "The next round begins at" not in said
    server.memory.delete_task(gone[0])
    server.memory.delete_task(gone[1])
    assert attempt(project, "test") is not None

    assert project.published is not None
    assert project.published.round == 1
    assert project.folder.round(1).need(ROUND).unseen == gone[2:]
    selection = project.folder.round(1).need(SELECTION)
    selected = {*selection.chosen, *selection.reserve, *selection.backlog}
    assert selected == {*POOL} - {*gone}
    assert "The next round begins at" in project_status(project).conditions[0].says


def test_of_what_was_deleted_the_error_counts_nothing(
    server: HttpStudio, make_project: Callable[..., ConnectedProject],
    pauses: list[Callable[[], None]],
) -> None:  # fmt: skip
    project = make_project()
    outage = Outage(server, "500")
    with pytest.raises(UnreadableSlices, match="8 of the project's 12 slices"):
        run_round(project, "test")
    server.memory.delete_task(5)

    with pytest.raises(UnreadableSlices, match=r"7 of the project's 11 slices.*7 of them for now"):
        run_round(project, "test")

    outage.end()
    record = run_round(project, "test")
    assert record is not None
    assert record.unseen == []


def test_labels_wait_for_their_slices(
    server: HttpStudio, make_project: Callable[..., ConnectedProject]
) -> None:
    """A round that had learned a part of the labels would have looked whole."""
    project = make_project()
    outage = Outage(server, "500", first=0)
    with pytest.raises(UnreadableSlices, match=r"2 of the 3 labelled slices.*answered 500"):
        run_round(project, "test")
    assert not project.folder.round(1).has(DATASET)
    outage.end()

    assert run_round(project, "test") is not None

    assert len(project.folder.round(1).need(DATASET).labels) == LABELLED


def test_a_volume_that_is_not_mounted_is_waited_for(
    server: HttpStudio, make_project: Callable[..., ConnectedProject], tmp_path: Path,
    pauses: list[Callable[[], None]],
) -> None:  # fmt: skip
    mounted, elsewhere = tmp_path / "scans", tmp_path / "elsewhere"
    mounted.mkdir()
    np.save(mounted / "v.npy", np.stack([PHANTOM.image(i) for i in PHANTOM.ids]))
    project = make_project(NEXTSLICE_VOLUMES=f"scans={mounted}")
    for z in range(SLICES):
        url = SliceAddress("scans/v.npy", "z", z).url("http://x", slice_keys(project.settings))
        server.memory.request("PATCH", f"api/tasks/{z}/", json={"data": {"image": url, "z": z}})

    pauses.append(lambda: elsewhere.rename(mounted) and None)

    def unmount(step: str, done: int, total: int) -> None:
        if step == "score" and pauses and mounted.exists():
            mounted.rename(elsewhere)

    record = run_round(project, "test", unmount)

    assert not pauses, "or nothing was unmounted"
    assert record is not None
    assert record.unseen == []


def test_a_slow_host_holds_no_prediction(
    server: HttpStudio, make_project: Callable[..., ConnectedProject],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    project = make_project()
    assert run_round(project, "test") is not None
    serving = Serving(project.service)
    tasks = [{"id": i, "data": {"image": f"/{i}.png?again"}} for i in (5, 6, 7)]
    assert all(serving.predict(project.key, tasks[:1], CONFIG))
    monkeypatch.setattr("ml_backend.api.serving._ANSWER_WITHIN_S", 1.0)
    over = threading.Event()
    server.fault = lambda path: 503 if over.wait(300) else None
    begin = time.monotonic()

    answers = serving.predict(project.key, tasks[1:], CONFIG)

    over.set()
    assert answers == [[], []]
    assert time.monotonic() - begin < 120


# -- publishing, pseudo-labels


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The slices of each pass of predictions."""
    asked: list[list[int]] = []
    predict = NetworkLearner.predict

    def spy(self: NetworkLearner, source: Any, ids: Sequence[int], **more: Any) -> Any:
        asked.append(list(ids))
        return predict(self, source, ids, **more)

    monkeypatch.setattr(NetworkLearner, "predict", spy)
    return asked


class CutOff:
    """Nothing from slice ``first`` on can be had from the moment that a step begins, nor is any of
    it in the cache, until the end."""

    def __init__(
        self, server: HttpStudio, project: ConnectedProject, step: str, first: int
    ) -> None:
        self.server, self.project, self.step, self.first = server, project, step, first
        self.outage: Outage | None = None

    def __call__(self, step: str, done: int, total: int) -> None:
        if step == self.step and self.outage is None:
            shutil.rmtree(self.project.settings.cache_dir)
            self.outage = Outage(self.server, "500", self.first)

    def end(self) -> None:
        assert self.outage is not None
        self.outage.end()


def masks(project: ConnectedProject, version: str) -> dict[int, bool]:
    """Task → whether its stored prediction of ``version`` has regions."""
    studio: Any = project.service.studio
    return {
        task["id"]: bool(prediction["result"])
        for task in studio.full_tasks(project.number)
        for prediction in task["predictions"]
        if prediction["model_version"] == version
    }


def queue(project: ConnectedProject) -> list[int]:
    return [entry.task for entry in project.folder.round(1).need(QUEUE).entries]


def test_an_outage_while_the_queue_is_published_costs_no_mask(
    server: HttpStudio, make_project: Callable[..., ConnectedProject],
    pauses: list[Callable[[], None]], predicted: list[list[int]],
) -> None:  # fmt: skip
    project = make_project()
    cut = CutOff(server, project, "publish", LABELLED + 1)
    pauses += [lambda: None, cut.end]

    record = run_round(project, "test", cut)

    assert record is not None
    assert masks(project, record.model_version) == dict.fromkeys(queue(project), True)
    assert project.folder.round(1).need(QUEUE).unmasked == []
    rest = [task for task in queue(project) if task > LABELLED]
    assert predicted[-2:] == [rest, rest]


def test_no_queue_is_published_without_its_masks(
    server: HttpStudio, make_project: Callable[..., ConnectedProject],
    pauses: list[Callable[[], None]], predicted: list[list[int]],
) -> None:  # fmt: skip
    project = make_project()
    cut = CutOff(server, project, "publish", 8)
    with pytest.raises(UnreadableSlices, match=r"\d of the queue's 7 slices.*without masks"):
        run_round(project, "test", cut)
    assert project.published.round == 0  # type: ignore[union-attr]
    before = project.in_studio().model_version
    assert before == project.published.model_version  # type: ignore[union-attr]
    committed = project.folder.round(1).need(ROUND)
    there = masks(project, committed.model_version)
    cut.end()
    predicted.clear()

    record = run_round(project, "test")

    assert record == committed
    assert predicted == [[task for task in queue(project) if task not in there]]
    assert masks(project, record.model_version) == dict.fromkeys(queue(project), True)


def test_a_slice_that_is_published_without_a_mask_is_named(
    server: HttpStudio, make_project: Callable[..., ConnectedProject],
    pauses: list[Callable[[], None]],
) -> None:  # fmt: skip
    project = make_project()

    def lose(step: str, done: int, total: int) -> None:
        if step == "publish" and not done:
            shutil.rmtree(project.settings.cache_dir, ignore_errors=True)
            server.fault = lambda path: 404 if path == f"/{chosen(project)[0]}.png" else None

    record = run_round(project, "test", lose)

    assert record is not None
    gone = chosen(project)[0]
    assert project.folder.round(1).need(QUEUE).unmasked == [gone]
    assert [t for t, there in masks(project, record.model_version).items() if not there] == [gone]
    said = " ".join(whole(rounds_table(project.folder)).split())
    assert f"1 slice could not be read again and have no mask: {gone}" in said


def chosen(project: ConnectedProject) -> list[int]:
    return project.folder.round(1).need(SELECTION).chosen


@pytest.mark.parametrize("ends", [True, False])
def test_an_outage_while_slices_are_pseudo_labelled_costs_none(
    server: HttpStudio, make_project: Callable[..., ConnectedProject],
    pauses: list[Callable[[], None]], ends: bool,
) -> None:  # fmt: skip
    project = make_project(NEXTSLICE_STRATEGY="ceal")
    assert run_round(project, "test") is not None
    first = project.folder.round(1)
    selection = first.need(SELECTION)
    # What CEAL is sure of after two steps of training is nothing.
    first.save(SELECTION, selection.model_copy(update={"pseudo": [9, 10, 11]}))
    cut = CutOff(server, project, "train", LABELLED + 1)
    if ends:
        pauses.append(cut.end)
        record = run_round(project, "test", cut)
        assert record is not None
        assert (record.pseudo, record.pseudo_unread) == ([9, 10, 11], [])
    else:
        with pytest.raises(UnreadableSlices, match=r"3 of the 3 slices that are to be pseudo-lab"):
            run_round(project, "test", cut)
        assert not project.folder.round(2).has(METRICS)


def test_a_lost_slice_that_was_to_be_pseudo_labelled_is_named(
    server: HttpStudio, make_project: Callable[..., ConnectedProject],
    pauses: list[Callable[[], None]],
) -> None:  # fmt: skip
    project = make_project(NEXTSLICE_STRATEGY="ceal")
    assert run_round(project, "test") is not None
    first = project.folder.round(1)
    first.save(SELECTION, first.need(SELECTION).model_copy(update={"pseudo": [9, 10, 11]}))
    shutil.rmtree(project.settings.cache_dir)
    server.fault = lambda path: 404 if path == "/10.png" else None

    record = run_round(project, "test")

    assert record is not None
    assert (record.pseudo, record.pseudo_unread) == ([9, 11], [10])
    said = " ".join(whole(rounds_table(project.folder)).split())
    assert "1 slice could not be read to be pseudo-labelled: 10" in said


def test_after_an_outage_of_hours_a_round_goes_on_by_itself(
    server: HttpStudio, make_project: Callable[..., ConnectedProject],
    pauses: list[Callable[[], None]],
) -> None:  # fmt: skip
    project = make_project()
    cut = CutOff(server, project, "publish", 0)
    for _ in range(MAX_FAILURES + 1):
        with pytest.raises(UnreadableSlices):
            attempt(project, "test", cut)
    assert "It is tried again from" in project_status(project).conditions[0].says
    project.update(lambda record: setattr(record, "failed_at", time.time() - 3601))
    cut.end()

    reconcile.count(project)

    assert project.schedule.round_progress() is not None, "or nobody was asked for the round"


# -- what may be left out


def gather(broken: dict[int, Exception]) -> Callable[[Sequence[int], Unreadable], Evidence]:
    def one_pass(ids: Sequence[int], unreadable: Unreadable) -> Evidence:
        for i in ids:
            if i in broken:
                error = UnreadableSlice(i, broken[i])
                error.__cause__ = broken[i]
                unreadable(error)
        seen = tuple(i for i in ids if i not in broken)
        return Evidence(seen, tuple(Position("v", i) for i in seen),
                        {"entropy": np.array(seen, float)})  # fmt: skip

    return one_pass


DOWN, LOST = ImageUnavailable("down"), StudioError("404")


@pytest.mark.parametrize(
    ("broken", "refused"),
    [
        (dict.fromkeys(range(4), DOWN), False),
        (dict.fromkeys(range(5), DOWN), True),
        (dict.fromkeys(range(10), LOST), False),
        (dict.fromkeys(range(11), LOST), True),
        (dict.fromkeys(range(40), LOST), True),
    ],
)
def test_a_tenth_may_be_out_of_reach_and_a_quarter_lost(
    broken: dict[int, Exception], refused: bool, pauses: list[Callable[[], None]]
) -> None:
    kept: list[Evidence] = []
    arguments = gather(broken), range(40), Evidence.empty(), kept.append
    if refused:
        with pytest.raises(UnreadableSlices, match=f"{len(broken)} of the project's 40 slices"):
            whole_pool(*arguments)
        assert set(kept[-1].ids) == set(range(40)) - set(broken)
    else:
        assert whole_pool(*arguments).ids == tuple(i for i in range(40) if i not in broken)


def test_evidence_comes_in_the_order_of_the_tasks(pauses: list[Callable[[], None]]) -> None:
    broken: dict[int, Exception] = {2: DOWN, 5: DOWN}
    pauses.append(broken.clear)

    found = whole_pool(gather(broken), range(8), Evidence.empty(), lambda _: None)

    assert found.ids == tuple(range(8))
    assert found.scores["entropy"].tolist() == list(range(8))
