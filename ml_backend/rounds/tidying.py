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
"""How many rounds back `tidy` looks for what was spared before, and how many of those it takes on
that it has not come to yet: where rounds follow each other faster than slices are let go."""


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
    rounds = [number for number in folder.rounds() if number <= published.round]
    untidied = [n for n in rounds if n >= project.record.untidied][:_TIDIED_ROUNDS]
    looked_at = {*untidied, *rounds[-_TIDIED_ROUNDS:]}
    closed = {n for n in looked_at if _not_open(project, _replaced(folder, published, n))}
    spared = {published.model_version}
    for number in looked_at:
        old = folder.round(number)
        queue = known_queue(old)
        if number in closed:
            records = (old.load(ROUND), queue, old.load(FURTHER))
            said = [record.model_version for record in records if record]
            versions.update(filter(None, said))
        if queue is None:
            continue
        if number == published.round:  # of another version: its switch did not end, yet
            spared.add(queue.model_version)
        for version, until in queue.withdrawn.items():
            (versions if _not_open(project, until) else spared).add(version)
    versions -= spared
    removed = _remove(project, published, versions) if versions else 0
    following = [n for n in rounds if n not in closed and n >= project.record.untidied]
    reached = min([*following, published.round])
    if reached != project.record.untidied:
        project.update(lambda record: record.tidied_before(reached))
    return removed


def _remove(project: ConnectedProject, published: Published, versions: set[str]) -> int:
    """Delete the stored predictions of ``versions``, but of slices that are spared."""
    project.in_studio()  # is it ours still?
    folder = project.folder
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
