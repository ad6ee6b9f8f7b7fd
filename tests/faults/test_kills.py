"""SIGKILL of a worker: at each step of a round, between two predictions, before the switch."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ml_backend.rounds.artefacts import DRAWING, of_a_round
from tests.faults.conftest import MakeRig
from tests.faults.rig import Cell, Rig
from tests.faults.worker import Stop, flushing, step, writing

MakeCell = Callable[[Rig, str], Cell]
nightly = pytest.mark.nightly

MOMENTS = {
    "sync": step("sync"),
    "train": step("train", 2),
    "score": step("score", 1),
    "select": step("select"),
    "commit": writing("round.json"),
    "publish": step("publish"),
    "between-two-predictions": step("publish", 17),
    "before-the-switch": writing("queue.json"),
    "after-the-switch": writing("published.json"),
}
OFTEN = ("train", "between-two-predictions")


@pytest.mark.parametrize(
    "moment", [pytest.param(name, marks=() if name in OFTEN else nightly) for name in MOMENTS]
)
def test_a_gpu_worker_is_killed(rig: Rig, cell: MakeCell, moment: str) -> None:
    killed(rig, cell(rig, f"gpu worker killed: {moment.replace('-', ' ')}"), MOMENTS[moment])


WRITTEN = [
    file.name for file in of_a_round() if file != DRAWING and not file.name.startswith("further.")
]
"""By a round itself. What a training writes that goes on has kills of its own in test_going_on.py,
what is drawn after an early round below."""


@nightly
@pytest.mark.parametrize("name", WRITTEN)
def test_a_gpu_worker_is_killed_while_it_writes(rig: Rig, cell: MakeCell, name: str) -> None:
    killed(rig, cell(rig, f"gpu worker killed while it writes {name}"), flushing(name))


def killed(rig: Rig, cell: Cell, stop: Stop) -> None:
    worker = rig.gpu_stopped(stop)
    worker.kill()
    said = cell.see("killed")
    assert "Round 1 is not running" in said
    rig.gpu()
    cell.over()
    cell.recovers()


@nightly
@pytest.mark.parametrize(
    ("moment", "when"),
    [(flushing(DRAWING.name), "before it draws"), (step("masks", 2), "after two")],
    ids=["before", "after-two"],
)
def test_a_gpu_worker_is_killed_before_all_masks_of_an_early_round_are_drawn(
    make_rig: MakeRig, cell: MakeCell, moment: Stop, when: str
) -> None:
    """The round is served; its slices get the masks that were still to come."""
    rig = make_rig(labelled=1, early="1")
    broken = cell(rig, f"gpu worker killed at the masks of an early round, {when}")
    rig.gpu_stopped(moment).kill()
    broken.see("waiting")
    rig.gpu()
    broken.over()
    rig.wait_for_masks()
    broken.recovers()


@nightly
def test_the_process_of_a_round_is_killed_for_want_of_memory(rig: Rig, cell: MakeCell) -> None:
    """The worker itself lives on."""
    broken = cell(rig, "process of a training killed, as for want of memory")
    worker = rig.gpu_stopped(step("train", 2))
    worker.kill_job()
    broken.see("killed")
    broken.over()
    broken.recovers()
    assert worker.running
