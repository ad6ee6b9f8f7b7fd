"""What a round leaves, file by file: its name, what it holds, and the step that writes it.

A new file of a round is one line here. Which files a step makes out of date, and which may be
pruned, follows from the lines; nobody lists them again. NumPy and the codecs of pictures take
longer to import than most commands do: they are when such a file is read or written.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from pydantic import BaseModel

from ml_backend.rounds.records import (
    DatasetLabels,
    DatasetRecord,
    DatasetWarnings,
    FurtherRecord,
    MetricsRecord,
    ProjectRecord,
    Published,
    QueueRecord,
    RoundRecord,
    SelectionRecord,
    TriesRecord,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from al_strategies.evidence import Evidence
    from al_strategies.positions import Position

__all__ = [
    "DATASET",
    "DRAWING",
    "EVIDENCE",
    "FURTHER",
    "FURTHER_WEIGHTS",
    "LABELS",
    "MASKS",
    "METRICS",
    "PROJECT",
    "PSEUDO",
    "PUBLISHED",
    "QUEUE",
    "ROUND",
    "SELECTION",
    "UNCERTAINTY",
    "WARNINGS",
    "WEIGHTS",
    "Artefact",
    "EvidenceArrays",
    "File",
    "Pictures",
    "Step",
    "of_a_round",
    "record_file",
    "written_after",
]

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
Mask: TypeAlias = "npt.NDArray[np.uint8]"


class Step(IntEnum):
    """The steps of a round, in order; `round.json` commits it before it is published."""

    SYNC = 1
    TRAIN = 2
    SCORE = 3
    SELECT = 4
    COMMIT = 5
    PUBLISH = 6


@dataclass(frozen=True)
class File:
    """A file of the store. ``name``: below its folder. ``kind``: of what it holds, in words.

    ``step``: the one that writes it; None for a file of the project. ``prunable``: it may go once
    later rounds are published.
    """

    name: str
    kind: str
    step: Step | None = field(default=None, kw_only=True)
    prunable: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class Artefact(File, Generic[T]):
    """A file and what it holds. ``decode`` raises ValueError for bytes that hold something else."""

    encode: Callable[[T], bytes] = field(repr=False)
    decode: Callable[[bytes], T] = field(repr=False)


_OF_A_ROUND: list[File] = []
"""In the order in which a round writes them."""


def of_a_round() -> tuple[File, ...]:
    """The files of a round, in the order in which they are written; without its pictures."""
    return tuple(_OF_A_ROUND)


def written_after(step: Step) -> list[File]:
    """The files of the steps after ``step`` up to the commit, last first: deleted in that order, a
    kill in between never leaves a gap.

    What publishing wrote stays: it tells `tidy` which predictions an attempt has stored.
    """
    later = [a for a in _OF_A_ROUND if a.step is not None and step < a.step <= Step.COMMIT]
    return later[::-1]


def record_file(name: str, model: type[M], step: Step | None = None) -> Artefact[M]:
    """A record as JSON that people can read."""
    return _noted(_record(name, model, step))


def _record(name: str, model: type[M], step: Step | None = None) -> Artefact[M]:
    return Artefact(
        name=name,
        kind=model.__name__,
        encode=lambda record: record.model_dump_json(indent=1).encode(),
        decode=model.model_validate_json,
        step=step,
    )


def _noted(artefact: Artefact[T]) -> Artefact[T]:
    if artefact.step is not None:
        _OF_A_ROUND.append(artefact)
    return artefact


# -- evidence


@dataclass(frozen=True)
class EvidenceArrays:
    """`Evidence` without positions, which the dataset has.

    ``ids``: task ids. ``scores``: name → (N,). ``features``: name → (N, D) float32.
    """

    ids: tuple[int, ...]
    scores: Mapping[str, npt.NDArray[Any]]
    features: Mapping[str, npt.NDArray[np.float32]]

    @classmethod
    def of(cls, evidence: Evidence) -> EvidenceArrays:
        """Those of ``evidence``."""
        return cls(tuple(int(i) for i in evidence.ids), evidence.scores, evidence.features)

    @property
    def names(self) -> frozenset[str]:
        """Of scores and features."""
        return frozenset((*self.scores, *self.features))

    def at(self, positions: Mapping[int, Position]) -> Evidence:
        """The evidence, its slices where ``positions`` says."""
        from al_strategies.evidence import Evidence

        places = tuple(positions[i] for i in self.ids)
        return Evidence(self.ids, places, self.scores, self.features)


_SCORE, _FEATURE = "score.", "feature."


def _pack(evidence: EvidenceArrays) -> bytes:
    import numpy as np

    arrays: dict[str, Any] = {"ids": np.asarray(evidence.ids, dtype=np.int64)}
    arrays |= {f"{_SCORE}{name}": values for name, values in evidence.scores.items()}
    arrays |= {f"{_FEATURE}{name}": values for name, values in evidence.features.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _unpack(data: bytes) -> EvidenceArrays:
    import numpy as np

    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = dict(file)
        ids = tuple(int(i) for i in arrays["ids"])
    except (zipfile.BadZipFile, KeyError, EOFError, OSError) as error:
        raise ValueError(f"no arrays of evidence: {error}") from error
    return EvidenceArrays(ids, _called(arrays, _SCORE), _called(arrays, _FEATURE))


def _called(arrays: Mapping[str, npt.NDArray[Any]], prefix: str) -> dict[str, npt.NDArray[Any]]:
    return {n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)}


# -- label maps


@dataclass(frozen=True)
class Pictures:
    """A folder of pictures in a round's folder: (H, W) uint8, of label maps class indices, 255 =
    unlabelled."""

    folder: str

    def __getitem__(self, name: str | int) -> Artefact[Mask]:
        """The one that is called so, a PNG file."""
        return Artefact(f"{self.folder}/{name}.png", "label map", _png, _label_map)


def _png(mask: Mask) -> bytes:
    from ml_backend.pictures import encode_png

    return encode_png(mask)


def _label_map(data: bytes) -> Mask:
    from ml_backend.pictures import BROKEN_PICTURE, decode_label_map

    try:
        return decode_label_map(data)
    except BROKEN_PICTURE as error:
        raise ValueError(str(error)) from error


def _same(data: bytes) -> bytes:
    return data


PROJECT = record_file("project.json", ProjectRecord)
PUBLISHED = record_file("published.json", Published)

DATASET = record_file("dataset.json", DatasetRecord, Step.SYNC)
LABELS = _record(DATASET.name, DatasetLabels)
"""The same file, of which the tasks are not looked at. To be read."""
WARNINGS = _record(DATASET.name, DatasetWarnings)
"""The same file, of which nothing else is looked at. To be read."""
MASKS = Pictures("masks")
"""What people have drawn, by task and the start of `LabelRecord.hash`."""
WEIGHTS = _noted(
    Artefact("weights.safetensors", "checkpoint", _same, _same, step=Step.TRAIN, prunable=True)
)
PSEUDO = Pictures("pseudo")
"""What the published checkpoint has drawn for the training, by task."""
UNCERTAINTY = Pictures("uncertainty")
"""Small pictures of how uncertain the network of a version is, by version and task; grey values:
the entropy as a part of ln C, 255 = all of it. They are shown, and nothing else."""
METRICS = record_file("metrics.json", MetricsRecord, Step.TRAIN)
EVIDENCE = _noted(
    Artefact("evidence.npz", "file of evidence", _pack, _unpack, step=Step.SCORE, prunable=True)
)
SELECTION = record_file("selection.json", SelectionRecord, Step.SELECT)
ROUND = record_file("round.json", RoundRecord, Step.COMMIT)
QUEUE = record_file("queue.json", QueueRecord, Step.PUBLISH)
DRAWING = record_file("drawing.json", TriesRecord, Step.PUBLISH)
"""The masks of the queue that are drawn after it was published."""
FURTHER_WEIGHTS = _noted(
    Artefact("further.safetensors", "checkpoint", _same, _same, step=Step.PUBLISH, prunable=True)
)
"""What the training that went on made of `WEIGHTS`; written once, before it is published."""
FURTHER = record_file("further.json", FurtherRecord, Step.PUBLISH)
