"""The RQ queues: what is enqueued where, under which id, and who is allowed to wait.

`control` jobs are short and never import torch; `gpu` jobs train a round, `simulate` jobs a run of
an experiment. Jobs are enqueued by dotted name, so that the web process need not import what they
import.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, cast, get_args

from pydantic import JsonValue
from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import LockError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.lock import Lock as RedisLock
from redis.retry import Retry
from rq import Queue, Worker
from rq.exceptions import DuplicateJobError, InvalidJobOperation, NoSuchJobError
from rq.executions import Execution
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from ml_backend.settings import Settings

__all__ = [
    "ADOPTIONS",
    "CONTROL",
    "GPU",
    "JOBS",
    "KINDS",
    "LOCKS",
    "SIMULATE",
    "SPARE",
    "Kind",
    "Lock",
    "ProjectSchedule",
    "RoundProgress",
    "Schedule",
    "WorkerSign",
    "outlast_restarts",
]

logger = logging.getLogger(__name__)

Kind = Literal["control", "gpu", "simulate", "spare"]
CONTROL: Kind = "control"
"""Short jobs, no torch."""
GPU: Kind = "gpu"
"""Rounds of projects."""
SIMULATE: Kind = "simulate"
"""Runs of experiments. A gpu worker takes one when no round waits."""
SPARE: Kind = "spare"
"""Trainings that go on after a round. A gpu worker takes one when nothing else waits."""
KINDS: tuple[Kind, ...] = get_args(Kind)
DEVICE_FIELD = "nextslice_device"
"""Of what Redis holds of a worker: what it trains on."""
STUDIO_FIELD, STORE_FIELD = "nextslice_label_studio", "nextslice_store"
"""Likewise: whom it works for."""
HEARTBEAT_S = 5
"""RQ's job monitoring interval in our workers: a started job shows a sign of life this often."""
_DEAD_AFTER_S = 60
_LIVE = (JobStatus.QUEUED, JobStatus.STARTED, JobStatus.SCHEDULED, JobStatus.DEFERRED)
Lock = Literal["queue", "record", "switch", "top-up"]
"""What a project is locked for: its queue, `project.json`, the switch to a version, filling up."""
LOCKS: Mapping[Lock, float] = {"record": 30.0, "switch": 120.0, "queue": 300.0, "top-up": 1200.0}
"""After how many seconds each is void, whether or not its holder is at work."""
_Job = Literal["adopt", "count", "further", "masks", "reconcile", "round", "start", "tidy"]
JOBS: tuple[str, ...] = get_args(_Job)
"""The functions of `jobs`."""
_JOBS = "ml_backend.rounds.jobs"
ADOPTIONS = 8
"""How many projects may wait to be adopted."""
_LEASE_S = 30.0
"""A lock is renewed within this, for as long as its holder lives."""
_ALL = "all"
_AGAIN = "-again"
_LISTING_S = 3600
"""Longest a control job may take. Label Studio may need a second for each page of 500 tasks, a busy
one many, and all are listed when a project is adopted; a worker that dies is noticed otherwise."""
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


@dataclass(frozen=True)
class WorkerSign:
    """A worker as it told Redis of itself. ``state``: idle or busy; ``device``: what it trains on,
    ``label_studio`` and ``store``: whom it works for, all empty where it does not say; ``beat``:
    its last sign of life, in seconds since 1970."""

    host: str
    pid: int
    state: str
    device: str
    label_studio: str
    store: str
    beat: float


