"""The two RQ queues: what is enqueued where, under which id, and who is allowed to wait.

`control` jobs are short and never import torch; `gpu` jobs train. Jobs are enqueued by dotted
name, so that the web process need not import what they import.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from redis import Redis
from rq import Queue, Worker
from rq.exceptions import DuplicateJobError, NoSuchJobError
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from ml_backend.settings import Settings

__all__ = ["CONTROL", "GPU", "Schedule"]

logger = logging.getLogger(__name__)

CONTROL = "control"
"""Short jobs, no torch."""
GPU = "gpu"
HEARTBEAT_S = 5
"""RQ's job monitoring interval in our workers: a started job shows a sign of life this often."""
_DEAD_AFTER_S = 60
_LIVE = (JobStatus.QUEUED, JobStatus.STARTED, JobStatus.SCHEDULED, JobStatus.DEFERRED)
_JOBS = "ml_backend.rounds.jobs"
_ALL = "all"


class Schedule:
    """Enqueues the service's jobs. Each project has at most one of a kind waiting."""

    def __init__(self, settings: Settings) -> None:
        self.connection = Redis.from_url(
            settings.redis_url, socket_connect_timeout=2, socket_timeout=None
        )
        self._prefix = settings.queue_prefix
        self._round_timeout = int(settings.round_timeout_s)

    def queue(self, kind: str) -> Queue:
        """The RQ queue of ``kind`` (`CONTROL` or `GPU`)."""
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
            job = self._job(self.job_id("count", key))
            # The running count may have looked before this change: one more follows it.
            if job is not None and job.get_status() == JobStatus.STARTED:
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
        """Call ``entry_point``, a dotted name, on a gpu worker, once for the same arguments.

        Returns the job's id, which `ended` takes.
        """
        name = entry_point.rpartition(".")[2].replace("_", "-")
        key = hashlib.sha256(repr(arguments).encode()).hexdigest()[:16]
        self._enqueue(
            GPU, name, key, *arguments, entry_point=entry_point, timeout=self._round_timeout
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

    def _job(self, job_id: str) -> Job | None:
        try:
            return Job.fetch(job_id, connection=self.connection, serializer=JSONSerializer)
        except NoSuchJobError:
            return None

    def _clear_dead(self, job_id: str) -> None:
        """Forget a job that ended, or whose worker died without saying so."""
        job = self._job(job_id)
        if job is None:
            return
        status = job.get_status()
        if status == JobStatus.STARTED:
            beat = job.last_heartbeat
            if beat is not None:
                beat = beat if beat.tzinfo else beat.replace(tzinfo=UTC)
                if (datetime.now(UTC) - beat).total_seconds() < _DEAD_AFTER_S:
                    return
            logger.warning("job %s has shown no sign of life: starting it again", job_id)
        elif status in _LIVE:
            return
        job.delete()

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
        job = self._job(self.job_id("round", key))
        if job is None:
            return None
        return {"status": str(job.get_status()), **job.get_meta(refresh=True)}
