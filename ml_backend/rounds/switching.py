"""The switch: which version Label Studio serves, noted in `published.json` once it is verified, and
put back where somebody moved it.
"""

from __future__ import annotations

import logging
import time

from ml_backend.rounds.contention import next_switch_at
from ml_backend.rounds.project import ConnectedProject, now
from ml_backend.rounds.records import Published, RoundRecord, SwitchBack
from ml_backend.studio import task_order
from ml_backend.studio.client import Project

__all__ = ["repair", "serve"]

logger = logging.getLogger(__name__)


def serve(
    project: ConnectedProject, record: RoundRecord, before: Published | None, retired: str | None
) -> Published:
    """Switch to the record's version and write `published.json`, unless another did meanwhile.
    Raises TakenOff.

    Held alone until the file is written: a repair in between would see a project that is not on
    the published version, and switch it back.
    """
    folder, round_ = project.folder, project.published_round(record.round)
    with project.schedule.alone("switch", wait=True):
        round_.check()
        if (other := folder.published) != before:
            logger.warning("project %s: %s was published in this moment", project.key, other)
            return other or _published(record, retired)
        task_order.switch(project.studio, project.number, project.link, record.model_version)
        round_.check()  # the switch may have taken a while
        folder.published = published = _published(record, retired)
    logger.info("project %s: %s is published", project.key, record.model_version)
    return published


def _published(record: RoundRecord, retired: str | None) -> Published:
    return Published(
        round=record.round,
        model_version=record.model_version,
        classes=record.classes,
        fingerprint=record.fingerprint,
        weights=record.weights,
        flagged=record.flagged,
        retired=retired,
        published_at=now(),
    )


def repair(project: ConnectedProject, seen: Project) -> None:
    """Put the switch back when a race or a person moved it, but not during a publication.

    ``seen``: the project as Label Studio had it a moment ago. Only when it looks moved is it read
    again. Who is switched away again and again waits before the next time (`contention`).
    """
    with project.schedule.alone("switch", wait=False) as alone:
        published = project.published
        if not alone or published is None:
            return
        studio, link, version = project.studio, project.link, published.model_version
        task_order.prepare(studio, seen)
        if task_order.switched(studio, seen, link, version):
            return
        if time.time() < next_switch_at(project.record):
            return
        now_there = project.in_studio()
        if not task_order.switched(studio, now_there, link, version):
            logger.warning(
                "project %s was on %s, not on %s: switching again",
                project.key,
                now_there.model_version,
                version,
            )
            _note_switch(project, now_there.model_version)
            task_order.switch(studio, project.number, link, version)


def _note_switch(project: ConnectedProject, found: str | None) -> None:
    """Keep that the project was on version ``found``: where it happens again and again, `status`
    names who fights over it."""
    ours = project.link.url
    others = [
        backend.url
        for backend in project.studio.backends(project.number)
        if backend.url.rstrip("/") != ours
        and (backend.title or "").startswith(task_order.VERSION_PREFIX)
    ]
    back = SwitchBack(moment=time.time(), found=found, others=others)
    pause = next_switch_at(project.update(lambda record: record.found_on(back))) - back.moment
    if pause > 0:
        logger.warning(
            "project %s: somebody else switches it again and again: it is not switched back in the "
            "next %.0f minutes",
            project.key,
            pause / 60,
        )
