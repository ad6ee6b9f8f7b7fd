"""The projects that were adopted: does each follow the queue, and do Label Studio's calls reach us.

All that people complain of when a backend "does nothing" shows here: the order is ignored, masks do
not appear, Start Training does nothing, a round waits or fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from redis.exceptions import RedisError

from ml_backend.errors import NextsliceError
from ml_backend.health.finding import FIX, Finding, Verdict
from ml_backend.rounds import switching
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.service import WEBHOOK_HEADER, Service, webhook_secret
from ml_backend.rounds.status import State, project_status
from ml_backend.settings import without_passwords
from ml_backend.studio import task_order
from ml_backend.studio.client import Project
from ml_backend.studio.label_config import parse_label_config

__all__ = ["mend", "projects"]

_VERDICTS: dict[State, Verdict] = {
    "failed": "fault",
    "killed": "warning",
    "queued": "warning",
    "contended": "fault",
    "imageless": "warning",
    "retired": "warning",
}
"""Of the states of a project that a person should know of. What is wrong with all projects at once,
the store and Redis, is examined by itself."""

Check = Callable[[ConnectedProject, Project], Iterator[Finding]]


def projects(service: Service) -> Iterator[Finding]:
    """Each thing amiss in each adopted project that is there; one line for a project that is well,
    and one where they cannot be listed. Raises nothing that Label Studio or the store can cause.
    """
    try:
        adopted = list(_adopted(service))
    except NextsliceError as error:
        yield Finding("projects", "fault", without_passwords(str(error)))
        return
    for project, seen in adopted:
        amiss = [finding for check in _CHECKS for finding in _made(check, project, seen)]
        yield from amiss or _made(_well, project, seen)


def mend(service: Service) -> Iterator[str]:
    """Connect again each project of which a finding's ``mend`` is `FIX`, in a sentence each.

    Nothing that people or other programs have made is changed. Raises StudioError or StoreFault
    when the projects cannot be listed.
    """
    from ml_backend.rounds.adopt import connect

    for project, seen in _adopted(service):
        if any(f.mend == FIX for check in _CHECKS for f in _made(check, project, seen)):
            try:
                project.studio.set_webhook(project.number, f"{project.link.url}/webhook")
                connect(project)
                switching.repair(project, project.in_studio())
            except (NextsliceError, RedisError) as error:
                yield f"{_name(seen)} could not be mended: {without_passwords(str(error))}"
            else:
                yield f"{_name(seen)} is connected anew."


def _adopted(service: Service) -> Iterator[tuple[ConnectedProject, Project]]:
    there = {project.key: project for project in service.studio.projects()}
    for key in service.project_keys():
        if key in there:
            yield ConnectedProject(service, key), there[key]


def _made(check: Check, project: ConnectedProject, seen: Project) -> list[Finding]:
    try:
        return list(check(project, seen))
    except NextsliceError as error:
        return [Finding(_name(seen), "fault", without_passwords(str(error)))]


def _name(seen: Project) -> str:
    return f"project {seen.id} ({seen.title})" if seen.title else f"project {seen.id}"


def _well(project: ConnectedProject, seen: Project) -> Iterator[Finding]:
    published = project.published
    version = "nothing yet" if published is None else published.model_version
    yield Finding(_name(seen), "good", f"Connected; it follows the queue of {version}.")


# -- checks


def _config(project: ConnectedProject, seen: Project) -> Iterator[Finding]:
    parse_label_config(seen.label_config)  # which says what is wrong, and is caught
    yield from ()


def _follows(project: ConnectedProject, seen: Project) -> Iterator[Finding]:
    """Whether Label Studio hands out slices in the queue's order, with their masks."""
    if seen.sampling != task_order.SAMPLING:
        said = f"Slices are handed out by {seen.sampling}: the order of the queue is ignored."
        yield Finding(_name(seen), "fault", said, FIX)
    if not seen.show_collab_predictions:
        said = "Label Studio is set not to show predictions: slices open without masks."
        yield Finding(_name(seen), "fault", said, FIX)
    published = project.published
    if published is None:
        return
    version = published.model_version
    if not task_order.switched(project.studio, seen, project.link, version):
        said = (
            f"Label Studio is on model version {seen.model_version or 'none'}, {version} is "
            "published: another order, other masks."
        )
        yield Finding(_name(seen), "fault", said, FIX)


def _reaches_us(project: ConnectedProject, seen: Project) -> Iterator[Finding]:
    """Whether what Label Studio calls is us: the ML backend and its webhook."""
    name, url = _name(seen), project.link.url
    backend = project.studio.find_backend(seen.id, url)
    if backend is None:
        said = (
            f"It has no ML backend at {url}: a slice that is opened gets no mask of its own, and "
            "Start Training does nothing."
        )
        yield Finding(name, "fault", said, FIX)
        return
    user = project.settings.basic_auth_user
    if backend.state == "ER":
        why = (backend.error_message or "it does not say why").strip().splitlines()[-1]
        said = f"Label Studio cannot use the ML backend at {url}: {without_passwords(why)[:300]}"
        yield Finding(name, "fault", said, "NEXTSLICE_BACKEND_URL")
    elif user and backend.basic_auth_user != user:
        said = (
            f"Label Studio calls the ML backend as {backend.basic_auth_user or 'nobody'}, "
            f"expected is the user {user}: edit it under Settings → Model."
        )
        yield Finding(name, "fault", said, "BASIC_AUTH_USER")
    hooks = project.studio.webhooks(seen.id, f"{url}/webhook")
    secret = webhook_secret(project.settings)
    if not any(hook.is_active for hook in hooks):
        how = "is set off" if hooks else "is missing"
        said = f"Its webhook {how}: submissions are noticed within half a minute, not at once."
        yield Finding(name, "warning", said, FIX)
    elif not any((hook.headers or {}).get(WEBHOOK_HEADER) == secret for hook in hooks):
        said = "Its webhook lacks our secret, so that its calls are refused."
        yield Finding(name, "warning", said, FIX)


def _rounds(project: ConnectedProject, seen: Project) -> Iterator[Finding]:
    """What `rounds list` says of its rounds, where that is bad news."""
    for condition in project_status(project, write=False).conditions:
        if condition.state in _VERDICTS:
            yield Finding(_name(seen), _VERDICTS[condition.state], condition.says)


_CHECKS: tuple[Check, ...] = (_config, _follows, _reaches_us, _rounds)
