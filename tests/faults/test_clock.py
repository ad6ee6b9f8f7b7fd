"""The clock of the machine is moved by an hour between two signs of life."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from rq.job import Job
from rq.utils import utcformat

from tests.faults.rig import Cell, Rig
from tests.faults.worker import step

MakeCell = Callable[[Rig, str], Cell]
nightly = pytest.mark.nightly
HOUR_S = 3600


@pytest.fixture(autouse=True)
def _our_clock_too(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """`rounds list` runs on the same machine."""
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + float(rig.clock.read_text() or 0))


@nightly
@pytest.mark.parametrize("by", [HOUR_S, -HOUR_S], ids=["forward", "back"])
def test_the_clock_is_moved_while_a_round_trains(rig: Rig, cell: MakeCell, by: int) -> None:
    way = "forward" if by > 0 else "back"
    broken = cell(rig, f"clock moved an hour {way} while a round trains")
    worker = rig.gpu_stopped(step("train", 2))
    rig.clock.write_text(str(by))
    broken.see("running", 60)
    worker.go_on()
    broken.over()
    broken.recovers()
    assert rig.holder_token() == 1


def test_the_clock_is_put_back_after_a_worker_was_killed(rig: Rig, cell: MakeCell) -> None:
    """The next attempt does not wait until the hour has come again."""
    broken = cell(rig, "clock put back an hour after the gpu worker was killed")
    rig.clock.write_text(str(HOUR_S))
    worker = rig.gpu_stopped(step("train", 2))
    worker.kill()
    job = Job.key_for(rig.project.schedule.job_id("round"))
    in_an_hour = utcformat(datetime.now(UTC) + timedelta(seconds=HOUR_S))
    rig.service.schedule.connection.hset(job, "last_heartbeat", in_an_hour)
    rig.clock.write_text("0")
    broken.see("killed")
    rig.gpu()
    broken.over(skip_pauses=False)
    broken.recovers(within_s=100)
