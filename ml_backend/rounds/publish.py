"""The last step of a round, and what keeps its queue filled: predictions stored, then the switch.

Everything here can be done again: predictions that are stored already are not stored twice, and
`published.json` is written only after the switch was verified. `queue.json` says what is to be
stored, Label Studio what is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import islice
from typing import Any, TypeVar

from ml_backend.errors import NextsliceError
from ml_backend.rounds.artefacts import FURTHER, LABELS, QUEUE, ROUND, SELECTION
from ml_backend.rounds.contention import next_switch_at
from ml_backend.rounds.live_masks import ANSWERS_WITHIN_S, LiveMasks, MasksAwaited, Regions
from ml_backend.rounds.project import ConnectedProject, now
from ml_backend.rounds.records import (
    Published,
    QueueEntry,
    QueueKind,
    QueueRecord,
    RoundRecord,
    SelectionRecord,
    SwitchBack,
)
from ml_backend.rounds.schedule import LOCKS
from ml_backend.rounds.store import ProjectStore, RoundFolder, StoreError
from ml_backend.settings import Settings
from ml_backend.studio import task_order
from ml_backend.studio.client import Project, drafted, not_annotated, not_skipped
from ml_backend.studio.task_order import QueuedPrediction, queue_score

__all__ = [
    "draw_pending",
    "known_queue",
    "pending",
    "publish",
    "queue_of",
    "queue_target",
    "repair",
    "republish",
    "retire",
    "tidy",
    "top_up",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")
Predict = Callable[[list[int]], Iterable[tuple[int, Regions]]]
"""Task and regions of each of these tasks, in any order; what cannot be predicted is left out."""

_PREDICT_CHUNK = 4
"""Tasks of the first /predict request of a top-up: a chunk must fit well inside its timeout on a
CPU."""
_LARGEST_CHUNK = 64
_QUICK_S = 5.0
"""A chunk that was stored within this is followed by one of twice the size, at most: each costs
Label Studio half a dozen requests, and many annotators take slices faster than that."""
_DRAWN_TOGETHER = 4
"""Slices whose masks follow in one step: whoever waits for the worker waits for so many."""
_TOP_UP_S = LOCKS["top-up"] - ANSWERS_WITHIN_S - LOCKS["queue"]
"""A top-up begins nothing more after this, or its lock would be void: the next look goes on."""
_BETWEEN = 1e-7
"""Of two scores in a queue that is made again; places are 1e-4 apart."""
_TIDIED_ROUNDS = 12
"""How many rounds back `tidy` looks: each is tidied when a later one is published."""


class StaleQueue(NextsliceError, RuntimeError):
    """The queue that was to be filled is no longer the published one."""


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


def publish(
    project: ConnectedProject,
    folder: RoundFolder,
    record: RoundRecord,
    queue: QueueRecord,
    before: Published | None,
    predict: Predict,
    *,
    at_once: int | None = None,
) -> Published:
    """Store the predictions of the round's queue, switch to its version, and say so.

    ``before``: what was published when the round began; another publication since then wins.
    ``predict``: is asked for the tasks that an attempt before has not stored, and stored as it
    goes; what it leaves out gets a prediction without regions, and is noted in ``queue``.
    ``at_once``: so many of them get their masks before the switch, the others are left to
    `draw_pending`; None: all.
    """
    scores = {entry.task: entry.score for entry in queue.entries}
    waiting = task_order.unstored(project.studio, project.number, record.model_version, scores)
    later = [] if at_once is None or record.weights is None else waiting[at_once:]
    done: set[int] = set()
    rows = iter(predict(waiting[:at_once]))
    while batch := list(islice(rows, 16)):
        done.update(task for task, _ in batch)
        task_order.store_predictions(
            project.studio,
            project.number,
            record.model_version,
            [QueuedPrediction(task, scores[task], regions) for task, regions in batch],
        )
    without = [task for task in waiting if task not in done]
    if record.weights is not None:
        noted = _noted(folder, queue)
        pending = {*noted.pending, *later} - done
        queue.pending = [task for task in scores if task in pending]
        queue.unmasked = sorted({*noted.unmasked, *without} - done - pending)
    # First: an attempt that ends in between must not forget which have no mask.
    folder.save(QUEUE, queue)
    bare = [QueuedPrediction(task, scores[task], []) for task in without]
    task_order.store_predictions(project.studio, project.number, record.model_version, bare)
    return _serve(project, record, before, None)


def _noted(folder: RoundFolder, queue: QueueRecord) -> QueueRecord:
    """What an attempt before has noted of the same version's queue."""
    before = known_queue(folder)
    if before is not None and before.model_version == queue.model_version:
        return before
    return QueueRecord(model_version=queue.model_version)


