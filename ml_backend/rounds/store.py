"""Where rounds live: a folder per round, under a local path or any fsspec URL.

    <root>/<label-studio-host>/<project id>.<created timestamp>/
        project.json      what adopt found out
        published.json    what is served; written after the switch has been verified
        round-0007/       dataset.json, masks/, pseudo/, weights.safetensors, evidence.npz,
                          selection.json, metrics.json, round.json, uncertainty/, queue.json

What each file holds, and which step writes it, stands in `artefacts`. Every file is written whole
or not at all. `round.json` commits a round; `published.json` alone says what is served. Nothing is
unpickled.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.exceptions import FSTimeoutError

from ml_backend.durable import create_whole, write_whole
from ml_backend.errors import FileFault, NextsliceError
from ml_backend.rounds.artefacts import (
    MASKS,
    PROJECT,
    PUBLISHED,
    ROUND,
    UNCERTAINTY,
    Artefact,
    File,
    Pictures,
    of_a_round,
)
from ml_backend.rounds.records import (
    LabelRecord,
    ProjectRecord,
    Published,
    round_name,
    round_number,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Folder", "ProjectStore", "RoundFolder", "Store", "StoreError", "StoreFault"]

T = TypeVar("T")


class StoreError(NextsliceError, RuntimeError):
    """A file of the store is missing or damaged; the message names it."""


class StoreFault(FileFault, OSError):
    """The system refuses a file of the store; the message names it and says what to do."""


_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM)
_ABSENT = (FileNotFoundError, NotADirectoryError)
_PROBE = ".nextslice-probe"
_ANSWER_S = 40.0
"""For a small thing that an object store is asked. A claim is created by two of these, within
NEXTSLICE_CLAIM_TTL_S. s3fs tries 25 times where nothing answers, and waits for ever where a put is
to be let on (`Expect: 100-continue`)."""
_BYTES_A_S = 128 * 1024
"""Slower than that no file is sent."""


def _fault(done: str, target: str, error: Exception, *, local: bool) -> StoreFault:
    """``error`` as a sentence with advice."""
    code = getattr(error, "errno", None)
    advice = "Is its disk there?"
    if not local:
        advice = "Is its server up, is the bucket there, and do the credentials allow it?"
    elif code in _FULL:
        advice = "Free space there: nextslice rounds prune deletes what no later round needs."
    elif code == errno.EROFS:
        advice = "Its disk is mounted read-only: mount it to be written."
    elif code in _FORBIDDEN:
        advice = f"May user {os.geteuid()}, whom this process runs as, use it?"
    why = str(getattr(error, "strerror", None) or error).rstrip(".") or type(error).__name__
    fault = StoreFault(f"The store's {target} cannot be {done}: {why}. {advice}")
    fault.errno = code
    return fault


class Store:
    """The root of everything. ``root``: a folder, or an fsspec URL such as ``s3://bucket/path``."""

    def __init__(self, root: str) -> None:
        # What a client of an object store has listed once, it believes for ever, for reads too.
        self.fs, path = fsspec.core.url_to_fs(root, use_listings_cache=False)
        self.root: str = path.rstrip("/")
        self.local = "file" in _protocols(self.fs)
        # botocore's EndpointConnectionError and gcsfs's HttpError are no OSErrors.
        self._refusal: type[Exception] = OSError if self.local else Exception

    @contextmanager
    def _at(self, path: str, done: str, *passing: type[Exception]) -> Iterator[str]:
        """The address of the file or folder; a refusal there is a StoreFault, but ``passing``."""
        target = f"{self.root}/{path}".rstrip("/")
        try:
            yield target
        except passing:
            raise
        except self._refusal as error:
            raise _fault(done, target, error, local=self.local) from error

    def _ask(self, what: str, *given: Any, answer_s: float | None = None, **named: Any) -> Any:
        """What the file system answers to its method ``what``. Raises TimeoutError where the client
        of an object store has no answer in ``answer_s`` seconds."""
        if not isinstance(self.fs, AsyncFileSystem):
            return getattr(self.fs, what)(*given, **named)
        answer_s = _ANSWER_S if answer_s is None else answer_s
        try:
            return sync(
                self.fs.loop, getattr(self.fs, f"_{what}"), *given, timeout=answer_s, **named
            )
        except FSTimeoutError as error:
            raise TimeoutError(f"no answer within {answer_s:.0f} s") from error

    def _put(self, target: str, data: bytes, **named: Any) -> None:
        answer_s = _ANSWER_S + len(data) / _BYTES_A_S
        self._ask("pipe_file", target, data, answer_s=answer_s, **named)

    # -- bytes

    def read(self, path: str) -> bytes:
        """The file's bytes; FileNotFoundError when there is none. Raises StoreFault."""
        with self._at(path, "read", FileNotFoundError) as target:
            data: bytes = self.fs.cat_file(target)
        return data

    def write(self, path: str, data: bytes) -> None:
        """Write the file whole or not at all (object stores are atomic by themselves). Raises
        StoreFault."""
        with self._at(path, "written") as target:
            if self.local:
                write_whole(Path(target), data)
            else:
                self._put(target, data)

    def create(self, path: str, data: bytes) -> bool:
        """Write the file whole, but only if it does not exist yet; False when it does.

        ``data``: no other caller's. In an object store by a conditional put, where it has one.
        Raises StoreFault.
        """
        with self._at(path, "written") as target:
            if self.local:
                return create_whole(Path(target), data)
            try:
                self._put(target, data, mode="create")
            except Exception:
                # A put whose answer was lost is repeated, and then refused for what it has done.
                found = self._found(target)
                if found is None:
                    raise
                return found == data
        return True

    def _found(self, target: str) -> bytes | None:
        """What is there; None where nothing is, or nobody can tell."""
        try:
            found: bytes = self._ask("cat_file", target)
        except Exception:
            return None
        return found

    def check_writable(self, path: str) -> None:
        """Write a small file into the folder and delete it again. Raises StoreFault."""
        probe = f"{path}/{_PROBE}"
        self.write(probe, bytes(4096))
        self.remove(probe)

    def modified(self, path: str) -> float | None:
        """When the file was last written, in seconds since 1970; None where nobody says. Raises
        StoreFault."""
        with self._at(path, "looked at") as target, suppress(*_ABSENT, NotImplementedError):
            # fsspec's way of saying that a kind of store keeps no times
            moment: datetime = self.fs.modified(target)
            return moment.timestamp()
        return None

    def exists(self, path: str) -> bool:
        """Whether the file or folder is there. Raises StoreFault where nobody can tell."""
        with self._at(path, "looked at") as target, suppress(*_ABSENT):
            # Not by fs.exists: that takes whatever is raised for a no, TimeUp as well.
            Path(target).stat() if self.local else self._ask("info", target)
            return True
        return False

    def remove(self, path: str) -> None:
        """Delete the file; nothing happens when there is none. Raises StoreFault."""
        with self._at(path, "deleted") as target, suppress(FileNotFoundError):
            self._ask("rm_file", target)

    def names(self, path: str) -> list[str]:
        """Names in the folder, sorted; empty when there is no such folder. Raises StoreFault."""
        with self._at(path, "listed") as target, suppress(*_ABSENT):
            found = (str(name).rstrip("/") for name in self._ask("ls", target, False))
            return sorted(name.rsplit("/", 1)[-1] for name in found)
        return []

    # -- projects

    def project(self, host: str, key: str) -> ProjectStore:
        """The folder of one project on one Label Studio."""
        return ProjectStore(self, f"{host}/{key}")

    def projects(self, host: str) -> list[str]:
        """Keys of the projects known on ``host``."""
        return [name for name in self.names(host) if self.project(host, name).has(PROJECT)]


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


