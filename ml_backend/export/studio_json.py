"""The annotations as Label Studio's own JSON: those it holds now, or those that a round saw.

What Label Studio holds now is read page by page, in the form of its JSON export: its own export
answers in one request that holds the whole project in memory. An older round's annotations may have
been changed or deleted there since, so they are drawn from the label maps that the round kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from al_strategies.learner import Progress
from ml_backend.export.files import whole
from ml_backend.rounds.artefacts import DATASET
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import LabelRecord, TaskRecord
from ml_backend.rounds.store import RoundFolder
from ml_backend.studio.annotations import regions
from ml_backend.studio.client import answered
from ml_backend.studio.label_config import LabelConfig, parse_label_config

__all__ = ["export_studio_json", "round_tasks", "studio_tasks"]

_TASK_KEYS = (
    "id", "annotations", "file_upload", "drafts", "predictions", "data", "meta", "created_at",
    "updated_at", "inner_id", "total_annotations", "cancelled_annotations",
    "total_predictions", "comment_count", "unresolved_comment_count", "last_comment_updated_at",
    "project", "updated_by", "comment_authors",
)  # fmt: skip
"""Of Label Studio's export, in its order, but for ``allow_skip``: pages of tasks do not say it."""
_SHOWN = ("created_username", "created_ago")
"""What the Data Manager adds to an annotation for people to read."""


def studio_tasks(
    project: ConnectedProject, progress: Progress | None = None
) -> Iterator[dict[str, Any]]:
    """Every annotated task of the project as Label Studio holds it now, in its export's form.

    Raises StudioError when Label Studio cannot be reached, or has another project under that
    number now.
    """
    project.in_studio()
    studio, number = project.studio, project.number
    # By id: pages of "annotated tasks" shift, and lose some, while people go on annotating. And
    # whatever is counted: Label Studio loses some of these, which the loop alone would mend.
    ids = [row.id for row in studio.tasks(number, [answered()])]
    for done, row in enumerate(studio.full_tasks_by_id(number, ids), 1):
        if not all(annotation["was_cancelled"] for annotation in row["annotations"]):
            yield _exported(row)
        if progress is not None:
            progress("annotations", done, len(ids))


def _exported(row: dict[str, Any]) -> dict[str, Any]:
    """A task of the Data Manager as the export shows it, without drafts and predictions: Label
    Studio's export names them by id, and its import answers 500 to such a prediction."""
    task = {name: row[name] for name in _TASK_KEYS if name in row}
    if task.get("file_upload") is None:
        task.pop("file_upload", None)
    task |= {"drafts": [], "predictions": []}
    task["updated_by"] = next((user["user_id"] for user in row.get("updated_by") or ()), None)
    task["annotations"] = [
        {name: value for name, value in annotation.items() if name not in _SHOWN}
        for annotation in row["annotations"]
    ]
    return task


def round_tasks(folder: RoundFolder, progress: Progress | None = None) -> Iterator[dict[str, Any]]:
    """Every task with a label as round ``folder`` saw it: the label map as one region a class.

    ``data`` holds the image's address, and volume, z and axis where the task had them; of what else
    the labelling config shows, an empty text, without which Label Studio takes no task. Each task
    has one annotation, with the ``id``, ``completed_by`` and ``updated_at`` of the one it came
    from. Rendered again (`studio.annotations.label_map`) it gives the round's label map, except
    pixels that were ignored in a project without a background label: Label Studio cannot say that
    of them. Raises StoreError for a round without a dataset.
    """
    dataset = folder.need(DATASET)
    config = parse_label_config(dataset.label_config)
    tasks = {task.id: task for task in dataset.tasks}
    for done, label in enumerate(dataset.labels, 1):
        result = regions(folder.project.mask(label), config)
        yield _task(tasks[label.task], label, result, config)
        if progress is not None:
            progress("annotations", done, len(dataset.labels))


def _task(
    task: TaskRecord, label: LabelRecord, result: list[dict[str, Any]], config: LabelConfig
) -> dict[str, Any]:
    data = config.data_of(task.image)
    if task.volume:
        data["volume"] = task.volume
    if task.z is not None:
        data |= {"z": int(task.z) if task.z.is_integer() else task.z, "axis": task.axis}
    annotation = {
        "id": label.annotation,
        "completed_by": label.completed_by,
        "updated_at": label.updated_at,
        "was_cancelled": False,
        "ground_truth": False,
        "result": result,
    }
    return {"id": task.id, "data": data, "annotations": [annotation]}


def export_studio_json(
    project: ConnectedProject,
    out: Path,
    *,
    round: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write the annotations to the JSON file ``out``, one task after the other; returns how many.

    ``round``: as that round saw them, from the store alone (`round_tasks`); None: as Label Studio
    holds them now, every annotation of every annotated task (`studio_tasks`). Either can be
    imported into Label Studio. Raises ExportError when ``out`` is there already.
    """
    tasks: Iterable[dict[str, Any]]
    if round is None:
        tasks = studio_tasks(project, progress)
    else:
        tasks = round_tasks(project.folder.round(round), progress)
    with whole(out, overwrite=overwrite) as partial, partial.open("w", encoding="utf-8") as stream:
        return _write_list(stream, tasks)


def _write_list(stream: Any, rows: Iterable[dict[str, Any]]) -> int:
    """A JSON list, never whole in memory."""
    count = 0
    stream.write("[")
    for count, row in enumerate(rows, 1):
        stream.write(("\n" if count == 1 else ",\n") + json.dumps(row, ensure_ascii=False))
    stream.write("\n]\n")
    return count