def pending(project: ConnectedProject, published: Published) -> list[int]:
    """Slices of the published queue whose mask is still to come, first place first."""
    queue = known_queue(project.folder.round(published.round))
    if queue is None or queue.model_version != published.model_version:
        return []
    return queue.pending


def draw_pending(
    project: ConnectedProject,
    published: Published,
    predict: Predict,
    go_on: Callable[[], bool],
) -> int:
    """Give the `pending` slices their masks, as long as ``go_on`` says so and ``published`` is
    served; returns how many got one.

    What ``predict`` leaves out stays without a mask and is noted so. What a top-up notes meanwhile
    is left to the next time.
    """
    folder = project.folder.round(published.round)
    wanted = pending(project, published)
    still = task_order.still_open(project.studio, project.number, wanted)
    rows = iter(predict([task for task in wanted if task in still]))
    left = {*wanted}
    drawn = 0
    while go_on():
        batch = dict(islice(rows, _DRAWN_TOGETHER))
        with project.schedule.alone("queue", wait=True):
            queue = known_queue(folder)
            if queue is None or project.published != published:
                break
            version = published.model_version
            task_order.draw(project.studio, project.number, version, batch)
            done = batch.keys() or left.intersection(queue.pending)
            if not batch:
                queue.unmasked = sorted({*queue.unmasked, *still.intersection(done)})
            queue.pending = [task for task in queue.pending if task not in done]
            folder.save(QUEUE, queue)
        left -= done
        drawn += len(batch)
        if not batch:
            break
    return drawn


def _serve(
    project: ConnectedProject, record: RoundRecord, before: Published | None, retired: str | None
) -> Published:
    """Switch to the record's version and write `published.json`, unless another did meanwhile.

    Held alone until the file is written: a repair in between would see a project that is not on
    the published version, and switch it back.
    """
    folder = project.folder
    with project.schedule.alone("switch", wait=True):
        if (other := folder.published) != before:
            logger.warning("project %s: %s was published in this moment", project.key, other)
            return other or _published(record, retired)
        task_order.switch(project.studio, project.number, project.link, record.model_version)
        folder.published = published = _published(record, retired)
    logger.info("project %s: %s is published", project.key, record.model_version)
    return published


def _published(record: RoundRecord, retired: str | None) -> Published:
    return Published(
        round=record.round,
        model_version=record.model_version,
        classes=record.classes,
        fingerprint=record.fingerprint,
        weights=record.weights,
        flagged=record.flagged,
        retired=retired,
        published_at=now(),
    )


def repair(project: ConnectedProject, seen: Project) -> None:
    """Put the switch back when a race or a person moved it, but not during a publication.

    ``seen``: the project as Label Studio had it a moment ago. Only when it looks moved is it read
    again. Who is switched away again and again waits before the next time (`contention`).
    """
    with project.schedule.alone("switch", wait=False) as alone:
        published = project.published
        if not alone or published is None:
            return
        studio, link, version = project.studio, project.link, published.model_version
        task_order.prepare(studio, seen)
        if task_order.switched(studio, seen, link, version):
            return
        if time.time() < next_switch_at(project.record):
            return
        now_there = project.in_studio()
        if not task_order.switched(studio, now_there, link, version):
            logger.warning(
                "project %s was on %s, not on %s: switching again",
                project.key,
                now_there.model_version,
                version,
            )
            _note_switch(project, now_there.model_version)
            task_order.switch(studio, project.number, link, version)


