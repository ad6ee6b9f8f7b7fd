"""The learning curve of a project, as a table, a picture, and what the last round brought.

python docs/scripts/learning_curve.py PROJECT OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from ml_backend.export import export_learning_curve, find_project
from ml_backend.rounds.service import Service


def main(project: str, out: Path) -> None:
    found = find_project(Service.from_environment(), project)
    points = export_learning_curve(found.folder, out / "curve.csv", out / "curve.png")
    measured = [(point.annotated, point.miou) for point in points if point.miou is not None]
    for (before, old), (after, new) in zip(measured[-2:-1], measured[-1:], strict=True):
        print(f"{after - before} more slices: mIoU {new - old:+.3f}, now {new:.3f}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
