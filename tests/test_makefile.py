"""What make says of a target that is none."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("target", ["tests", "ml_backend", "tset"])
def test_a_target_that_is_none_lists_those_there_are(target: str) -> None:
    done = subprocess.run(
        ["make", target], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert f"there is no target {target}" in done.stderr
    assert "  make test " in done.stderr
    assert "  make check " in done.stderr


def test_every_benchmark_that_make_runs_is_a_script() -> None:
    """One that others import, or that needs the folder above on its path, would end the row."""
    done = subprocess.run(
        ["make", "-n", "bench"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    paths = re.findall(r"benchmarks/\w+\.py", done.stdout)
    assert len(paths) > 10
    for path in paths:
        lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
        assert 'if __name__ == "__main__":' in lines, path
        ours = [i for i, line in enumerate(lines) if line.startswith("from benchmarks")]
        finds = [i for i, line in enumerate(lines) if line.startswith("sys.path.insert(")]
        assert not ours or (finds and finds[0] < ours[0]), path


def test_plain_make_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = [line.split(":")[0] for line in text.splitlines() if ": " in line and "## " in line]
    assert len(targets) > 10
    for target in [one for one in targets if one.isalpha()]:
        assert f"  make {target} " in done.stdout
