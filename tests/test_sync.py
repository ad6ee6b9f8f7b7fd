"""What a sync asks Label Studio for: all tasks once, then what changed, whoever submits meanwhile.

With a real store and Redis; only Label Studio stands in memory. What becomes of the labels:
tests/test_recovery.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from al_strategies.learner import IGNORE
from ml_backend.rounds.effort import opened_with_mask
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import DatasetRecord, EffortRecord, TaskState
from ml_backend.rounds.service import Service
from ml_backend.rounds.source import positions
from ml_backend.rounds.sync import chosen_annotation, new_labels, sync
from ml_backend.settings import Settings
from ml_backend.studio import client
from ml_backend.studio.annotations import AnnotationError, mask_region, regions
from ml_backend.studio.client import Studio, TaskRow
from ml_backend.studio.label_config import bitmask_config, parse_label_config
from tests.http_server import serving
from tests.http_studio import HttpStudio
from tests.memory_studio import FIRST_MOMENT, MemoryStudio

SLICES = 12
SIDE = 8
CONFIG = bitmask_config(["bone"])
MASK = np.eye(SIDE, dtype=np.uint8)
BROKEN = [{"type": "bitmasklabels", "value": {"imageDataURL": 7}}]


def in_memory() -> MemoryStudio:
    return MemoryStudio(CONFIG, SLICES, lambda task: np.zeros((SIDE, SIDE), np.uint8))


class Labelled(ConnectedProject):
    """A project of which tasks 0, 1 and 2 are labelled, and the last one has no image. ``behind``:
    what of it the server answers that the settings name."""

    def __init__(self, settings: Settings, behind: MemoryStudio | None = None) -> None:
        studio = behind or in_memory()
        service = Service(settings)
        if behind is None:  # a studio in memory answers what is asked of the real one here
            service = Service(settings, studio=studio)  # type: ignore[arg-type]  # in memory
        super().__init__(service, "7.1763865028")
        self.memory = studio
        self.update(lambda record: None, adopting=True)
        self.label(range(3))
        studio.request("PATCH", f"api/tasks/{SLICES - 1}/", json={"data": {"other": 1}})

    def label(self, tasks: Iterable[int]) -> None:
        for task in tasks:
            self.memory.submit(task, regions(MASK, parse_label_config(CONFIG)))

    def label_meanwhile(self, task: int) -> None:
        """Somebody submits ``task`` when the changes have been read, and the totals have not."""
        read, submitted = self.memory.totals, []

        def late(number: int) -> tuple[int, int]:
            if not submitted:
                self.label([task])
                submitted.append(task)
            return read(number)

        self.memory.totals = late  # type: ignore[method-assign]

    def sync(self, round_: int, previous: DatasetRecord | None) -> tuple[DatasetRecord, int]:
        """The dataset, and how often all tasks were listed for it."""
        self.memory.listings = 0
        dataset = sync(self, self.in_studio(), self.folder.round(round_), previous)
        return dataset, self.memory.listings


@pytest.fixture
def project(make_settings: Callable[..., Settings], redis_url: str) -> Labelled:
    return Labelled(make_settings(REDIS_URL=redis_url, NEXTSLICE_QUEUE_PREFIX="sync"))


@pytest.fixture
def paged(
    make_settings: Callable[..., Settings], redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Labelled]:
    """Such a project behind HTTP, whose pages have four tasks."""
    monkeypatch.setattr(client, "TASK_PAGE", 4)
    monkeypatch.setattr(client, "ANNOTATED_PAGE", 4)
    with serving(HttpStudio(in_memory())) as server:
        settings = make_settings(
            REDIS_URL=redis_url,
            NEXTSLICE_QUEUE_PREFIX="sync",
            LABEL_STUDIO_URL=server.url,
            LABEL_STUDIO_API_KEY=server.key,
        )
        yield Labelled(settings, server.memory)


def after_the_first_page(
    monkeypatch: pytest.MonkeyPatch, fields: str, happens: Callable[[], None]
) -> None:
    """Something ``happens`` once a page of four tasks was answered, ``fields`` of each."""
    ask, answered = Studio.request, []

    def request(studio: Studio, method: str, path: str, **asked: Any) -> Any:
        answer = ask(studio, method, path, **asked)
        query = asked.get("params", {})
        if (query.get("page_size"), query.get("fields")) == (4, fields) and not answered:
            answered.append(path)
            happens()
        return answer

    monkeypatch.setattr(Studio, "request", request)


def tasks_of(dataset: DatasetRecord) -> set[int]:
    return {task.id for task in dataset.tasks}


def labels_of(dataset: DatasetRecord) -> set[int]:
    return {label.task for label in dataset.labels}


def state_of(dataset: DatasetRecord, task: int) -> TaskState:
    return next(found.state for found in dataset.tasks if found.id == task)


def test_the_first_lists_all_tasks_once(project: Labelled) -> None:
    """Also where one has no image, and where somebody submits meanwhile."""
    project.label_meanwhile(9)
    dataset, listings = project.sync(0, None)
    assert listings == 1
    assert tasks_of(dataset) == {*range(SLICES - 1)}
    assert labels_of(dataset) == {0, 1, 2, 9}


def test_those_after_it_list_none(project: Labelled) -> None:
    """With an annotation of the task that has no image, and somebody who submits meanwhile."""
    project.label([SLICES - 1])
    first, _ = project.sync(0, None)
    project.label_meanwhile(9)
    dataset, listings = project.sync(1, first)
    assert listings == 0
    assert tasks_of(dataset) == tasks_of(first)
    assert labels_of(dataset) == {0, 1, 2, 9}


def test_a_task_that_gets_an_image_is_one_of_the_pool(project: Labelled) -> None:
    first, _ = project.sync(0, None)
    last = SLICES - 1
    project.memory.request("PATCH", f"api/tasks/{last}/", json={"data": {"image": f"/{last}.png"}})
    dataset, listings = project.sync(1, first)
    assert listings == 0
    assert tasks_of(dataset) == {*range(SLICES)}


def test_an_alias_names_labels_that_were_ignored(project: Labelled) -> None:
    """As of annotations that another tool wrote, whose class gets their label's name as alias."""
    result = regions(MASK, parse_label_config(CONFIG))
    result[0]["value"]["bitmasklabels"] = ["Knochen"]
    project.memory.submit(4, result)
    first, _ = project.sync(0, None)
    alias = CONFIG.replace('value="bone"', 'value="bone" alias="Knochen"')
    project.memory.fields["label_config"] = alias

    second, _ = project.sync(1, first)

    masks = [project.folder.mask(one) for d in (first, second) for one in d.labels if one.task == 4]
    np.testing.assert_array_equal(masks, [np.where(MASK, IGNORE, 0), MASK])
    assert ["Knochen" in str(dataset.warnings) for dataset in (first, second)] == [True, False]


