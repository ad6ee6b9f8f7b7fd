"""The backend, or the control worker, is killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from ml_backend.embedded.processes import free_port, kill_tree
from ml_backend.embedded.stack import start_backend
from tests.faults.cells import wait_until
from tests.faults.rig import Cell, K, Rig, closing
from tests.faults.studio import FaultyStudio, faulty_studio
from tests.faults.worker import step
from tests.http_studio import CONFIG

MakeCell = Callable[[Rig, str], Cell]
nightly = pytest.mark.nightly


@nightly
def test_the_backend_is_killed_while_a_round_trains(
    tmp_path: Path, redis_url: str, cell: MakeCell
) -> None:
    """Hints of that time are lost; once there again it serves what was published meanwhile."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (
        faulty_studio(url) as studio,
        closing(Rig(tmp_path, studio, redis_url=redis_url, backend_url=url)) as rig,
    ):
        broken = cell(rig, "backend killed while a round trains")
        backend = start_backend(rig.group, port, rig.env)
        worker = rig.gpu_stopped(step("train", 2))
        rig.group.forget(backend)
        kill_tree(backend)
        broken.see("running")
        worker.go_on()
        broken.over()
        start_backend(rig.group, port, rig.env)
        broken.recovers()
        published = rig.project.published
        assert published is not None

        def serves() -> bool:
            body = {"project": rig.project.key, "schema": CONFIG, "hostname": studio.url}
            answer = requests.post(f"{url}/setup", json=body, timeout=10)
            return bool(answer.json()["model_version"] == published.model_version)

        wait_until(serves, "the published version", 30)


@nightly
def test_the_control_worker_is_killed_while_it_fills_the_queue(
    rig: Rig, cell: MakeCell, studio: FaultyStudio
) -> None:
    """K of the queue are labelled: as many are appended."""
    broken = cell(rig, "control worker killed while it fills the queue")
    gate = studio.gate(lambda method, path: path.endswith("import/predictions"))
    control = rig.control()
    rig.hint()
    gate.wait()
    control.kill()
    gate.opened.set()
    broken.see("queued")
    rig.control()
    rig.gpu()
    broken.over()
    broken.recovers()


@nightly
def test_no_control_worker_runs_when_people_label(rig: Rig, cell: MakeCell) -> None:
    broken = cell(rig, "control worker killed, hints are lost")
    control = rig.control()
    rig.gpu()
    rig.hint()
    rig.wait_for_round(1)
    rig.wait_for_quiet()
    control.kill()
    rig.label(range(K, 2 * K))
    broken.see("waiting")
    rig.control()
    broken.over()
    broken.recovers(2)
