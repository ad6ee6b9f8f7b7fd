"""RQ entry points, enqueued by dotted name (`schedule`). Each reads the environment's settings.

`count`, `start`, `adopt`, `tidy` and `reconcile` run on the control queue and import no torch;
`round` and `masks` run on the GPU queue, `further` when nothing else waits for a gpu worker.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from redis.exceptions import RedisError
from rq import get_current_job
from rq.job import Job
from rq.serializers import JSONSerializer

from al_strategies.learner import Progress
from ml_backend.rounds import adopt as adoption
from ml_backend.rounds import reconcile as reconciliation
from ml_backend.rounds import tidying
from ml_backend.rounds.attempt import attempt
from ml_backend.rounds.claim import ClaimLost, ClaimTaken
from ml_backend.rounds.pending import draw_pending
from ml_backend.rounds.project import ConnectedProject, TakenOff
from ml_backend.rounds.schedule import Schedule, outlast_restarts
from ml_backend.rounds.service import Service
from ml_backend.rounds.store import StoreError
from ml_backend.rounds.unreadable import UnreadableSlices
from ml_backend.settings import Settings, configure_logging
from ml_backend.studio.client import StudioError
from ml_backend.studio.label_config import LabelConfigError

__all__ = ["adopt", "count", "further", "masks", "reconcile", "round", "start", "tidy"]

logger = logging.getLogger(__name__)

_META_EVERY_S = 1.0


class _JobProgress:
    """Writes progress into an RQ job's meta, once a second at most.

    It is for people to look at: where Redis does not answer, the job goes on without a report. So
    it has a connection of its own, which waits for no restart of Redis.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._written = 0.0
        self._step = ""

    def __call__(self, step: str, done: int, total: int) -> None:
        """Where the job is: `Progress`."""
        if step != self._step:
            self._job.meta.update(began=time.time(), loss=None)
        elif time.monotonic() - self._written < _META_EVERY_S:
            return
        self._job.meta.update(step=step, done=done, total=total)
        with suppress(RedisError):
            self._job.save_meta()  # type: ignore[no-untyped-call]  # RQ has no types here
        # afterwards: where Redis is slow to fail, the job has a second for itself
        self._written, self._step = time.monotonic(), step

    def told_loss(self, loss: float) -> None:
        """Of the training, written with the next progress: `HearsLoss`."""
        self._job.meta["loss"] = loss


def _job_progress(settings: Settings) -> Progress:
    """What the job that runs here reports to; nothing where none does."""
    current = get_current_job()
    if current is None:
        return lambda step, done, total: None
    redis = Schedule(settings).connection
    return _JobProgress(Job(current.id, connection=redis, serializer=JSONSerializer))


def _service() -> Service:
    """The service; a job may run in an interpreter of its own, which nobody told how to log, or
    that Redis is to be waited for."""
    service = Service.from_environment()
    configure_logging(service.settings.log_level)
    outlast_restarts(service.schedule.connection)
    job = get_current_job()
    if job is not None:
        outlast_restarts(job.connection)
    return service


def _project(key: str) -> ConnectedProject:
    return ConnectedProject(_service(), key)


def _ours(key: str) -> ConnectedProject | None:
    """The project, None for one that was never adopted: whoever asks for it is not heard."""
    project = _project(key)
    if project.adopted:
        return project
    logger.warning("project %s is not connected: nothing is done", key)
    return None


@contextmanager
def _unless_taken_off(project: ConnectedProject) -> Iterator[None]:
    """The work of a job, which ends where the project is taken off meanwhile."""
    try:
        yield
    except StoreError as error:
        if not isinstance(error, TakenOff) and project.adopted:
            raise
        logger.info("project %s: it was taken off meanwhile: %s", project.key, error)


def adopt(key: str, backend_url: str | None) -> None:
    """Make the project ours, then look whether it has labels already."""
    project = _project(key)
    try:
        adoption.adopt(project, backend_url, confirmed=False)
    except ClaimTaken as error:  # `connect` or `import` is at it; reconcile looks at what it leaves
        logger.info("project %s: %s", key, error)
        return
    except (adoption.NotConnected, LabelConfigError, StudioError) as error:
        logger.warning("%s", error)
        return
    with _unless_taken_off(project):
        reconciliation.count(project)


def count(key: str) -> None:
    """Something changed in the project: look, and act on it."""
    project = _ours(key)
    if project is not None:
        with _unless_taken_off(project):
            reconciliation.count(project)


def start(key: str) -> None:
    """A person asked for a training now."""
    project = _ours(key)
    if project is not None:
        with _unless_taken_off(project):
            project.request_start()
            reconciliation.count(project)


def tidy(key: str) -> None:
    """Remove what is no longer served."""
    project = _ours(key)
    if project is not None:
        with _unless_taken_off(project):
            tidying.tidy(project)


def masks(key: str) -> None:
    """Draw what is in the queue and waits for its mask, until a round waits."""
    project = _ours(key)
    if project is None:
        return
    try:
        with _unless_taken_off(project):
            draw_pending(project, _job_progress(project.settings))
    except UnreadableSlices as error:  # the next look asks for them again
        logger.warning("project %s: %s", key, error)


def further(key: str) -> None:
    """Go on training after the published round, while nobody needs the worker."""
    project = _ours(key)
    if project is None:
        return
    from ml_backend.rounds.going_on import go_on  # with all of torch

    try:
        with _unless_taken_off(project):
            if go_on(project, _job_progress(project.settings)):
                project.schedule.tidy()
    except UnreadableSlices as error:  # a look asks for it again
        logger.warning("project %s: %s", key, error)


def reconcile() -> None:
    """Look at every project, whether or not a webhook came."""
    reconciliation.reconcile(_service())


def round(key: str, reason: str, number: int | None = None) -> None:
    """Run the project's next round, to the end or from where the last worker left it.

    ``number``: of the round that is asked for. When it is published already, nothing is done but
    another look, or the next round would learn the same labels again.
    """
    project = _ours(key)
    if project is None:
        return
    if project.settings.pause:
        logger.info("project %s is paused: no round begins", key)
        return
    published = project.published
    if number is not None and published is not None and published.round >= number:
        logger.info("project %s: round %d is published already", key, number)
        project.schedule.count()
        return
    try:
        attempt(project, reason, _job_progress(project.settings), number)
    except (ClaimTaken, ClaimLost, TakenOff) as error:
        logger.info("project %s: %s", key, error)
        return
    project.schedule.tidy()
    # The last act of a round: what was submitted meanwhile may already be enough for the next.
    project.schedule.count()
