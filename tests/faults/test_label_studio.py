"""Label Studio is down, slow or refuses, while the pool is scored and in other steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.rig import Cell, K, Rig
from tests.faults.studio import FaultyStudio
from tests.faults.worker import Stop, step

MakeCell = Callable[[Rig, str], Cell]
nightly = pytest.mark.nightly
TROUBLES = ("down", "slow", "500", "429", "401")


def break_studio(studio: FaultyStudio, how: str) -> None:
    if how == "down":
        studio.down()
    elif how == "slow":
        studio.quick.clear()
    else:
        studio.status = int(how)


def mend_studio(studio: FaultyStudio, how: str) -> None:
    if how == "down":
        studio.up()
    studio.quick.set()
    studio.status = None


def name(how: str) -> str:
    return f"Label Studio {how if how in ('down', 'slow') else f'answers {how}'}"


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=() if how == "500" else nightly) for how in TROUBLES]
)
def test_label_studio_fails_while_the_pool_is_scored(
    rig: Rig, cell: MakeCell, studio: FaultyStudio, how: str
) -> None:
    broken = cell(rig, f"{name(how)} while the pool is scored")
    gate = studio.gate(lambda method, path: path == f"/{K + 4}.png")
    worker = rig.gpu()
    rig.control()
    rig.hint()
    gate.wait()
    # In a thread of its own: the request that stands before the gate belongs to the server.
    break_studio(studio, how)
    gate.opened.set()
    if how != "slow":
        worker.wait_for_line("asked for again")
    broken.see("running")
    mend_studio(studio, how)
    broken.over()
    broken.recovers()


@nightly
@pytest.mark.parametrize("how", [how for how in TROUBLES if how != "slow"])
@pytest.mark.parametrize("moment", [step("sync"), step("publish", 17)], ids=["sync", "publish"])
def test_label_studio_fails_in_another_step(
    rig: Rig, cell: MakeCell, studio: FaultyStudio, moment: Stop, how: str
) -> None:
    """The attempt fails, and is made again."""
    broken = cell(rig, f"{name(how)} ({moment.name})")
    worker = rig.gpu_stopped(moment)
    break_studio(studio, how)
    worker.go_on()
    assert "Label Studio" in broken.see("failed", 120)
    mend_studio(studio, how)
    broken.over()
    broken.recovers()
