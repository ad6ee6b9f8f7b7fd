"""The files of one run: its lines, and what its next round needs. Every file is whole or not there.

A round is committed by its line; the weights and pseudo-labels that belong to it carry its number,
are written before it, and those of the round before go after it. So a kill at any moment leaves
the run at the end of a round.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from al_strategies.evidence import SliceId
from ml_backend.durable import held, write_whole
from ml_backend.errors import TryAgainLater
from ml_backend.experiment.record import RecordError, RoundLine, read_lines

__all__ = ["RunFiles", "RunTaken"]

_STATUS_EVERY_S = 0.5
_MASK = "mask."


class RunTaken(TryAgainLater, RuntimeError):
    """Another process is on this run."""


class RunFiles:
    """The files of the run of ``strategy`` with ``seed`` in the experiment ``out``."""

    def __init__(self, out: Path, strategy: str, seed: int) -> None:
        self.folder = out / "runs" / strategy / f"seed-{seed}"
        self.lines_path = self.folder.with_suffix(".jsonl")
        self.failure_path = self.folder / "failed.txt"
        self.log_path = self.folder / "log.txt"
        self._status_path = self.folder / "status.json"
        self._written = 0.0

    def lines(self) -> list[RoundLine]:
        """The rounds that are whole."""
        return list(read_lines(self.lines_path))

    def ended(self) -> bool:
        """Whether the last round is among them."""
        lines = self.lines()
        return bool(lines) and lines[-1].following is None

    def lock(self) -> AbstractContextManager[None]:
        """Context manager: this process is the one on the run. Raises RunTaken."""
        path = self.folder / "lock"
        return held(path, otherwise=RunTaken(f"another process is on {path}"))

    def taken(self) -> bool:
        """Whether another process is on the run now."""
        try:
            with self.lock():
                return False
        except RunTaken:
            return True

    def cut(self) -> None:
        """Remove a last line that a kill left half written."""
        if not self.lines_path.exists():
            return
        data = self.lines_path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            write_whole(self.lines_path, whole, alone=True)

    def keep(
        self,
        line: RoundLine,
        weights: bytes | None,
        pseudo: Mapping[SliceId, npt.NDArray[np.uint8]],
    ) -> None:
        """Commit a round with what the next one needs of it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if weights is not None:
            write_whole(self._weights(line.round), weights, alone=True)
        if pseudo:
            buffer = io.BytesIO()
            arrays: dict[str, Any] = {f"{_MASK}{i}": mask for i, mask in pseudo.items()}
            np.savez_compressed(buffer, **arrays)
            write_whole(self._pseudo(line.round), buffer.getvalue(), alone=True)
        with self.lines_path.open("a", encoding="utf-8") as file:
            file.write(line.to_line())
            file.flush()
        for path in (self._weights(line.round - 1), self._pseudo(line.round - 1)):
            path.unlink(missing_ok=True)

    def weights(self, round_: int) -> bytes:
        """The checkpoint that `keep` was given for a round. Raises RecordError."""
        return self._needed(self._weights(round_)).read_bytes()

    def pseudo(self, round_: int) -> dict[SliceId, npt.NDArray[np.uint8]]:
        """The pseudo-labels that `keep` was given for a round. Raises RecordError."""
        with np.load(self._needed(self._pseudo(round_)), allow_pickle=False) as arrays:
            return {name.removeprefix(_MASK): arrays[name] for name in arrays.files}

    def _needed(self, path: Path) -> Path:
        if not path.exists():
            raise RecordError(
                f"{path} is missing, and the next round of this run begins with it; were the "
                f"lines copied without it? Copy it too, or remove {self.lines_path} and "
                f"{self.folder} to run it from the first round"
            )
        return path

    def report(self, step: str, done: int, total: int) -> None:
        """`Progress`: say where the run is, for whoever watches; not at every call."""
        moment = time.monotonic()
        if moment - self._written < _STATUS_EVERY_S and done < total:
            return
        self._written = moment
        write_whole(
            self._status_path, json.dumps([step, done, total]).encode(), flush=False, alone=True
        )

    def status(self) -> str:
        """``train 40/60``, or empty."""
        try:
            step, done, total = json.loads(self._status_path.read_bytes())
        except (OSError, json.JSONDecodeError):
            return ""
        return f"{step} {done}/{total}"

    def _weights(self, round_: int) -> Path:
        return self.folder / f"weights-{round_:03d}.safetensors"

    def _pseudo(self, round_: int) -> Path:
        return self.folder / f"pseudo-{round_:03d}.npz"
