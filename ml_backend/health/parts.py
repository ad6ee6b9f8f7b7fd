"""The parts that the service needs beside Label Studio: as /ready finds them (`readiness`)."""

from __future__ import annotations

from ml_backend.health.finding import Finding
from ml_backend.rounds.readiness import Part, fault
from ml_backend.rounds.service import Service
from ml_backend.settings import without_passwords

__all__ = ["part"]

_NAMES: dict[Part, tuple[str, str, str]] = {
    "redis": ("Redis", "{redis} answers.", "REDIS_URL"),
    "store": ("store", "{store} can be written.", "NEXTSLICE_STORE"),
    "control": ("control worker", "One listens, at least.", "nextslice worker control"),
    "gpu": ("gpu worker", "One listens, at least.", "nextslice worker gpu"),
}
"""What is printed of each: its name, what is said where all is well, and what mends it."""


def part(service: Service, which: Part) -> Finding:
    """Whether ``which`` does its part."""
    name, well, mend = _NAMES[which]
    said = fault(service, which)
    if said is not None:
        return Finding(name, "fault", said, mend)
    settings = service.settings
    addresses = {"redis": settings.redis_address, "store": settings.store}
    return Finding(name, "good", without_passwords(well.format(**addresses)))
