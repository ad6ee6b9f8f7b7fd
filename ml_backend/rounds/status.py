"""The state that a project is in, in sentences for people: what `nextslice rounds list` says.

It is read from the store and from Redis; Label Studio is not asked.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Literal

from pydantic import Field

from ml_backend.rounds.attempt import next_attempt_at
from ml_backend.rounds.claim import Holder, last_holder
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import ProjectRecord, Record

__all__ = ["Condition", "ProjectStatus", "State", "project_status"]

State = Literal["running", "killed", "failed"]
"""A worker is at the round; its worker is gone; the last attempt raised an error."""

_BEGINNING_S = 10.0
"""An attempt is noted before the round is claimed: so long it may have no holder yet."""


class Condition(Record):
    """One thing that is so, and the sentence that says it."""

    state: State
    says: str


class ProjectStatus(Record):
    """Where a project stands. ``round``: the one that is next, or that somebody is at."""

    project: int
    key: str
    round: int
    model_version: str | None = None
    """What is served."""
    holder: Holder | None = None
    """Who holds the round."""
    conditions: list[Condition] = Field(default_factory=list)

    def has(self, state: State) -> bool:
        """Whether one of the conditions is ``state``."""
        return any(condition.state == state for condition in self.conditions)


def project_status(project: ConnectedProject) -> ProjectStatus:
    """Where ``project`` stands at this moment. StoreError where a file of the store is damaged."""
    published = project.published
    number = 0 if published is None else published.round + 1
    claimed = last_holder(project.folder.round(number))
    alive = claimed is not None and claimed.alive(project.settings.claim_ttl_s)
    record = project.record
    return ProjectStatus(
        project=project.number,
        key=project.key,
        round=number,
        model_version=None if published is None else published.model_version,
        holder=claimed if alive else None,
        conditions=[*_failure(record), *_attempt(record, number, claimed, alive=alive)],
    )


def _failure(record: ProjectRecord) -> list[Condition]:
    if not record.last_error:
        return []
    times = f" ({record.failures}×)" if record.failures else ""
    return [_condition("failed", f"The last attempt failed{times}: {record.last_error}")]


def _attempt(
    record: ProjectRecord, number: int, claimed: Holder | None, *, alive: bool
) -> list[Condition]:
    """Who is at round ``number``, or what became of who was."""
    if claimed is not None and alive:
        said = (
            f"Round {number} is held by {claimed} since {_moment(claimed.since)}; its last sign of "
            f"life was {max(claimed.age_s, 0):.0f} s ago."
        )
        return [_condition("running", said)]
    if not record.unended:
        return []
    if record.unended == 1 and time.time() - record.began_at < _BEGINNING_S:
        return [_condition("running", f"Round {number} began at {_moment(record.began_at)}.")]
    who = "its worker was killed, or its machine stopped"
    if claimed is not None and not claimed.released:
        who = f"{claimed} showed its last sign of life at {_moment(claimed.beat)}"
    times = f"{record.unended} attempts at it have begun and not ended, the last at"
    if record.unended == 1:
        times = "The attempt at it did not end that began at"
    said = (
        f"Round {number} is not running: {who}. {times} {_moment(record.began_at)}; the next may "
        f"begin at {_moment(next_attempt_at(record))} and goes on from the last finished step. "
        "Was a worker killed, as for want of memory?"
    )
    return [_condition("killed", said)]


def _condition(state: State, says: str) -> Condition:
    return Condition(state=state, says=says)


def _moment(seconds: float) -> str:
    """A moment in local time, to the second."""
    return datetime.fromtimestamp(seconds).isoformat(" ", "seconds")
