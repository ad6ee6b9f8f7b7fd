"""Who annotates a project: their labels and minutes as rounds noted them, and who is at it now.

Label Studio says who is at it by what it has saved: an annotation that was submitted, or a draft. A
page draws for some seconds before it saves one, and looking at a slice saves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pydantic import Field

from ml_backend.rounds.effort import opened_with_mask, totals_of
from ml_backend.rounds.records import DatasetLabels, LabelRecord, Record
from ml_backend.settings import without_passwords
from ml_backend.studio.client import Studio, StudioError, User, drafted, submitted_since

__all__ = ["LONGEST_S", "NOW", "People", "Person", "Seen", "people_of", "seen_now"]

NOW = timedelta(minutes=15)
"""Who has saved something within this is at it now."""
LONGEST_S = 1800.0
"""Label Studio counts the seconds that a page is open: who goes to lunch annotates for an hour by
it. A slice counts for no more than this, and how many did is told."""
_DRAFTS_READ = 8
"""Slices whose drafts are asked for in a look: a request each, with all that is drawn there."""
_ROWS = 100


class Person(Record):
    """Somebody who annotates. What is counted is of the labels that the newest round knows."""

    user: int | None = None
    """None: Label Studio does not say who it was."""
    name: str
    labels: int = 0
    timed: int = 0
    """Of these, how many Label Studio has timed; a label that a script submitted is not."""
    minutes: float | None = None
    """Of the timed ones together; None: none is."""
    long: int = 0
    """Slices that were open for more than half an hour, and count for half an hour each."""
    corrected: float | None = None
    """The share of pixels that they changed in slices whose masks they were shown."""
    seen_at: str | None = None
    """When they saved something last; None: not in the last quarter of an hour."""
    task: int | None = None
    """The slice that this was of."""


class People(Record):
    """Who annotates a project, who is at it now first, then by labels. ``round``: the newest whose
    labels are counted."""

    people: list[Person] = Field(default_factory=list)
    round: int | None = None
    drafts_unread: int = 0
    """Slices with drafts that were not looked at: there may be more people at it."""
    unanswered: list[str] = Field(default_factory=list)
    """What Label Studio did not tell of people."""


@dataclass(frozen=True)
class Seen:
    """What Label Studio knows of people at this moment.

    ``users``: by number. ``last``: number, or email where the number is not known, to moment and
    task of what they saved last.
    """

    users: Mapping[int, User] = field(default_factory=dict)
    last: Mapping[int | str, tuple[datetime, int]] = field(default_factory=dict)
    drafts_unread: int = 0
    unanswered: tuple[str, ...] = ()


def seen_now(studio: Studio, project: int, first: Iterable[int]) -> Seen:
    """Ask who is at it, in `_DRAFTS_READ` + 3 requests at most. ``first``: the tasks whose drafts
    are looked at before others'. What is refused is told and left out."""
    users: dict[int, User] = {}
    last: dict[int | str, tuple[datetime, int]] = {}
    unanswered: list[str] = []
    unread = 0
    try:
        users = {user.id: user for user in studio.users()}
    except StudioError as error:
        unanswered.append(without_passwords(f"who they are: {error}"))
    numbers = {user.email: user.id for user in users.values()}
    since = datetime.now(UTC) - NOW

    def note(who: int | str, moment: datetime | None, task: int) -> None:
        if moment is not None and moment >= since and (who not in last or moment > last[who][0]):
            last[who] = moment, task

    try:
        newest_first = "-tasks:completed_at"
        rows, _ = studio.first_tasks(project, submitted_since(since), _ROWS, newest_first)
        for row in rows:
            # Of several, who submitted last is not told: the others may have done so long ago.
            if len(row.annotators) == 1:
                note(row.annotators[0], row.completed_at, row.id)
        rows, total = studio.first_tasks(project, [drafted()], _ROWS)
        place = {task: number for number, task in enumerate(first)}
        begun = sorted((row.id for row in rows), key=lambda task: place.get(task, len(place)))
        for task in begun[:_DRAFTS_READ]:
            for draft in studio.drafts(task):
                note(numbers.get(draft.user, draft.user), draft.updated_at, task)
        unread = max(0, total - _DRAFTS_READ)
    except StudioError as error:
        unanswered.append(without_passwords(f"who is at it now: {error}"))
    return Seen(users, last, unread, tuple(unanswered))


def people_of(labels: DatasetLabels | None, round_: int | None, seen: Seen) -> People:
    """Everybody who has a label among ``labels``, which round ``round_`` knows, or is at it now."""
    by_person: dict[int | str | None, list[LabelRecord]] = {}
    for label in labels.labels if labels else ():
        by_person.setdefault(label.completed_by, []).append(label)
    found = [
        _person(who, by_person.get(who, ()), seen)
        for who in dict.fromkeys([*by_person, *seen.last])
    ]
    found.sort(key=lambda person: (person.seen_at is None, -person.labels, person.name))
    return People(
        people=found,
        round=None if labels is None else round_,
        drafts_unread=seen.drafts_unread,
        unanswered=list(seen.unanswered),
    )


def _person(who: int | str | None, labels: Sequence[LabelRecord], seen: Seen) -> Person:
    efforts = [label.effort for label in labels if label.effort is not None]
    seconds = [effort.seconds for effort in efforts if effort.seconds is not None]
    totals = totals_of(opened_with_mask(efforts))
    moment, task = seen.last.get(who, (None, None)) if who is not None else (None, None)
    return Person(
        user=who if isinstance(who, int) else None,
        name=_name(who, seen.users),
        labels=len(labels),
        timed=len(seconds),
        minutes=sum(min(s, LONGEST_S) for s in seconds) / 60 if seconds else None,
        long=sum(s > LONGEST_S for s in seconds),
        corrected=None if totals is None else totals.share,
        seen_at=None if moment is None else moment.isoformat(timespec="seconds"),
        task=task,
    )


def _name(who: int | str | None, users: Mapping[int, User]) -> str:
    if isinstance(who, str):
        return who
    if who is None:
        return "not known"
    return users[who].name if who in users else f"user {who}"
