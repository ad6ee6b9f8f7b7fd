"""What holds for a project: every setting that it may have of its own, and where it comes from."""

from __future__ import annotations

from typing import Any

from pydantic import JsonValue

from ml_backend.configuration import Given
from ml_backend.rounds.extra_params import SOURCE
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import Record
from ml_backend.settings import given_settings, own_fields

__all__ = ["HeldSetting", "held_settings"]


class HeldSetting(Record):
    """A setting that holds for a project. ``source``: ``project``, where else it is given, or
    ``default``."""

    name: str
    value: JsonValue
    source: str
    says: str


def held_settings(project: ConnectedProject) -> list[HeldSetting]:
    """Every setting that a project may have of its own, what holds and where it comes from."""
    settings, given = project.settings, given_settings()
    own, extra = project.record.settings, project.record.extra_settings
    held: dict[str, Any] = settings.model_dump(mode="json", include=set(own_fields()))
    fields = type(settings).model_fields
    return [
        HeldSetting(
            name=name,
            value=held[name],
            source="project"
            if name in own
            else SOURCE
            if name in extra
            else _source(given.get(name)),
            says=fields[name].description or "",
        )
        for name in own_fields()
    ]


def _source(given: Given | None) -> str:
    return "default" if given is None else given.place