TRUTH = {"id": 1, "result": [], "ground_truth": True, "updated_at": "2026-11-01T10:00:00Z"}
UNREADABLE = {"id": 2, "result": 7, "updated_at": "2026-11-01T11:00:00Z"}
LATER = {"id": 3, "result": [], "updated_at": "2026-11-01T12:00:00Z"}


@pytest.mark.parametrize(
    ("annotations", "counts"),
    [
        ([TRUTH, UNREADABLE], 1),
        ([TRUTH, UNREADABLE, LATER], 1),
        ([UNREADABLE, LATER], 3),
        ([LATER | {"id": 1, "updated_at": "2026-11-01T10:00:00Z"}, UNREADABLE], None),
        ([UNREADABLE | {"ground_truth": True}, LATER], None),
        ([TRUTH, UNREADABLE | {"ground_truth": True}], None),
        ([UNREADABLE | {"ground_truth": True}, LATER | {"ground_truth": True}], 3),
        ([UNREADABLE | {"ground_truth": True, "was_cancelled": True}, LATER], 3),
    ],
    ids=["beside a truth", "before both", "before", "after", "a truth", "the later truth",
         "the earlier truth", "skipped"],
)  # fmt: skip
def test_an_unreadable_annotation_is_told_where_it_would_count(
    annotations: list[dict[str, Any]], counts: int | None
) -> None:
    row = {"id": 5, "annotations": annotations}
    if counts is None:
        with pytest.raises(AnnotationError, match="result"):
            chosen_annotation(row)
    else:
        chosen = chosen_annotation(row)
        assert chosen is not None
        assert chosen.id == counts


def test_deleted_annotations_are_noticed_without_listing_all_tasks(project: Labelled) -> None:
    first, _ = project.sync(0, None)
    project.memory.delete_annotations([1])
    dataset, listings = project.sync(1, first)
    assert listings == 0
    assert labels_of(dataset) == {0, 2}
    assert state_of(dataset, 1) == "pool"