def _note_switch(project: ConnectedProject, found: str | None) -> None:
    """Keep that the project was on version ``found``: where it happens again and again, `status`
    names who fights over it."""
    ours = project.link.url
    others = [
        backend.url
        for backend in project.studio.backends(project.number)
        if backend.url.rstrip("/") != ours
        and (backend.title or "").startswith(task_order.VERSION_PREFIX)
    ]
    back = SwitchBack(moment=time.time(), found=found, others=others)
    pause = next_switch_at(project.update(lambda record: record.found_on(back))) - back.moment
    if pause > 0:
        logger.warning(
            "project %s: somebody else switches it again and again: it is not switched back in the "
            "next %.0f minutes",
            project.key,
            pause / 60,
        )


def _open_tasks(
    project: ConnectedProject, folder: RoundFolder, queue: QueueRecord
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
    folder = project.folder.round(published.round)
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


def known_queue(folder: RoundFolder) -> QueueRecord | None:
    """`queue.json`; None where the store has lost it, or holds no more than damage."""
    try:
        return folder.load(QUEUE)
    except StoreError as error:
        logger.warning("%s", error)
        return None


def _restore_queue(
    project: ConnectedProject,
    folder: RoundFolder,
    published: Published,
    there: QueueRecord | None,
) -> QueueRecord | None:
    """Write the lost `queue.json` again; None when another version took its place meanwhile.

    ``there``: stands in its place, for another version: retiring was killed before that was
    published, and is no longer wanted. What it has stored is removed.
    """
    lost, kept = folder.where(QUEUE), "what is stored and selected"
    if there is None:
        queue = _rebuilt_queue(project, folder, published)
    else:
        queue = QueueRecord(model_version=published.model_version, entries=there.entries)
        lost, kept = f"{lost} of {published.model_version}", there.model_version
    with project.schedule.alone("queue", wait=True):
        if project.published != published:
            return None
        logger.warning("project %s: %s was lost; it is made again of %s: %d places",
                       project.key, lost, kept, len(queue.entries))  # fmt: skip
        if there is not None:  # first: whoever ends in between leaves it to be found again
            task_order.remove_predictions(project.studio, project.number, there.model_version)
        folder.save(QUEUE, queue)
    return queue


def _rebuilt_queue(
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
        pending=[task for task, place in stored.items() if published.weights and place.bare],
    )


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


def _missing(project: ConnectedProject, folder: RoundFolder, queue: QueueRecord) -> Iterable[int]:
    """The tasks to append to the queue; none while it is as long as promised."""
    target = queue_target(project.settings)
    length = task_order.queue_length(project.studio, project.number, queue.model_version)
    if length >= target:
        return ()
    # A few more than are missing, so that not every submission is a request.
    room = target + project.settings.k - length
    return islice(_open_tasks(project, folder, queue), room)


def _append(
    project: ConnectedProject,
    folder: RoundFolder,
    queue: QueueRecord,
    tasks: list[int],
    *,
    masks: LiveMasks | None,
) -> int:
    """`_store` predictions of ``tasks`` behind the last of ``queue``, and note them there."""
    place = len(queue.entries)
    entries = [
        QueueEntry(task=task, score=queue_score(place + i), kind="top-up")
        for i, task in enumerate(tasks)
    ]
    stored = _store(project, folder, queue, entries, masks=masks)
    logger.info("project %s: %d slices appended to %s", project.key, stored, queue.model_version)
    return stored


def _store(
    project: ConnectedProject,
    folder: RoundFolder,
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
    project: ConnectedProject, folder: RoundFolder, queue: QueueRecord
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


def retire(
    project: ConnectedProject, reason: str, classes: list[str], fingerprint: str
) -> Published:
    """Stop serving masks of classes that no longer exist; the order of the queue stays.

    The remaining queue is published again, without masks, under a version of its own.
    """
    # Held alone: a top-up would write the queue of before over ours, a tidy-up delete what it
    # takes for predictions of an attempt that came to nothing.
    with project.schedule.alone("queue", wait=True):
        return _retire(project, reason, classes, fingerprint)


def _retire(
    project: ConnectedProject, reason: str, classes: list[str], fingerprint: str
) -> Published:
    folder = project.folder
    published = folder.published
    if published is None:
        raise ValueError(f"project {project.key}: nothing is published, so nothing can be retired")
    logger.warning("project %s: %s is retired: %s", project.key, published.model_version, reason)
    round_folder = folder.round(published.round)
    old = known_queue(round_folder) or _rebuilt_queue(project, round_folder, published)
    version = task_order.round_version(published.round, fingerprint)
    queue = QueueRecord(model_version=version, entries=old.entries)
    task_order.store_predictions(
        project.studio,
        project.number,
        version,
        [QueuedPrediction(entry.task, entry.score, []) for entry in queue.entries],
    )
    round_folder.save(QUEUE, queue)
    record = RoundRecord(
        round=published.round,
        model_version=version,
        classes=classes,
        fingerprint=fingerprint,
    )
    return _serve(project, record, published, reason)


def republish(
    project: ConnectedProject, before: Published, weights: str, version: str, predict: Predict
) -> bool:
    """Serve other weights of the published round as ``version``: the rest of the queue in its
    order, with their masks. False, with nothing switched, when another version is published.

    ``weights``: path relative to the project's folder. What ``predict`` leaves out gets no mask;
    what it raises ends this with nothing stored. It is asked again for what was appended meanwhile,
    and may take its time: no lock is held.
    """
    folder = project.folder.round(before.round)
    asked: set[int] = set()
    open_tasks: set[int] = set()
    drawn: dict[int, Regions] = {}
    while new := [task for task in _queued(project, before, version) if task not in asked]:
        still = task_order.still_open(project.studio, project.number, new)
        drawn |= dict(predict([task for task in new if task in still]))
        asked.update(new)
        open_tasks |= still
    with project.schedule.alone("queue", wait=True):
        if project.published != before:
            return False
        entries = _queued(project, before, version)
        queue = QueueRecord(model_version=version, entries=[*entries.values()])
        noted = _noted(folder, queue)
        # Appended in this moment, or stored without a mask by an attempt before.
        later = entries.keys() - asked | noted.bare & drawn.keys()
        queue.pending = [entry.task for entry in queue.in_order() if entry.task in later]
        queue.unmasked = sorted(open_tasks - drawn.keys())
        folder.save(QUEUE, queue)  # first, as in `publish`
        task_order.store_predictions(
            project.studio,
            project.number,
            version,
            [QueuedPrediction(e.task, e.score, drawn.get(e.task, [])) for e in queue.entries],
        )
        record = RoundRecord(
            round=before.round,
            model_version=version,
            classes=before.classes,
            fingerprint=before.fingerprint,
            weights=weights,
        )
        return _serve(project, record, before, None).model_version == version


def _queued(project: ConnectedProject, published: Published, version: str) -> dict[int, QueueEntry]:
    """Task → place of the ``published`` queue, also where an attempt to serve it as ``version``
    ended after it was noted so."""
    folder = project.folder.round(published.round)
    queue = known_queue(folder)
    if queue is None or queue.model_version not in (published.model_version, version):
        queue = _rebuilt_queue(project, folder, published)
    return {entry.task: entry for entry in queue.entries}


def tidy(project: ConnectedProject) -> int:
    """Delete our stored predictions of versions that are no longer served; returns how many.

    Not of a version that was served less than ``open_minutes`` ago: whoever has a slice open with
    its mask could not submit it any more, Label Studio refuses (400) an annotation whose prediction
    is gone. Those of slices that were submitted since the published round's sync stay until the
    next one has measured what they cost (`effort`). So do those of slices that somebody has begun.
    """
    with project.schedule.alone("queue", wait=True):
        return _tidy(project)


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
