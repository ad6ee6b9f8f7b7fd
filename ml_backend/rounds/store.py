"""Where rounds live: a folder per round, under a local path or any fsspec URL.

    <root>/<label-studio-host>/<project id>.<created timestamp>/
        project.json      what adopt found out
        published.json    what is served; written after the switch has been verified
        round-0007/       dataset.json, masks/, pseudo/, weights.safetensors, evidence.npz,
                          selection.json, metrics.json, round.json, queue.json

Every file is written whole or not at all. `round.json` commits a round; `published.json` alone says
what is served. Nothing is unpickled.
"""

from __future__ import annotations

import io
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import fsspec
import numpy as np
import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ml_backend.errors import NextsliceError, TryAgainLater
from ml_backend.segmentation.validation import ZBlock

__all__ = [
    "Claim",
    "ClaimLost",
    "ClaimTaken",
    "DatasetRecord",
    "LabelRecord",
    "MetricsRecord",
    "ProjectRecord",
    "ProjectStore",
    "Published",
    "QueueEntry",
    "QueueRecord",
    "RoundFolder",
    "RoundRecord",
    "SelectionRecord",
    "Store",
    "StoreError",
    "TaskRecord",
]

M = TypeVar("M", bound=BaseModel)


class StoreError(NextsliceError, RuntimeError):
    """A file of the store is missing or damaged; the message names it."""


class ClaimTaken(TryAgainLater, RuntimeError):
    """Another worker is on this round."""


class ClaimLost(NextsliceError, RuntimeError):
    """Our claim was taken over: whatever we computed since must not be written."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class TaskRecord(_Record):
    """One slice of the project as the last sync saw it."""

    id: int
    image: str
    volume: str = ""
    z: float | None = None
    axis: str = "z"
    """Along which `z` counts: a volume may be cut along z, y or x."""
    state: Literal["pool", "labelled", "skipped", "drafted"] = "pool"
    annotations: int = 0


class LabelRecord(_Record):
    """One label as a round saw it: enough to train on it again after it changed."""

    task: int
    annotation: int
    updated_at: str
    completed_by: int | None = None
    hash: str
    mask: str
    """Path of the mask, relative to the project's folder: PNG, grey value = class index, 255 =
    unlabelled."""


class DatasetRecord(_Record):
    """`dataset.json`: what Label Studio held when the round began."""

    round: int
    classes: list[str]
    label_config: str
    fingerprint: str
    unlabelled: str | None = None
    """What unlabelled pixels of the masks mean: ``ignore`` or ``background``; None: not noted."""
    synced_at: str
    """Newest ``updated_at`` of any task seen: the next sync asks for what came after."""
    tasks: list[TaskRecord] = Field(default_factory=list)
    labels: list[LabelRecord] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)


class SelectionRecord(_Record):
    """`selection.json`: the K slices in order, the reserve, the backlog behind it, and CEAL's."""

    strategy: str
    seed: int
    chosen: list[int]
    reserve: list[int]
    backlog: list[int] = Field(default_factory=list)
    pseudo: list[int] = Field(default_factory=list)
    scores: dict[int, float] = Field(default_factory=dict)


class MetricsRecord(_Record):
    """`metrics.json`: mIoU and IoU per class on the validation slices, if there were enough."""

    miou: float | None = None
    iou: dict[str, float | None] = Field(default_factory=dict)
    trained: list[int] = Field(default_factory=list)
    """Slices trained on that a person labelled."""
    pseudo: list[int] = Field(default_factory=list)
    """Slices trained on that the published checkpoint labelled; the masks are ``pseudo/<id>.png``
    in the round's folder."""
    inherited: list[int] = Field(default_factory=list)
    """What the weights that a warm start went on from had learned."""
    validation: list[int] = Field(default_factory=list)
    left_out: list[int] = Field(default_factory=list)
    """Labelled slices that were neither: not to be read, or not of the size of their masks."""
    blocks: list[dict[str, Any]] = Field(default_factory=list)
    """The z-blocks held out, kept from round to round."""
    published_miou: float | None = None
    """The published checkpoint on the same slices."""
    flagged: str | None = None
    """Why the new checkpoint is kept but not served."""
    training: dict[str, Any] = Field(default_factory=dict)
    losses: list[tuple[int, float]] = Field(default_factory=list)

    @property
    def held_out(self) -> list[ZBlock]:
        """``blocks`` as such."""
        return [ZBlock(**block) for block in self.blocks]

    @property
    def learned(self) -> set[int]:
        """Every slice that the weights have learned from, here or before."""
        return {*self.trained, *self.pseudo, *self.inherited}


