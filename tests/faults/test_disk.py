"""The disk of the store is full, or read-only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ml_backend.embedded.processes import ProcessGroup
from tests.faults.conftest import MakeRig
from tests.faults.disk import SmallDisk, may_mount
from tests.faults.rig import Cell, Rig
from tests.faults.worker import Stop, step, writing

MakeCell = Callable[[Rig, str], Cell]
nightly = pytest.mark.nightly
pytestmark = pytest.mark.skipif(
    not may_mount(), reason="mounting a small disk needs user namespaces"
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with ProcessGroup(tmp_path / "disk-logs") as group:
        yield SmallDisk(group, tmp_path / "disk")


@pytest.mark.parametrize(
    ("moment", "how"),
    [
        pytest.param(step("train", 2), "full", id="full"),
        pytest.param(step("train", 2), "read-only", id="read-only", marks=nightly),
        pytest.param(writing("queue.json"), "full", id="full-publishing", marks=nightly),
    ],
)
def test_the_store_cannot_be_written(
    make_rig: MakeRig, cell: MakeCell, disk: SmallDisk, moment: Stop, how: str
) -> None:
    places = {"store": disk.path / "store", "seen_store": disk.seen / "store"}
    rig = make_rig(**places, inside=disk.inside)
    broken = cell(rig, f"store {how} ({moment.name})")
    worker = rig.gpu_stopped(moment)
    if how == "full":
        disk.fill()
    else:
        disk.mount("ro")
    assert str(disk.seen) in broken.see("store")
    worker.go_on()
    worker.wait_for_line("that the attempt failed cannot be noted")
    if how == "full":
        disk.make_room()
    else:
        disk.mount("rw")
    broken.over()
    broken.recovers()
