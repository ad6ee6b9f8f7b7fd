"""A worker is killed and leaves a claim that cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.rig import Cell, Rig
from tests.faults.worker import step

MakeCell = Callable[[Rig, str], Cell]
nightly = pytest.mark.nightly


@nightly
@pytest.mark.parametrize("how", ["garbage", "empty", "cut"])
def test_a_claim_is_damaged(rig: Rig, cell: MakeCell, how: str) -> None:
    broken = cell(rig, f"claim of a killed worker damaged: {how}")
    worker = rig.gpu_stopped(step("train", 2))
    worker.kill()
    folder = rig.project.folder.round(1)
    claim = Path(rig.project.settings.store, folder.path, "claims", "000001.json")
    whole = claim.read_bytes()
    claim.write_bytes({"garbage": b"\xff\x00" * 40, "empty": b"", "cut": whole[:40]}[how])
    assert "whose claim, token 1, cannot be read" in broken.see("running")
    rig.gpu()
    broken.over()
    broken.recovers()
    assert rig.holder_token() == 2