class Schedule:
    """The queues and their jobs. `ProjectSchedule` knows what a project asks for."""

    def __init__(self, settings: Settings) -> None:
        self.connection = Redis.from_url(
            settings.redis_address, socket_connect_timeout=2, socket_timeout=_ANSWERS_WITHIN_S
        )
        self.round_timeout_s = int(settings.round_timeout_s)
        self._prefix = settings.queue_prefix

    def of(self, key: str) -> ProjectSchedule:
        """What the project ``key`` asks for."""
        return ProjectSchedule(self, key)

    def queue(self, kind: Kind) -> Queue:
        """The RQ queue of ``kind``."""
        return Queue(
            f"{self._prefix}-{kind}", connection=self.connection, serializer=JSONSerializer
        )

    def listening(self, kind: Kind) -> int:
        """How many workers take jobs of ``kind``, wherever they run.

        Not those that were killed: their registration runs out within eight minutes, their names
        stay in RQ's list until another worker of the kind looks at it.
        """
        names = Worker.all_keys(queue=self.queue(kind))
        return int(self.connection.exists(*names)) if names else 0

    def workers(self, kind: Kind) -> list[WorkerSign]:
        """What those workers say of themselves, who showed a sign of life last first."""
        names = Worker.all_keys(queue=self.queue(kind))
        with self.connection.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.hmget(name, *_SIGNS)
            found: list[list[bytes | None]] = pipeline.execute() if names else []
        signs = [_sign(*fields) for fields in found if fields[-1] is not None]
        return sorted(signs, key=lambda sign: -sign.beat)

    def length(self, kind: Kind) -> tuple[int, int]:
        """How many jobs of ``kind`` wait, and how many run."""
        queue = self.queue(kind)
        with self.connection.pipeline(transaction=False) as pipeline:
            pipeline.llen(queue.key)
            pipeline.zcard(queue.started_job_registry.key)
            waiting, started = pipeline.execute()
        return int(waiting), int(started)

    def looked(self, gone: Sequence[str] = ()) -> None:
        """Note that every project was looked at, now, and the keys of those that Label Studio no
        longer has."""
        noted: dict[str, Any] = {self._last_look: time.time(), self._gone: " ".join(gone)}
        self.connection.mset(noted)

    def last_look(self) -> float | None:
        """When every project was looked at last, in seconds since 1970; None: never, or before
        Redis lost what it held."""
        found: Any = self.connection.get(self._last_look)
        return None if found is None else float(found)

    def gone(self) -> set[str]:
        """The keys of the projects that Label Studio no longer had at the last look."""
        found: Any = self.connection.get(self._gone)
        return set() if found is None else set(found.decode().split())

    @property
    def _last_look(self) -> str:
        return f"{self._prefix}:last-look"

    @property
    def _gone(self) -> str:
        return f"{self._prefix}:gone"

    def job_id(self, name: str, key: str) -> str:
        """RQ job id of job ``name`` for the project ``key``: letters, digits, dashes."""
        return f"{self._prefix}-{name}-{key.replace('.', '-')}"

    def reconcile(self) -> None:
        """Look at every project."""
        self.enqueue(CONTROL, self.job_id("reconcile", _ALL), f"{_JOBS}.reconcile")

    def run(self, entry_point: str, *arguments: JsonValue) -> str:
        """Call ``entry_point``, a dotted name, once for the same arguments, on a gpu worker that
        has no round to train.

        Returns the job's id, which `ended` takes.
        """
        name = entry_point.rpartition(".")[2].replace("_", "-")
        job_id = self.job_id(name, hashlib.sha256(repr(arguments).encode()).hexdigest()[:16])
        self.enqueue(SIMULATE, job_id, entry_point, *arguments, timeout=self.round_timeout_s)
        return job_id

    def ended(self, job_id: str) -> bool:
        """Whether a job is over: done, failed, or its worker died."""
        self._clear_dead(job_id)
        return self.job(job_id) is None

    def enqueue(
        self,
        kind: Kind,
        job_id: str,
        entry_point: str,
        *arguments: JsonValue,
        timeout: int = _LISTING_S,
    ) -> bool:
        """Call ``entry_point``, a dotted name, with ``arguments``; False where its like is waiting
        or running."""
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
            self.queue(kind).enqueue(entry_point, *arguments, **options)
        except DuplicateJobError:
            return False
        return True

    def job(self, job_id: str) -> tuple[Job, JobStatus] | None:
        """The job and its status as it is now; None when there is no such job (any more)."""
        try:
            job = Job.fetch(job_id, connection=self.connection, serializer=JSONSerializer)
            return job, job.get_status()
        except (NoSuchJobError, InvalidJobOperation):  # the latter: it ended in between
            return None

    def waits(self, *job_ids: str) -> bool:
        """Whether one of the jobs waits for a worker since less than a minute: one request."""
        with self.connection.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hmget(Job.key_for(job_id), "status", "enqueued_at")
            found: list[list[bytes | None]] = pipeline.execute()
        return any(
            status == JobStatus.QUEUED.value.encode()
            and since is not None
            and not _long_ago(datetime.fromisoformat(since.decode()))
            for status, since in found
        )

    def _clear_dead(self, job_id: str) -> None:
        """Forget a job that ended, or whose worker died without saying so."""
        found = self.job(job_id)
        if found is None:
            # What its worker wrote after it was deleted would refuse its successor for good.
            self.connection.eval(_FORGET_WITHOUT_STATUS, 1, Job.key_for(job_id))
            return
        job, status = found
        if status == JobStatus.STARTED:
            if not _long_ago(job.last_heartbeat):
                return
            logger.warning("job %s has shown no sign of life: starting it again", job_id)
        elif status == JobStatus.QUEUED and self._lost(job):
            logger.warning("job %s was taken and not begun: starting it again", job_id)
        elif status in _LIVE:
            return
        self._forget(job)

    def _forget(self, job: Job) -> None:
        """Delete the job, and what RQ keeps of the executions of a worker that was killed.

        That runs out piece by piece, and RQ raises ValueError for a job of which a part is left.
        """
        executions = job.execution_registry
        for execution_id in executions.get_execution_ids():
            execution = Execution(execution_id, job.id, self.connection)
            self.connection.delete(execution.key)
        self.connection.delete(executions.key)
        started = job.started_job_registry.key
        entries = cast(list[bytes], self.connection.zrange(started, 0, -1))
        for entry in entries:
            if entry.decode().partition(":")[0] == job.id:
                self.connection.zrem(started, entry)
        job.delete()

    def _lost(self, job: Job) -> bool:
        """Whether a waiting job is in no queue: its worker, or Redis, ended as it was taken.

        RQ looks after such jobs itself, but only those of workers that listen on one queue.
        """
        queue = Queue(job.origin, connection=self.connection, serializer=JSONSerializer)
        return (
            _long_ago(job.enqueued_at)
            and queue.get_job_position(job.id) is None
            and job.id not in queue.started_job_registry
        )

    @contextmanager
    def alone(self, what: str, timeout_s: float, *, wait: bool) -> Iterator[bool]:
        """Hold the lock called ``what``; False, without it, when another process has it.

        ``wait``: wait for the other instead. The lock is void after ``timeout_s`` seconds; that of
        a process that was killed, or has lost Redis, after `_LEASE_S`.
        """
        lease_s = min(timeout_s, _LEASE_S)
        name = f"{self._prefix}:{what}"
        lock = self.connection.lock(name, timeout=lease_s, thread_local=False)
        if not lock.acquire(blocking=wait):
            yield False
            return
        stop = threading.Event()
        renewing = threading.Thread(
            target=_renew, args=(lock, lease_s, timeout_s, stop), daemon=True
        )
        renewing.start()
        try:
            yield True
        finally:
            stop.set()
            renewing.join()
            if lock.owned():
                lock.release()


