"""The person in front of Label Studio, without the person: next task, true mask, submit.

Asks for the next task exactly as the *Label All Tasks* button does and opens it as the page does,
so what it is handed is what an annotator would be handed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.embedded.label_studio import Session
from ml_backend.studio.annotations import regions
from ml_backend.studio.client import StudioError
from ml_backend.studio.label_config import LabelConfig
from ml_backend.studio.task_order import VERSION_PREFIX

__all__ = ["Annotator"]

Truth = Callable[[dict[str, Any]], npt.NDArray[np.uint8]]
"""The true label map of a task, by its data."""


class Annotator:
    """One person with a session. ``truth``: the label map that they draw for a task's data."""

    def __init__(
        self, session: Session, project_id: int, config: LabelConfig, truth: Truth
    ) -> None:
        self.session = session
        self.project_id = project_id
        self.config = config
        self.truth = truth

    def next_task(self) -> dict[str, Any] | None:
        """The task that *Label All Tasks* opens, or None when Label Studio has none (404)."""
        answer = self.session.call(
            "POST",
            "/api/dm/actions",
            params={"id": "next_task", "project": self.project_id},
            json={},
        )
        if answer.status_code == 404:
            return None
        if not answer.ok:
            raise StudioError(
                f"Label Studio handed out no task: {answer.status_code} {answer.text[:200]}"
            )
        task: dict[str, Any] = answer.json()
        return task

    def open(self, task_id: int) -> dict[str, Any]:
        """The task as the page loads it; Label Studio asks the ML backend for a prediction."""
        task: dict[str, Any] = self.session.json(
            "GET", f"/api/tasks/{task_id}/", params={"project": self.project_id}
        )
        return task

    def submit(self, task: dict[str, Any]) -> int:
        """Submit the true mask of the task, which began as the newest of our predictions that the
        task was opened with; returns the annotation's id."""
        shown = max(
            (
                row["id"]
                for row in task.get("predictions") or ()
                if (row.get("model_version") or "").startswith(VERSION_PREFIX)
            ),
            default=None,
        )
        result = regions(self.truth(task["data"]), self.config)
        return self.send(task["id"], result, parent_prediction=shown)

    def skip(self, task: dict[str, Any]) -> int:
        """Press Skip."""
        return self.send(task["id"], [], was_cancelled=True)

    def send(self, task_id: int, result: list[dict[str, Any]], **fields: Any) -> int:
        """Submit ``result`` as it is."""
        answer = self.session.json(
            "POST",
            f"/api/tasks/{task_id}/annotations/",
            params={"project": self.project_id},
            json={"result": result, "lead_time": 1.0, **fields},
        )
        number: int = answer["id"]
        return number

    def label_next(self) -> dict[str, Any] | None:
        """Take the next task, look at it, submit its true mask; the task, or None at the end."""
        task = self.next_task()
        if task is not None:
            self.submit(self.open(task["id"]))
        return task
