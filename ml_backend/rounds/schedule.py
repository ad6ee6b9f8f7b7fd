"""The RQ queues: what is enqueued where, under which id, and who is allowed to wait.

`control` jobs are short and never import torch; `gpu` jobs train a round, `simulate` jobs a run of
an experiment. Jobs are enqueued by dotted name, so that the web process need not import what they
import.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from rq import Queue, Worker
from rq.exceptions import DuplicateJobError, InvalidJobOperation, NoSuchJobError
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from ml_backend.settings import Settings

__all__ = ["CONTROL", "GPU", "SIMULATE", "Schedule", "outlast_restarts"]

logger = logging.getLogger(__name__)

CONTROL = "control"
"""Short jobs, no torch."""
GPU = "gpu"
"""Rounds of projects."""
SIMULATE = "simulate"
"""Runs of experiments. A gpu worker takes one when no round waits."""
HEARTBEAT_S = 5
"""RQ's job monitoring interval in our workers: a started job shows a sign of life this often."""
_DEAD_AFTER_S = 60
_LIVE = (JobStatus.QUEUED, JobStatus.STARTED, JobStatus.SCHEDULED, JobStatus.DEFERRED)
_JOBS = "ml_backend.rounds.jobs"
_ALL = "all"
_ANSWERS_WITHIN_S = 5
_MINUTE = Retry(
    ExponentialBackoff(cap=5, base=0.1),
    retries=16,
    # Without socket.timeout, which redis-py would retry inside of each retry.
    supported_errors=(RedisConnectionError, RedisTimeoutError),
)
_FORGET_WITHOUT_STATUS = """
if redis.call('hexists', KEYS[1], 'status') == 0 then redis.call('del', KEYS[1]) end
"""


def outlast_restarts(connection: Redis) -> None:
    """Let the commands of ``connection`` wait for a Redis that is gone, about a minute each.

    For workers and jobs. Not for the web process: Label Studio waits one second for a webhook.
    """
    connection.set_retry(_MINUTE)


