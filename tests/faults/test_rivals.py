"""Two gpu workers on one round, and two backends on one project."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ml_backend.embedded.stack import settings_from
from ml_backend.rounds import reconcile
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.schedule import GPU
from ml_backend.rounds.service import Service
from ml_backend.studio.client import Backend
from tests.faults.cells import wait_until
from tests.faults.rig import Cell, Rig
from tests.faults.studio import FaultyStudio
from tests.faults.worker import step

MakeCell = Callable[[Rig, str], Cell]
nightly = pytest.mark.nightly


def ask_twice(rig: Rig) -> None:
    """The round is asked for under another name, as by a Redis that forgot the first job."""
    rig.service.schedule.enqueue(
        GPU, f"{rig.env['NEXTSLICE_QUEUE_PREFIX']}-second", "ml_backend.rounds.jobs.round",
        rig.project.key, "test", 1,
    )  # fmt: skip


def test_two_gpu_workers_take_one_round(rig: Rig, cell: MakeCell) -> None:
    broken = cell(rig, "two gpu workers on one round")
    first = rig.gpu_stopped(step("train", 2))
    second = rig.gpu()
    ask_twice(rig)
    second.wait_for_line("is held by process")
    broken.see("running")
    first.go_on()
    broken.over()
    broken.recovers()
    assert rig.holder_token() == 1


@nightly
def test_a_worker_that_slept_finds_its_round_taken(rig: Rig, cell: MakeCell) -> None:
    """It writes nothing more, though it was in the middle of its training."""
    broken = cell(rig, "gpu worker frozen for longer than a claim holds, then awake again")
    first = rig.gpu_stopped(step("train", 2))
    first.freeze()
    second = rig.gpu()
    broken.see("killed", 200)
    broken.over()
    ask_twice(rig)
    wait_until(lambda: rig.holder_token() == 2, "the second claim", 240, 0.05)
    second.wait_for_line("is published", 240)
    first.go_on()
    first.thaw()
    first.wait_for_line("was taken over with token 2")
    broken.recovers()


@nightly
def test_two_backends_look_after_one_project(
    rig: Rig, cell: MakeCell, studio: FaultyStudio
) -> None:
    broken = cell(rig, "two backends, each with a store of its own, on one project")
    url = "http://127.0.0.1:10"
    studio.memory.other_backends = [Backend(id=2, url=url, title="nextslice")]
    env = {
        "NEXTSLICE_STORE": f"{rig.env['NEXTSLICE_STORE']}-of-the-other",
        "NEXTSLICE_QUEUE_PREFIX": f"{rig.env['NEXTSLICE_QUEUE_PREFIX']}-other",
        "NEXTSLICE_BACKEND_URL": url,
        "NEXTSLICE_SEED": "5",
        "NEXTSLICE_COLD_START": "random",
    }
    other = ConnectedProject(Service(settings_from({**rig.env, **env})), rig.project.key)
    other.update(lambda record: None, adopting=True)
    reconcile.count(other)
    rig.control()
    rival = rig.control(**env)
    assert "Another nextslice" in broken.see("contended", 400)
    rival.kill()
    studio.memory.other_backends = []
    rig.gpu()
    broken.over()
    broken.recovers()
