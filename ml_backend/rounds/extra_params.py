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
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from ml_backend import __version__
from ml_backend.configuration import written
from ml_backend.errors import OptionError, SettingsError
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.project_settings import named_setting
from ml_backend.rounds.records import TriedNetwork
from ml_backend.settings import Settings

if TYPE_CHECKING:
    from ml_backend.studio.client import Backend

__all__ = ["SOURCE", "faults_of", "follow", "usable"]

logger = logging.getLogger(__name__)

SOURCE = "Label Studio's extra params"
"""Where a setting comes from that is one of them."""
_MOST_CHARACTERS = 10_000
_BUILT_WITHIN_S = 120
_BUILT_AGAIN_AFTER_S = 3600
_BUILDERS = ("torch", "timm", "segmentation-models-pytorch")
"""What networks are built by."""


def follow(project: ConnectedProject, backend: Backend | None) -> None:
    """Keep what the extra params of ``backend`` say, where it is not known yet: its settings hold
    from now on. None, where Label Studio has no backend that is us: none hold.

    They are judged anew where they, nextslice or what can be used here has changed: a strategy may
    come and go with a plugin. Their network is built once, and again where it or what builds it is
    another, whatever else changes; one that was not built is tried again after an hour: it may have
    been for want of memory.
    """
    given = None if backend is None else backend.extra_params
    service, record = project.service.settings, project.record
    if given is None and not record.extra_settings and not record.extra_faults:
        return
    settings, faults = usable(service, given)
    judged = _digest(given, settings, faults)
    network = _tried(settings.get("architecture", "auto"), record.extra_network)
    if (judged, network) == (record.extra_judged, record.extra_network):
        return
    if network.fault:
        del settings["architecture"]
        faults.append(network.fault)
    for fault in faults:
        logger.warning("project %s: %s", project.key, fault)
    project.update(lambda record: record.extra_read(judged, settings, faults, network))
    project.read_settings_again()


def _digest(*said: Any) -> str:
    """Of what is ``said`` to this nextslice."""
    return hashlib.sha256(json.dumps([__version__, *said], sort_keys=True).encode()).hexdigest()


def _tried(architecture: str, before: TriedNetwork) -> TriedNetwork:
    """What is known of the network, which is built where that is due; ``before``: of the last."""
    if architecture == "auto":
        return TriedNetwork()
    tried = TriedNetwork(of=_digest(architecture, [_installed(name) for name in _BUILDERS]))
    if before.of == tried.of:
        if before.again_at is None or time.time() < before.again_at:
            return before
        tried.fault = before.fault
    try:
        if _is_built(architecture):
            return TriedNetwork(of=tried.of)
    except OptionError as error:
        tried.fault = _unusable(error)
    tried.again_at = time.time() + _BUILT_AGAIN_AFTER_S
    return tried


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def usable(service: Settings, said: Any) -> tuple[dict[str, Any], list[str]]:
    """The settings among extra params, by field and over those of ``service``, and a sentence on
    each that is none. ``said``: an object, a text of one, or nothing. Not found out is whether a
    network can be built, which takes seconds."""
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
            found |= _setting(service, name, value)
        except (OptionError, SettingsError) as error:
            faults.append(_unusable(error))
    return found, faults


def _setting(service: Settings, name: str, value: object) -> dict[str, Any]:
    field = named_setting(name)
    if not isinstance(value, (str, int, float)):
        raise OptionError(f"{field}: found {str(value)[:60]}, expected a text, a number or a bool")
    text = written(value).strip()
    checked = service.with_own({field: text})
    kept: dict[str, Any] = checked.model_dump(mode="json", include={field})
    return kept


def _is_built(architecture: str) -> bool:
    """Build the network once; False where that did not end, so that nothing is known. Raises
    OptionError where it cannot be built. Of a process of its own: only torch knows, which a
    control worker never imports."""
    argv = [sys.executable, "-m", "ml_backend.segmentation.checks", architecture]
    try:
        done = subprocess.run(  # nosec B603  # no shell: it is one word to the other
            argv, capture_output=True, text=True, timeout=_BUILT_WITHIN_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning("architecture %r could not be tried: %s", architecture, error)
        return False
    if done.returncode == 2:
        raise OptionError(done.stdout.strip())
    if done.returncode:
        logger.warning(
            "architecture %r could not be tried: its process ended with %d: %s",
            *(architecture, done.returncode, done.stderr.strip()[-300:]),
        )
    return done.returncode == 0


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


def _unusable(why: object) -> str:
    return f"Extra params in Label Studio, not obeyed: {why}"


def _refused(what: str) -> str:
    return _unusable(
        f'{what}, expected a JSON object of settings such as {{"k": 4, "strategy": "badge"}}.'
    )
