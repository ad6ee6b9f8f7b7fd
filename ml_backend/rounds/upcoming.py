"""What Label Studio hands out next: for those who prepare it before somebody opens it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from ml_backend.rounds.artefacts import QUEUE
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import Published
from ml_backend.studio.client import TaskRow, not_annotated

__all__ = ["next_in_queue"]

_LOOKED_AT = 50
"""Places asked for in one request."""


def next_in_queue(project: ConnectedProject, published: Published) -> Iterator[TaskRow]:
    """The tasks of the published queue that nobody has submitted, first those handed out first.

    Those that somebody is at are among them. Raises StoreError and StudioError.
    """
    queue = project.folder.round(published.round).load(QUEUE)
    if queue is None or queue.model_version != published.model_version:
        return
    places = iter(queue.in_order())
    while some := [entry.task for entry in islice(places, _LOOKED_AT)]:
        rows = project.studio.tasks_by_id(project.number, some, [not_annotated()])
        waiting = {row.id: row for row in rows}
        yield from (waiting[task] for task in some if task in waiting)