class RoundRecord(_Record):
    """`round.json`: the commit of a round."""

    round: int
    model_version: str
    classes: list[str]
    fingerprint: str
    weights: str | None = None
    """Path of the weights that this round serves, relative to the project's folder."""
    flagged: str | None = None
    annotated: int = 0
    """Slices that people have labelled, pseudo-labelled ones not counted."""
    pseudo: list[int] = Field(default_factory=list)
    """Slices pseudo-labelled for this round's training."""
    strategy: str = ""
    reason: str = ""
    started_at: str = ""
    committed_at: str = ""
    seconds: dict[str, float] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)


class QueueEntry(_Record):
    """One place in the queue: the task, its score (ascending = first) and why it is there."""

    task: int
    score: float
    kind: str
    """``chosen``, ``reserve`` or ``top-up``."""


class QueueRecord(_Record):
    """`queue.json`: what was published in which order, top-ups appended."""

    model_version: str
    entries: list[QueueEntry] = Field(default_factory=list)


class Published(_Record):
    """`published.json`: what is served."""

    round: int
    model_version: str
    classes: list[str]
    fingerprint: str
    weights: str | None = None
    flagged: str | None = None
    retired: str | None = None
    """Why the weights are no longer used: the labelling config changed."""
    published_at: str = ""

    @property
    def weights_round(self) -> int | None:
        """The round that made ``weights``: after a flag an older one than ``round``."""
        if self.weights is None:
            return None
        return _round_number(self.weights.partition("/")[0])


class ProjectRecord(_Record):
    """`project.json`: what adopt did, and what people asked for since."""

    project: int
    key: str
    backend_url: str | None = None
    adopted_at: str | None = None
    start_requested_at: str | None = None
    failures: int = 0
    """Attempts at the next round that raised an error, since the last success or request."""
    unended: int = 0
    """Those that began and did not end: one that is running, or whose process was killed."""
    began_at: float = 0.0
    failed_at: float = 0.0
    last_error: str | None = None


class Store:
    """The root of everything. ``root``: a folder, or an fsspec URL such as ``s3://bucket/path``."""

    def __init__(self, root: str) -> None:
        self.fs, path = fsspec.core.url_to_fs(root)
        self.root: str = path.rstrip("/")
        self.local = "file" in _protocols(self.fs)

    # -- bytes

    def read(self, path: str) -> bytes:
        """The file's bytes; FileNotFoundError when there is none."""
        data: bytes = self.fs.cat_file(f"{self.root}/{path}")
        return data

    def write(self, path: str, data: bytes) -> None:
        """Write the file whole or not at all (object stores are atomic by themselves)."""
        target = f"{self.root}/{path}"
        if not self.local:
            self.fs.pipe_file(target, data)
            return
        file = Path(target)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
        try:
            with partial.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)

    def create(self, path: str, data: bytes) -> bool:
        """Write the file only if it does not exist yet; False when it does."""
        target = f"{self.root}/{path}"
        if self.local:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.fs.open(target, "xb") as stream:
                stream.write(data)
        except FileExistsError:
            return False
        return True

    def exists(self, path: str) -> bool:
        """Whether the file or folder is there."""
        return bool(self.fs.exists(f"{self.root}/{path}"))

    def remove(self, path: str) -> None:
        """Delete the file; nothing happens when there is none."""
        target = f"{self.root}/{path}"
        if self.fs.exists(target):
            self.fs.rm_file(target)

    def names(self, path: str) -> list[str]:
        """Names in the folder, sorted; empty when there is no such folder."""
        target = f"{self.root}/{path}".rstrip("/")
        self.fs.invalidate_cache()
        if not self.fs.exists(target):
            return []
        return sorted(
            str(name).rstrip("/").rsplit("/", 1)[-1] for name in self.fs.ls(target, False)
        )

    # -- records

    def load(self, path: str, model: type[M]) -> M | None:
        """The record in the file, or None when there is none. StoreError when it is damaged."""
        try:
            data = self.read(path)
        except FileNotFoundError:
            return None
        try:
            return model.model_validate_json(data)
        except ValidationError as error:
            raise StoreError(
                f"{self.root}/{path} is not a {model.__name__}: {error}. Move it away to go on "
                "from the last file that is whole."
            ) from error

    def save(self, path: str, record: BaseModel) -> None:
        """Write the record atomically."""
        self.write(path, record.model_dump_json(indent=1).encode())

    # -- projects

    def project(self, host: str, key: str) -> ProjectStore:
        """The folder of one project on one Label Studio."""
        return ProjectStore(self, f"{host}/{key}")

    def projects(self, host: str) -> list[str]:
        """Keys of the projects known on ``host``."""
        return [name for name in self.names(host) if self.exists(f"{host}/{name}/project.json")]


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


