"""What make says of a target that is none."""

from __future__ import annotations

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


def test_plain_make_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = [line.split(":")[0] for line in text.splitlines() if ": " in line and "## " in line]
    assert len(targets) > 10
    for target in [one for one in targets if one.isalpha()]:
        assert f"  make {target} " in done.stdout
