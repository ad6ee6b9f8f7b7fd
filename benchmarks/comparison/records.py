"""What was measured: one JSON line a case, a file a data set."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.comparison.scores import Scores

__all__ = ["Case", "Record", "Records", "same_time"]

_TOLERATED = 0.1


@dataclass(frozen=True, order=True)
class Case:
    """One training of one peer. ``label_set`` is also its seed."""

    data_set: str
    labels: int
    label_set: int
    peer: str

    def __str__(self) -> str:
        return f"{self.data_set}, {self.labels} labels, set {self.label_set}, {self.peer}"


@dataclass(frozen=True)
class Record:
    """``error``: why there are no figures. CPU seconds are those of ``threads`` threads
    together; ``given_s``: the CPU seconds that a peer was told to train; ``steps``: those it made;
    None: it has none, or they were not recorded, as ``cpu`` (its model) of the first lines."""

    case: Case
    slices: tuple[str, ...] = ()
    iou: dict[str, float] = field(default_factory=dict)
    boundary_f: dict[str, float] = field(default_factory=dict)
    train_cpu_s: float = 0.0
    predict_cpu_s_per_mpx: float = 0.0
    given_s: float | None = None
    steps: int | None = None
    test_slices: int = 0
    device: str = "cpu"
    threads: int = 1
    cpu: str = ""
    version: str = ""
    error: str | None = None

    @property
    def scores(self) -> Scores:
        return Scores(self.iou, self.boundary_f)

    def __str__(self) -> str:
        if self.error is not None:
            return self.error
        scores = self.scores
        return (
            f"mIoU {scores.miou:.3f}, boundary F {scores.mean_boundary_f:.3f}, trained for "
            f"{self.train_cpu_s:.0f} CPU s, {self.predict_cpu_s_per_mpx:.1f} CPU s a megapixel"
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "iou": _finite(self.iou), "boundary_f": _finite(self.boundary_f)}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Record:
        values = dict(line)
        values["case"] = Case(**values["case"])
        values["slices"] = tuple(values["slices"])
        for name in ("iou", "boundary_f"):
            values[name] = {k: math.nan if v is None else v for k, v in values[name].items()}
        return cls(**values)


def same_time(given_s: float | None, seconds: float) -> bool:
    """Whether a peer that was given ``given_s`` was given ``seconds``, within a tenth."""
    return given_s is not None and abs(given_s - seconds) <= _TOLERATED * seconds


class Records:
    """The lines of ``folder``; of several of a case the last counts. Appending is one write, so
    processes may share the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._of: dict[Case, Record] = {}
        for path in sorted(folder.glob("*.jsonl")):
            for line in path.read_text().splitlines():
                record = Record.from_json(json.loads(line))
                self._of[record.case] = record

    def __iter__(self) -> Iterator[Record]:
        return iter(sorted(self._of.values(), key=lambda record: record.case))

    def get(self, case: Case) -> Record | None:
        return self._of.get(case)

    def append(self, record: Record) -> None:
        self._of[record.case] = record
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{record.case.data_set}.jsonl").open("a") as file:
            file.write(json.dumps(record.to_json()) + "\n")


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {k: None if math.isnan(v) else round(v, 5) for k, v in values.items()}