class ProjectStore:
    """One project's folder: its record, what is published, and its rounds."""

    def __init__(self, store: Store, path: str) -> None:
        self.store = store
        self.path = path

    @property
    def record(self) -> ProjectRecord | None:
        """`project.json`, or None for a project that was never adopted."""
        return self.store.load(f"{self.path}/project.json", ProjectRecord)

    @record.setter
    def record(self, record: ProjectRecord) -> None:
        self.store.save(f"{self.path}/project.json", record)

    @property
    def published(self) -> Published | None:
        """`published.json`, or None before anything was published."""
        return self.store.load(f"{self.path}/published.json", Published)

    @published.setter
    def published(self, published: Published) -> None:
        self.store.save(f"{self.path}/published.json", published)

    def round(self, number: int) -> RoundFolder:
        """The folder of round ``number``."""
        return RoundFolder(self, number)

    def rounds(self) -> list[int]:
        """Numbers of the rounds that have a folder, ascending."""
        numbers = map(_round_number, self.store.names(self.path))
        return [number for number in numbers if number is not None]

    def read(self, path: str) -> bytes:
        """A file by its path relative to the project's folder."""
        return self.store.read(f"{self.path}/{path}")

    def prune(self) -> int:
        """Delete the weights and the evidence of the rounds before the published one; how many
        files.

        Kept are the weights that are served, or were until the classes changed, and all else: masks
        and records of old rounds are what later ones train on and are compared by.
        """
        published = self.published
        if published is None:
            return 0
        record = self.round(published.round).load("round.json", RoundRecord)
        kept = {published.weights, record and record.weights}
        deleted = 0
        for folder in (self.round(n) for n in self.rounds() if n < published.round):
            for name in ("weights.safetensors", "evidence.npz"):
                if f"{folder.name}/{name}" not in kept and folder.has(name):
                    folder.remove(name)
                    deleted += 1
        return deleted


def _round_number(folder: str) -> int | None:
    """The round whose folder is called so (`RoundFolder.name`); None: it is no round's."""
    prefix, _, number = folder.partition("-")
    return int(number) if prefix == "round" and number.isdigit() else None


