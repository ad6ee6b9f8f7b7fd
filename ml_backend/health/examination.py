"""All checks, in the order in which one would mend what they find."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from ml_backend.health import label_studio
from ml_backend.health.finding import Finding
from ml_backend.health.parts import part, settings
from ml_backend.health.projects import projects
from ml_backend.rounds.readiness import Part
from ml_backend.rounds.service import Service

__all__ = ["examine", "examine_parts"]

Check = Callable[[Service], Finding]

_OF_LABEL_STUDIO: dict[str, Check] = {
    "Label Studio": label_studio.answers,
    "token": label_studio.token,
    "database": label_studio.database,
}
"""Each stands on the one before it."""
_UNDER_PROJECTS = {*_OF_LABEL_STUDIO, "store", "Redis"}
_OF_WORKERS: dict[Part, str] = {"control": "control worker", "gpu": "gpu worker"}


def examine(service: Service) -> Iterator[Finding]:
    """Every check's finding, as it is made. Raises nothing that a part can cause.

    What stands on a part that does not work is not looked at, and that is said: one fault is one
    line.
    """
    in_the_way: Finding | None = None
    for found in examine_parts(service):
        yield found
        if found.verdict == "fault" and found.check in _UNDER_PROJECTS:
            in_the_way = in_the_way or found
    if in_the_way is not None:
        yield _not_looked_at("projects", in_the_way)
    else:
        yield from projects(service)


def examine_parts(service: Service) -> Iterator[Finding]:
    """Likewise, without the projects, which take Label Studio some requests each."""
    yield from _in_turn(service, _OF_LABEL_STUDIO)
    yield part(service, "store")
    workers = {name: partial(part, which=which) for which, name in _OF_WORKERS.items()}
    redis = part(service, "redis")
    yield redis
    for name, check in workers.items():
        yield check(service) if redis.verdict == "good" else _not_looked_at(name, redis)
    yield settings(service)


def _in_turn(service: Service, checks: dict[str, Check]) -> Iterator[Finding]:
    stopped: Finding | None = None
    for name, check in checks.items():
        if stopped is not None:
            yield _not_looked_at(name, stopped)
            continue
        found = check(service)
        yield found
        stopped = found if found.verdict == "fault" else None


def _not_looked_at(name: str, reason: Finding) -> Finding:
    return Finding(name, "unknown", f"Not looked at: mend {reason.check} first.")
