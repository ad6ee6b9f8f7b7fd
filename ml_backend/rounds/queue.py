"""The queue of a round as `queue.json` has it: how long it is kept, made, read, and made again."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from ml_backend.rounds.artefacts import QUEUE, SELECTION
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import (
    Published,
    QueueEntry,
    QueueKind,
    QueueRecord,
    SelectionRecord,
)
from ml_backend.rounds.store import RoundFolder, StoreError
from ml_backend.settings import Settings
from ml_backend.studio import task_order
from ml_backend.studio.task_order import StoredPlace, queue_score

__all__ = [
    "known_queue",
    "noted_queue",
    "pending",
    "queue_of",
    "queue_target",
    "rebuilt_queue",
    "restored_queue",
]

logger = logging.getLogger(__name__)

_BETWEEN = 1e-7
"""Of two scores in a queue that is made again; places are 1e-4 apart."""


def queue_target(settings: Settings) -> int:
    """How many slices are kept ahead of the annotators: K + 2 R.

    With R annotators who each hold a slice and all submit in one moment, R more must be free before
    anybody can fill the queue.
    """
    return settings.k + 2 * settings.reserve_size


def queue_of(project: ConnectedProject, selection: SelectionRecord, version: str) -> QueueRecord:
    """The queue as a round publishes it: the K, then the reserve, scores ascending.

    Slices that were annotated while the round trained are left out, and the backlog moves up: the
    queue must be as long as promised at the moment of the switch.
    """
    ranked = [*selection.chosen, *selection.reserve, *selection.backlog]
    open_tasks = task_order.still_open(project.studio, project.number, ranked)
    chosen = set(selection.chosen)
    places = [task for task in ranked if task in open_tasks][: queue_target(project.settings)]
    return QueueRecord(
        model_version=version,
        entries=[
            QueueEntry(
                task=task,
                score=queue_score(place),
                kind="chosen" if task in chosen else "reserve",
            )
            for place, task in enumerate(places)
        ],
    )


def known_queue(folder: RoundFolder) -> QueueRecord | None:
    """`queue.json`; None where the store has lost it, or holds no more than damage."""
    try:
        return folder.load(QUEUE)
    except StoreError as error:
        logger.warning("%s", error)
        return None


def noted_queue(folder: RoundFolder, queue: QueueRecord) -> QueueRecord:
    """What an attempt before has noted of the same version's queue; of another's, which versions
    are withdrawn."""
    version, before = queue.model_version, known_queue(folder)
    if before is None:
        return QueueRecord(model_version=version)
    if before.model_version == version:
        return before
    return QueueRecord(model_version=version, withdrawn=before.withdrawn_but(version))


def pending(project: ConnectedProject, published: Published) -> list[int]:
    """Slices of the published queue whose mask is still to come, first place first."""
    queue = known_queue(project.folder.round(published.round))
    if queue is None or queue.model_version != published.model_version:
        return []
    return queue.pending


def rebuilt_queue(
    project: ConnectedProject, folder: RoundFolder, published: Published
) -> QueueRecord:
    """The queue as far as anybody knows it: what is stored keeps its score, and what was selected
    and is gone stands behind the one that was selected before it. What has no region may wait for
    its mask."""
    version = published.model_version
    selection = folder.load(SELECTION) or SelectionRecord(
        strategy="", seed=0, chosen=[], reserve=[]
    )
    stored = task_order.stored_places(project.studio, project.number, version)
    if not stored:
        return queue_of(project, selection, version)
    selected = [*selection.chosen, *selection.reserve]
    open_tasks = task_order.still_open(project.studio, project.number, selected)
    places, last = {task: place.score for task, place in stored.items()}, 0.0
    for task in selected:
        if task in open_tasks and task not in places:
            places[task] = last + _BETWEEN
        last = places.get(task, last)
    kinds: dict[int, QueueKind] = dict.fromkeys([*selection.reserve, *selection.backlog], "reserve")
    kinds |= dict.fromkeys(selection.chosen, "chosen")
    return QueueRecord(
        model_version=version,
        entries=[
            QueueEntry(task=task, score=score, kind=kinds.get(task, "top-up"))
            for task, score in sorted(places.items(), key=lambda place: place[1])
        ],
        pending=_bare(published, stored),
    )


def restored_queue(
    project: ConnectedProject, published: Published, places: QueueRecord
) -> QueueRecord:
    """The queue that is published, in the ``places`` that another version was to have. What has no
    region may wait for its mask: whether it did is lost."""
    version = published.model_version
    stored = task_order.stored_places(project.studio, project.number, version)
    pending = _bare(published, stored)
    return QueueRecord(model_version=version, entries=places.entries, pending=pending)


def _bare(published: Published, stored: Mapping[int, StoredPlace]) -> list[int]:
    """Slices that are ``stored`` without a region, though a network draws them."""
    return [task for task, place in stored.items() if published.weights and place.bare]
