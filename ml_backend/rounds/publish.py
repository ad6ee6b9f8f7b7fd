"""The last step of a round, and of what takes its place: predictions stored, then the switch.

Everything here can be done again: predictions that are stored already are not stored twice, and
`published.json` is written only after the switch was verified. `queue.json` says what is to be
stored, Label Studio what is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from itertools import islice

from ml_backend.rounds.artefacts import QUEUE
from ml_backend.rounds.further import next_round_is_on
from ml_backend.rounds.live_masks import Regions
from ml_backend.rounds.looking_up import GivenWay
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.queue import known_queue, noted_queue, pending, rebuilt_queue
from ml_backend.rounds.records import Published, QueueEntry, QueueRecord, RoundRecord
from ml_backend.rounds.store import RoundFolder
from ml_backend.rounds.switching import serve
from ml_backend.studio import task_order
from ml_backend.studio.task_order import QueuedPrediction

__all__ = ["draw_pending", "publish", "republish", "retire"]

logger = logging.getLogger(__name__)

Predict = Callable[[list[int]], Iterable[tuple[int, Regions]]]
"""Task and regions of each of these tasks, in any order; what cannot be predicted is left out."""

_DRAWN_TOGETHER = 4
"""Slices whose masks follow in one step: whoever waits for the worker waits for so many."""


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
        noted = noted_queue(folder, queue)
        pending = {*noted.pending, *later} - done
        queue.pending = [task for task in scores if task in pending]
        queue.unmasked = sorted({*noted.unmasked, *without} - done - pending)
    # First: an attempt that ends in between must not forget which have no mask.
    folder.save(QUEUE, queue)
    bare = [QueuedPrediction(task, scores[task], []) for task in without]
    task_order.store_predictions(project.studio, project.number, record.model_version, bare)
    return serve(project, record, before, None)


def draw_pending(
    project: ConnectedProject,
    published: Published,
    predict: Predict,
    go_on: Callable[[], bool],
) -> int:
    """Give the `pending` slices their masks, as long as ``go_on`` says so and ``published`` is
    served; returns how many got one.

    What ``predict`` leaves out stays without a mask and is noted so; with GivenWay it ends this.
    What a top-up notes meanwhile is left to the next time.
    """
    folder = project.published_round(published.round)
    wanted = pending(project, published)
    still = task_order.still_open(project.studio, project.number, wanted)
    rows = iter(predict([task for task in wanted if task in still]))
    left = {*wanted}
    drawn = 0
    while go_on():
        try:
            batch = dict(islice(rows, _DRAWN_TOGETHER))
        except GivenWay:
            break
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


def retire(
    project: ConnectedProject,
    published: Published,
    reason: str,
    classes: list[str],
    fingerprint: str,
) -> Published:
    """Stop serving masks of classes that no longer exist; the order of the queue stays.

    The remaining queue is published again, without masks, under a version of its own. Returns what
    is served: another publication than ``published`` stays, it may be of today's classes. Raises
    TakenOff.
    """
    # Held alone: a top-up would write the queue of before over ours, a tidy-up delete what it
    # takes for predictions of an attempt that came to nothing.
    with project.schedule.alone("queue", wait=True):
        project.published_round(published.round).check()
        served = project.published
        if served is not None and served != published:
            return served
        return _retire(project, published, reason, classes, fingerprint)


def _retire(
    project: ConnectedProject,
    published: Published,
    reason: str,
    classes: list[str],
    fingerprint: str,
) -> Published:
    logger.warning("project %s: %s is retired: %s", project.key, published.model_version, reason)
    folder = project.published_round(published.round)
    old = known_queue(folder) or rebuilt_queue(project, folder, published)
    version = task_order.round_version(published.round, fingerprint)
    queue = QueueRecord(
        model_version=version, entries=old.entries, withdrawn=old.withdrawn_but(version)
    )
    task_order.store_predictions(
        project.studio,
        project.number,
        version,
        [QueuedPrediction(entry.task, entry.score, []) for entry in queue.entries],
    )
    folder.save(QUEUE, queue)
    record = RoundRecord(
        round=published.round,
        model_version=version,
        classes=classes,
        fingerprint=fingerprint,
    )
    return serve(project, record, published, reason)


def republish(
    project: ConnectedProject, before: Published, weights: str, version: str, predict: Predict
) -> bool:
    """Serve other weights of the published round as ``version``: the rest of the queue in its
    order, with their masks. False, with nothing switched, when another version is published or the
    next round has begun.

    ``weights``: path relative to the project's folder. What ``predict`` leaves out gets no mask;
    what it raises ends this with nothing stored. It is asked again for what was appended meanwhile,
    and may take its time: no lock is held.
    """
    folder = project.published_round(before.round)
    asked: set[int] = set()
    open_tasks: set[int] = set()
    drawn: dict[int, Regions] = {}
    while new := [task for task in _queued(project, before, version) if task not in asked]:
        still = task_order.still_open(project.studio, project.number, new)
        drawn |= dict(predict([task for task in new if task in still]))
        asked.update(new)
        open_tasks |= still
    with project.schedule.alone("queue", wait=True):
        if project.published != before or next_round_is_on(project, before):
            return False
        entries = _queued(project, before, version)
        queue = QueueRecord(model_version=version, entries=[*entries.values()])
        noted = noted_queue(folder, queue)
        queue.withdrawn = noted.withdrawn
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
        return serve(project, record, before, None).model_version == version


def _queued(project: ConnectedProject, published: Published, version: str) -> dict[int, QueueEntry]:
    """Task → place of the ``published`` queue, also where an attempt to serve it as ``version``
    ended after it was noted so."""
    folder = project.folder.round(published.round)
    queue = known_queue(folder)
    if queue is None or queue.model_version not in (published.model_version, version):
        queue = rebuilt_queue(project, folder, published)
    return {entry.task: entry for entry in queue.entries}
