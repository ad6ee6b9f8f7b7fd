"""Files and folders that appear whole: written in a folder beside, then moved."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ml_backend.durable import move_whole
from ml_backend.errors import NextsliceError
from ml_backend.volumes.formats.registry import format_by_ending
from ml_backend.volumes.staging import holds_us, staging

__all__ = ["ExportError", "file_name", "to_json", "whole"]

_INDEXES = {"export.json": "nextslice export", "labels.json": "nextslice masks"}
"""Name of an index → its ``format``. What it names in its folder may be replaced."""

_Strange = Callable[[Path], list[Path]]
"""What is in a folder that was not written there."""


class ExportError(NextsliceError, ValueError):
    """What was asked for cannot be exported; the message says what was found and what to do."""


@contextmanager
def whole(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A name on the disk of ``path`` to write a file or folder to; at the end it becomes ``path``.

    After an error nothing is left of it, and what was at ``path`` is still there. ExportError, at
    once, when there is something and ``overwrite`` is False, or when it is a folder that is neither
    empty nor an earlier export and nothing besides, or the one that we work in: those are never
    deleted. VolumeError when
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
    if holds_us(path):
        raise ExportError(
            f"{path} is the folder that this command runs in, or above it: it cannot be replaced. "
            "Give a name in it."
        )
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
    return _besides(_written(folder), folder)


def _besides(written: Mapping[str, _Strange], folder: Path) -> list[Path]:
    strange: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name not in written:
            strange.append(path)
        elif path.is_dir():
            strange += written[path.name](path)
    return strange


_a_file: _Strange = partial(_besides, {})
"""Of a name under which a file was written: all that is in a folder there."""


def _written(folder: Path) -> dict[str, _Strange]:
    """The names that an index of ours in ``folder`` says were written there, and what is strange in
    those that are folders."""
    export, masks = (_index(folder / name) for name in _INDEXES)
    if export is not None:
        names = dict.fromkeys(("export.json", *(row["file"] for row in export["files"])), _a_file)
        return names | {"masks": _strange} if "masks" in names else names
    if masks is not None:
        labels = {row["file"] for row in masks["labels"]}
        names = dict.fromkeys(("labels.json", "labels.csv"), _a_file)
        for row in masks["volumes"]:
            if row["file"] is not None:
                names |= _of_volume(row["file"], labels)
        return names
    return {}


def _of_volume(file: str, labels: Set[str]) -> dict[str, _Strange]:
    """The same of what was written of one volume; ``labels``: where each label is."""
    if file not in labels:  # a folder with a file a label
        inside = [label for label in labels if label.startswith(f"{file}/")]
        names = (label.removeprefix(f"{file}/") for label in inside)
        return {file: partial(_besides, dict.fromkeys(names, _a_file))}
    written = format_by_ending(file)
    if written is None or written.strange is None:
        beside = [f"{file}.json"] if written is not None and written.sidecar else []
        return dict.fromkeys((file, *beside), _a_file)
    return {file: partial(_strange_names, written.strange)}


def _strange_names(strange: Callable[[Path], list[str]], folder: Path) -> list[Path]:
    return [folder / name for name in strange(folder)]


def _index(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, RecursionError, ValueError):
        return None
    ours = isinstance(content, dict) and content.get("format") == _INDEXES[path.name]
    return content if ours else None


_NAME_BYTES = 180
"""A file's name has at most 255, most systems say; the rest is for what is added to it."""


def file_name(text: str) -> str:
    """``text`` as part of a file's name: letters, digits, dots, dashes and underscores stay, of a
    long one its first `_NAME_BYTES`."""
    name = re.sub(r"[^\w.-]+", "_", text).strip(".") or "_"
    return name.encode()[:_NAME_BYTES].decode(errors="ignore")


def to_json(content: Any) -> str:
    """Indented JSON with a line end; names in any script stay readable."""
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
