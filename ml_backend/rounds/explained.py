"""Why a slice is in the queue, told to whoever opens it: in the task's data, which the page shows.

Only where the labelling config shows the field, as those of `nextslice import` and the demo do:
nobody else's task data is touched. It is done by each look, after the queue stands, until another
job waits: Label Studio takes a quarter of a second for each task. Beside a round only the next few
are told: its training may need that CPU, and its publication puts another queue there. A failure
costs no round, and the next look goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from redis.exceptions import RedisError

from ml_backend.rounds.artefacts import SELECTION
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.queue import known_queue
from ml_backend.rounds.records import QueueEntry, QueueRecord, SelectionRecord
from ml_backend.studio.client import StudioError
from ml_backend.studio.label_config import WHY, shows_why
from ml_backend.studio.projects import set_data

__all__ = ["explain", "reasons_of"]

logger = logging.getLogger(__name__)

_MEANT = "Odd slices, even pure noise, are chosen on purpose: skip what cannot be labelled."
_BESIDE_A_ROUND = 4
"""So many a look: looks are half a minute apart, and people take minutes for a slice."""
_NEXT = "Next in line, as the queue ran low."


def explain(project: ConnectedProject, label_config: str) -> int:
    """Tell each slice of the published queue its place and reason, once and in the queue's order;
    how many were told.

    ``label_config``: as Label Studio has it now.
    """
    published = project.published
    if published is None or not shows_why(label_config):
        return 0
    folder = project.folder.round(published.round)
    queue = known_queue(folder)
    if queue is None or queue.model_version != published.model_version:
        return 0
    done = _explained_of(queue, project.record.explained)
    new = [entry.task for entry in queue.entries[done:]]
    if not new:
        return 0
    texts = reasons_of(queue, folder.load(SELECTION))
    count = 0
    try:
        for place, task in enumerate(new, start=1):
            count += set_data(project.studio, project.number, task, {WHY: texts[task]})
            done += 1
            if project.schedule.others_wait():
                break
            if place >= _BESIDE_A_ROUND and project.schedule.round_progress() is not None:
                break
    except (StudioError, RedisError) as error:
        logger.warning("project %s: why slices are chosen is not shown: %s", project.key, error)
    told = f"{queue.model_version} {done}"
    project.update(lambda record: record.was_explained(told))
    return count


def _explained_of(queue: QueueRecord, explained: str) -> int:
    """How many of the queue's first entries were told by what ``explained`` stands for: a version's
    queue only grows at its end."""
    version, _, number = explained.rpartition(" ")
    if version != queue.model_version or int(number) > len(queue.entries):
        return 0
    return int(number)


def reasons_of(queue: QueueRecord, selection: SelectionRecord | None) -> dict[int, str]:
    """What is shown of each slice of the queue, by task."""
    why: Mapping[int, str] = {} if selection is None else selection.reasons
    entries = queue.in_order()
    texts: dict[int, str] = {}
    for kind, called in (("chosen", "Place"), ("reserve", "In reserve, place")):
        same = [entry for entry in entries if entry.kind == kind]
        for place, entry in enumerate(same, start=1):
            texts[entry.task] = _sentence(f"{called} {place} of {len(same)}", entry, why)
    for entry in entries:
        if entry.task not in texts:
            texts[entry.task] = " ".join(filter(None, (_NEXT, why.get(entry.task))))
    return texts


def _sentence(place: str, entry: QueueEntry, why: Mapping[int, str]) -> str:
    reason = why.get(entry.task)
    return f"{place}. {reason} {_MEANT}" if reason else f"{place}."
