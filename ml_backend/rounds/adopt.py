"""Make a project ours: sampling, webhook secret, round 0. Done once; harmless when done again.

Adding the backend's URL in Label Studio is all a person does: the first /setup of a project we do
not know enqueues this. `nextslice connect` runs the same.
"""

from __future__ import annotations

import logging
import time

from ml_backend.errors import NextsliceError
from ml_backend.rounds import extra_params
from ml_backend.rounds.claim import ClaimTaken
from ml_backend.rounds.imageless import look_for_images
from ml_backend.rounds.project import ConnectedProject, now
from ml_backend.rounds.records import ProjectRecord
from ml_backend.rounds.round import run_round
from ml_backend.rounds.service import WEBHOOK_HEADER, webhook_secret
from ml_backend.studio import task_order
from ml_backend.studio.client import Backend
from ml_backend.studio.label_config import parse_label_config
from ml_backend.studio.projects import make_interactive, register_backend
from ml_backend.studio.task_order import BackendLink

__all__ = ["NotConnected", "adopt", "connect", "protect_webhook"]

logger = logging.getLogger(__name__)

_APPEAR_S = 15.0
"""Label Studio asks /setup before it saves the backend: wait this long for it to be there."""
_GIVE_WAY_S = 2.0
"""So long while other jobs wait: hints of projects that are ours go before who may be nobody."""


class NotConnected(NextsliceError):
    """Label Studio's project has no ML backend that is us: somebody else asked for it."""


def connect(project: ConnectedProject) -> bool:
    """Register the backend in the project and adopt it. True when it was added.

    The labelling config is looked at first: Label Studio would say of one that cannot be segmented
    that the backend answered an error. Registering makes Label Studio ask /setup, so that a control
    worker adopts the project too; who comes second waits for what the first one publishes. Raises
    what `adopt` does, and ClaimTaken when the other one does not get done.
    """
    parse_label_config(project.in_studio().label_config)
    settings = project.settings
    link = BackendLink(settings.backend_url, settings.basic_auth)
    added = register_backend(project.studio, project.number, link)
    deadline = time.monotonic() + settings.claim_ttl_s
    while True:
        try:
            adopt(project, link.url)
        except ClaimTaken:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return added


def adopt(
    project: ConnectedProject, backend_url: str | None = None, *, confirmed: bool = True
) -> ProjectRecord:
    """Adopt the project.

    ``backend_url``: our URL as Label Studio sees it (the Host of its request). ``confirmed``: a
    person asks for it; else anybody may have, at any address, and Label Studio has to say that the
    backend there answers it as we do.
    Raises StudioError when the project is gone, LabelConfigError when its labelling config cannot
    be segmented, NotConnected, before anything is changed, for one that is not confirmed.
    """
    seen = project.in_studio()
    config = parse_label_config(seen.label_config)
    backend = _backend(project, backend_url or project.record.backend_url, confirmed=confirmed)
    if backend is None and not confirmed and not project.adopted:
        raise NotConnected(
            f"project {project.key} is not adopted: Label Studio has no ML backend at "
            f"{backend_url} in it that answers as this nextslice does. Connect it under Settings → "
            "Model, or by `nextslice connect`."
        )
    task_order.prepare(project.studio, seen)
    url = None if backend is None else backend.url.rstrip("/")
    project.update(lambda record: record.linked(url), adopting=True)
    extra_params.follow(project, backend)
    protect_webhook(project)
    if backend is not None and config.prompts:
        make_interactive(project.studio, project.number, backend, project.link)
    if project.published is None:
        run_round(project, "cold start", number=0)
    else:
        look_for_images(project, config)
    record = project.update(lambda record: record.adopted(now()))
    logger.info("project %s (%s) is adopted", project.key, seen.title)
    return record


def _is_us(project: ConnectedProject, backend: Backend) -> bool:
    """Whether ``backend`` answered Label Studio a moment ago what we answer for the project, and is
    asked as our user. Addresses alone say little: 127.0.0.1:9090 is another program on Label
    Studio's machine than on ours, and whoever asks for an adoption names the address."""
    published = project.published  # which the backend may not have seen yet
    ours = {task_order.PENDING_VERSION, published.model_version if published else None} - {None}
    user = project.settings.basic_auth_user
    return backend.model_version in ours and (not user or backend.basic_auth_user == user)


def _backend(project: ConnectedProject, url: str | None, *, confirmed: bool) -> Backend | None:
    """Our backend in the project, waited for while Label Studio is still saving it; not
    ``confirmed``: only one that `_is_us`."""
    urls = [u for u in (url, project.settings.backend_url) if u]
    began = time.monotonic()
    while True:
        found = project.studio.backends(project.number)
        for wanted in urls:
            for backend in found:
                at_our_address = backend.url.rstrip("/") == wanted.rstrip("/")
                if at_our_address and (confirmed or _is_us(project, backend)):
                    return backend
        waited = time.monotonic() - began
        if waited > _APPEAR_S or (
            not confirmed and waited > _GIVE_WAY_S and project.schedule.others_wait()
        ):
            logger.info(
                "project %s has no ML backend at %s (found: %s): publishing works without one, "
                "live predictions do not",
                project.number,
                " or ".join(urls),
                [f"{backend.url} on {backend.model_version}" for backend in found] or "none",
            )
            return None
        time.sleep(0.5)


def protect_webhook(project: ConnectedProject) -> bool:
    """Give our webhook its secret header: basic auth does not reach it. True when it was found."""
    return project.studio.set_webhook_header(
        project.number,
        f"{project.link.url}/webhook",
        WEBHOOK_HEADER,
        webhook_secret(project.settings),
    )
