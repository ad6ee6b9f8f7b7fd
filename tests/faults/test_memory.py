"""The memory of the device is full: less at once, then a sentence.

Here the device is a CPU, and what does not fit is told as CUDA tells it. The slices are too small
to be cut in tiles: that is in `tests.test_room`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ml_backend.rounds.artefacts import METRICS
from tests.faults.rig import Cell, Rig
from tests.faults.worker import MEMORY, step

MakeCell = Callable[[Rig, str], Cell]
_A_SLICE, _NOTHING = 64 * 96, 1


def test_the_memory_holds_a_single_slice(rig: Rig, cell: MakeCell) -> None:
    (rig.folder / MEMORY).write_text(str(_A_SLICE))
    broken = cell(rig, "the GPU's memory holds a single slice")
    worker = rig.gpu_stopped(step("score", 1))
    broken.see("running")
    worker.go_on()
    broken.over()
    broken.recovers()
    said = worker.log.read_text()
    assert "the training goes on with less at once than 14 × 32² pixels" in said
    assert "inference goes on with less at once than 2 × 96² pixels" in said
    training = rig.project.folder.round(1).need(METRICS).training
    assert training["too_much_for_memory"] == ["14 × 32²", "7 × 32²"]


@pytest.mark.nightly
def test_the_memory_holds_nothing_at_all(rig: Rig, cell: MakeCell) -> None:
    memory = rig.folder / MEMORY
    memory.write_text(str(_NOTHING))
    broken = cell(rig, "the GPU's memory is full of something else")
    rig.gpu()
    rig.control()
    rig.hint()
    said = broken.see("failed", within_s=120)
    assert "The memory of cpu is too small for the training. Tried: 14 × 32², 7 × 32²" in said
    assert "set NEXTSLICE_CROP" in said
    memory.unlink()
    broken.over()
    broken.recovers()
