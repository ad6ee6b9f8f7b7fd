"""How a line of the log looks, and what it is about: project, round, job.

Who begins a request, a job or a round says so once, with `about` or `mention`; every line that is
logged until it ends carries it in JSON. In text the messages name what they are about themselves.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

__all__ = [
    "JsonLines",
    "TextLines",
    "about",
    "formatter",
    "mention",
    "without_passwords",
    "without_secrets",
]

_PASSWORD = re.compile(r"(?<=://)([^/\s:@]*):[^/\s]*@|(?<=[?&]password=)[^&\s]+")
_SIGNATURE = re.compile(
    r"((?<=[?&;])(?:sig|(?:X-(?:Amz|Goog)-)?Signature|token)=)[^&#\s\"')>]+|(/zarr/[\w-]+\.\w+\.)\w+",
    re.IGNORECASE,
)
"""Of our addresses of slices and volumes, and of those of storages."""
_SUBJECT: ContextVar[dict[str, str | int]] = ContextVar("nextslice_subject")
"""What this thread is at. Unset: nothing that has a name."""


def without_passwords(text: str) -> str:
    """``text`` with ``***`` for the password of each URL in it, as in redis://:***@host:6379/0."""
    return _PASSWORD.sub(lambda found: f"{found[1]}:***@" if found[0][-1] == "@" else "***", text)


def without_secrets(text: str) -> str:
    """As `without_passwords`; nor does it show what is seen by whoever has a signed address."""
    return _SIGNATURE.sub(lambda found: f"{found[1] or found[2]}***", without_passwords(text))


def mention(project: str | None = None, round: int | None = None, job: str | None = None) -> None:
    """From here on lines of this thread are about these, too, until what surrounds it ends."""
    given = {"project": project, "round": round, "job": job}
    named = {name: value for name, value in given.items() if value is not None}
    _SUBJECT.set({**_SUBJECT.get({}), **named})


@contextmanager
def about(
    project: str | None = None, round: int | None = None, job: str | None = None
) -> Iterator[None]:
    """Lines that this thread logs inside are about these, and what it was at before.

    ``project``: its key; ``round``: its number; ``job``: its id in RQ. None: not known here.
    """
    before = _SUBJECT.set(_SUBJECT.get({}))
    try:
        mention(project, round, job)
        yield
    finally:
        _SUBJECT.reset(before)


class TextLines(logging.Formatter):
    """Lines for people: time, level, place and message, then a traceback where there is one.

    Without the passwords and signatures of the addresses in them, as every line of ours.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return without_secrets(super().format(record))


class JsonLines(logging.Formatter):
    """Lines for programs: one JSON object each, tracebacks included.

    ``time`` (ISO 8601, UTC, milliseconds), ``level``, ``logger`` and ``message``; ``project`` (its
    key), ``round`` and ``job`` where they are known; ``exception`` where there is one.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line. Passwords and signatures are taken out of each text before it is quoted."""
        moment = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, str | int] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
            **_SUBJECT.get({}),
        }
        if record.exc_info:
            line["exception"] = without_secrets(self.formatException(record.exc_info))
        if record.stack_info:
            line["stack"] = without_secrets(self.formatStack(record.stack_info))
        return json.dumps(line, ensure_ascii=False)


def formatter(form: str) -> logging.Formatter:
    """That of ``form``: text or json."""
    return JsonLines() if form == "json" else TextLines()
