"""When a round is attempted again, after attempts that came to nothing."""

from __future__ import annotations

import time

from ml_backend.rounds.artefacts import DRAWING
from ml_backend.rounds.records import CLOCKS_DIFFER_S, ProjectRecord, TriesRecord
from ml_backend.rounds.store import RoundFolder

__all__ = [
    "MAX_FAILURES",
    "gives_up",
    "known_drawing",
    "may_try_again",
    "next_attempt_at",
    "next_job_at",
]

MAX_FAILURES = 5
"""After so many, K labels that no attempt has seen are the reason for the next. Not where something
was out of reach, which other labels do not bring back: then each pause is followed by another."""
_BACKOFF_S = 30.0
_LONGEST_BACKOFF_S = 3600.0


def next_attempt_at(record: ProjectRecord) -> float:
    """When the pause after the attempts that came to nothing is over: after the last one failed, or
    began if nobody knows how it ended."""
    last = max(record.failed_at, record.began_at if record.unended else 0.0)
    return _pause_ends(record.failures + record.unended, last)


def next_job_at(tries: TriesRecord) -> float:
    """When the pause after the jobs that came to nothing is over, in seconds since 1970."""
    return _pause_ends(tries.failures, tries.failed_at)


def known_drawing(folder: RoundFolder) -> TriesRecord:
    """The jobs that could not draw the masks of the round's queue: `drawing.json`, or fresh."""
    return folder.load(DRAWING) or TriesRecord()


def _pause_ends(attempts: int, last: float) -> float:
    """1, 2, 4, … minutes, at most an hour, after so many attempts of which the ``last`` failed
    then; both in seconds since 1970.

    There is no pause after an attempt that was noted in the future: a clock was put back, and the
    pause would last for as long.
    """
    if not attempts:
        return 0.0
    pause = min(_BACKOFF_S * 2.0 ** min(attempts, 20), _LONGEST_BACKOFF_S)
    return 0.0 if last - time.time() > CLOCKS_DIFFER_S else last + pause


def gives_up(record: ProjectRecord) -> bool:
    """Whether time alone is no reason to try again."""
    return record.failures >= MAX_FAILURES and not record.outage


def may_try_again(record: ProjectRecord) -> bool:
    """Whether that pause is over."""
    return time.time() >= next_attempt_at(record)