_SIGNS = ("hostname", "pid", "state", DEVICE_FIELD, STUDIO_FIELD, STORE_FIELD, "last_heartbeat")


def _sign(*fields: bytes | None) -> WorkerSign:
    host, pid, state, device, studio, store, beat = ((field or b"").decode() for field in fields)
    moment = datetime.fromisoformat(beat)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return WorkerSign(host, int(pid or 0), state, device, studio, store, moment.timestamp())


def _renew(lock: RedisLock, lease_s: float, longest_s: float, stop: threading.Event) -> None:
    """Take the lock for ``lease_s`` seconds again and again, for ``longest_s`` in all."""
    end = time.monotonic() + longest_s - lease_s
    while not stop.wait(lease_s / 3) and time.monotonic() < end:
        try:
            lock.reacquire()
        except LockError:  # another has it: it was void, and what we do is to be done again
            return
        except RedisError as error:
            logger.warning("the lock %s cannot be kept: %s", lock.name, error)


@dataclass(frozen=True)
class RoundProgress:
    """Where a project's round job is. ``step`` is empty before the first one; ``total`` is 0 where
    nobody knows how much there is to do. ``began``: when the step began, in seconds since 1970.
    ``loss``: of the training, averaged over its last steps."""

    status: JobStatus
    step: str = ""
    done: int = 0
    total: int = 0
    began: float | None = None
    loss: float | None = None

    def seconds_left(self, moment: float) -> float | None:
        """How long the step will go on after ``moment`` at the pace it has had; None: not known."""
        if self.began is None or not 0 < self.done <= self.total:
            return None
        return max(moment - self.began, 0.0) / self.done * (self.total - self.done)


