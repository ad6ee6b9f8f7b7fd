"""The part of Label Studio that rounds use, in memory: one project, its tasks, their images.

What the real server refuses is refused here too; that it does is held by tests/integration.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ml_backend.studio.client import Backend, Filter, Project, StudioError, TaskRow

FIRST_MOMENT = datetime.fromtimestamp(1763865028, UTC)
"""Also when the project was created: its key is 7.1763865028."""


class MemoryStudio:
    """A project of ``slices`` tasks, 0, 1, 2, …, whose images are ``image(task)``.

    ``unreadable``: tasks whose image answers 404. ``drafted``: tasks that somebody has begun.
    ``backend``: the project's ML backend. ``users``, ``drafts``: as the API has them, the latter by
    task.
    ``listings``: how often all tasks were asked for.
    """

    def __init__(
        self, label_config: str, slices: int, image: Callable[[int], npt.NDArray[Any]]
    ) -> None:
        self.fields: dict[str, Any] = {"label_config": label_config}
        self.backend: Backend | None = None
        self.other_backends: list[Backend] = []
        self.imported: list[dict[str, Any]] = []
        self.unreadable: set[int] = set()
        self.drafted: set[int] = set()
        self.users: list[dict[str, Any]] = []
        self.drafts: dict[int, list[dict[str, Any]]] = {}
        self.sdk = SimpleNamespace(ml=SimpleNamespace(update=self._rename))
        self.listings = 0
        self._uncounted: set[int] = set()
        self._image = image
        self._shown: dict[str, npt.NDArray[Any]] = {}
        self.created_at = self._now = FIRST_MOMENT
        self._rows: dict[int, dict[str, Any]] = {
            i: {
                "id": i,
                "data": {"image": f"/{i}.png", "volume": "phantom", "z": float(i)},
                "annotations": [],
                "updated_at": self._now,
            }
            for i in range(slices)
        }

    # -- what people do

    def set_up_afresh(self) -> None:
        """The number is another project's from now on."""
        self.created_at += timedelta(days=1)

    def submit(self, task: int, result: Any, **fields: Any) -> None:
        """Somebody submits an annotation of ``task``, a moment after all that was before."""
        self._now += timedelta(minutes=1)
        row = self._rows[task]
        row["updated_at"] = self._now
        moment = self._now.isoformat()
        row["annotations"].append(
            {"id": 1000 * task + len(row["annotations"]), "result": result,
             "created_at": moment, "updated_at": moment, **fields}
        )  # fmt: skip

    def submit_again(self, task: int, result: Any, **fields: Any) -> None:
        """Somebody updates the last annotation of ``task``."""
        self._now += timedelta(minutes=1)
        row = self._rows[task]
        row["updated_at"] = self._now
        changes = {"result": result, "updated_at": self._now.isoformat(), **fields}
        row["annotations"][-1] |= changes

    def lose_count(self, task: int) -> None:
        """Its counters say that nobody has submitted ``task``, as after a race."""
        self._uncounted.add(task)

    def skip(self, task: int) -> None:
        """Somebody skips ``task``."""
        self._now += timedelta(minutes=1)
        self._rows[task] |= {"updated_at": self._now, "cancelled_annotations": 1}

    def delete_annotations(self, tasks: Iterable[int]) -> None:
        for task in tasks:
            self._rows[task]["annotations"].clear()

    def add_task(self, data: dict[str, Any]) -> None:
        """Somebody imports a task."""
        task = 1 + max(self._rows, default=0)
        self._rows[task] = {"id": task, "data": data, "annotations": [], "updated_at": self._now}

    def delete_task(self, task: int) -> None:
        del self._rows[task]

    def turn_clock(self, by: timedelta) -> None:
        """Its clock is put ahead, or back."""
        self._now += by

    def same_moment(self) -> None:
        """All that was submitted was so at once, as by an import."""
        for row in self._rows.values():
            row["updated_at"] = self._now
            for annotation in row["annotations"]:
                annotation["updated_at"] = self._now.isoformat()

    def show(self, url: str, image: npt.NDArray[Any]) -> None:
        """What a task shows whose image is ``url``."""
        self._shown[url] = image

    # -- project and backend

    def project(self, project_id: int) -> Project:
        return Project(id=project_id, created_at=self.created_at, **self.fields)

    def update_project(self, project_id: int, **fields: Any) -> None:
        version = fields.get("model_version")
        title = self.backend.title if self.backend else None
        if version not in (None, title) and not self._versions(version):
            raise StudioError(f"400: model version {version} doesn't exist")
        self.fields |= fields

    def find_backend(self, project_id: int, url: str) -> Backend | None:
        return self.backend

    def backends(self, project_id: int) -> list[Backend]:
        return [*([self.backend] if self.backend else []), *self.other_backends]

    def call(self, what: str, function: Any, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    def _rename(self, number: int, **fields: Any) -> None:
        if self.backend is None:  # another program's
            return
        kept = {name: fields[name] for name in ("title", "is_interactive") if name in fields}
        self.backend = self.backend.model_copy(update=kept)

    # -- tasks

    def tasks(self, project_id: int, filters: Sequence[Filter] = ()) -> Iterator[TaskRow]:
        self.listings += not filters
        return self._task_rows(filters)

    def _task_rows(self, filters: Sequence[Filter]) -> Iterator[TaskRow]:
        for row in self._found(filters):
            yield TaskRow(
                id=row["id"],
                data=row["data"],
                updated_at=row["updated_at"],
                **self.counters(row),
            )

    def tasks_by_id(
        self, project_id: int, ids: Iterable[int], filters: Sequence[Filter] = ()
    ) -> Iterator[TaskRow]:
        wanted = set(ids)
        return (row for row in self._task_rows(filters) if row.id in wanted)

    def full_tasks(
        self, project_id: int, filters: Sequence[Filter] = ()
    ) -> Iterator[dict[str, Any]]:
        for row in self._found(filters):
            stored = [
                {"id": number, "created_at": FIRST_MOMENT.isoformat(), **prediction}
                for number, prediction in enumerate(self.imported)
                if prediction["task"] == row["id"]
            ]
            yield {**row, **self._counted(row), "predictions": stored}

    def full_tasks_by_id(self, project_id: int, ids: Iterable[int]) -> Iterator[dict[str, Any]]:
        wanted = set(ids)
        return (row for row in self.full_tasks(project_id) if row["id"] in wanted)

    def count_tasks(self, project_id: int, filters: Sequence[Filter] = ()) -> int:
        return len(self._found(filters))

    def newest_change(self, project_id: int) -> datetime | None:
        return max((row["updated_at"] for row in self._rows.values()), default=None)

    def totals(self, project_id: int) -> tuple[int, int]:
        rows = self._rows.values()
        return len(rows), sum(self.counters(row)["total_annotations"] for row in rows)

    def counters(self, row: dict[str, Any]) -> dict[str, int]:
        """How many annotations and skips of the task Label Studio has counted."""
        submitted = 0 if row["id"] in self._uncounted else len(row["annotations"])
        skips = row.get("cancelled_annotations", 0)
        return {"total_annotations": submitted, "cancelled_annotations": skips}

    def request(self, method: str, path: str, *, json: dict[str, Any]) -> Any:
        """A change of a task, which touches it, or an annotation of it: all that is asked for
        here."""
        if method == "POST":
            self.submit(int(path.split("/")[2]), json["result"])
            return None
        assert method == "PATCH"
        self._now += timedelta(minutes=1)
        task = int(path.removeprefix("api/tasks/").rstrip("/"))
        row = self._rows[task]
        row |= {"data": json.get("data", row["data"]), "updated_at": self._now}
        if json.get("total_annotations"):
            self._uncounted.discard(task)
        return {**row, **self._counted(row)}

    def _counted(self, row: dict[str, Any]) -> dict[str, Any]:
        """What Label Studio tells of a task's annotations and their counters."""
        annotations = [
            {"was_cancelled": False, "completed_by": 1, **found} for found in row["annotations"]
        ]
        return {**self.counters(row), "annotations": annotations, "overlap": 1}

    def _found(self, filters: Sequence[Filter]) -> list[dict[str, Any]]:
        return [row for row in self._rows.values() if all(self._meets(row, f) for f in filters)]

    def _meets(self, row: dict[str, Any], condition: Filter) -> bool:
        field = condition["filter"].rpartition(":")[2]
        value = condition["value"]
        if field == "id":
            assert condition["operator"] == "greater"
            return bool(row["id"] > value)
        if field == "predictions_model_versions":
            return row["id"] in self._versions(value[0])
        if field == "updated_at":
            return bool(row["updated_at"] >= datetime.fromisoformat(value))
        if field == "draft_exists":
            return row["id"] in self.drafted or row["id"] in self.drafts
        if field in ("annotators", "annotations_ids"):
            return bool(row["annotations"])
        if field == "completed_at":
            done = self.completed_at(row)
            return done is not None and done >= datetime.fromisoformat(value)
        found = self.counters(row)[field]
        return bool(found > value if condition["operator"] == "greater" else found == value)

    def completed_at(self, row: dict[str, Any]) -> datetime | None:
        """When the task's last annotation was submitted."""
        moments = [datetime.fromisoformat(found["created_at"]) for found in row["annotations"]]
        return max(moments, default=None)

    def _versions(self, version: str) -> set[int]:
        return {row["task"] for row in self.imported if row["model_version"] == version}

    # -- predictions and images

    def import_predictions(self, project_id: int, predictions: list[dict[str, Any]]) -> int:
        self.imported += predictions
        return len(predictions)

    def draw_prediction(self, prediction_id: int, result: list[dict[str, Any]]) -> None:
        for place, row in enumerate(self.imported):
            if row.get("id", place) == prediction_id:
                row["result"] = result

    def delete_prediction(self, prediction_id: int) -> None:
        self.imported[prediction_id] = {"task": -1, "model_version": "deleted"}

    def download(self, url: str, task_id: int, within_s: float | None = None) -> bytes:
        if task_id in self.unreadable:
            raise StudioError(f"The image of task {task_id} at {url} answered 404")
        buffer = io.BytesIO()
        image = self._shown[url] if url in self._shown else self._image(task_id)
        Image.fromarray(np.asarray(image)).save(buffer, format="PNG")
        return buffer.getvalue()