class Schedule:
    """Enqueues the service's jobs. Each project has at most one of a kind waiting."""

    def __init__(self, settings: Settings) -> None:
        self.connection = Redis.from_url(
            settings.redis_url, socket_connect_timeout=2, socket_timeout=_ANSWERS_WITHIN_S
        )
        self._prefix = settings.queue_prefix
        self._round_timeout = int(settings.round_timeout_s)

    def queue(self, kind: str) -> Queue:
        """The RQ queue of ``kind`` (`CONTROL`, `GPU` or `SIMULATE`)."""
        return Queue(
            f"{self._prefix}-{kind}", connection=self.connection, serializer=JSONSerializer
        )

    def listening(self, kind: str) -> int:
        """How many workers take jobs of ``kind``, wherever they run."""
        return Worker.count(queue=self.queue(kind))

    def job_id(self, name: str, key: str) -> str:
        """RQ job id of job ``name`` for the project ``key``: letters, digits, dashes."""
        return f"{self._prefix}-{name}-{key.replace('.', '-')}"

    # -- what others ask for

    def count(self, key: str) -> None:
        """Look at what changed in the project and act on it. Storms of hints become one job."""
        if not self._enqueue(CONTROL, "count", key, key):
            found = self._job(self.job_id("count", key))
            # The running count may have looked before this change: one more follows it.
            if found is not None and found[1] == JobStatus.STARTED:
                self._enqueue(CONTROL, "count", key, key, suffix="-again")

    def start(self, key: str) -> None:
        """Train now, without waiting for K."""
        self._enqueue(CONTROL, "start", key, key)

    def adopt(self, key: str, backend_url: str | None) -> None:
        """Make the project ours."""
        self._enqueue(CONTROL, "adopt", key, key, backend_url)

    def tidy(self, key: str) -> None:
        """Remove predictions of versions that are no longer served."""
        self._enqueue(CONTROL, "tidy", key, key)

    def round(self, key: str, reason: str, number: int | None = None) -> bool:
        """Run the next round. False when one is already waiting or running.

        ``number``: only if it is the next one still, when a worker begins: who asks has looked a
        moment before, and the round may be published by then. None: whichever is next.
        """
        return self._enqueue(GPU, "round", key, key, reason, number, timeout=self._round_timeout)

    def run(self, entry_point: str, *arguments: Any) -> str:
        """Call ``entry_point``, a dotted name, once for the same arguments, on a gpu worker that
        has no round to train.

        Returns the job's id, which `ended` takes.
        """
        name = entry_point.rpartition(".")[2].replace("_", "-")
        key = hashlib.sha256(repr(arguments).encode()).hexdigest()[:16]
        self._enqueue(
            SIMULATE, name, key, *arguments, entry_point=entry_point, timeout=self._round_timeout
        )
        return self.job_id(name, key)

    def ended(self, job_id: str) -> bool:
        """Whether a job is over: done, failed, or its worker died."""
        self._clear_dead(job_id)
        return self._job(job_id) is None

    def reconcile(self) -> None:
        """Look at every project."""
        self._enqueue(CONTROL, "reconcile", _ALL)

    # -- plumbing

    def _enqueue(
        self,
        kind: str,
        name: str,
        key: str,
        *arguments: Any,
        entry_point: str | None = None,
        suffix: str = "",
        timeout: int = 600,
    ) -> bool:
        """Call a job of ours with ``arguments``; False where its like is waiting or running."""
        job_id = self.job_id(name, key) + suffix
        self._clear_dead(job_id)
        options: dict[str, Any] = {
            "job_id": job_id,
            "unique": True,
            "result_ttl": 0,
            # A job hash that still exists refuses its successor: keep failures for a moment only.
            "failure_ttl": 5,
            "job_timeout": timeout,
        }
        try:
            self.queue(kind).enqueue(entry_point or f"{_JOBS}.{name}", *arguments, **options)
        except DuplicateJobError:
            return False
        return True

    def _job(self, job_id: str) -> tuple[Job, JobStatus] | None:
        """The job and its status as it is now; None when there is no such job (any more)."""
        try:
            job = Job.fetch(job_id, connection=self.connection, serializer=JSONSerializer)
            return job, job.get_status()
        except (NoSuchJobError, InvalidJobOperation):  # the latter: it ended in between
            return None

    def _clear_dead(self, job_id: str) -> None:
        """Forget a job that ended, or whose worker died without saying so."""
        found = self._job(job_id)
        if found is None:
            # What its worker wrote after it was deleted would refuse its successor for good.
            self.connection.eval(_FORGET_WITHOUT_STATUS, 1, Job.key_for(job_id))
            return
        job, status = found
        if status == JobStatus.STARTED:
            if _age_s(job.last_heartbeat) < _DEAD_AFTER_S:
                return
            logger.warning("job %s has shown no sign of life: starting it again", job_id)
        elif status == JobStatus.QUEUED and self._lost(job):
            logger.warning("job %s was taken and not begun: starting it again", job_id)
        elif status in _LIVE:
            return
        job.delete()

    def _lost(self, job: Job) -> bool:
        """Whether a waiting job is in no queue: its worker, or Redis, ended as it was taken.

        RQ looks after such jobs itself, but only those of workers that listen on one queue.
        """
        queue = Queue(job.origin, connection=self.connection, serializer=JSONSerializer)
        return (
            _age_s(job.enqueued_at) > _DEAD_AFTER_S
            and queue.get_job_position(job.id) is None
            and job.id not in queue.started_job_registry
        )

    @contextmanager
    def alone(self, what: str, key: str, timeout_s: float, *, wait: bool) -> Iterator[bool]:
        """Hold the project's lock for ``what``; False, without it, when another process has it.

        ``wait``: wait for the other instead. The lock is void after ``timeout_s`` seconds, so a
        process that was killed does not keep it.
        """
        lock = self.connection.lock(f"{self._prefix}:{what}:{key}", timeout=timeout_s)
        held = lock.acquire(blocking=wait)
        try:
            yield held
        finally:
            if held and lock.owned():
                lock.release()

    def round_progress(self, key: str) -> dict[str, Any] | None:
        """``{"status", "step", "done", "total"}`` of the project's round job, or None."""
        found = self._job(self.job_id("round", key))
        if found is None:
            return None
        job, status = found
        return {"status": str(status), **job.get_meta(refresh=False)}


def _age_s(moment: datetime | None) -> float:
    """Seconds since ``moment``, which is in UTC; for ever, when it is None."""
    if moment is None:
        return math.inf
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (datetime.now(UTC) - moment).total_seconds()
