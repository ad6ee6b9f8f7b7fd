"""What earlier versions have stored in Label Studio, removed once nobody can have it open."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from ml_backend.rounds.artefacts import FURTHER, LABELS, ROUND
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.queue import known_queue
from ml_backend.rounds.records import Published
from ml_backend.rounds.store import ProjectStore
from ml_backend.studio import task_order
from ml_backend.studio.client import drafted

__all__ = ["tidy"]

_TIDIED_ROUNDS = 12
"""How many rounds back `tidy` looks: each is tidied when a later one is published."""


def tidy(project: ConnectedProject) -> int:
    """Delete our stored predictions of versions that are no longer served; returns how many.

    Not of a version that was served less than ``open_minutes`` ago: whoever has a slice open with
    its mask could not submit it any more, Label Studio refuses (400) an annotation whose prediction
    is gone. Those of slices that were submitted since the published round's sync stay until the
    next one has measured what they cost (`effort`). So do those of slices that somebody has begun.
    """
    with project.schedule.alone("queue", wait=True):
        return _tidy(project)


def _tidy(project: ConnectedProject) -> int:
    folder = project.folder
    published = folder.published
    if published is None:
        return 0
    versions: set[str] = set()
    if _not_open(project, _replaced(folder, published, -1)):
        versions.add(task_order.PENDING_VERSION)
    for number in folder.rounds()[-_TIDIED_ROUNDS:]:
        if number > published.round:
            continue
        if _not_open(project, _replaced(folder, published, number)):
            old = folder.round(number)
            records = (old.load(ROUND), known_queue(old), old.load(FURTHER))
            said = [record.model_version for record in records if record]
            versions.update(filter(None, said))
    versions.discard(published.model_version)
    if not versions:
        return 0
    labels = folder.round(published.round).load(LABELS)
    measured = {label.task for label in labels.labels} if labels else set()

    # Of annotated ones as well: where a slice gets several annotations, the next one's draft.
    begun = {row.id for row in project.studio.tasks(project.number, [drafted()])}

    def spare(task: dict[str, Any]) -> bool:
        submitted = any(not found.get("was_cancelled") for found in task.get("annotations") or ())
        return task["id"] in begun or (submitted and task["id"] not in measured)

    return sum(
        task_order.remove_predictions(project.studio, project.number, version, spare)
        for version in sorted(versions)
    )


def _replaced(folder: ProjectStore, published: Published, number: int) -> float:
    """A moment, in seconds since the epoch, when no version of round ``number`` was served any more
    but what is ``published``; now where none is known.

    Of switches the last alone is noted. A commit may be long before its own round's switch, but it
    is after the switch of the round before.
    """
    if number >= published.round - 1:
        moment = published.published_at
    else:
        later = folder.round(number + 2).load(ROUND)
        moment = later.committed_at if later else ""
    return datetime.fromisoformat(moment).timestamp() if moment else time.time()


def _not_open(project: ConnectedProject, replaced: float) -> bool:
    """Whether no slice can be open any more with a mask of what was ``replaced`` then."""
    return time.time() - replaced >= project.settings.open_minutes * 60
