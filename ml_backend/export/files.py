"""Files and folders that appear whole: written beside under another name, then renamed."""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["ExportError", "file_name", "to_json", "whole"]

_INDEXES = ("export.json", "labels.json")
"""An index of ours in a folder says that it may be replaced."""


class ExportError(ValueError):
    """What was asked for cannot be exported; the message says what was found and what to do."""


@contextmanager
def whole(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A name beside ``path`` to write a file or a folder to; at the end it becomes ``path``.

    After an error nothing is left of it, and what was at ``path`` is still there. ExportError, at
    once, when there is something and ``overwrite`` is False, or when it is a folder that is neither
    empty nor an earlier export: those are never deleted.
    """
    path = path.resolve()
    _check_free(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield partial
        if path.is_dir():
            shutil.rmtree(path)
        partial.replace(path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)


def _check_free(path: Path, overwrite: bool) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise ExportError(f"{path} is there already: choose another name or overwrite it")
    if path.is_dir() and not any((path / name).exists() for name in _INDEXES):
        raise ExportError(
            f"{path} is a folder with other things in it (no {' or '.join(_INDEXES)}): it is not "
            "overwritten. Choose another name."
        )


def file_name(text: str) -> str:
    """``text`` as part of a file's name: letters, digits, dots, dashes and underscores stay."""
    return re.sub(r"[^\w.-]+", "_", text).strip(".") or "_"


def to_json(content: Any) -> str:
    """Indented JSON with a line end; names in any script stay readable."""
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
