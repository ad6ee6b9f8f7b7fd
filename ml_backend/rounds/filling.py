"""What keeps a published queue filled: what was lost of it is stored again, and it is appended to
where it runs low.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

from ml_backend.errors import NextsliceError
from ml_backend.rounds.artefacts import QUEUE, SELECTION
from ml_backend.rounds.live_masks import ANSWERS_WITHIN_S, LiveMasks, MasksAwaited, Regions
from ml_backend.rounds.project import ConnectedProject, PublishedRound
from ml_backend.rounds.queue import known_queue, queue_target, rebuilt_queue, restored_queue
from ml_backend.rounds.records import Published, QueueEntry, QueueRecord
from ml_backend.rounds.schedule import LOCKS
from ml_backend.studio import task_order
from ml_backend.studio.client import not_annotated, not_skipped
from ml_backend.studio.task_order import QueuedPrediction, place_behind, queue_score

__all__ = ["top_up"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PREDICT_CHUNK = 4
"""Tasks of the first /predict request of a top-up: a chunk must fit well inside its timeout on a
CPU."""
_LARGEST_CHUNK = 64
_QUICK_S = 5.0
"""A chunk that was stored within this is followed by one of twice the size, at most: each costs
Label Studio half a dozen requests, and many annotators take slices faster than that."""
_TOP_UP_S = LOCKS["top-up"] - ANSWERS_WITHIN_S - LOCKS["queue"]
"""A top-up begins nothing more after this, or its lock would be void: the next look goes on."""


class StaleQueue(NextsliceError, RuntimeError):
    """The queue that was to be filled is no longer the published one."""


def top_up(project: ConnectedProject) -> int:
    """Store again what is gone of the published queue, then append to it when it runs low.

    `queue_target` slices are kept ahead. Appended after the last score, in `queue.json`. Returns
    how many slices were stored.
    """
    with project.schedule.alone("top-up", wait=False) as alone:
        return _top_up(project) if alone else 0


def _top_up(project: ConnectedProject) -> int:
    published = project.published
    if published is None:
        return 0
    folder = project.published_round(published.round)
    queue = known_queue(folder)
    if queue is None or queue.model_version != published.model_version:
        queue = _restore_queue(project, folder, published, queue)
    if queue is None:
        return 0
    masks = LiveMasks(project, queue.model_version) if published.weights is not None else None
    stored, until = 0, time.monotonic() + _TOP_UP_S
    try:
        for entries in _chunks(_lost(project, queue), until):
            stored += _store(project, folder, queue, entries, masks=masks)
        for tasks in _chunks(_missing(project, folder, queue), until):
            stored += _append(project, folder, queue, tasks, masks=masks)
    except StaleQueue as error:  # the one that took its place is looked at by itself
        logger.info("project %s: %s", project.key, error)
    except MasksAwaited as error:
        logger.warning("project %s: %s", project.key, error)
    return stored


def _restore_queue(
    project: ConnectedProject,
    folder: PublishedRound,
    published: Published,
    there: QueueRecord | None,
) -> QueueRecord | None:
    """Write the lost `queue.json` again; None when another version took its place meanwhile.

    ``there``: stands in its place, for another version: retiring, or serving better weights, ended
    before that was published. What it has stored is removed.
    """
    lost, kept = folder.where(QUEUE), "what is stored and selected"
    if there is None:
        queue = rebuilt_queue(project, folder, published)
    else:
        queue = restored_queue(project, published, there)
        lost, kept = f"{lost} of {published.model_version}", there.model_version
    with project.schedule.alone("queue", wait=True):
        if project.published != published:
            return None
        logger.warning("project %s: %s was lost; it is made again of %s: %d places",
                       project.key, lost, kept, len(queue.entries))  # fmt: skip
        if there is not None:
            queue.withdrawn = {**there.withdrawn, there.model_version: time.time()}
        folder.save(QUEUE, queue)
    return queue


def _chunks(items: Iterable[T], until: float) -> Iterator[list[T]]:
    """``items`` as many at a time as are predicted in one request: a few at first, more while what
    the caller does with a chunk is quick; none after ``until``."""
    rest, size = iter(items), _PREDICT_CHUNK
    while (began := time.monotonic()) < until and (chunk := list(islice(rest, size))):
        yield chunk
        quick = time.monotonic() - began < _QUICK_S
        size = min(2 * size, _LARGEST_CHUNK) if quick else max(size // 2, _PREDICT_CHUNK)


def _lost(project: ConnectedProject, queue: QueueRecord) -> list[QueueEntry]:
    """The places of ``queue`` whose predictions somebody deleted, first place first.

    Label Studio holds the truth about predictions as well: *Delete predictions* in the Data Manager
    takes the queue away, and a restored database may never have had it.
    """
    places = queue.in_order()
    scores = {entry.task: entry.score for entry in places}
    gone = set(task_order.lost(project.studio, project.number, queue.model_version, scores))
    if gone:
        logger.warning(
            "project %s: %d of the queue's predictions are gone: storing them again",
            project.key,
            len(gone),
        )
    return [entry for entry in places if entry.task in gone]


def _missing(
    project: ConnectedProject, folder: PublishedRound, queue: QueueRecord
) -> Iterable[int]:
    """The tasks to append to the queue; none while it is as long as promised."""
    target = queue_target(project.settings)
    length = task_order.queue_length(project.studio, project.number, queue.model_version)
    if length >= target:
        return ()
    # A few more than are missing, so that not every submission is a request.
    room = target + project.settings.k - length
    return islice(_open_tasks(project, folder, queue), room)


def _open_tasks(
    project: ConnectedProject, folder: PublishedRound, queue: QueueRecord
) -> Iterator[int]:
    """Tasks that may be appended to the queue: the round's backlog, then the rest of the pool."""
    queued = {entry.task for entry in queue.entries}
    selection = folder.load(SELECTION)
    for task in selection.backlog if selection else ():
        if task not in queued:
            queued.add(task)
            yield task
    for row in project.studio.tasks(project.number, [not_annotated(), not_skipped()]):
        if row.id not in queued:
            yield row.id


