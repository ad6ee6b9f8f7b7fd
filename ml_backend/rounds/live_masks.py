"""Masks of slices that join the queue after its round, or come back to it: asked of the backend.

It holds the network, and whoever fills queues must not import torch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import httpx

from ml_backend.errors import NextsliceError
from ml_backend.rounds.project import ConnectedProject
from ml_backend.studio.client import TaskRow

__all__ = ["ANSWERS_WITHIN_S", "LiveMasks", "MasksAwaited", "Regions"]

logger = logging.getLogger(__name__)

Regions = list[dict[str, Any]]
ANSWERS_WITHIN_S = 300
"""The backend answers within 80 s, once it can be reached and its threads are free."""


class MasksAwaited(NextsliceError, RuntimeError):
    """The backend predicts nothing now, and annotators have slices enough until it does."""


class LiveMasks:
    """What the backend predicts with the network of one ``version``.

    ``silent``: it has not answered, or with another version, and is not asked again: one that hangs
    costs minutes each time.
    """

    def __init__(self, project: ConnectedProject, version: str) -> None:
        self.silent = False
        self._project = project
        self._version = version

    def of(self, rows: Sequence[TaskRow]) -> dict[int, Regions]:
        """Task → regions; without those that cannot be predicted. Of none where it is silent."""
        if self.silent or not rows:
            return {}
        project = self._project
        url = f"{project.settings.backend_url}/predict"
        config = project.in_studio().label_config
        tasks = [{"id": row.id, "data": row.data} for row in rows]
        try:
            answer = httpx.post(
                url,
                json={"tasks": tasks, "project": project.key, "label_config": config, "params": {}},
                auth=project.settings.basic_auth,
                timeout=ANSWERS_WITHIN_S,
                follow_redirects=True,
            )
            answer.raise_for_status()
            found = zip(rows, answer.json()["results"], strict=True)
            return {row.id: self._regions(result) for row, result in found if result}
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            logger.warning("project %s: no masks from %s: %s", project.key, url, error)
            self.silent = True
            return {}

    def _regions(self, result: dict[str, Any]) -> Regions:
        """Raises ValueError where another version made them: a backend that has not yet seen what
        is published answers for what was before."""
        if result["model_version"] != self._version:
            raise ValueError(f"found {result['model_version']}, expected {self._version}")
        regions: Regions = result["result"]
        return regions