class ProjectSchedule:
    """What one project asks for: at most one job of a kind waits."""

    def __init__(self, schedule: Schedule, key: str) -> None:
        self._schedule = schedule
        self._key = key

    def count(self) -> None:
        """Look at what changed in the project and act on it. Storms of hints become one job."""
        count = self.job_id("count")
        # First, since it is so for most hints of a storm, and an annotator waits for each of them.
        if self._schedule.waits(count, count + _AGAIN):
            return
        if not self._enqueue(CONTROL, "count"):
            found = self._schedule.job(count)
            # The running count may have looked before this change: one more follows it.
            if found is not None and found[1] == JobStatus.STARTED:
                self._enqueue(CONTROL, "count", suffix=_AGAIN)

    def start(self) -> None:
        """Train now, without waiting for K."""
        self._enqueue(CONTROL, "start")

    def adopt(self, backend_url: str | None) -> None:
        """Make the project ours. Not enqueued while `ADOPTIONS` others wait for that: anybody may
        ask, and Label Studio asks again whenever a task is opened."""
        adoptions = self._schedule.job_id("adopt", "")
        waiting = [one for one in self._control.job_ids if one.startswith(adoptions)]
        if len(waiting) < ADOPTIONS:
            self._enqueue(CONTROL, "adopt", backend_url)
        else:
            logger.warning("project %s is not adopted now: %d others wait", self._key, len(waiting))

    def others_wait(self) -> bool:
        """Whether control jobs wait for a worker."""
        return bool(self._control.count)

    @property
    def _control(self) -> Queue:
        return self._schedule.queue(CONTROL)

    def tidy(self) -> None:
        """Remove predictions of versions that are no longer served."""
        self._enqueue(CONTROL, "tidy")

    def round(self, reason: str, number: int | None = None) -> bool:
        """Run the next round. False when one is already waiting or running.

        ``number``: only if it is the next one still, when a worker begins: who asks has looked a
        moment before, and the round may be published by then. None: whichever is next.
        """
        timeout = self._schedule.round_timeout_s
        return self._enqueue(GPU, "round", reason, number, timeout=timeout)

    def masks(self) -> None:
        """Draw the masks that an early round has left for after its publication."""
        self._enqueue(GPU, "masks", timeout=self._schedule.round_timeout_s)

    def further(self) -> None:
        """Go on training after the published round, while nobody needs the worker."""
        self._enqueue(SPARE, "further", timeout=self._schedule.round_timeout_s)

    def others_need_the_worker(self) -> bool:
        """Whether a round or a run of an experiment waits for a gpu worker."""
        return any(self._schedule.length(kind)[0] for kind in (GPU, SIMULATE))

    def a_round_waits(self) -> bool:
        """Whether something waits for a gpu worker, of this project or of another."""
        return self._schedule.length(GPU)[0] > 0

    def job_id(self, name: _Job) -> str:
        """RQ job id of the project's job ``name``."""
        return self._schedule.job_id(name, self._key)

    def alone(self, what: Lock, *, wait: bool) -> AbstractContextManager[bool]:
        """Hold the project's lock for ``what``, as `Schedule.alone`."""
        return self._schedule.alone(f"{what}:{self._key}", LOCKS[what], wait=wait)

    def round_progress(self) -> RoundProgress | None:
        """Where the project's round job is, or None when there is none."""
        found = self._schedule.job(self.job_id("round"))
        if found is None:
            return None
        job, status = found
        meta = job.get_meta(refresh=False)
        return RoundProgress(
            status,
            meta.get("step", ""),
            meta.get("done", 0),
            meta.get("total", 0),
            meta.get("began"),
            meta.get("loss"),
        )

    def _enqueue(
        self,
        kind: Kind,
        name: _Job,
        *arguments: JsonValue,
        suffix: str = "",
        timeout: int = _LISTING_S,
    ) -> bool:
        job_id, entry_point = self.job_id(name) + suffix, f"{_JOBS}.{name}"
        return self._schedule.enqueue(
            kind, job_id, entry_point, self._key, *arguments, timeout=timeout
        )


def _long_ago(moment: datetime | None) -> bool:
    """Whether ``moment``, which is in UTC, is `_DEAD_AFTER_S` seconds away or more; None is.

    One in the future as well, as after a clock was put back: it would be recent until then.
    """
    if moment is None:
        return True
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return abs((datetime.now(UTC) - moment).total_seconds()) >= _DEAD_AFTER_S
