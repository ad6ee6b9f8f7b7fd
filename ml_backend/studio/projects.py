"""New projects, tasks, files and ML backends: what an import and `connect` ask of Label Studio.

On SQLite, Label Studio repeats by itself a request that found the database locked, also when what
was asked for had been stored before, and the SDK repeats one that failed. So one request may make
a project or its tasks twice: what attempts before the last one left is looked for and deleted.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from ml_backend.studio.client import (
    Backend,
    Filter,
    Project,
    Studio,
    StudioError,
    ids_after,
    ids_between,
    ids_in,
    not_drafted,
    untouched,
)
from ml_backend.studio.counters import change_task
from ml_backend.studio.task_order import BackendLink

__all__ = [
    "ANNOTATED_AT_ONCE",
    "annotate",
    "check_title",
    "create_project",
    "delete_project",
    "delete_untouched",
    "import_tasks",
    "make_interactive",
    "projects_called",
    "register_backend",
    "set_data",
    "shortened_title",
    "upload_images",
]

logger = logging.getLogger(__name__)

ANNOTATED_AT_ONCE = 8
"""Tasks that are looked at together before they are annotated: what people do in the second after
that is not seen."""
_REPEATS = 3
"""How often what Label Studio did not store is sent again."""
_NAMED = 5
"""How much of what is missing is named."""
_PRIVATE_ADDRESS = (
    "Label Studio refuses an ML backend on a private address ({url}). Since 1.23.1 its environment "
    "needs ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false; set both and restart it."
)


_TITLE = range(3, 51)
"""Lengths of a title that Label Studio takes."""


def check_title(title: str) -> None:
    """Raise StudioError for a title that Label Studio, which drops the blanks around it, would
    refuse for its length."""
    title = title.strip()
    if len(title) not in _TITLE:
        raise StudioError(
            f"The title {title!r} has {len(title)} characters, Label Studio takes {_TITLE[0]} to "
            f"{_TITLE[-1]}: give another --title"
        )


def shortened_title(title: str) -> str:
    """``title``, with its middle left out where it is too long for Label Studio."""
    if len(title) <= _TITLE[-1]:
        return title
    half = _TITLE[-1] // 2
    return f"{title[: half - 1]}…{title[-half:]}"


def create_project(
    studio: Studio, title: str, label_config: str, instructions: str = ""
) -> Project:
    """A new, empty project. ``instructions``: HTML that annotators find on the labelling page.
    StudioError when Label Studio refuses the title or the config."""
    known = {project.id for project in projects_called(studio, title)}
    fields = {"title": title, "label_config": label_config}
    if instructions:
        fields["expert_instruction"] = instructions
    made = studio.request("POST", "api/projects/", json=fields)
    for project in projects_called(studio, title):
        if project.id < int(made["id"]) and project.id not in known:
            _delete_project_attempt(studio, project.id, made)
    return studio.project(int(made["id"]))


def _delete_project_attempt(studio: Studio, project_id: int, made: dict[str, Any]) -> None:
    """Delete a project that was to be ``made``; not one of somebody else, or with a task."""
    found = studio.request("GET", f"api/projects/{project_id}/")
    ours = all(found[name] == made[name] for name in ("created_by", "label_config"))
    if ours:
        delete_untouched(studio, project_id, tasks=0)


def delete_project(studio: Studio, project_id: int) -> None:
    """Delete a project with all its tasks, whatever is on them."""
    studio.request("DELETE", f"api/projects/{project_id}/")


def delete_untouched(studio: Studio, project_id: int, tasks: int) -> bool:
    """Delete a project of so many ``tasks``; whether that was done. Not one that has others too, or
    where any was annotated, skipped or begun."""
    # Two short queries of what is there, also of annotations: counters may be wrong, and while all
    # tasks were read one by one, somebody would submit.
    if not tasks == studio.count_tasks(project_id) == studio.count_tasks(project_id, untouched()):
        return False
    delete_project(studio, project_id)
    return True


def projects_called(studio: Studio, title: str) -> list[Project]:
    """The projects with exactly this title, but for blanks around it, that the token's user may
    see, oldest first."""
    title = title.strip()
    return sorted(
        (project for project in studio.projects(title=title) if project.title == title),
        key=lambda project: project.id,
    )


def import_tasks(studio: Studio, project_id: int, rows: Sequence[dict[str, Any]]) -> None:
    """Create tasks in one request: ``{"data": …}``, with ``"annotations"`` if they have some.

    What the answer counts is compared with what was sent: on SQLite, a request that Label Studio
    repeats by itself stores the tasks without their annotations, and is answered with a 201. What
    is missing is sent again; StudioError names what is missing after that.
    """
    newest = studio.newest_task(project_id)
    answer = _post_tasks(studio, project_id, rows)
    first = min(answer.get("task_ids") or (), default=0)
    _delete_task_attempts(studio, project_id, [ids_between(newest + 1, first - 1)], rows)
    sent = sum(len(_annotations(row)) for row in rows)
    if (answer.get("task_count"), answer.get("annotation_count")) != (len(rows), sent):
        _complete(studio, project_id, ids_after(newest), rows)


def _post_tasks(studio: Studio, project_id: int, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    path, asked = f"api/projects/{project_id}/import", {"return_task_ids": "true"}
    answer = studio.request("POST", path, params=asked, json=list(rows))
    return answer if isinstance(answer, dict) else {}


def _annotations(row: dict[str, Any]) -> Sequence[dict[str, Any]]:
    found: Sequence[dict[str, Any]] = row.get("annotations", ())
    return found


def _complete(
    studio: Studio, project_id: int, where: Filter, rows: Sequence[dict[str, Any]]
) -> None:
    """Send again what Label Studio did not store of ``rows``, whose tasks are ``where``.

    StudioError names what is missing still when that was tried.
    """
    absent, bare = _not_stored(studio, project_id, where, rows)
    for _ in range(_REPEATS):
        if not absent and not bare:
            return
        logger.warning(
            "project %s: %d tasks and the annotations of %d more were not stored: "
            "sending them again",
            project_id,
            len(absent),
            len(bare),
        )
        if absent:
            _post_tasks(studio, project_id, absent)
        annotate(studio, project_id, bare)
        absent, bare = _not_stored(studio, project_id, where, rows)
    if not absent and not bare:
        return
    names = [f"the task of {json.dumps(row['data'])[:120]}" for row in absent]
    names += [f"the annotation of task {task}" for task in bare]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    raise StudioError(
        f"Label Studio took {len(rows)} tasks for project {project_id} and did not store all of "
        f"it, also when it was sent again. Missing are {', '.join(names[:_NAMED])}{more}. Is its "
        "database locked, as SQLite is beside other writers? Import again: what is missing is added"
    )


def _not_stored(
    studio: Studio, project_id: int, where: Filter, rows: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[int, Sequence[dict[str, Any]]]]:
    """Those of ``rows`` that are no task, and of the tasks that have no annotation, task → those
    it lacks."""
    there = {_same(task.data): task.id for task in studio.tasks(project_id, [where])}
    numbers = [there.get(_same(row["data"])) for row in rows]
    absent = [row for row, number in zip(rows, numbers, strict=True) if number is None]
    wanted = {n: _annotations(row) for row, n in zip(rows, numbers, strict=True) if n is not None}
    wanted = {task: few for task, few in wanted.items() if few}
    if not wanted:
        return absent, {}
    # In full: where Label Studio has workers, its count of a task's annotations comes later.
    looked = studio.full_tasks_by_id(project_id, wanted)
    stored = {int(task["id"]) for task in looked if task["annotations"]}
    return absent, {task: few for task, few in wanted.items() if task not in stored}


def _same(data: dict[str, Any]) -> str:
    """Equal for equal data of tasks."""
    return json.dumps(data, sort_keys=True)


def annotate(
    studio: Studio, project_id: int, annotations: Mapping[int, Sequence[dict[str, Any]]]
) -> int:
    """Give tasks that are there annotations, task → ``{"result": …}`` each; how many tasks.

    None to a task that has one by then, or was skipped: the newest counts, and it would outvote
    what a person has submitted meanwhile.
    """
    given = 0
    waiting = iter(annotations)
    while few := list(islice(waiting, ANNOTATED_AT_ONCE)):
        # In full: where Label Studio has workers, its count of a task's annotations comes later.
        looked = studio.full_tasks_by_id(project_id, few)
        bare = [int(row["id"]) for row in looked if not row["annotations"]]
        for task in bare:
            for annotation in annotations[task]:
                studio.request("POST", f"api/tasks/{task}/annotations/", json=annotation)
        given += len(bare)
    return given


def _delete_task_attempts(
    studio: Studio, project_id: int, where: list[Filter], rows: Sequence[dict[str, Any]]
) -> None:
    """Delete the tasks that are one of ``rows`` as it was sent; not one that somebody touched."""
    for task in list(studio.tasks(project_id, where)):
        sent = [row for row in rows if row["data"] == task.data]
        if len(sent) != 1:
            continue
        if _is_as_sent(studio, project_id, task.id, sent[0]):
            studio.request("DELETE", f"api/tasks/{task.id}/")
        else:
            logger.warning(
                "project %s: task %s is a double that an attempt at the import left, and somebody "
                "has worked on it: it is not deleted",
                project_id,
                task.id,
            )


def _is_as_sent(studio: Studio, project_id: int, task_id: int, row: dict[str, Any]) -> bool:
    """Whether the task is ``row``, or less of it, and nobody's work is on it.

    By its annotations and everybody's drafts, in one request: the counters do not tell whose
    annotations they count, and not of all. A submitted, skipped or updated annotation names who
    saved it (``updated_by``), an imported one nobody.
    """
    results = [annotation["result"] for annotation in _annotations(row)]
    return any(
        found["data"] == row["data"]
        and all(
            annotation.get("updated_by", "unknown") is None and annotation["result"] in results
            for annotation in found["annotations"]
        )
        for found in studio.full_tasks(project_id, [ids_in([task_id]), not_drafted()])
    )


def set_data(
    studio: Studio,
    project_id: int,
    task_id: int,
    fields: dict[str, Any],
    where: dict[str, Any] | None = None,
) -> bool:
    """Set ``fields`` of a task's data, where it holds all of ``where``; whether that changed it.

    Label Studio takes data as a whole alone, and imports, rounds and people write in it: so what it
    holds is asked for right before. A task that is gone changes nothing.
    """
    row = next(studio.tasks_by_id(project_id, [task_id]), None)
    if row is None or row.data | fields == row.data or row.data | (where or {}) != row.data:
        return False
    change_task(studio, project_id, task_id, {"data": row.data | fields})
    return True


def upload_images(studio: Studio, project_id: int, files: Sequence[tuple[str, bytes]]) -> list[str]:
    """Send PNG files, (name, bytes) each; the values for ``data.image``, in order. No task yet."""
    # The SDK's client drops files that come as a list.
    parts = {name: (name, data, "image/png") for name, data in files}
    answer = studio.request(
        "POST",
        f"api/projects/{project_id}/import",
        params={"commit_to_project": "false"},
        files=parts,
    )
    ids = answer["file_upload_ids"]
    listed = studio.request(
        "GET", f"api/projects/{project_id}/file-uploads", params={"ids": str(ids)}
    )
    paths = {row["id"]: row["file"] for row in listed}
    if len(ids) != len(files) or not paths.keys() >= set(ids):
        raise StudioError(
            f"Label Studio stored {len(paths.keys() & set(ids))} of {len(files)} pictures for "
            f"project {project_id}, {files[0][0]} and the next: no task was made of them. Import "
            "again: what is missing is added"
        )
    return [f"{studio.below}/data/{paths[i]}" for i in ids]


def register_backend(studio: Studio, project: int, link: BackendLink) -> bool:
    """Add the backend to the project unless it is there. True when it was added."""
    if studio.find_backend(project, link.url) is not None:
        return False
    try:
        studio.call(
            "add the ML backend",
            studio.sdk.ml.create,
            project=project,
            url=link.url,
            title="nextslice",
            **link.auth_fields,
        )
    except StudioError as error:
        if "reserved network address" in str(error):
            raise StudioError(_PRIVATE_ADDRESS.format(url=link.url)) from error
        raise
    return True


def make_interactive(studio: Studio, project: int, backend: Backend, link: BackendLink) -> None:
    """Let Label Studio ask ``backend`` when a person draws a prompt. Nothing where it does so.

    Every opened task ends in a full save of the backend that may put back what it had read before:
    so it is looked at again.
    """
    for _ in range(_REPEATS):
        if backend.is_interactive:
            return
        # without url it is a 500, without credentials a refused /health
        fields = {"is_interactive": True, "url": backend.url, "project": project}
        studio.call(
            f"make ML backend {backend.id} interactive",
            studio.sdk.ml.update,
            backend.id,
            **fields,
            **link.auth_fields,
        )
        found = {one.id: one for one in studio.backends(project)}
        backend = found.get(backend.id, backend)
    if not backend.is_interactive:
        logger.warning("project %s: ML backend %s does not stay interactive", project, backend.id)