class Folder:
    """A folder of the store, and its files by what they are. ``path``: below the store's root."""

    def __init__(self, store: Store, path: str) -> None:
        self.store = store
        self.path = path

    def where(self, file: File) -> str:
        """The path of ``file`` below the store's root."""
        return f"{self.path}/{file.name}"

    def has(self, file: File) -> bool:
        """Whether the file is there: the step that writes it is done."""
        return self.store.exists(self.where(file))

    def read(self, file: File) -> bytes:
        """The bytes of the file; FileNotFoundError when there is none."""
        return self.store.read(self.where(file))

    def write(self, file: File, data: bytes) -> None:
        """Write the file, whole or not at all."""
        self.store.write(self.where(file), data)

    def load(self, artefact: Artefact[T]) -> T | None:
        """What the file holds, or None when there is none. StoreError when it is damaged."""
        try:
            data = self.read(artefact)
        except FileNotFoundError:
            return None
        try:
            return artefact.decode(data)
        except ValueError as error:
            raise StoreError(
                f"{self.store.root}/{self.where(artefact)} is not a {artefact.kind}: {error}. Move "
                "it away to go on from the last file that is whole."
            ) from error

    def need(self, artefact: Artefact[T]) -> T:
        """What the file holds, which must be there. StoreError names it when it is not."""
        found = self.load(artefact)
        if found is None:
            raise StoreError(
                f"{self.where(artefact)} is missing: the step that writes it never ended."
            )
        return found

    def save(self, artefact: Artefact[T], content: T) -> None:
        """Write what the file is to hold."""
        self.write(artefact, artefact.encode(content))

    def remove(self, *files: File) -> None:
        """Delete files, in the order given."""
        for file in files:
            self.store.remove(self.where(file))


