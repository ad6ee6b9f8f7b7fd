"""Where settings are written down: the environment, and files that stand in for it.

Files are `.env` and `nextslice.toml` of the working folder, or the one that NEXTSLICE_CONFIG names
instead of both. The environment wins over files, `.env` over `nextslice.toml`. In TOML a setting
may be called as its variable is or without the prefix of all: ``NEXTSLICE_K`` or ``k``.
"""

from __future__ import annotations

import difflib
import logging
import os
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from ml_backend.errors import SettingsError
from ml_backend.logs import formatter

__all__ = [
    "CONFIG",
    "ENVIRONMENT",
    "PREFIX",
    "Given",
    "Place",
    "asked_home",
    "asked_log_format",
    "asked_log_level",
    "configure_logging",
    "first_given",
    "misspelt",
    "places",
    "written",
]

PREFIX = "NEXTSLICE_"
CONFIG = "NEXTSLICE_CONFIG"
ENVIRONMENT = "the environment"
_OTHERS = frozenset(
    PREFIX + name for name in ("CONFIG", "HOME", "REQUIRE_BROWSER", "SCREENSHOTS", "FAULTS")
)
"""Variables that are no settings: where the user's own things are, and what tests are told."""
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_DOTENV, _TOML = ".env", "nextslice.toml"
Value = str | int | float | bool


@dataclass(frozen=True)
class Place:
    """Somewhere that settings are written. ``name``: in words, or the path of a file.

    ``values``: by variable, in upper case. ``ours``: whether whatever stands there is meant for us.
    """

    name: str
    values: Mapping[str, Value]
    ours: bool = False


@dataclass(frozen=True)
class Given:
    """A setting that is given: ``variable`` is its name, as it is written at ``place``."""

    variable: str
    value: Value
    place: str

    def __str__(self) -> str:
        return self.variable if self.place == ENVIRONMENT else f"{self.variable} in {self.place}"


def places() -> list[Place]:
    """Every place at which something may be given, the first one wins. Raises SettingsError for a
    file that cannot be read, and for NEXTSLICE_CONFIG that names none."""
    environment = Place(ENVIRONMENT, {n.upper(): v for n, v in os.environ.items()})
    return [environment, *map(_file, _files())]


def _files() -> Iterator[Path]:
    named = os.environ.get(CONFIG)
    if named:
        if not Path(named).is_file():
            raise SettingsError(f"{CONFIG} is {named!r}: found no file there, expected settings")
        yield Path(named)
        return
    yield from (path for path in (Path(_DOTENV), Path(_TOML)) if path.is_file())


def _file(path: Path) -> Place:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read as settings: {error}") from None
    return _toml(path, text) if path.suffix == ".toml" else _dotenv(path)


def _toml(path: Path, text: str) -> Place:
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is no TOML: {error}") from None
    values: dict[str, Value] = {}
    for name, value in found.items():
        if not isinstance(value, Value):
            raise SettingsError(
                f"{path}: {name}: found {type(value).__name__}, expected a text, a number, true or "
                "false"
            )
        variable = name.upper()
        values[variable if variable.startswith(PREFIX) else PREFIX + variable] = value
    return Place(str(path), values, ours=True)


def _dotenv(path: Path) -> Place:
    values = dotenv_values(path, encoding="utf-8")
    return Place(str(path), {n.upper(): v for n, v in values.items() if v is not None})


def written(value: Any) -> str:
    """A value of a setting as it is written in the environment; empty for none."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def first_given(variables: Iterable[str], where: Iterable[Place]) -> Given | None:
    """What is given under the first of ``variables`` at the first place that has one of them; an
    empty text is not given."""
    names = list(variables)
    for place in where:
        for name in names:
            value = place.values.get(name, "")
            if value != "":
                return Given(name, value, place.name)
    return None


def misspelt(known: Collection[str], where: Iterable[Place]) -> list[str]:
    """Of each variable that begins as ours do and is none: what it is, and the nearest right name.

    ``known``: the variables of all settings. Raises SettingsError for one in a file that is ours
    alone, where it cannot be meant for anybody else.
    """
    found = []
    for place in where:
        for name in sorted(place.values):
            if not name.startswith(PREFIX) or name in known or name in _OTHERS:
                continue
            said = f"{Given(name, '', place.name)} is no setting{_nearest(name, known)}"
            if place.ours:
                raise SettingsError(f"{said} `nextslice config` lists them all.")
            found.append(said)
    return found


def _nearest(name: str, known: Collection[str]) -> str:
    short = {one.removeprefix(PREFIX): one for one in sorted(known)}
    near = difflib.get_close_matches(name.removeprefix(PREFIX), short, n=1)
    return f": is {short[near[0]]} meant?" if near else "."


def configure_logging(level: str) -> None:
    """One line a message, with time and place, to standard error, as NEXTSLICE_LOG_FORMAT asks for.
    Done again it changes nothing.

    Passwords and signatures that are part of an address are not shown.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(asked_log_format()))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    if not logging.getLogger().isEnabledFor(logging.DEBUG):
        # One line per HTTP request of the SDK drowns what matters.
        logging.getLogger("httpx").setLevel(logging.WARNING)


def asked_log_level() -> str | None:
    """What NEXTSLICE_LOG_LEVEL asks for; None where it is not set, or to no level. For what has to
    know it without the other settings."""
    level = _asked("LOG_LEVEL").upper()
    return level if level in _LEVELS else None


def asked_home() -> str:
    """What NEXTSLICE_HOME names, in the environment or a file; empty where it is not set."""
    return _asked("HOME")


def asked_log_format() -> str:
    """What NEXTSLICE_LOG_FORMAT asks for, text where it asks for nothing; likewise."""
    return _asked("LOG_FORMAT").lower()


def _asked(name: str) -> str:
    """A setting as text; empty where it is not given, or where a file cannot be read: who reads all
    settings says why."""
    try:
        given = first_given([PREFIX + name], places())
    except SettingsError:
        return os.environ.get(PREFIX + name, "")
    return "" if given is None else str(given.value)