def test_deleted_tasks_are_noticed(project: Labelled) -> None:
    first, _ = project.sync(0, None)
    project.memory.delete_task(1)
    dataset, _ = project.sync(1, first)
    assert tasks_of(dataset) == {*range(SLICES - 1)} - {1}
    assert labels_of(dataset) == {0, 2}


def test_a_slice_whose_draft_is_discarded_is_what_it_was_before(project: Labelled) -> None:
    """That touches no task in Label Studio (`AnnotationDraft.delete`)."""
    project.memory.skip(4)
    project.memory.drafted = {3, 4, 5}
    first, _ = project.sync(0, None)
    assert {state_of(first, task) for task in (3, 4, 5)} == {"drafted"}

    project.memory.drafted = {5}
    project.label([9])
    dataset, listings = project.sync(1, first)

    assert listings == 0
    assert [state_of(dataset, task) for task in (3, 4, 5)] == ["pool", "skipped", "drafted"]
    assert labels_of(dataset) == {0, 1, 2, 9}


def test_what_is_submitted_while_begun_slices_are_read_is_not_missed(
    project: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.memory.drafted = {5}
    first, _ = project.sync(0, None)
    read = project.memory.tasks_by_id

    def late(number: int, ids: Iterable[int]) -> Iterator[TaskRow]:
        if submitted := [task for task in ids if task == 5]:
            project.label([9, *submitted])
        return read(number, ids)

    monkeypatch.setattr(project.memory, "tasks_by_id", late)
    second, _ = project.sync(1, first)

    assert labels_of(second) == {0, 1, 2, 5, 9}


def test_no_task_is_missed_where_another_is_deleted_while_pages_are_read(
    paged: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_the_first_page(monkeypatch, "task_only", lambda: paged.memory.delete_task(2))

    first, _ = paged.sync(0, None)

    assert tasks_of(first) == {*range(SLICES - 1)} - {2}


def test_no_changed_annotation_is_missed_where_another_is_deleted_while_pages_are_read(
    paged: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    paged.label(range(3, 10))
    first, _ = paged.sync(0, None)
    for task in range(10):
        paged.memory.submit_again(task, drawn((7, 0)))
    after_the_first_page(monkeypatch, "all", lambda: paged.memory.delete_annotations([0]))

    second, _ = paged.sync(1, first)

    before = {label.task: label.hash for label in first.labels}
    assert len(before) == 10
    assert [label.task for label in second.labels if label.hash == before[label.task]] == []


def test_without_a_z_tasks_keep_their_places(project: Labelled) -> None:
    """Also over another labelling config, which has all tasks read anew."""
    for task in range(SLICES - 1):
        project.memory.request("PATCH", f"api/tasks/{task}/", json={"data": {"image": f"{task}"}})
    first, _ = project.sync(0, None)
    assert first.places == {task: task for task in range(SLICES - 1)}

    project.memory.delete_task(1)
    last = SLICES - 1
    project.memory.request("PATCH", f"api/tasks/{last}/", json={"data": {"image": "/late.png"}})
    project.memory.request("PATCH", "api/tasks/0/", json={"data": {"other": 1}})
    project.memory.fields["label_config"] = bitmask_config(["screw"])
    second, _ = project.sync(1, first)

    places = {task: found.z for task, found in positions(second).items()}
    assert places == {task: task for task in range(2, SLICES)}


def test_tasks_with_a_z_have_no_other_place(project: Labelled) -> None:
    dataset, _ = project.sync(0, None)
    assert dataset.places == {}
    assert positions(dataset)[7].z == 7.0


# -- new labels


def test_annotations_of_tasks_without_an_image_are_no_new_labels(project: Labelled) -> None:
    """Those that the dataset knows, also by another change of theirs, and those that come."""
    last = SLICES - 1
    project.label([last])
    dataset, _ = project.sync(0, None)
    assert new_labels(project, dataset) == 0

    project.label([last])
    project.memory.request("PATCH", "api/tasks/8/", json={"data": {"other": 1}})
    project.label([8])
    assert new_labels(project, dataset) == 0
    project.label([9])
    assert new_labels(project, dataset) == 1


@pytest.mark.parametrize("config", ["", CONFIG.replace("$image", "$picture")])
def test_whether_a_task_has_an_image_is_as_the_labelling_config_has_it_now(
    project: Labelled, config: str
) -> None:
    """Where that cannot be used, as the dataset has it."""
    dataset, _ = project.sync(0, None)
    project.memory.request("PATCH", "api/tasks/8/", json={"data": {"picture": "/8.png"}})
    project.label([8])
    project.memory.fields["label_config"] = config

    assert new_labels(project, dataset) == (1 if config else 0)


def test_after_label_studios_clock_was_put_back_labels_are_counted(project: Labelled) -> None:
    """Those that come, and neither what the dataset knows nor what has no image."""
    project.label([8, SLICES - 1])
    project.memory.submit(7, BROKEN)
    project.memory.turn_clock(timedelta(days=1))
    project.label([9])
    dataset, _ = project.sync(0, None)
    assert (labels_of(dataset), dataset.unusable) == ({0, 1, 2, 8, 9}, [7])
    project.memory.turn_clock(-timedelta(days=1))
    assert new_labels(project, dataset) == 0

    project.label([3, 4, SLICES - 1])
    project.memory.request("PATCH", "api/tasks/6/", json={"data": {"other": 1}})
    project.label([6])

    assert new_labels(project, dataset) == 2
    assert new_labels(project, dataset.model_copy(update={"imageless": None})) == 0, "as before"
    second, _ = project.sync(1, dataset)
    assert labels_of(second) == {0, 1, 2, 3, 4, 8, 9}
    assert new_labels(project, second) == 0


def test_after_label_studios_clock_was_put_back_changed_labels_are_read(project: Labelled) -> None:
    """In the round that new ones begin: a change alone cannot be told."""
    project.memory.turn_clock(timedelta(days=1))
    project.label([9])
    first, _ = project.sync(0, None)
    project.memory.turn_clock(-timedelta(days=1))
    project.memory.submit_again(1, drawn((7, 0)))
    project.label([3])

    second, _ = project.sync(1, first)

    before = {label.task: label.hash for label in first.labels}
    changed = {label.task for label in second.labels if label.hash != before.get(label.task)}
    assert changed == {1, 3}


# -- effort


def predicted(*tasks: int, version: str = "nextslice-r001-abcdef") -> list[dict[str, object]]:
    """A stored prediction of each task: MASK without its first pixel, and one more pixel."""
    mask = MASK.copy()
    mask[0, 0], mask[0, 7] = 0, 1
    result = regions(mask, parse_label_config(CONFIG))
    return [
        {"task": task, "model_version": version, "score": 0.1, "result": result} for task in tasks
    ]


def efforts_of(dataset: DatasetRecord) -> dict[int, EffortRecord | None]:
    return {label.task: label.effort for label in dataset.labels}


def drawn(*pixels: tuple[int, int]) -> list[dict[str, object]]:
    """MASK and ``pixels``, as a result."""
    mask = MASK.copy()
    for pixel in pixels:
        mask[pixel] = 1
    return regions(mask, parse_label_config(CONFIG))


def test_a_label_says_what_it_cost(project: Labelled) -> None:
    project.memory.imported = predicted(5, 6)
    project.memory.submit(5, drawn(), parent_prediction=0, lead_time=12.5, completed_by=3)
    project.memory.submit(6, drawn())  # as a script does
    project.memory.submit(7, drawn(), lead_time=30.0)  # of which there was no prediction

    efforts = efforts_of(project.sync(0, None)[0])

    assert efforts[5] == EffortRecord(
        task=5, annotation=5000, completed_by=3, model_version="nextslice-r001-abcdef",
        pixels=64, corrected=2, by_class={"background": 2, "bone": 2}, boundary=2, seconds=12.5,
    )  # fmt: skip
    assert efforts[6]
    assert (efforts[6].corrected, efforts[6].seconds) == (2, None)
    assert efforts[7]
    assert (efforts[7].model_version, efforts[7].corrected) == (None, 8)


def test_what_a_drag_painted_is_told_from_strokes(project: Labelled) -> None:
    """The prediction lacks a pixel of MASK and has one more: a drag and a stroke bring one each;
    what a drag painted and a stroke covers, and what was so before, is the drag's no more."""
    project.memory.imported = predicted(5)
    config = parse_label_config(CONFIG)
    first = project.memory.imported[0]["result"]
    at = {name: np.zeros(MASK.shape, np.bool_) for name in ("drag-1", "stroke", "drag-2")}
    at["drag-1"][0, 0] = at["drag-1"][5, 4] = at["drag-1"][7, 0] = True
    at["stroke"][5, 4] = at["stroke"][6, 5] = True
    at["drag-2"][0, 7] = True  # there already
    patches = [mask_region(painted, config, 1, name) for name, painted in at.items()]
    project.memory.submit(5, [*first, *patches], parent_prediction=0, lead_time=12.5)

    dataset, _ = project.sync(0, None)

    effort = efforts_of(dataset)[5]
    assert effort is not None
    assert (effort.corrected, effort.dragged) == (4, 2)
    again = [*first, *patches, mask_region(np.eye(8, dtype=np.bool_)[::-1], config, 1, "drag-3")]
    project.memory.submit_again(5, again, parent_prediction=0, lead_time=20.0)
    more = efforts_of(project.sync(1, dataset)[0])[5]
    assert more is not None
    new = more.corrected - effort.corrected
    assert new > 0
    assert more.dragged == effort.dragged + new


def test_what_was_measured_outlives_its_prediction(project: Labelled) -> None:
    """Also where the mask is gone from the store, and is rendered anew."""
    project.memory.imported = predicted(5)
    project.memory.submit(5, drawn(), parent_prediction=0, lead_time=12.5)
    first, _ = project.sync(0, None)
    measured = efforts_of(first)[5]
    assert measured is not None
    assert measured.corrected == 2
    project.memory.imported = []
    label = next(label for label in first.labels if label.task == 5)
    project.folder.store.remove(f"{project.folder.path}/{label.mask}")

    second, _ = project.sync(1, first)

    assert efforts_of(second)[5] == measured


def test_submitting_again_adds_to_what_it_cost(project: Labelled) -> None:
    project.memory.imported = predicted(5)
    project.memory.submit(5, drawn(), parent_prediction=0, lead_time=12.5)
    first, _ = project.sync(0, None)
    project.memory.submit_again(5, drawn((4, 0), (4, 1)), parent_prediction=0, lead_time=20.0)

    effort = efforts_of(project.sync(1, first)[0])[5]

    assert effort is not None
    assert (effort.corrected, effort.seconds) == (2 + 2, 20.0)
    assert effort.model_version == "nextslice-r001-abcdef"


def test_a_mask_that_was_drawn_while_the_slice_was_open_was_not_shown(project: Labelled) -> None:
    """As early rounds do it, a minute or so before somebody submits who took 90 s or 30 s."""
    drawn_at = (FIRST_MOMENT + timedelta(minutes=4)).isoformat()
    project.memory.imported = [row | {"updated_at": drawn_at} for row in predicted(5, 6)]
    project.memory.submit(5, drawn(), parent_prediction=0, lead_time=90.0)
    project.memory.submit(6, drawn(), parent_prediction=1, lead_time=30.0)

    efforts = efforts_of(project.sync(0, None)[0])

    assert [e.corrected for task in (5, 6) if (e := efforts[task])] == [8, 2]
    assert [e.blank for task in (5, 6) if (e := efforts[task])] == [True, False]


def test_a_slice_whose_mask_was_still_to_come_was_opened_blank(project: Labelled) -> None:
    """As of an early round, of one that has no weights any more, or that could not be read."""
    shown, bare = predicted(5, 6)
    project.memory.imported = [shown, bare | {"result": []}]
    project.memory.submit(5, drawn(), parent_prediction=0)
    project.memory.submit(6, drawn(), parent_prediction=1)
    first, _ = project.sync(0, None)
    project.memory.submit_again(6, drawn((4, 0)), parent_prediction=1)

    efforts = efforts_of(project.sync(1, first)[0])
    found = [effort for task in (5, 6) if (effort := efforts[task])]

    assert [effort.blank for effort in found] == [False, True]
    assert [effort.task for effort in opened_with_mask(found)] == [5]


def test_a_prediction_that_cannot_be_read_leaves_the_label(project: Labelled) -> None:
    broken = predicted(5)[0] | {"result": [{"type": "bitmasklabels", "value": {"imageDataURL": 7}}]}
    project.memory.imported = [broken]
    project.memory.submit(5, drawn(), parent_prediction=0)

    dataset, _ = project.sync(0, None)

    assert 5 in labels_of(dataset)
    assert efforts_of(dataset)[5] is None
