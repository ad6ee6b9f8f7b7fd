"""New projects, tasks, files and ML backends: what an import and `connect` ask of Label Studio.

On SQLite, Label Studio repeats by itself a request that found the database locked, also when what
was asked for had been stored before, and the SDK repeats one that failed. So one request may make
a project or its tasks twice: what attempts before the last one left is looked for and deleted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ml_backend.studio.client import Filter, Project, Studio, StudioError, drafted, ids_between
from ml_backend.studio.task_order import BackendLink

__all__ = [
    "check_title",
    "create_project",
    "delete_project",
    "import_tasks",
    "projects_called",
    "register_backend",
    "shortened_title",
    "upload_images",
]

_PRIVATE_ADDRESS = (
    "Label Studio refuses an ML backend on a private address ({url}). Since 1.23.1 its environment "
    "needs ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false; set both and restart it."
)


_TITLE = range(3, 51)
"""Lengths of a title that Label Studio takes."""


def check_title(title: str) -> None:
    """Raise StudioError for a title that Label Studio would refuse for its length."""
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


def create_project(studio: Studio, title: str, label_config: str) -> Project:
    """A new, empty project. StudioError when Label Studio refuses the title or the config."""
    known = {project.id for project in projects_called(studio, title)}
    fields = {"title": title, "label_config": label_config}
    made = studio.request("POST", "api/projects/", json=fields)
    for project in projects_called(studio, title):
        if project.id < int(made["id"]) and project.id not in known:
            _delete_project_attempt(studio, project.id, made)
    return studio.project(int(made["id"]))


def _delete_project_attempt(studio: Studio, project_id: int, made: dict[str, Any]) -> None:
    """Delete a project that was to be ``made``; not one of somebody else, or with a task."""
    found = studio.request("GET", f"api/projects/{project_id}/")
    ours = all(found[name] == made[name] for name in ("created_by", "label_config"))
    if ours and next(studio.tasks(project_id), None) is None:
        delete_project(studio, project_id)


def delete_project(studio: Studio, project_id: int) -> None:
    """Delete a project with all its tasks."""
    studio.request("DELETE", f"api/projects/{project_id}/")


def projects_called(studio: Studio, title: str) -> list[Project]:
    """The projects with exactly this title that the token's user may see, oldest first."""
    return sorted(
        (project for project in studio.projects(title=title) if project.title == title),
        key=lambda project: project.id,
    )


def import_tasks(studio: Studio, project_id: int, rows: Sequence[dict[str, Any]]) -> None:
    """Create tasks in one request: ``{"data": …}``, with ``"annotations"`` if they have some."""
    newest = studio.newest_task(project_id)
    answer = studio.request(
        "POST",
        f"api/projects/{project_id}/import",
        params={"return_task_ids": "true"},
        json=list(rows),
    )
    first = min(answer.get("task_ids", ()), default=0)
    _delete_task_attempts(studio, project_id, [ids_between(newest + 1, first - 1)], rows)


def _delete_task_attempts(
    studio: Studio, project_id: int, where: list[Filter], rows: Sequence[dict[str, Any]]
) -> None:
    """Delete the tasks that are one of ``rows`` as it was sent; not one that somebody touched."""
    attempts = list(studio.tasks(project_id, where))
    if not attempts:
        return
    drawn_on = {task.id for task in studio.tasks(project_id, [*where, drafted()])}
    for task in attempts:
        sent = [len(row.get("annotations", ())) for row in rows if row["data"] == task.data]
        # Fewer annotations than sent: Label Studio counts them after storing them.
        touched = task.id in drawn_on or task.cancelled_annotations
        if len(sent) == 1 and task.total_annotations <= sent[0] and not touched:
            studio.request("DELETE", f"api/tasks/{task.id}/")


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
