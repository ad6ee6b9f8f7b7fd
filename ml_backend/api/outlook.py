"""What the store and Redis know of the other processes, for Prometheus.

Rounds, queues and workers live in processes that nobody scrapes; what they leave in the store and
in Redis is looked at every quarter of a minute at most, apart from who asks.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import get_args

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from ml_backend.api.look import Look
from ml_backend.errors import NextsliceError
from ml_backend.rounds.artefacts import ROUND
from ml_backend.rounds.deployment import our_workers
from ml_backend.rounds.project import ConnectedProject, stored_projects
from ml_backend.rounds.readiness import fault
from ml_backend.rounds.records import RoundRecord
from ml_backend.rounds.schedule import KINDS
from ml_backend.rounds.service import Service
from ml_backend.rounds.status import State, project_status

__all__ = ["PROJECTS", "Outlook"]

logger = logging.getLogger(__name__)

PROJECTS = 100
"""Whose rounds have series of their own: those that committed one last."""
_FRESH_S = 15.0
_WAIT_S = 3.0
_RESTS = 9.0
"""Looking takes a tenth of the time at most, however many projects there are."""


class Outlook(Collector):
    """The series of what other processes do. Raises nothing, and waits `_WAIT_S` at most: then
    what was seen last is told, with the time of that."""

    def __init__(self, service: Service) -> None:
        self._look = Look(lambda: list(_families(service)), _FRESH_S, rests=_RESTS)

    def describe(self) -> Iterable[Metric]:
        """Nothing: to register it, nobody is asked."""
        return []

    def collect(self) -> Iterable[Metric]:
        """The series, as they were seen last."""
        seen = self._look.newest(time.monotonic() + _WAIT_S)
        return [] if seen is None else seen.found


def _families(service: Service) -> Iterator[Metric]:
    redis = fault(service, "redis") is None
    store = fault(service, "store") is None
    yield _gauge("nextslice_redis_up", "Whether Redis answers.", redis)
    yield _gauge("nextslice_store_up", "Whether the store can be written.", store)
    if redis:
        yield from _redis(service)
    away: set[State] = {*(() if redis else ("redis",)), *(() if store else ("store",))}
    yield from _projects(service, away)
    yield _gauge("nextslice_seen_timestamp_seconds", "When store and Redis were looked at last.",
                 time.time())  # fmt: skip


def _gauge(name: str, help_: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help_, value=float(value))


def _redis(service: Service) -> list[Metric]:
    """The queues; none where Redis goes away meanwhile."""
    jobs = GaugeMetricFamily("nextslice_queue_jobs", "Jobs in the queues.",
                             labels=["queue", "state"])  # fmt: skip
    workers = GaugeMetricFamily("nextslice_workers", "Workers of ours that listen to the queues.",
                                labels=["queue"])  # fmt: skip
    try:
        for kind in KINDS:
            waiting, started = service.schedule.length(kind)
            jobs.add_metric([kind, "waiting"], waiting)
            jobs.add_metric([kind, "started"], started)
            workers.add_metric([kind], len(our_workers(service.schedule, service.settings, kind)))
        moment = service.schedule.last_look()
    except RedisError as error:
        logger.warning("the queues cannot be looked at: %s", error)
        return []
    found: list[Metric] = [jobs, workers]
    if moment is not None:
        name = "nextslice_reconcile_last_look_timestamp_seconds"
        found.append(_gauge(name, "When reconcile looked at every project last.", moment))
    return found


# -- projects


def _projects(service: Service, away: set[State]) -> list[Metric]:
    """The states of all projects that Label Studio still has, and the rounds of some; nothing where
    no project can be read.

    ``away``: what does not answer, which holds for each of them.
    """
    try:
        gone = set() if "redis" in away else _gone(service)
        projects = [one for one in stored_projects(service) if one.key not in gone]
    except (NextsliceError, OSError) as error:
        logger.warning("the projects cannot be looked at: %s", error)
        return []
    states: Counter[str] = Counter(dict.fromkeys(get_args(State), 0))
    failures: dict[str, int] = {}
    committed: dict[str, RoundRecord] = {}
    for project in projects:
        try:
            status = project_status(project, write=False, redis="redis" not in away)
            if status.has("redis"):
                away = away | {"redis"}  # it would be waited for in each project
            states.update(away.union(condition.state for condition in status.conditions))
            failures[project.key] = project.record.failures
            record = _last_round(project)
        except (NextsliceError, OSError) as error:
            logger.warning("project %s cannot be looked at: %s", project.key, error)
            states.update({"store"})
            continue
        if record is not None:
            committed[project.key] = record
    family = GaugeMetricFamily(
        "nextslice_projects",
        "Projects in a state, as `nextslice rounds list` tells them; one may be in several.",
        labels=["state"],
    )
    for state, count in states.items():
        family.add_metric([state], count)
    return [family, *_rounds(committed, failures)]


def _gone(service: Service) -> set[str]:
    """Nobody can do anything about what became of these: they would be in their state for good."""
    try:
        return service.schedule.gone()
    except RedisError as error:
        logger.warning("which projects are gone is not known: %s", error)
        return set()


def _last_round(project: ConnectedProject) -> RoundRecord | None:
    published = project.published
    return None if published is None else project.folder.round(published.round).load(ROUND)


def _rounds(committed: dict[str, RoundRecord], failures: dict[str, int]) -> list[Metric]:
    """Of the published round of each project; failures: of attempts at the next."""

    def family(name: str, help_: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"nextslice_round_{name}", help_, labels=["project", *labels])

    number = family("number", "The round that is published.")
    moment = family("committed_timestamp_seconds", "When it was committed.")
    seconds = family("step_seconds", "What its steps took, publishing apart.", "step")
    unseen = family("unreadable_slices", "Slices that could not be read when it was scored.")
    failed = family("failures", "Attempts at the next that have failed, one after the other.")
    last = sorted(committed, key=lambda key: committed[key].committed_at, reverse=True)[:PROJECTS]
    for key in last:
        record = committed[key]
        number.add_metric([key], record.round)
        unseen.add_metric([key], len(record.unseen))
        failed.add_metric([key], failures.get(key, 0))
        if record.committed_at:
            moment.add_metric([key], datetime.fromisoformat(record.committed_at).timestamp())
        for step, took in record.seconds.items():
            seconds.add_metric([key, step], took)
    return [number, moment, seconds, unseen, failed]
