"""Settings that a person gives in Label Studio: *Settings → Model*, the backend's extra params.

Label Studio sends them with each /setup, which anybody may call: what counts is what it says itself
of the ML backend that is us, read at adoption and with each look of reconcile.
"""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess  # nosec B404  # of ourselves
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ml_backend import __version__
from ml_backend.configuration import written
from ml_backend.errors import OptionError, SettingsError
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.project_settings import named_setting
from ml_backend.settings import Settings

if TYPE_CHECKING:
    from ml_backend.studio.client import Backend

__all__ = ["SOURCE", "faults_of", "follow", "usable"]

logger = logging.getLogger(__name__)

SOURCE = "Label Studio's extra params"
"""Where a setting comes from that is one of them."""
_MOST_CHARACTERS = 10_000
_BUILT_WITHIN_S = 120


def follow(project: ConnectedProject, backend: Backend | None) -> None:
    """Keep what the extra params of ``backend`` say, where it is not known yet: its settings hold
    from now on. None, where Label Studio has no backend that is us: none hold.

    They are judged anew where they, nextslice or what can be used here has changed: a strategy may
    come and go with a plugin.
    """
    given = None if backend is None else backend.extra_params
    service, record = project.service.settings, project.record
    if given is None and not record.extra_settings and not record.extra_faults:
        return
    here = [__version__, given, *usable(service, given, build=False)]
    judged = hashlib.sha256(json.dumps(here, sort_keys=True).encode()).hexdigest()
    if judged == record.extra_judged:
        return
    settings, faults = usable(service, given)
    for fault in faults:
        logger.warning("project %s: %s", project.key, fault)
    project.update(lambda record: record.extra_read(judged, settings, faults))
    project.read_settings_again()


def usable(service: Settings, said: Any, *, build: bool = True) -> tuple[dict[str, Any], list[str]]:
    """The settings among extra params, by field and over those of ``service``, and a sentence on
    each that is none. ``said``: an object, a text of one, or nothing. ``build``: whether a network
    can be built is found out, which takes seconds."""
    if (size := len(json.dumps(said))) > _MOST_CHARACTERS:
        return {}, [_refused(f"found {size:,} characters")]
    if isinstance(said, str):
        try:
            said = json.loads(said) if said.strip() else None
        except (ValueError, RecursionError):
            return {}, [_refused(f"found {said[:60]!r}")]
    if said is None:
        return {}, []
    if not isinstance(said, Mapping):
        return {}, [_refused(f"found {str(said)[:60]}")]
    found: dict[str, Any] = {}
    faults = []
    for name, value in said.items():
        if value is None or value == "":
            continue
        try:
            found |= _setting(service, name, value, build)
        except (OptionError, SettingsError) as error:
            faults.append(f"Extra params in Label Studio, not obeyed: {error}")
    return found, faults


def _setting(service: Settings, name: str, value: object, build: bool) -> dict[str, Any]:
    field = named_setting(name)
    if not isinstance(value, (str, int, float)):
        raise OptionError(f"{field}: found {str(value)[:60]}, expected a text, a number or a bool")
    text = written(value).strip()
    checked = service.with_own({field: text})
    if build and field == "architecture" and text != "auto":
        _check_built(text)
    kept: dict[str, Any] = checked.model_dump(mode="json", include={field})
    return kept


def _check_built(architecture: str) -> None:
    """Raise OptionError unless there is such a network. Of a process of its own: only torch knows,
    which a control worker never imports."""
    argv = [sys.executable, "-m", "ml_backend.segmentation.checks", architecture]
    try:
        done = subprocess.run(  # nosec B603  # no shell: it is one word to the other
            argv, capture_output=True, text=True, timeout=_BUILT_WITHIN_S, check=False
        )
    except subprocess.TimeoutExpired:
        logger.warning("architecture %r was not built within %d s", architecture, _BUILT_WITHIN_S)
        return
    if done.returncode == 2:
        raise OptionError(done.stdout.strip())


def faults_of(project: ConnectedProject) -> list[str]:
    """What a person should know of the project's extra params: those that are no settings, and
    those that a setting of the project's own hides."""
    record = project.record
    hidden = [
        f"Extra params in Label Studio, not obeyed: {name}={written(value)}, since the project's "
        f"own is {written(record.settings[name])}. Take that back: nextslice project set "
        f"{project.number} {name}="
        for name, value in record.extra_settings.items()
        if name in record.settings and record.settings[name] != value
    ]
    return [*record.extra_faults, *hidden]


def _refused(what: str) -> str:
    return (
        f"Extra params in Label Studio, not obeyed: {what}, expected a JSON object of settings "
        'such as {"k": 4, "strategy": "badge"}.'
    )
