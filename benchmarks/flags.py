"""How often a healthy round falls by so much that it would be flagged, replayed on experiments.

    python -m benchmarks.flags docs/results/phase*

Every round of a simulation learns all labels of the round before and K more, so none deserves to be
flagged. As in the live loop each is compared with the checkpoint that is served, and a flagged one
is not. The records have one IoU a class for all test slices, so this counts drops of more than the
tolerance, whatever the test over slices would say of them: an upper bound of what is flagged.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_backend.experiment.record import FULLY_SUPERVISED, RoundLine, runs_of
from ml_backend.segmentation.validation import TOLERANCE, drop

__all__ = ["Replay", "replay"]

BEFORE = 0.02
"""The tolerance of the rule that had no test of significance."""


@dataclass(frozen=True)
class Replay:
    """``flagged`` of ``rounds``."""

    rounds: int
    flagged: int

    @property
    def share(self) -> float:
        return self.flagged / self.rounds if self.rounds else 0.0


def replay(runs: Iterable[Sequence[RoundLine]], tolerance: float) -> Replay:
    """The rounds of ``runs`` after the first of each, compared with what is served by then."""
    rounds = flagged = 0
    for lines in runs:
        served = _iou(lines[0])
        for line in lines[1:]:
            rounds += 1
            if drop(_iou(line), served) > tolerance:
                flagged += 1
            else:
                served = _iou(line)
    return Replay(rounds, flagged)


def _iou(line: RoundLine) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in line.iou.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("experiments", nargs="+", type=Path)
    print(f"{'experiment':<24}{'rounds':>8}{f'> {BEFORE}':>16}{f'> {TOLERANCE}':>16}")
    for folder in parser.parse_args().experiments:
        runs = [lines for (name, _), lines in runs_of(folder).items() if name != FULLY_SUPERVISED]
        if not runs:
            continue
        cells = [
            f"{found.flagged} ({found.share:.1%})"
            for found in (replay(runs, BEFORE), replay(runs, TOLERANCE))
        ]
        print(f"{folder.name:<24}{replay(runs, BEFORE).rounds:>8}{cells[0]:>16}{cells[1]:>16}")


if __name__ == "__main__":
    main()
