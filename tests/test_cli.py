"""The command as a person meets it: help, lists, and errors in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from al_strategies import available_strategies
from tests.tiny_experiment import write_slices


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
    for command in (
        "demo",
        "up",
        "worker",
        "connect",
        "import",
        "export",
        "segment",
        "rounds",
        "simulate",
    ):
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


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--phantom", "small"], "give --out"),
        (["--out", "{tmp}/o"], "give either --data or --phantom"),
        (["--out", "{tmp}/o", "--data", "{tmp}", "--strategies", "best"], "is called 'best'"),
        (["--out", "{tmp}/o", "--phantom", "huge"], "phantom size is 'huge'"),
        (["--out", "{tmp}/o", "--data", "{tmp}"], "no folder images/"),
        (["--report", "{tmp}"], "holds no experiment.json"),
    ],
)
def test_simulate_says_what_is_wrong_and_leaves_nothing(
    tmp_path: Path, arguments: list[str], says: str
) -> None:
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    done = nextslice("simulate", *given, NEXTSLICE_HOME=str(tmp_path / "home"))
    assert done.returncode == 1
    assert says in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "o").exists()


def test_simulate_runs_an_experiment_and_draws_it(tmp_path: Path) -> None:
    slices = tmp_path / "slices"
    slices.mkdir()
    write_slices(slices)
    out = tmp_path / "out"
    options = ["--data", str(slices), "--strategies", "random,strided", "--rounds", "2", "--k", "2"]
    options += ["--seeds", "1", "--steps", "2", "--full-steps", "2", "--gap", "1"]
    options += ["--precision", "bfloat16"]
    done = nextslice("simulate", *options, "--out", str(out), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    for name in ("random (control)", "strided (control)", "fully supervised"):
        assert name in done.stdout
    assert (out / "report.html").stat().st_size > 10_000
    assert len((out / "rounds.jsonl").read_text().splitlines()) == 5
    assert "trained afresh in bfloat16" in (out / "results.md").read_text()
    again = nextslice("simulate", *options, "--out", str(out))
    assert "3 runs, 3 of them done before" in again.stderr
    other = nextslice("simulate", *options, "--precision", "float32", "--out", str(out))
    assert other.returncode == 1
    assert "training is {'precision': 'bfloat16'} there" in other.stderr.replace("\n", " ")
