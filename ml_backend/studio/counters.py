"""Label Studio's counters of a task's annotations: which it loses, and how that is mended.

Every list, filter and total goes by what a task's row says: how many annotations it has, and
whether those are all that it is to get. A change of a task writes its whole row as it was read
about a tenth of a second before, and where predictions are stored, the annotations of all tasks of
the project are counted and the numbers written a moment later. Who submits in between is not
counted: the annotation is stored, but no round learns from it, and the slice is handed out once
more. (Label Studio 1.23.2, `TaskAPI.patch` and `tasks.functions.update_tasks_counters`; 17 of 40
submissions in the moment of a change, 1 of 20 in that of an import of predictions.)
"""

from __future__ import annotations

from typing import Any

from ml_backend.studio.client import Studio, StudioError, uncounted

__all__ = ["change_task", "count_anew"]

_TRIES = 5
"""How often the counters of one task are written: each time somebody may submit meanwhile."""


def change_task(studio: Studio, project_id: int, task_id: int, fields: dict[str, Any]) -> bool:
    """Set ``fields`` of the task, and see that its annotations are counted afterwards; whether some
    were not.

    Raises StudioError where some never are, and what `Studio.request` raises.
    """
    path = f"api/tasks/{task_id}/"
    # It answers with the counters that it has written, and the annotations that there are by then.
    answer = studio.request("PATCH", path, json=fields)
    tries = 0
    while missing := _missing(answer):
        if tries == _TRIES:
            raise StudioError(
                f"Label Studio does not count the annotations of task {task_id}: it was told "
                f"{missing}, {_TRIES} times"
            )
        tries += 1
        missing["is_labeled"] = _is_labeled(studio, project_id, answer)
        answer = studio.request("PATCH", path, json=missing)
    return tries > 0


def count_anew(studio: Studio, project_id: int) -> list[int]:
    """Have annotated and skipped tasks counted as such that Label Studio holds for untouched; which
    they were. One request where there are none.

    Not a task of which another annotation is counted: a sync reads all that it has.
    """
    found = list(studio.tasks(project_id, uncounted()))
    return [row.id for row in found if change_task(studio, project_id, row.id, {})]


def _missing(task: dict[str, Any]) -> dict[str, Any]:
    """The counters of ``task``, as Label Studio answers it, that are too low, and what is right."""
    annotations = task["annotations"]
    skips = sum(bool(found["was_cancelled"]) for found in annotations)
    there = {"total_annotations": len(annotations) - skips, "cancelled_annotations": skips}
    return {name: number for name, number in there.items() if number > task[name]}


def _is_labeled(studio: Studio, project_id: int, task: dict[str, Any]) -> bool:
    """Whether as many people have annotated ``task`` as are to; skips count where the project takes
    them for an answer (Label Studio's `TaskMixin._get_is_labeled_value`)."""
    skips_count = studio.project(project_id).skip_queue == "IGNORE_SKIPPED"
    people = {
        found["completed_by"]
        for found in task["annotations"]
        if skips_count or not found["was_cancelled"]
    }
    return len(people) >= int(task["overlap"])