def _append(
    project: ConnectedProject,
    folder: PublishedRound,
    queue: QueueRecord,
    tasks: list[int],
    *,
    masks: LiveMasks | None,
) -> int:
    """`_store` predictions of ``tasks`` behind the last of ``queue``, and note them there."""
    # Not the number of entries: one that was made again has none of deleted tasks.
    place = place_behind(max((entry.score for entry in queue.entries), default=0.0))
    entries = [
        QueueEntry(task=task, score=queue_score(place + i), kind="top-up")
        for i, task in enumerate(tasks)
    ]
    stored = _store(project, folder, queue, entries, masks=masks)
    logger.info("project %s: %d slices appended to %s", project.key, stored, queue.model_version)
    return stored


def _store(
    project: ConnectedProject,
    folder: PublishedRound,
    queue: QueueRecord,
    entries: list[QueueEntry],
    *,
    masks: LiveMasks | None,
) -> int:
    """Store predictions of ``entries``, and note in ``queue`` those that it does not have.

    ``masks``: with these. Where the backend is silent, without, and only as many as annotators
    need. Returns how many entries there were. Raises StaleQueue, with nothing stored, when another
    version took its place meanwhile, MasksAwaited when annotators have enough.
    """
    tasks = [entry.task for entry in entries]
    found: dict[int, Regions] = {}
    if masks is not None:
        found = masks.of(list(project.studio.tasks_by_id(project.number, tasks)))
        if masks.silent:
            _check_need(project, queue)
    with _held_queue(project, folder, queue):
        known = {entry.task for entry in queue.entries}
        new = [entry for entry in entries if entry.task not in known]
        queue.entries.extend(new)
        noted = masks is not None and _note_masks(queue, tasks, found, masks)
        if new or noted:
            # First: what is noted and not stored is found lost, what is stored bare and not noted
            # would stay without a mask.
            folder.save(QUEUE, queue)
        task_order.store_predictions(
            project.studio,
            project.number,
            queue.model_version,
            [QueuedPrediction(e.task, e.score, found.get(e.task, [])) for e in entries],
        )
    return len(entries)


@contextmanager
def _held_queue(
    project: ConnectedProject, folder: PublishedRound, queue: QueueRecord
) -> Iterator[None]:
    """Hold the queue's lock, ``queue`` being as it is noted now. Raises StaleQueue."""
    with project.schedule.alone("queue", wait=True):
        published = project.published
        if published is None or published.model_version != queue.model_version:
            raise StaleQueue(f"{queue.model_version} is no longer published")
        there = known_queue(folder)
        if there is not None and there.model_version == queue.model_version:
            # Another top-up may have been at it, where our lock was void for a while.
            queue.entries = there.entries
            queue.unmasked, queue.pending = there.unmasked, there.pending
            queue.withdrawn = there.withdrawn
        yield


def _check_need(project: ConnectedProject, queue: QueueRecord) -> None:
    """Raise MasksAwaited while as many slices are free as annotators may take in one moment."""
    length = task_order.queue_length(project.studio, project.number, queue.model_version)
    if length > project.settings.reserve_size:
        raise MasksAwaited(
            f"{queue.model_version} is not filled for now: the backend at "
            f"{project.settings.backend_url} predicts no masks of it, and {length} slices are free."
        )


def _note_masks(
    queue: QueueRecord, tasks: Sequence[int], found: Mapping[int, Regions], masks: LiveMasks
) -> bool:
    """Which of ``tasks`` wait for a mask now, and which cannot have one; whether that is new."""
    before = (queue.pending, queue.unmasked)
    without = {task for task in tasks if task not in found}
    later, never = (without, set()) if masks.silent else (set(), without)
    waiting = {*queue.pending} - {*tasks} | later
    queue.pending = [entry.task for entry in queue.in_order() if entry.task in waiting]
    queue.unmasked = sorted({*queue.unmasked} - {*tasks} | never)
    return before != (queue.pending, queue.unmasked)
