"""All checks, in the order in which one would mend what they find."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from ml_backend.health import label_studio
from ml_backend.health.finding import Finding
from ml_backend.health.parts import part
from ml_backend.health.projects import projects
from ml_backend.rounds.readiness import Part
from ml_backend.rounds.service import Service

__all__ = ["examine"]

Check = Callable[[Service], Finding]

_OF_LABEL_STUDIO: dict[str, Check] = {
    "Label Studio": label_studio.answers,
    "token": label_studio.token,
    "database": label_studio.database,
}
"""Each stands on the one before it."""
_OF_WORKERS: dict[Part, str] = {"control": "control worker", "gpu": "gpu worker"}


def examine(service: Service) -> Iterator[Finding]:
    """Every check's finding, as it is made. Raises nothing that a part can cause.

    What stands on a part that does not work is not looked at, and that is said: one fault is one
    line.
    """
    found = list(_in_turn(service, _OF_LABEL_STUDIO))
    yield from found
    store = part(service, "store")
    yield store
    workers = {name: partial(part, which=which) for which, name in _OF_WORKERS.items()}
    redis = part(service, "redis")
    yield redis
    for name, check in workers.items():
        yield check(service) if redis.verdict == "good" else _not_looked_at(name, redis)
    in_the_way = [f for f in (*found, store, redis) if f.verdict == "fault"]
    if in_the_way:
        yield _not_looked_at("projects", in_the_way[0])
    else:
        yield from projects(service)


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
