"""What follows from what changed: count labels, start rounds, fill the queue, repair the switch.

A webhook is a hint and may be lost, so the same look is taken at every project every half minute.
"""

from __future__ import annotations

import logging
from contextlib import suppress

from redis.exceptions import RedisError

from ml_backend.errors import NextsliceError
from ml_backend.logs import about
from ml_backend.rounds import extra_params, filling, pending, publish, switching
from ml_backend.rounds.adopt import protect_webhook
from ml_backend.rounds.artefacts import DATASET, LABELS, METRICS
from ml_backend.rounds.attempt import attempt
from ml_backend.rounds.claim import ClaimTaken
from ml_backend.rounds.early import wanted_labels
from ml_backend.rounds.explained import explain
from ml_backend.rounds.further import may_go_on
from ml_backend.rounds.imageless import look_for_images
from ml_backend.rounds.pauses import gives_up, may_try_again
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import DatasetLabels, Published
from ml_backend.rounds.service import Service
from ml_backend.rounds.store import RoundFolder, StoreFault
from ml_backend.rounds.sync import new_labels
from ml_backend.studio.client import Project, StudioError, annotated
from ml_backend.studio.counters import count_anew
from ml_backend.studio.label_config import LabelConfigError, explain_change, parse_label_config

__all__ = ["count", "reconcile"]

logger = logging.getLogger(__name__)


def count(project: ConnectedProject, seen: Project | None = None) -> None:
    """Look at the project and act on what is there: retire, start a round, fill the queue.

    ``seen``: the project as Label Studio had it a moment ago; None: it is read.
    """
    published = project.published
    if published is None:
        if project.studio.count_tasks(project.number):
            try:
                attempt(project, "cold start", number=0)
            except ClaimTaken as error:
                logger.info("project %s: %s", project.key, error)
            published = project.published
        if published is None:
            return
    seen = seen or project.in_studio()
    wanted = seen.maximum_annotations
    if wanted != project.record.wanted_annotations:
        project.update(lambda record: record.wants(wanted))
    published = _follow_config(project, published, seen.label_config)
    reason = None if project.settings.pause else _reason(project, published)
    if reason is not None:
        project.schedule.round(reason, published.round + 1)
    elif pending.may_draw(project, published):
        project.schedule.masks()
    elif may_go_on(project, published):
        project.schedule.further()
    filling.top_up(project)
    if reason is None:  # the round that is asked for needs the CPU, and puts another queue there
        explain(project, seen.label_config)


def _follow_config(project: ConnectedProject, published: Published, xml: str) -> Published:
    """Retire the checkpoint when a class was added, removed or renamed."""
    try:
        config = parse_label_config(xml)
        if config.fingerprint != published.fingerprint:
            # What was seen may be older than what is published.
            config = parse_label_config(project.in_studio().label_config)
    except LabelConfigError as error:
        logger.warning("project %s: the labelling config cannot be used: %s", project.key, error)
        return published
    if config.fingerprint == published.fingerprint:
        return published
    look_for_images(project, config)
    old = project.folder.round(published.round).need(LABELS)
    change = explain_change(parse_label_config(old.label_config), config)
    reason = change or "the labelling config changed"
    return publish.retire(project, published, reason, list(config.classes), config.fingerprint)


def _reason(project: ConnectedProject, published: Published) -> str | None:
    """Why a round should start now, or None."""
    record = project.record
    if record.was_published(published.round):
        record = project.update(lambda record: record.was_published(published.round))
    if not may_try_again(record):
        return None
    following = project.folder.round(published.round + 1)
    if gives_up(record):
        return _new_reason(project, following)
    if following.has(DATASET):
        return "go on with the round that a worker left"
    if record.start_requested_at is not None:
        there_is_one = project.studio.count_tasks(project.number, [annotated()]) > 0
        return "start training" if there_is_one else None
    there = _labels(project.folder.round(published.round))
    fresh = new_labels(project, there)
    if not published.round:
        # There when the project was adopted: nothing has learned from them.
        fresh += len(there.labels)
    wanted = wanted_labels(published, len(there.labels), project.settings)
    return f"{fresh} new annotations" if fresh >= wanted else None


def _labels(folder: RoundFolder) -> DatasetLabels:
    """The labels of a round, without its tasks: a look is taken after each submission."""
    found = folder.need(LABELS)
    if found.unusable is not None and found.imageless is not None:
        return found
    return folder.need(DATASET).noted()  # of an older nextslice


def _new_reason(project: ConnectedProject, left: RoundFolder) -> str | None:
    """Why to try again what has failed too often: K labels that no attempt has seen."""
    if not left.has(DATASET) or left.has(METRICS):
        return None  # other labels would change nothing
    fresh = new_labels(project, _labels(left))
    return f"{fresh} new annotations" if fresh >= project.settings.k else None


def reconcile(service: Service) -> None:
    """Take one look at every adopted project that is still there.

    One that fails does not stop the others. Those of a deleted project or of a server that was set
    up afresh cost nothing: one request lists what is there.
    """
    try:
        there = {project.key: project for project in service.studio.projects()}
        keys = service.project_keys()
    except (StudioError, StoreFault) as error:
        logger.warning("no project can be looked at: %s", error)
        return
    if gone := [key for key in keys if key not in there]:
        logger.info("deleted, or not to be seen with this token: %s", ", ".join(gone))
    for key in keys:
        if key in there:
            with about(project=key):
                _look(ConnectedProject(service, key), there[key])
    with suppress(RedisError):  # for people to watch: the look is taken
        service.schedule.looked(gone)


def _look(project: ConnectedProject, seen: Project) -> None:
    """One project's turn of `reconcile`: its errors end here."""
    try:
        _count_anew(project, seen)
        extra_params.follow(project, project.studio.find_backend(project.number, project.link.url))
        switching.repair(project, seen)
        protect_webhook(project)
        count(project, seen)
    except NextsliceError as error:
        logger.warning("project %s: reconcile failed: %s", project.key, error)
    except Exception:
        logger.exception("project %s: reconcile failed", project.key)


def _count_anew(project: ConnectedProject, seen: Project) -> None:
    """Make Label Studio count what people have submitted and it has not."""
    if tasks := count_anew(project.studio, seen):
        logger.info(
            "project %s: Label Studio had not counted the annotations of tasks %s: it does now",
            project.key, ", ".join(map(str, tasks)),
        )  # fmt: skip