class RoundFolder:
    """The files of one round."""

    def __init__(self, project: ProjectStore, number: int) -> None:
        self.project = project
        self.number = number
        self.name = f"round-{number:04d}"
        self.path = f"{project.path}/{self.name}"

    def has(self, name: str) -> bool:
        """Whether the step that writes ``name`` is done."""
        return self.project.store.exists(f"{self.path}/{name}")

    def read(self, name: str) -> bytes:
        """The bytes of a file of this round."""
        return self.project.store.read(f"{self.path}/{name}")

    def write(self, name: str, data: bytes) -> None:
        """Write a file of this round, whole or not at all."""
        self.project.store.write(f"{self.path}/{name}", data)

    def load(self, name: str, model: type[M]) -> M | None:
        """A record of this round, or None."""
        return self.project.store.load(f"{self.path}/{name}", model)

    def need(self, name: str, model: type[M]) -> M:
        """A record that must be there. StoreError names it when it is not."""
        record = self.load(name, model)
        if record is None:
            raise StoreError(f"{self.path}/{name} is missing: the step that writes it never ended.")
        return record

    def save(self, name: str, record: BaseModel) -> None:
        """Write a record of this round."""
        self.project.store.save(f"{self.path}/{name}", record)

    def remove(self, *names: str) -> None:
        """Delete files of this round, in the order given."""
        for name in names:
            self.project.store.remove(f"{self.path}/{name}")

    def write_arrays(self, name: str, arrays: dict[str, Any]) -> None:
        """Write named arrays as .npz, without pickle."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        self.write(name, buffer.getvalue())

    def read_arrays(self, name: str) -> dict[str, Any]:
        """Read named arrays; anything pickled is refused."""
        with np.load(io.BytesIO(self.read(name)), allow_pickle=False) as arrays:
            return dict(arrays)

    @contextmanager
    def claim(self, ttl_s: float) -> Iterator[Claim]:
        """Hold this round alone. Raises ClaimTaken while another worker shows signs of life."""
        claim = Claim.take(self, ttl_s)
        try:
            yield claim
        finally:
            claim.release()


class _Holder(_Record):
    token: int
    host: str
    pid: int
    started: float
    """Start time of the process, so that a reused pid is not taken for the holder."""
    beat: float
    released: bool = False


class Claim:
    """A fenced token: the highest number in ``claims/`` holds the round.

    A token is created exclusively, so two workers never hold the same one. It is void when its
    process is gone (same host) or has not shown a sign of life for the ttl; then the next number
    may be taken, and the old holder's `check` raises before it can write.
    """

    def __init__(self, folder: RoundFolder, token: int, ttl_s: float) -> None:
        self.folder = folder
        self.token = token
        self._stop = threading.Event()
        self._interval_s = max(ttl_s / 8, 0.5)
        self._thread = threading.Thread(target=self._keep_alive, daemon=True)

    @classmethod
    def take(cls, folder: RoundFolder, ttl_s: float) -> Claim:
        """Take the next token, or raise ClaimTaken."""
        store = folder.project.store
        current = cls._current(folder)
        if current is not None and _alive(current, ttl_s):
            raise ClaimTaken(
                f"{folder.path} is held by process {current.pid} on {current.host} "
                f"(token {current.token})."
            )
        token = 1 if current is None else current.token + 1
        claim = cls(folder, token, ttl_s)
        if not store.create(claim._file, claim._holder().model_dump_json().encode()):
            raise ClaimTaken(f"{folder.path}: token {token} was taken in this moment.")
        claim._thread.start()
        return claim

    @staticmethod
    def _current(folder: RoundFolder) -> _Holder | None:
        store = folder.project.store
        names = [n for n in store.names(f"{folder.path}/claims") if n.endswith(".json")]
        for name in reversed(names):
            try:
                return store.load(f"{folder.path}/claims/{name}", _Holder)
            except StoreError:  # a token being written in this moment: somebody's, and fresh
                number = int(name.split(".")[0])
                return _Holder(token=number, host="?", pid=0, started=0, beat=time.time())
        return None

    @property
    def _file(self) -> str:
        return f"{self.folder.path}/claims/{self.token:06d}.json"

    def _holder(self, *, released: bool = False) -> _Holder:
        return _Holder(
            token=self.token,
            host=socket.gethostname(),
            pid=os.getpid(),
            started=psutil.Process().create_time(),
            beat=time.time(),
            released=released,
        )

    def _keep_alive(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.folder.project.store.save(self._file, self._holder())

    def check(self) -> None:
        """Raise ClaimLost when a higher token exists."""
        current = self._current(self.folder)
        if current is not None and current.token > self.token:
            raise ClaimLost(
                f"{self.folder.path} was taken over with token {current.token}, "
                f"ours was {self.token}."
            )

    def release(self) -> None:
        """Give the round back; the next worker need not wait for the ttl."""
        self._stop.set()
        self._thread.join()
        self.folder.project.store.save(self._file, self._holder(released=True))


def _alive(holder: _Holder, ttl_s: float) -> bool:
    if holder.released or time.time() - holder.beat > ttl_s:
        return False
    if holder.host != socket.gethostname():
        return True
    try:
        # One clock tick of slack: create_time is derived from jiffies.
        return bool(abs(psutil.Process(holder.pid).create_time() - holder.started) < 0.1)
    except psutil.NoSuchProcess:
        return False