class ProjectStore(Folder):
    """One project's folder: its record, what is published, and its rounds."""

    @property
    def record(self) -> ProjectRecord | None:
        """`project.json`, or None for a project that was never adopted."""
        return self.load(PROJECT)

    @record.setter
    def record(self, record: ProjectRecord) -> None:
        self.save(PROJECT, record)

    @property
    def published(self) -> Published | None:
        """`published.json`, or None before anything was published."""
        return self.load(PUBLISHED)

    @published.setter
    def published(self, published: Published) -> None:
        self.save(PUBLISHED, published)

    def round(self, number: int) -> RoundFolder:
        """The folder of round ``number``."""
        return RoundFolder(self, number)

    def rounds(self) -> list[int]:
        """Numbers of the rounds that have a folder, ascending."""
        numbers = map(round_number, self.store.names(self.path))
        return [number for number in numbers if number is not None]

    def read_at(self, path: str) -> bytes:
        """A file by its path relative to the project's folder, as records name weights and
        masks."""
        return self.store.read(f"{self.path}/{path}")

    def mask_bytes(self, label: LabelRecord) -> bytes:
        """The PNG file of a label. StoreError when it is gone."""
        try:
            return self.read_at(label.mask)
        except FileNotFoundError:
            raise StoreError(
                f"{self.path}/{label.mask} is missing: the label map of task {label.task} in this "
                "round. Was it deleted?"
            ) from None

    def mask(self, label: LabelRecord) -> npt.NDArray[np.uint8]:
        """The label map as its round saw it, (H, W) uint8: class indices, 255 = unlabelled.

        StoreError when its file is gone or damaged.
        """
        data = self.mask_bytes(label)
        try:
            return MASKS[label.task].decode(data)
        except ValueError as error:
            raise StoreError(
                f"{label.mask}, the label map of task {label.task}, is damaged: {error}"
            ) from error

    def prune(self) -> int:
        """Delete the weights, the evidence and the pictures of uncertainty of the rounds before the
        published one; how many files.

        Kept are the weights that are served, or were until the classes changed, and all else: masks
        and records of old rounds are what later ones train on and are compared by.
        """
        published = self.published
        if published is None:
            return 0
        record = self.round(published.round).load(ROUND)
        kept = {published.weights, record and record.weights}
        prunable = [file for file in of_a_round() if file.prunable]
        deleted = 0
        for folder in (self.round(n) for n in self.rounds() if n < published.round):
            for file in prunable:
                if folder.relative(file) not in kept and folder.has(file):
                    folder.remove(file)
                    deleted += 1
            deleted += folder.remove_pictures(UNCERTAINTY)
        return deleted


class RoundFolder(Folder):
    """The files of one round."""

    def __init__(self, project: ProjectStore, number: int) -> None:
        self.project = project
        self.number = number
        self.name = round_name(number)
        super().__init__(project.store, f"{project.path}/{self.name}")

    def remove_pictures(self, pictures: Pictures) -> int:
        """Delete all of these, by version; how many there were."""
        path, deleted = f"{self.path}/{pictures.folder}", 0
        for version in self.store.names(path):
            for name in self.store.names(f"{path}/{version}"):
                self.store.remove(f"{path}/{version}/{name}")
                deleted += 1
        return deleted

    def relative(self, file: File) -> str:
        """The path by which records of the project name ``file`` of this round."""
        return f"{self.name}/{file.name}"
