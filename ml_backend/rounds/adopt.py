"""Make a project ours: sampling, webhook secret, round 0. Done once; harmless when done again.

Adding the backend's URL in Label Studio is all a person does: the first /setup of a project we do
not know enqueues this. `nextslice connect` runs the same.
"""

from __future__ import annotations

import logging
import time

from ml_backend.rounds.publish import now
from ml_backend.rounds.round import run_round
from ml_backend.rounds.service import WEBHOOK_HEADER, Service, project_id, webhook_secret
from ml_backend.rounds.store import ClaimTaken, ProjectRecord
from ml_backend.studio import task_order
from ml_backend.studio.client import Backend
from ml_backend.studio.label_config import parse_label_config
from ml_backend.studio.projects import register_backend
from ml_backend.studio.task_order import BackendLink

__all__ = ["adopt", "connect", "protect_webhook"]

logger = logging.getLogger(__name__)

_APPEAR_S = 15.0
"""Label Studio asks /setup before it saves the backend: wait this long for it to be there."""


def connect(service: Service, number: int) -> bool:
    """Register the backend in project ``number`` and adopt it. True when it was added.

    Registering makes Label Studio ask /setup, so that a control worker adopts the project too; who
    comes second waits for what the first one publishes. Raises what `adopt` does, and ClaimTaken
    when the other one does not get done.
    """
    key = service.find_key(number)
    link = BackendLink(service.settings.backend_url, service.settings.basic_auth)
    added = register_backend(service.studio, number, link)
    deadline = time.monotonic() + service.settings.claim_ttl_s
    while True:
        try:
            adopt(service, key, link.url)
        except ClaimTaken:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return added


def adopt(service: Service, key: str, backend_url: str | None = None) -> ProjectRecord:
    """Adopt the project ``key``.

    ``backend_url``: our URL as Label Studio sees it (the Host of its request). Raises StudioError
    when the project is gone, LabelConfigError when its labelling config cannot be segmented.
    """
    service.check_identity(key)
    number = project_id(key)
    project = service.studio.project(number)
    parse_label_config(project.label_config)
    backend = _backend(service, number, backend_url or service.record(key).backend_url)
    task_order.prepare(service.studio, project)
    known = {} if backend is None else {"backend_url": backend.url.rstrip("/")}
    service.update_record(key, lambda _: known)
    protect_webhook(service, key)
    if service.folder(key).published is None:
        run_round(service, key, "cold start")
    record = service.update_record(key, lambda r: {"adopted_at": r.adopted_at or now()})
    logger.info("project %s (%s) is adopted", key, project.title)
    return record


def _backend(service: Service, number: int, url: str | None) -> Backend | None:
    """Our backend in the project, waited for while Label Studio is still saving it."""
    urls = [u for u in (url, service.settings.backend_url) if u]
    deadline = time.monotonic() + _APPEAR_S
    while True:
        found = service.studio.backends(number)
        for wanted in urls:
            for backend in found:
                if backend.url.rstrip("/") == wanted.rstrip("/"):
                    return backend
        if time.monotonic() > deadline:
            logger.info(
                "project %s has no ML backend at %s (found: %s): publishing works without one, "
                "live predictions do not",
                number,
                " or ".join(urls),
                [backend.url for backend in found] or "none",
            )
            return None
        time.sleep(0.5)


def protect_webhook(service: Service, key: str) -> bool:
    """Give our webhook its secret header: basic auth does not reach it. True when it was found."""
    return service.studio.set_webhook_header(
        project_id(key),
        f"{service.link(key).url}/webhook",
        WEBHOOK_HEADER,
        webhook_secret(service.settings),
    )
