"""What follows from what changed: count labels, start rounds, fill the queue, repair the switch.

A webhook is a hint and may be lost, so the same look is taken at every project every half minute.
"""

from __future__ import annotations

import logging

from rq.timeouts import JobTimeoutException

from ml_backend.rounds import publish
from ml_backend.rounds.adopt import protect_webhook
from ml_backend.rounds.attempt import may_try_again
from ml_backend.rounds.publish import now
from ml_backend.rounds.round import run_round
from ml_backend.rounds.service import Service, project_id
from ml_backend.rounds.store import (
    ClaimTaken,
    DatasetRecord,
    Published,
    RoundFolder,
    StoreError,
)
from ml_backend.rounds.sync import new_labels
from ml_backend.studio.client import Project, StudioError, annotated
from ml_backend.studio.label_config import LabelConfigError, explain_change, parse_label_config

__all__ = ["count", "reconcile", "request_start"]

logger = logging.getLogger(__name__)

_MAX_FAILURES = 5


def request_start(service: Service, key: str) -> None:
    """Remember that a person asked for a training; the next round's sync forgets it.

    Attempts that failed count no more, though the error stays until a round succeeds: the next
    attempt begins with a new look at the labels.
    """
    service.update_record(key, lambda _: {"start_requested_at": now(), "failures": 0, "unended": 0})


def count(service: Service, key: str, project: Project | None = None) -> None:
    """Look at the project and act on what is there: retire, start a round, fill the queue.

    ``project``: as it was a moment ago; None: it is read.
    """
    folder = service.folder(key)
    published = folder.published
    if published is None:
        if service.studio.count_tasks(project_id(key)):
            try:
                run_round(service, key, "cold start")
            except ClaimTaken as error:
                logger.info("project %s: %s", key, error)
            published = folder.published
        if published is None:
            return
    project = project or service.studio.project(project_id(key))
    published = _follow_config(service, key, published, project.label_config)
    reason = _reason(service, key, published)
    if reason is not None:
        service.schedule.round(key, reason, published.round + 1)
    publish.top_up(service, key)


def _follow_config(service: Service, key: str, published: Published, xml: str) -> Published:
    """Retire the checkpoint when a class was added, removed or renamed."""
    try:
        config = parse_label_config(xml)
    except LabelConfigError as error:
        logger.warning("project %s: the labelling config cannot be used: %s", key, error)
        return published
    if config.fingerprint == published.fingerprint:
        return published
    dataset = service.folder(key).round(published.round).need("dataset.json", DatasetRecord)
    change = explain_change(parse_label_config(dataset.label_config), config)
    reason = change or "the labelling config changed"
    return publish.retire(service, key, reason, list(config.classes), config.fingerprint)


def _reason(service: Service, key: str, published: Published) -> str | None:
    """Why a round should start now, or None."""
    folder = service.folder(key)
    record = service.record(key)
    if not may_try_again(record):
        return None
    if record.failures >= _MAX_FAILURES:
        return _new_reason(service, key, folder.round(published.round + 1))
    if folder.round(published.round + 1).has("dataset.json"):
        return "go on with the round that a worker left"
    dataset = folder.round(published.round).need("dataset.json", DatasetRecord)
    if record.start_requested_at is not None:
        if service.studio.count_tasks(project_id(key), [annotated()]):
            return "start training"
        logger.warning("project %s: asked to train, but nobody has annotated a slice yet", key)
        service.update_record(key, lambda _: {"start_requested_at": None})
        return None
    fresh = new_labels(service, key, dataset)
    if not published.round:
        # There when the project was adopted: nothing has learned from them.
        fresh += len(dataset.labels)
    return f"{fresh} new annotations" if fresh >= service.settings.k else None


def _new_reason(service: Service, key: str, left: RoundFolder) -> str | None:
    """Why to try again what has failed too often: K labels that no attempt has seen."""
    dataset = left.load("dataset.json", DatasetRecord)
    if dataset is None or left.has("metrics.json"):
        return None  # other labels would change nothing
    fresh = new_labels(service, key, dataset)
    return f"{fresh} new annotations" if fresh >= service.settings.k else None


def reconcile(service: Service) -> None:
    """Take one look at every adopted project that is still there.

    One that fails does not stop the others. Those of a deleted project or of a server that was set
    up afresh cost nothing: one request lists what is there.
    """
    try:
        there = {project.key: project for project in service.studio.projects()}
    except StudioError as error:
        logger.warning("no project can be looked at: %s", error)
        return
    keys = service.project_keys()
    if gone := [key for key in keys if key not in there]:
        logger.info("deleted, or not to be seen with this token: %s", ", ".join(gone))
    for key in keys:
        project = there.get(key)
        if project is None:
            continue
        try:
            publish.repair(service, key, project)
            protect_webhook(service, key)
            count(service, key, project)
        except (StudioError, StoreError) as error:
            logger.warning("project %s: reconcile failed: %s", key, error)
        except JobTimeoutException:  # of the whole look, not of this project
            raise
        except Exception:
            logger.exception("project %s: reconcile failed", key)
