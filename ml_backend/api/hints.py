"""What Label Studio tells us, whichever server it tells."""

from __future__ import annotations

import logging

from pydantic import ValidationError
from redis.exceptions import RedisError

from ml_backend.api.serving import Serving
from ml_backend.rounds.project import ConnectedProject, InvalidKey
from ml_backend.studio.client import Project
from ml_backend.studio.label_config import parse_label_config

__all__ = ["COUNTED", "TRAIN_NOW", "hear", "project_key", "welcome"]

logger = logging.getLogger(__name__)

COUNTED = frozenset(
    {
        "ANNOTATION_CREATED",
        "ANNOTATIONS_CREATED",
        "ANNOTATION_UPDATED",
        "ANNOTATIONS_DELETED",
        "TASKS_CREATED",
        "TASKS_DELETED",
        "PROJECT_UPDATED",
    }
)
"""Webhook actions after which the project is looked at. None of them trains by itself."""
TRAIN_NOW = "START_TRAINING"


def project_key(said: object) -> str:
    """The key of the project that a request names: as text, or whole, as a webhook carries it.

    Raises InvalidKey for a project without a number and a time of creation.
    """
    if not isinstance(said, dict):
        return str(said or "")
    try:
        return Project.model_validate(said).key
    except (ValidationError, ValueError, OverflowError):  # the latter: times before the year 1
        raise InvalidKey("project: expected an object with id and created_at") from None


def welcome(serving: Serving, project: ConnectedProject, schema: str, url: str) -> None:
    """On /setup: a project that we do not know is adopted by a job, and of one that we know what
    drags need is looked at ahead: somebody is there. ``url``: ours, as it was asked.

    Raises LabelConfigError for a labelling config ``schema`` that cannot be segmented.
    """
    parse_label_config(schema)
    if serving.published(project.key) is not None:
        serving.open_ahead(project.key, schema)
        return
    try:
        project.schedule.adopt(url.rstrip("/"))
    except RedisError as error:
        logger.error("project %s cannot be adopted: Redis: %s", project.key, error)


def hear(serving: Serving, project: ConnectedProject, action: object) -> bool:
    """On a webhook: enqueue a look at the project, or a training where a person asked for one.

    Of a project that was never adopted nothing is heard. False when the queue cannot be reached:
    nothing is lost then, reconcile looks anyway.
    """
    if not isinstance(action, str) or action not in COUNTED | {TRAIN_NOW}:
        return True
    if not serving.adopted(project.key):
        logger.warning("webhook of project %s, which is not connected: ignored", project.key)
        return True
    try:
        if action == TRAIN_NOW:
            project.schedule.start()
        else:
            project.schedule.count()
    except RedisError as error:
        logger.error("webhook %s of project %s: Redis: %s", action, project.key, error)
        return False
    return True
