"""The command as a person meets it: help, lists, and errors in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from al_strategies import available_strategies


def nextslice(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ml_backend.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "COLUMNS": "200", **env},
    )


def test_help_lists_the_commands() -> None:
    shown = nextslice("--help").stdout
    for command in ("demo", "up", "worker", "connect", "rounds", "strategies"):
        assert command in shown


def test_strategies_lists_every_one() -> None:
    shown = nextslice("strategies")
    assert shown.returncode == 0
    for info in available_strategies():
        assert info.name in shown.stdout


def test_an_unknown_strategy_is_refused_before_anything_starts(tmp_path: Path) -> None:
    done = nextslice("demo", "--headless", "--strategy", "best", NEXTSLICE_HOME=str(tmp_path))
    assert done.returncode == 1
    assert "--strategy: found 'best', expected one of" in done.stderr
    assert "coreset" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    done = nextslice("demo", "--headless", "--data", str(tmp_path), NEXTSLICE_HOME=str(tmp_path))
    assert done.returncode == 1
    assert "images" in done.stderr
    assert "Traceback" not in done.stderr


def test_rounds_without_a_project_says_what_to_do(tmp_path: Path) -> None:
    done = nextslice("rounds", "list", NEXTSLICE_STORE=str(tmp_path), LABEL_STUDIO_API_KEY="t")
    assert done.returncode == 1
    assert "Connect one first" in done.stderr


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"LABEL_STUDIO_API_KEY": ""}, "LABEL_STUDIO_API_KEY is empty"),
        (
            {"LABEL_STUDIO_API_KEY": "t", "LABEL_STUDIO_URL": "http://127.0.0.1:9"},
            "cannot be reached",
        ),
        ({"LABEL_STUDIO_URL": "nonsense"}, "found 'nonsense'"),
    ],
)
def test_connect_says_what_is_wrong(env: dict[str, str], says: str) -> None:
    done = nextslice("connect", "1", **env)
    assert done.returncode == 1
    assert says in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
