"""A folder beside an output to write it in: one for each output, and one process in it.

Its name is always the same, so what a killed process has left is found, and removed, by the next.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ml_backend.durable import held
from ml_backend.volumes.volume import VolumeError

__all__ = ["clear", "holds_us", "staging"]


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A new folder on the disk of ``target``; it is removed at the end with all that is in it.

    Raises VolumeError when another process is writing ``target``.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = _folder(target)
    with _locked(target):
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


def clear(target: Path) -> None:
    """Remove what a killed process has left of ``target``. Raises VolumeError as `staging` does."""
    if _folder(target).exists():
        with staging(target):
            pass


def holds_us(target: Path) -> bool:
    """Whether this process works in the folder ``target`` or below it: replaced, it would be gone
    under whoever has started us there."""
    try:
        return Path.cwd().is_relative_to(target.resolve())
    except FileNotFoundError:  # it is gone already
        return False


def _folder(target: Path) -> Path:
    return target.with_name(f".{target.name}.nextslice-part")


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    # not in the folder: on NFS an open file keeps its folder from being removed
    path = _folder(target).with_suffix(".nextslice-lock")
    taken = VolumeError(f"another process is writing {target}: wait for it, or end it")
    with held(path, otherwise=taken):
        try:
            yield
        finally:
            path.unlink()  # held all the same: whoever has opened it sees that it has no name
