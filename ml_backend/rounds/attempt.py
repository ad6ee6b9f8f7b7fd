"""One attempt at a round, whoever makes it: counted before it begins, and how it ended after it.

A process that is killed, as for want of memory, can note nothing afterwards.
"""

from __future__ import annotations

import logging
import time

from redis.exceptions import RedisError

from al_strategies.learner import Progress
from ml_backend.errors import EnvironmentFault, NextsliceError
from ml_backend.rounds.artefacts import DATASET
from ml_backend.rounds.claim import ClaimLost, ClaimTaken
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import CLOCKS_DIFFER_S, ProjectRecord, RoundRecord
from ml_backend.rounds.round import run_round
from ml_backend.rounds.slices import UnreadableSlices
from ml_backend.studio.failures import StudioError

__all__ = ["MAX_FAILURES", "attempt", "gives_up", "may_try_again", "next_attempt_at"]

logger = logging.getLogger(__name__)

MAX_FAILURES = 5
"""After so many, K labels that no attempt has seen are the reason for the next. Not where something
was out of reach, which other labels do not bring back: then each pause is followed by another."""
_OUTAGES = (UnreadableSlices, StudioError, EnvironmentFault, RedisError, OSError)
_BACKOFF_S = 30.0
_LONGEST_BACKOFF_S = 3600.0


def attempt(
    project: ConnectedProject, reason: str, progress: Progress | None = None
) -> RoundRecord | None:
    """`run_round`, noted in `project.json`: its errors are counted and raised."""
    before = project.update(lambda record: record.attempt_began(time.time()))
    if before.unended > 1:
        logger.warning("project %s: %d attempts at the round did not end: was a worker killed?",
                       project.key, before.unended - 1)  # fmt: skip
    try:
        done = run_round(project, reason, progress)
    except (ClaimTaken, ClaimLost):
        project.update(ProjectRecord.attempt_ended)
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        _note_failure(project, told, outage=_comes_back(project, error))
        raise
    project.update(ProjectRecord.round_succeeded)
    return done


def _comes_back(project: ConnectedProject, error: Exception) -> bool:
    """Whether time is a remedy, and other labels are none: something was out of reach, or the
    labels were not even read, as where the labelling config cannot be used for a while."""
    if isinstance(error, _OUTAGES):
        return True
    published = project.published
    number = 0 if published is None else published.round + 1
    return not project.folder.round(number).has(DATASET)


def _note_failure(project: ConnectedProject, told: str, *, outage: bool) -> None:
    """That cannot be noted where the store is full or Redis is gone: the error itself counts."""
    try:
        project.update(lambda record: record.attempt_failed(time.time(), told, outage=outage))
    except (NextsliceError, RedisError) as error:
        logger.error("project %s: that the attempt failed cannot be noted: %s", project.key, error)


def next_attempt_at(record: ProjectRecord) -> float:
    """When the pause after the attempts that came to nothing is over, in seconds since 1970: 1, 2,
    4, … minutes, at most an hour, after the last one failed, or began if nobody knows how it ended.

    There is no pause after an attempt that was noted in the future: a clock was put back, and the
    pause would last for as long.
    """
    attempts = record.failures + record.unended
    if not attempts:
        return 0.0
    pause = min(_BACKOFF_S * 2.0 ** min(attempts, 20), _LONGEST_BACKOFF_S)
    last = max(record.failed_at, record.began_at if record.unended else 0.0)
    return 0.0 if last - time.time() > CLOCKS_DIFFER_S else last + pause


def gives_up(record: ProjectRecord) -> bool:
    """Whether time alone is no reason to try again."""
    return record.failures >= MAX_FAILURES and not record.outage


def may_try_again(record: ProjectRecord) -> bool:
    """Whether that pause is over."""
    return time.time() >= next_attempt_at(record)
