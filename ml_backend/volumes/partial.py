"""The working folder of a long job on a volume: which job it is, and how far it has come.

`job.json` is written once and says what the files beside it belong to; `progress.json` is replaced
whole after they have been flushed. So a killed job goes on from its last word, and never from the
files of another one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ml_backend.durable import held, write_whole
from ml_backend.volumes.volume import VolumeError

__all__ = ["PartialFolder", "Place"]

_JOB, _PROGRESS, _LOCK = "job.json", "progress.json", "lock"
_LAST = "last progress"
"""In `job.json` while the folder is removed."""


@dataclass(frozen=True)
class Place:
    """How far a job has come: ``done`` items of its ``stage`` are on disk, and all stages before
    it."""

    stage: str
    done: int


class PartialFolder:
    """The folder ``path`` of the job that ``job`` describes: names and JSON values."""

    def __init__(self, path: Path, job: Mapping[str, Any]) -> None:
        self.path = path
        self._job: dict[str, Any] = json.loads(json.dumps(job))

    def place(self) -> Place | None:
        """Where the job of an earlier call stopped; None when it never began.

        Raises VolumeError when the folder holds something else, or another job.
        """
        found = self._read(_JOB)
        if found is None:
            self._refuse_foreign()
            return None
        differing = self._differing(found)
        if differing:
            listed = "; ".join(
                f"{name} was {found.get(name)!r}, is {self._job[name]!r}" for name in differing
            )
            raise VolumeError(
                f"{self.path} is what another job has left ({listed}). Delete that folder, or "
                "give another output."
            )
        progress = self._read(_PROGRESS) or found.get(_LAST)
        return None if progress is None else Place(progress["stage"], progress["done"])

    def is_of(self, description: Mapping[str, Any]) -> bool:
        """Whether ``description``, which may say more, is of this job."""
        return not self._differing(description)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder and keep other processes out of it. Raises VolumeError."""
        taken = VolumeError(f"another process is at work in {self.path}: wait for it, or end it")
        with held(self.path / _LOCK, otherwise=taken):
            if self._read(_JOB) is None:
                self._write(_JOB, self._job)
            yield

    def commit(self, place: Place) -> None:
        """Say how far the job has come, after its files were flushed."""
        self._write(_PROGRESS, asdict(place))

    def remove(self) -> None:
        """Delete the folder: the job is done.

        What says which job it was and how far it had come goes last, in one file: files that are
        gone would count as done if this is stopped half-way, or nothing would.
        """
        for path in self.path.iterdir():
            if path.is_file() and path.name not in (_JOB, _PROGRESS, _LOCK):
                path.unlink()
        progress = self._read(_PROGRESS)
        if progress is not None:
            self._write(_JOB, {**self._job, _LAST: progress})
            (self.path / _PROGRESS).unlink()
        shutil.rmtree(self.path)

    def _differing(self, found: Mapping[str, Any]) -> list[str]:
        return [name for name in self._job if found.get(name) != self._job[name]]

    def _refuse_foreign(self) -> None:
        if not self.path.exists():
            return
        names = {p.name for p in self.path.iterdir()} if self.path.is_dir() else {self.path.name}
        if names - {_LOCK, ".job.json.part"}:
            raise VolumeError(
                f"{self.path} is in the way: expected nothing there, or what an interrupted call "
                f"has left, found {sorted(names)[0]}"
            )

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            content = json.loads((self.path / name).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            raise VolumeError(
                f"{self.path / name} is damaged ({error}). Delete {self.path} to begin again."
            ) from error
        assert isinstance(content, dict)
        return content

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        write_whole(self.path / name, json.dumps(content, indent=1).encode(), alone=True)
