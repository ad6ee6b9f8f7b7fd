"""One attempt at a round, whoever makes it: counted before it begins, and how it ended after it.

A process that is killed, as for want of memory, can note nothing afterwards.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from redis.exceptions import RedisError

from al_strategies.learner import Progress
from ml_backend.errors import EnvironmentFault, NextsliceError, TimeUp
from ml_backend.rounds.artefacts import DATASET
from ml_backend.rounds.claim import ClaimLost, ClaimTaken
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import ProjectRecord, RoundRecord, next_round
from ml_backend.rounds.round import run_round
from ml_backend.rounds.unreadable import UnreadableSlices
from ml_backend.studio.failures import StudioError

__all__ = ["attempt"]

logger = logging.getLogger(__name__)

_OUTAGES = (UnreadableSlices, StudioError, EnvironmentFault, RedisError, OSError)


def attempt(
    project: ConnectedProject,
    reason: str,
    progress: Progress | None = None,
    number: int | None = None,
) -> RoundRecord | None:
    """`run_round`, noted in `project.json`: its errors are counted and raised."""
    number = next_round(project.published) if number is None else number
    before = project.update(lambda record: record.attempt_began(time.time(), number))
    if before.unended > 1:
        logger.warning("project %s: %d attempts at the round did not end: was a worker killed?",
                       project.key, before.unended - 1)  # fmt: skip
    try:
        done = run_round(project, reason, progress, number)
    except (ClaimTaken, ClaimLost):
        _note(project, ProjectRecord.attempt_ended, "ended")
        raise
    except (Exception, TimeUp) as error:
        told, outage = f"{type(error).__name__}: {error}", _comes_back(project, error)
        moment = time.time()
        _note(project, lambda record: record.attempt_failed(moment, told, outage=outage), "failed")
        raise
    project.update(ProjectRecord.round_succeeded)
    return done


def _comes_back(project: ConnectedProject, error: BaseException) -> bool:
    """Whether time is a remedy, and other labels are none: something was out of reach, or the
    labels were not even read, as where the labelling config cannot be used for a while."""
    if isinstance(error, _OUTAGES):
        return True
    try:
        return not project.folder.round(next_round(project.published)).has(DATASET)
    except NextsliceError:  # nobody can tell, and the store is out of reach itself
        return True


def _note(project: ConnectedProject, change: Callable[[ProjectRecord], object], ended: str) -> None:
    """How the attempt ended. That cannot be noted where the store is full or Redis is gone: what
    the attempt raised counts."""
    try:
        project.update(change)
    except (NextsliceError, RedisError) as error:
        logger.error("project %s: that the attempt %s cannot be noted: %s", project.key, ended,
                     error)  # fmt: skip
