"""Redis is killed while a round trains, and comes back with what it held or empty."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.conftest import MakeRig
from tests.faults.rig import Cell, Rig
from tests.faults.worker import Stop, step

MakeCell = Callable[[Rig, str], Cell]
nightly = pytest.mark.nightly


@pytest.mark.parametrize(
    ("moment", "empty"),
    [
        pytest.param(step("train", 2), True, id="training-empty"),
        pytest.param(step("train", 2), False, id="training", marks=nightly),
        pytest.param(step("publish", 17), True, id="publishing-empty", marks=nightly),
        pytest.param(step("publish", 17), False, id="publishing", marks=nightly),
    ],
)
def test_redis_is_killed(make_rig: MakeRig, cell: MakeCell, moment: Stop, empty: bool) -> None:
    how = "comes back empty" if empty else "comes back with its data"
    rig = make_rig(redis_url=None)
    broken = cell(rig, f"Redis killed ({moment.name}), {how}")
    worker = rig.gpu_stopped(moment)
    rig.kill_redis()
    broken.see("redis")
    worker.go_on()
    rig.start_redis(empty=empty)
    broken.over()
    broken.recovers()
    assert worker.running


@nightly
def test_redis_is_killed_between_two_rounds(make_rig: MakeRig, cell: MakeCell) -> None:
    """What was asked for is forgotten; a look finds it out."""
    rig = make_rig(redis_url=None)
    broken = cell(rig, "Redis killed while a round waits, comes back empty")
    rig.control()
    rig.hint()
    broken.see("queued")
    rig.kill_redis()
    broken.see("redis")
    rig.start_redis(empty=True)
    rig.gpu()
    broken.over()
    broken.recovers()
