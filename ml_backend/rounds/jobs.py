"""RQ entry points, enqueued by dotted name (`schedule`). Each reads the environment's settings.

`count`, `start`, `adopt`, `tidy` and `reconcile` run on the control queue and import no torch;
`round` runs on the GPU queue.
"""

from __future__ import annotations

import logging
import time

from rq import get_current_job

from al_strategies.learner import Progress
from ml_backend.rounds import adopt as adoption
from ml_backend.rounds import publish
from ml_backend.rounds import reconcile as reconciliation
from ml_backend.rounds.attempt import attempt
from ml_backend.rounds.service import Service
from ml_backend.rounds.store import ClaimLost, ClaimTaken
from ml_backend.settings import configure_logging

__all__ = ["adopt", "count", "reconcile", "round", "start", "tidy"]

logger = logging.getLogger(__name__)

_META_EVERY_S = 1.0


def _job_progress() -> Progress:
    """Write progress into the RQ job's meta, once a second at most."""
    job = get_current_job()
    written, last_step = 0.0, ""

    def report(step: str, done: int, total: int) -> None:
        nonlocal written, last_step
        moment = time.monotonic()
        if job is None or (step == last_step and moment - written < _META_EVERY_S):
            return
        written, last_step = moment, step
        job.meta.update(step=step, done=done, total=total)
        job.save_meta()  # type: ignore[no-untyped-call]

    return report


def _service() -> Service:
    """The service; a job may run in an interpreter of its own, which nobody told how to log."""
    service = Service.from_environment()
    configure_logging(service.settings.log_level)
    return service


def adopt(key: str, backend_url: str | None) -> None:
    """Make the project ours, then look whether it has labels already."""
    service = _service()
    adoption.adopt(service, key, backend_url)
    reconciliation.count(service, key)


def count(key: str) -> None:
    """Something changed in the project: look, and act on it."""
    reconciliation.count(_service(), key)


def start(key: str) -> None:
    """A person asked for a training now."""
    service = _service()
    reconciliation.request_start(service, key)
    reconciliation.count(service, key)


def tidy(key: str) -> None:
    """Remove what is no longer served."""
    publish.tidy(_service(), key)


def reconcile() -> None:
    """Look at every project, whether or not a webhook came."""
    reconciliation.reconcile(_service())


def round(key: str, reason: str, number: int | None = None) -> None:
    """Run the project's next round, to the end or from where the last worker left it.

    ``number``: of the round that is asked for. When it is published already, nothing is done but
    another look, or the next round would learn the same labels again.
    """
    service = _service()
    published = service.folder(key).published
    if number is not None and published is not None and published.round >= number:
        logger.info("project %s: round %d is published already", key, number)
        service.schedule.count(key)
        return
    try:
        attempt(service, key, reason, _job_progress())
    except (ClaimTaken, ClaimLost) as error:
        logger.info("project %s: %s", key, error)
        return
    service.schedule.tidy(key)
    # The last act of a round: what was submitted meanwhile may already be enough for the next.
    service.schedule.count(key)
