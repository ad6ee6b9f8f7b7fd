"""A project's own settings: given one by one, as text, and kept in `project.json`.

They lie over those of the service, which are their defaults; a round records what held.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from ml_backend.configuration import PREFIX
from ml_backend.errors import OptionError, SettingsError
from ml_backend.rounds.project import ConnectedProject
from ml_backend.settings import Settings, own_fields

__all__ = ["change_settings", "named_setting"]


def named_setting(name: str) -> str:
    """The field that ``name`` stands for: ``cold_start``, ``cold-start``, NEXTSLICE_COLD_START.

    Raises OptionError where a project has no such setting; it names the nearest.
    """
    field = name.strip().upper().removeprefix(PREFIX).lower().replace("-", "_")
    known = own_fields()
    if field in known:
        return field
    near = difflib.get_close_matches(field, known, n=1)
    if near:
        raise OptionError(f"{name!r} is no setting of a project: is {near[0]} meant?")
    if field in Settings.model_fields:
        raise OptionError(
            f"{name!r} is a setting of the service, not of a project; a project has "
            f"{', '.join(known)}"
        )
    raise OptionError(f"{name!r} is no setting of a project; it has {', '.join(known)}")


def change_settings(project: ConnectedProject, given: Mapping[str, str]) -> Settings:
    """Give ``project`` settings of its own; what holds for it then.

    ``given``: texts by name, as `named_setting` takes it; an empty one takes the own setting back,
    so that the service's holds again. Nothing is changed where one of them cannot be used: raises
    OptionError then. A network's name is looked up, which imports torch.
    """
    texts = {named_setting(name): value.strip() for name, value in given.items()}
    taken_back = {name for name, value in texts.items() if not value}
    own = {name: value for name, value in texts.items() if value}
    try:
        checked = project.service.settings.with_own(own)
        _check_network(own)
    except SettingsError as error:
        raise OptionError(str(error)) from None
    values: dict[str, Any] = checked.model_dump(mode="json", include=set(own))
    record = project.update(lambda record: record.given_settings(values, taken_back))
    return project.service.settings.with_own(record.settings)


def _check_network(own: Mapping[str, str]) -> None:
    name = own.get("architecture", "auto")
    if name == "auto":
        return
    from ml_backend.segmentation.checks import check_architecture

    check_architecture(name, "architecture")
