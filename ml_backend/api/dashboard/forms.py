"""The form of a project's settings: what may be chosen for each."""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from al_strategies import available_strategies
from al_strategies.evidence import STANDARD
from ml_backend.configuration import written
from ml_backend.rounds.overview import HeldSetting
from ml_backend.settings import Settings

__all__ = ["Field", "settings_form"]


@dataclass(frozen=True)
class Field:
    """One setting in the form. ``own``: the text of the project's own value, empty where it has
    none; ``held``: what holds, as text; ``choices``: what may be chosen; none: anything."""

    name: str
    says: str
    own: str
    held: str
    source: str
    choices: tuple[str, ...] = ()
    number: bool = False


def settings_form(settings: list[HeldSetting]) -> list[Field]:
    """A field for each of ``settings``."""
    return [_field(one) for one in settings]


def _field(one: HeldSetting) -> Field:
    held = written(one.value)
    kind = _plain(Settings.model_fields[one.name].annotation)
    return Field(
        name=one.name,
        says=one.says,
        own=held if one.source == "project" else "",
        held=held or "by device and data",
        source=one.source,
        choices=_choices(one.name, kind),
        number=kind is int,
    )


def _plain(annotation: Any) -> Any:
    """The type of a field, None apart."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next(one for one in get_args(annotation) if one is not type(None))
    return annotation


def _choices(name: str, kind: Any) -> tuple[str, ...]:
    if kind is bool:
        return ("true", "false")
    if get_origin(kind) is Literal:
        return tuple(map(str, get_args(kind)))
    if name not in ("strategy", "cold_start"):
        return ()
    usable = [
        info
        for info in available_strategies()
        if not info.needs_ground_truth
        and {*info.evidence, *info.labelled_evidence} <= STANDARD
        and not (name == "cold_start" and info.evidence)
    ]
    return tuple(info.name for info in usable)
