"""Files and folders that appear whole: written in a folder beside, then moved."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_backend.durable import move_whole
from ml_backend.errors import NextsliceError
from ml_backend.volumes.formats.registry import format_by_ending
from ml_backend.volumes.staging import staging

__all__ = ["ExportError", "file_name", "to_json", "whole"]

_INDEXES = {"export.json": "nextslice export", "labels.json": "nextslice masks"}
"""Name of an index → its ``format``. What it names in its folder may be replaced."""


class ExportError(NextsliceError, ValueError):
    """What was asked for cannot be exported; the message says what was found and what to do."""


@contextmanager
def whole(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A name on the disk of ``path`` to write a file or folder to; at the end it becomes ``path``.

    After an error nothing is left of it, and what was at ``path`` is still there. ExportError, at
    once, when there is something and ``overwrite`` is False, or when it is a folder that is neither
    empty nor an earlier export and nothing besides: those are never deleted. VolumeError when
    another process is writing ``path``.
    """
    path = path.resolve()
    _check_free(path, overwrite)
    with staging(path) as folder:
        partial = folder / path.name
        yield partial
        # writing may take hours: look again
        _check_free(path, overwrite)
        move_whole(partial, path, folder / ".replaced")  # which goes with the staging folder


def _check_free(path: Path, overwrite: bool) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise ExportError(f"{path} is there already: choose another name or overwrite it")
    strange = _strange(path) if path.is_dir() else []
    if strange:
        raise ExportError(
            f"{path} is a folder with other things in it than an earlier export ({strange[0]}): it "
            "is not overwritten. Choose another name."
        )


def _strange(folder: Path) -> list[Path]:
    """What is in ``folder`` and not of an earlier export, as the export's own index has it."""
    written = _written(folder)
    strange = [path for path in sorted(folder.iterdir()) if path.name not in written]
    if "export.json" in written and "masks" in written and (folder / "masks").is_dir():
        strange += _strange(folder / "masks")
    return strange


def _written(folder: Path) -> set[str]:
    """The names that an index of ours in ``folder`` says were written there."""
    export, masks = (_index(folder / name) for name in _INDEXES)
    if export is not None:
        return {"export.json", *(row["file"] for row in export["files"])}
    if masks is not None:
        files = [row["file"] for row in masks["volumes"] if row["file"] is not None]
        sidecars = [f"{file}.json" for file in files if _has_sidecar(file)]
        return {"labels.json", "labels.csv", *files, *sidecars}
    return set()


def _has_sidecar(file: str) -> bool:
    """Whether its voxel size is written beside it, as an array's."""
    written = format_by_ending(file)
    return written is not None and written.sidecar


def _index(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, RecursionError, ValueError):
        return None
    ours = isinstance(content, dict) and content.get("format") == _INDEXES[path.name]
    return content if ours else None


def file_name(text: str) -> str:
    """``text`` as part of a file's name: letters, digits, dots, dashes and underscores stay."""
    return re.sub(r"[^\w.-]+", "_", text).strip(".") or "_"


def to_json(content: Any) -> str:
    """Indented JSON with a line end; names in any script stay readable."""
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
