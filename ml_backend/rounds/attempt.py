"""One attempt at a round, whoever makes it: counted before it begins, and how it ended after it.

A process that is killed, as for want of memory, can note nothing afterwards.
"""

from __future__ import annotations

import logging
import time

from al_strategies.learner import Progress
from ml_backend.rounds.round import run_round
from ml_backend.rounds.service import Service
from ml_backend.rounds.store import ClaimLost, ClaimTaken, ProjectRecord, RoundRecord

__all__ = ["attempt", "may_try_again"]

logger = logging.getLogger(__name__)

_BACKOFF_S = 30.0
_LONGEST_BACKOFF_S = 3600.0


def attempt(
    service: Service, key: str, reason: str, progress: Progress | None = None
) -> RoundRecord | None:
    """`run_round`, noted in `project.json`: its errors are counted and raised."""
    before = service.update_record(
        key, lambda record: {"unended": record.unended + 1, "began_at": time.time()}
    )
    if before.unended > 1:
        logger.warning("project %s: %d attempts at the round did not end: was a worker killed?",
                       key, before.unended - 1)  # fmt: skip
    try:
        done = run_round(service, key, reason, progress)
    except (ClaimTaken, ClaimLost):
        service.update_record(key, lambda record: {"unended": max(record.unended - 1, 0)})
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        service.update_record(
            key,
            lambda record: {
                "unended": max(record.unended - 1, 0),
                "failures": record.failures + 1,
                "failed_at": time.time(),
                "last_error": told,
            },
        )
        raise
    service.update_record(key, lambda _: {"failures": 0, "unended": 0, "last_error": None})
    return done


def may_try_again(record: ProjectRecord) -> bool:
    """Whether the pause after the attempts that came to nothing is over: 1, 2, 4, … minutes, at
    most an hour, from the moment the last one failed, or began if nobody knows how it ended."""
    attempts = record.failures + record.unended
    if not attempts:
        return True
    pause = min(_BACKOFF_S * 2.0 ** min(attempts, 20), _LONGEST_BACKOFF_S)
    last = max(record.failed_at, record.began_at if record.unended else 0.0)
    return time.time() - last >= pause
