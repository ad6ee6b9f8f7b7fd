"""What judges checkpoints is fixed before anything is labelled, and handed out among the rest.

Whole rounds on a real store and Redis; only Label Studio and the network are stood in for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from al_strategies import Query
from al_strategies.evidence import Evidence, Position, SliceId
from al_strategies.holdout import ZBlock, inside
from al_strategies.learner import Prediction
from ml_backend.rounds import hold_out, learners, reconcile
from ml_backend.rounds.artefacts import DATASET, METRICS, SELECTION
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import MetricsRecord, Published
from ml_backend.rounds.round import run_round
from ml_backend.rounds.service import Service
from ml_backend.rounds.source import positions
from ml_backend.settings import Settings
from ml_backend.studio.annotations import regions
from ml_backend.studio.label_config import bitmask_config, parse_label_config
from tests.memory_studio import MemoryStudio
from tests.test_round import Graded, dataset, volume

KEY = "7.1763865028"
SLICES, SIDE, K = 90, 8, 8
CONFIG = bitmask_config(["bone"])
BLOCK = ZBlock("v", 10, 19)


def image_of(task: int) -> dict[str, Any]:
    """The data of an uploaded image's task."""
    return {"image": f"/{task}.png"}


class Scored(Graded):
    """Leaves evidence too: it is the less certain the further up a slice is."""

    grade = 0.8
    neighbours = 0

    def evidence(
        self, source: Any, ids: Sequence[SliceId], names: frozenset[str], **_: Any
    ) -> Evidence:
        places = tuple(source.position(i) for i in ids)
        heights = np.array([place.z for place in places])
        return Evidence(tuple(ids), places, dict.fromkeys(names, heights))

    def predict(
        self, source: Any, ids: Sequence[SliceId], **_: Any
    ) -> Iterator[tuple[SliceId, Prediction]]:
        for i in ids:
            yield i, Prediction(np.eye(SIDE, dtype=np.uint8), 1.0)


class Watched(ConnectedProject):
    """A project of one volume of which nobody has labelled a slice; round 0 is published.
    ``uploaded``: its tasks are images and no more."""

    def __init__(self, settings: Settings, *, uploaded: bool = False) -> None:
        studio = MemoryStudio(CONFIG, SLICES, lambda task: np.zeros((SIDE, SIDE), np.uint8))
        for task in range(SLICES if uploaded else 0):
            studio.request("PATCH", f"api/tasks/{task}/", json={"data": image_of(task)})
        super().__init__(Service(settings, studio=studio), KEY)  # type: ignore[arg-type]
        self.memory = studio
        self.update(lambda record: None, adopting=True)
        reconcile.count(self)

    def label_round(self) -> None:
        """People label the K that are handed out, in order."""
        assert self.published is not None
        mask = np.eye(SIDE, dtype=np.uint8)
        for task in self.folder.round(self.published.round).need(SELECTION).chosen:
            self.memory.submit(task, regions(mask, parse_label_config(CONFIG)))

    def metrics(self) -> list[MetricsRecord]:
        """Of all rounds after 0, in order."""
        return [self.folder.round(n).need(METRICS) for n in self.folder.rounds() if n]


@pytest.fixture
def watch(
    make_settings: Callable[..., Settings], redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Watched]:
    """A `Watched` project under settings; others are passed on."""
    monkeypatch.setitem(learners.KINDS, "network", Scored)

    def watched(*, uploaded: bool = False, **more: object) -> Watched:
        settings = make_settings(
            REDIS_URL=redis_url,
            NEXTSLICE_QUEUE_PREFIX="held-out",
            NEXTSLICE_K=K,
            NEXTSLICE_STRATEGY="entropy",
            NEXTSLICE_TRAIN_DEVICE="cpu",
            **more,
        )
        return Watched(settings, uploaded=uploaded)

    return watched


@pytest.mark.parametrize("warm", [False, True], ids=["afresh", "warm"])
def test_over_five_rounds_nothing_held_out_was_ever_trained_on(
    watch: Callable[..., Watched], warm: bool
) -> None:
    project = watch(NEXTSLICE_WARM_START=warm)

    for _ in range(5):
        project.label_round()
        assert run_round(project, "test") is not None

    adopted = project.folder.round(0).need(SELECTION).blocks
    records = project.metrics()
    assert len(records) == 5
    assert len(adopted) == 3
    assert all(record.blocks == adopted for record in records)
    learned: set[int] = set().union(*(record.learned for record in records))
    validated: set[int] = set().union(*(record.validation for record in records))
    assert not learned & validated
    places = positions(project.folder.round(5).need(DATASET))
    assert not inside(learned, places, adopted)  # type: ignore[arg-type]  # int is a SliceId
    assert [len(record.validation) for record in records] == [1, 3, 4, 6, 8], "a fifth of 8, 16, …"
    assert [record.compared for record in records] == [0, 3, 4, 6, 8]
    assert [record.p is None for record in records] == [True, True, True, False, False]
    spread = sorted(places[task].z for task in validated)
    assert {int(z // 30) for z in spread} == {0, 1, 2}, "all over the volume"


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "of an older nextslice"])
def test_tasks_that_go_move_no_others_into_a_block_or_out_of_it(
    watch: Callable[..., Watched], noted: bool
) -> None:
    """Of uploaded images, which name no z: some are deleted, some lose their image for a while."""
    project = watch(uploaded=True)

    def label_and_run() -> None:
        project.label_round()
        assert run_round(project, "test") is not None

    label_and_run()
    label_and_run()
    if not noted:
        before = project.folder.round(2)
        before.save(DATASET, before.need(DATASET).model_copy(update={"places": None}))
    known = {label.task for label in project.folder.round(2).need(DATASET).labels}
    free = [task for task in range(SLICES) if task not in known]
    for task in free[:9]:
        project.memory.delete_task(task)
    for task in free[9:14]:
        project.memory.request("PATCH", f"api/tasks/{task}/", json={"data": {"name": "lost"}})
    label_and_run()
    for task in free[9:14]:
        project.memory.request("PATCH", f"api/tasks/{task}/", json={"data": image_of(task)})
    label_and_run()

    records = project.metrics()
    assert len(records) == 4
    learned: set[int] = set().union(*(record.learned for record in records))
    validated: set[int] = set().union(*(record.validation for record in records))
    assert not learned & validated
    last = project.folder.round(4).need(DATASET)
    assert {task.id for task in last.tasks} == {*range(SLICES)} - {*free[:9]}
    assert {task: place.z for task, place in positions(last).items()} == {
        task.id: float(task.id) for task in last.tasks
    }


