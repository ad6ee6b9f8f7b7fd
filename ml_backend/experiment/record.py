"""What an experiment leaves on disk: its settings, and one JSON line per strategy, seed and round.

    <out>/experiment.json            `Experiment`: data, split, protocol, network; written first
    <out>/runs/<strategy>/seed-0.jsonl   a `RoundLine` per round, appended when the round is whole
    <out>/runs/<strategy>/seed-0/    what the next round needs: weights, pseudo-labels
    <out>/rounds.jsonl, report.html, *.png   made from these by `ml_backend.experiment.report`

A line is the commit of its round: what a run has no line for is computed again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ml_backend.errors import NextsliceError

__all__ = [
    "FULLY_SUPERVISED",
    "Cost",
    "Experiment",
    "RecordError",
    "RoundLine",
    "Validation",
    "finite",
    "load_experiment",
    "read_lines",
    "runs_of",
]

FULLY_SUPERVISED = "fully_supervised"
"""Name of the run that trains on the whole pool: the ceiling, not a strategy."""


class RecordError(NextsliceError, ValueError):
    """A file of an experiment is missing, damaged or of another experiment; it is named."""


class Experiment(BaseModel):
    """`experiment.json`: everything that the lines of an experiment have in common."""

    model_config = ConfigDict(extra="forbid")

    data: str
    """The folder, volume or phantom, as a person calls it."""
    source: dict[str, Any] = Field(default_factory=dict)
    """`ml_backend.experiment.data.DataSpec`: where the slices are, and how they are split."""
    data_hash: str
    """SHA-256 over ids, images and masks of pool and test slices."""
    classes: list[str]
    pool: dict[str, tuple[str, float]]
    """Slice id → (volume, z) of every slice that may be annotated."""
    test: dict[str, tuple[str, float]]
    """The same of the slices that the curve is measured on."""
    k: int
    start: int
    """Slices of round 1, chosen by ``cold_start`` before any model."""
    rounds: int
    cold_start: str
    spacing: bool
    judged: bool = False
    """Whether a fifth of what is annotated is held out of the trainings, as in the live loop."""
    warm_start: bool
    """Whether a round's training starts from the weights of the round before."""
    architecture: str
    steps: int | None
    """Optimiser steps of each round's training; null: by the labels, as the live loop does."""
    full_steps: int
    """Optimiser steps of the fully supervised run: as many as a whole run takes together."""
    training: dict[str, Any]
    """What differs from the training of the live loop: crop, batch, …"""
    device: str
    threads: int
    """CPU threads of a run: another number gives other rounding. 0: as many as torch takes on the
    machine of the RQ worker."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Of the libraries; and the precision that trainings computed in on the machine where the
    experiment began, where ``training`` names none."""

    def labelled(self, round_: int) -> int:
        """Slices annotated after a round, from 1; a run ends when that is the whole pool."""
        return min(self.start + (round_ - 1) * self.k, len(self.pool))

    @property
    def choices(self) -> int:
        """The selections of a run that leave a slice out: in the others every strategy takes the
        same, all that is left."""
        rounds = range(2, self.rounds + 1)
        return sum(self.labelled(round_) < len(self.pool) for round_ in rounds)


class Cost(BaseModel):
    """What annotating a selection takes: `al_strategies.effort.Correction`, over its slices."""

    model_config = ConfigDict(extra="forbid")

    corrected: int
    by_class: dict[str, int]
    boundary: int
    pixels: int


class Validation(BaseModel):
    """What a live round knows of its model: how it does on the annotated slices held out."""

    model_config = ConfigDict(extra="forbid")

    slices: int
    miou: float
    iou: dict[str, float | None]
    """Per class; null where those slices have no pixel of it."""


class RoundLine(BaseModel):
    """One round of one run."""

    model_config = ConfigDict(extra="forbid")

    strategy: str
    seed: int
    round: int
    """From 1: the round whose labels are the cold start's."""
    labelled: int
    """Slices annotated so far, pseudo-labelled ones not counted."""
    selected: list[str]
    """Ids annotated in this round, in the order of the selection."""
    pseudo: list[str] = Field(default_factory=list)
    """Ids that this round's training saw with a mask made by the model of the round before."""
    miou: float
    """On the test slices: the mean of `iou` over the classes they hold."""
    iou: dict[str, float | None]
    """Per class; null where the test slices have no pixel of a class."""
    accuracy: float
    steps: int
    loss: float | None = None
    """Mean training loss of the last steps."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """Wall seconds of ``train``, ``test``, ``score``, ``select`` and ``effort``."""
    validation: Validation | None = None
    """Null where nothing was held out, or nothing of it annotated."""
    before: Validation | None = None
    """The model of the round before on the same slices; null in round 1."""
    cost: Cost | None = None
    """Of annotating `selected`, opened as the model of the round before segments it; null: in a
    record from before it was counted, and of full supervision."""
    following: dict[str, Any] | None = None
    """`al_strategies.Selection` for the next round as JSON; null after the last round."""
    following_cost: Cost | None = None
    """`cost` of the next round."""
    following_before: Validation | None = None
    """`before` of the next round."""

    def to_line(self) -> str:
        """One line of JSON, ending in a newline."""
        return self.model_dump_json() + "\n"


def finite(values: dict[str, float]) -> dict[str, float | None]:
    """NaN as None, which JSON can hold."""
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def read_lines(path: Path) -> Iterator[RoundLine]:
    """The rounds of one run, in order; a last line that was cut off by a kill is passed over.

    Raises RecordError when another line is damaged or a round is missing.
    """
    if not path.exists():
        return
    # Cut before decoding: a kill may have left half of a character.
    whole, _, _cut = path.read_bytes().rpartition(b"\n")
    for number, raw in enumerate(whole.splitlines(), start=1):
        try:
            line = RoundLine.model_validate(json.loads(raw.decode()))
        except (UnicodeDecodeError, json.JSONDecodeError, ValidationError) as error:
            raise RecordError(f"{path}, line {number}, is not a round: {error}") from error
        if line.round != number:
            raise RecordError(f"{path}, line {number}, is round {line.round}: expected {number}")
        yield line


def runs_of(out: Path) -> dict[tuple[str, int], list[RoundLine]]:
    """(strategy, seed) → its rounds, for every run of an experiment that has one."""
    runs: dict[tuple[str, int], list[RoundLine]] = {}
    for path in sorted((out / "runs").glob("*/seed-*.jsonl")):
        lines = list(read_lines(path))
        if lines:
            runs[lines[0].strategy, lines[0].seed] = lines
    return runs


def load_experiment(out: Path) -> Experiment:
    """`experiment.json` of ``out``. Raises RecordError."""
    path = out / "experiment.json"
    if not path.is_file():
        raise RecordError(
            f"{out} holds no experiment.json, so no experiment: run nextslice simulate --out {out}"
        )
    try:
        return Experiment.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
