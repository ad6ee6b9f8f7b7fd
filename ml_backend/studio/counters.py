"""Label Studio's counters of a task's annotations: which it loses, and how that is mended.

Every list, filter and total goes by what a task's row says: how many annotations it has, and
whether those are all that it is to get. A change of a task writes its whole row as it was read
about a tenth of a second before; and where predictions are stored, the annotations of all tasks of
the project are counted and the numbers written afterwards, 1.6 s later with 10,000 tasks. Who
submits in between is not counted: the annotation is stored, but no round learns from it, and the
slice is handed out once more. Who deletes one leaves a slice that nobody is given again. (Label
Studio 1.23.2, `TaskAPI.patch` and `tasks.functions.update_tasks_counters`; 17 of 40 submissions in
the moment of a change, 1 of 20 in that of an import of predictions.)
"""

from __future__ import annotations

import logging
from typing import Any

from ml_backend.studio.client import Project, Studio, StudioError, uncounted

__all__ = ["change_task", "count_anew"]

logger = logging.getLogger(__name__)

_TRIES = 5
"""How often the counters of one task are written: each time somebody may submit meanwhile."""


def change_task(studio: Studio, project_id: int, task_id: int, fields: dict[str, Any]) -> None:
    """Set ``fields`` of the task, and see that its annotations are counted as they are afterwards.

    Raises StudioError where they never are, and what `Studio.request` raises.
    """
    # It answers with the counters that it has written, and the annotations that there are by then.
    answer = studio.request("PATCH", f"api/tasks/{task_id}/", json=fields)
    if _wrong(answer):
        _mend(studio, studio.project(project_id), answer)


def count_anew(studio: Studio, project: Project) -> list[int]:
    """Have annotated and skipped tasks counted as such that Label Studio holds for untouched; which
    they were. One request where there are none. One that cannot be mended is said, and left.

    Not a task of which another annotation is counted: a sync reads all that it has.
    """
    mended = []
    found = [row.id for row in studio.tasks(project.id, uncounted())]
    for task in studio.full_tasks_by_id(project.id, found):
        try:
            _mend(studio, project, task)
        except StudioError as error:
            logger.warning("task %d: its annotations are not counted: %s", task["id"], error)
        else:
            mended.append(int(task["id"]))
    return mended


def _mend(studio: Studio, project: Project, task: dict[str, Any]) -> None:
    """Write the counters of ``task``, as Label Studio answers it, until they are right."""
    path = f"api/tasks/{task['id']}/"
    tries = 0
    while wrong := _wrong(task):
        if tries == _TRIES:
            raise StudioError(
                f"Label Studio does not count the annotations of task {task['id']}: it was told "
                f"{wrong}, {_TRIES} times"
            )
        tries += 1
        done = _is_labeled(project, task)
        task = studio.request("PATCH", path, json={**wrong, "is_labeled": done})


def _wrong(task: dict[str, Any]) -> dict[str, int]:
    """The counters of ``task`` that are wrong, and what is right."""
    annotations = task["annotations"]
    skips = sum(bool(found["was_cancelled"]) for found in annotations)
    there = {"total_annotations": len(annotations) - skips, "cancelled_annotations": skips}
    return {name: number for name, number in there.items() if number != task[name]}


def _is_labeled(project: Project, task: dict[str, Any]) -> bool:
    """Whether as many people have annotated ``task`` as are to; skips count where the project takes
    them for an answer (Label Studio's `TaskMixin._get_is_labeled_value`)."""
    people = {
        found["completed_by"]
        for found in task["annotations"]
        if project.skip_queue == "IGNORE_SKIPPED" or not found["was_cancelled"]
    }
    return len(people) >= int(task["overlap"])
