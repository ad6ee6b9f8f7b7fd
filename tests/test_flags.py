"""Healthy rounds, replayed: which would have been flagged for a drop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.flags import Replay, replay
from tests.experiment_folder import line, write_experiment


def test_each_is_compared_with_what_is_served() -> None:
    """The third is lower than the first, which goes on being served after the second."""
    lines = [line(miou=miou) for miou in (0.8, 0.7, 0.74, 0.76, 0.72)]

    assert replay([lines], 0.05) == Replay(rounds=4, flagged=2)


def test_a_class_without_a_value_is_left_out() -> None:
    lines = [
        line(miou=0.8, iou={"background": 0.9, "bone": 0.7}),
        line(miou=0.9, iou={"background": 0.9, "bone": None}),
    ]

    assert replay([lines], 0.0) == Replay(rounds=1, flagged=0)


def test_the_command_says_how_many(tmp_path: Path) -> None:
    write_experiment(tmp_path / "small", {"random": [[0.6, 0.57, 0.8]]}, full=[0.9])

    said = subprocess.run(
        [sys.executable, "-m", "benchmarks.flags", str(tmp_path / "small")],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip

    assert said.splitlines()[1].split() == ["small", "2", "1", "(50.0%)", "0", "(0.0%)"]


@pytest.mark.parametrize("flagged", [0, 3])
def test_a_share_is_of_all_rounds(flagged: int) -> None:
    assert Replay(rounds=60, flagged=flagged).share == flagged / 60