# -- what is selected


def query(ids: Sequence[int], labelled: Sequence[int] = (), *, k: int = 8, **changes: Any) -> Query:
    def evidence(ids: Sequence[int]) -> Evidence:
        places = tuple(Position("v", float(i)) for i in ids)
        return Evidence(tuple(ids), places, {"entropy": np.array(ids, dtype=float)})

    pool = [i for i in ids if i not in labelled]
    return Query(pool=evidence(pool), labelled=evidence(labelled), k=k, **changes)


def test_a_strategy_chooses_outside_and_every_fifth_place_is_inside() -> None:
    selection = hold_out.select("entropy", query(range(40), reserve=4), (BLOCK,))

    within = [i in range(10, 20) for i in (*selection.chosen, *selection.reserve)]
    assert within == [place in (4, 9) for place in range(12)]
    taught = [i for i in (*selection.chosen, *selection.reserve) if i not in range(10, 20)]
    assert taught == list(range(39, 29, -1))
    assert set(selection.scores) == set(taught)


def test_without_blocks_the_strategy_has_all_places() -> None:
    assert hold_out.select("entropy", query(range(40)), ()).chosen == tuple(range(39, 31, -1))


def test_the_last_slices_are_whatever_is_left() -> None:
    outside = [i for i in range(40) if i not in range(10, 20)]
    selection = hold_out.select("entropy", query(range(40), outside[2:], reserve=8), (BLOCK,))

    assert sorted((*selection.chosen, *selection.reserve)) == [0, 1, *range(10, 20)]


def test_skipped_slices_wait_inside_a_block_too() -> None:
    asked = query(range(40), reserve=20, deferred=frozenset(range(10, 19)))
    selection = hold_out.select("entropy", asked, (BLOCK,))

    order = (*selection.chosen, *selection.reserve)
    assert next(i for i in order if i in range(10, 20)) == 19
    skipped = [i in asked.deferred for i in order]
    assert any(skipped)
    assert skipped == sorted(skipped), "after all others, of either part"


# -- projects from before


def test_a_project_that_has_blocks_keeps_them(make_settings: Callable[..., Settings]) -> None:
    folder = ConnectedProject(Service(make_settings()), KEY).folder
    folder.round(3).save(METRICS, MetricsRecord(blocks=[BLOCK], trained=[1, 2, 30]))
    published = Published(round=3, model_version="r3", classes=[], fingerprint="")
    data = dataset(*volume("v", 40))

    assert hold_out.blocks_of(folder, data, published, 0) == (BLOCK,)


def test_blocks_with_open_ends_stop_where_their_volumes_did_when_they_were_chosen(
    make_settings: Callable[..., Settings],
) -> None:
    """As nextslice stored them; then both volumes were imported further, and learned from."""
    folder = ConnectedProject(Service(make_settings()), KEY).folder
    early, late = ZBlock("v", 31.5), ZBlock("w", None, 3.5)
    grown = [*volume("v", 60), *volume("w", 20, 100)]
    records = ([early], volume("v", 40)), ([early, late], grown), ([early, late], volume("v", 80))
    for number, (blocks, tasks) in enumerate(records):
        folder.round(number).save(DATASET, dataset(*tasks))
        folder.round(number).save(METRICS, MetricsRecord(blocks=blocks))
    published = Published(round=2, model_version="r2", classes=[], fingerprint="")
    now = dataset(*volume("v", 90), *volume("w", 90, 100))

    ends = (ZBlock("v", 31.5, 39.5), ZBlock("w", -0.5, 3.5))
    assert hold_out.blocks_of(folder, now, published, 0) == ends

    for number in (0, 1):
        folder.round(number).remove(DATASET)
    ends = (ZBlock("v", 31.5, 79.5), ZBlock("w", -0.5, 3.5))
    assert hold_out.blocks_of(folder, now, published, 0) == ends, "as far as is known"


def test_one_that_has_none_yet_gets_them_beside_what_it_has_learned(
    make_settings: Callable[..., Settings],
) -> None:
    folder = ConnectedProject(Service(make_settings()), KEY).folder
    learned = list(range(0, 90, 12))
    folder.round(1).save(METRICS, MetricsRecord(trained=learned))
    published = Published(round=1, model_version="r1", classes=[], fingerprint="")
    data = dataset(*volume("v", 90))

    blocks = hold_out.blocks_of(folder, data, published, 0)

    assert len(blocks) == 3
    assert not inside(learned, positions(data), blocks)  # type: ignore[arg-type]
