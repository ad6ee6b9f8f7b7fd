"""What is said of a project's state: with real stores, claims and processes."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rq import Worker
from rq.job import JobStatus
from rq.serializers import JSONSerializer

from ml_backend.embedded.processes import free_port
from ml_backend.rounds import reconcile, switching
from ml_backend.rounds.artefacts import DRAWING, FURTHER, METRICS
from ml_backend.rounds.claim import claimed
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import (
    FurtherRecord,
    MetricsRecord,
    ProjectRecord,
    Published,
    TriesRecord,
)
from ml_backend.rounds.schedule import GPU
from ml_backend.rounds.service import Service
from ml_backend.rounds.status import ProjectStatus, State, project_status
from ml_backend.rounds.store import Store
from ml_backend.settings import Settings
from ml_backend.studio.client import Backend
from ml_backend.studio.label_config import bitmask_config
from tests.conftest import REPOSITORY
from tests.memory_studio import MemoryStudio
from tests.other_deployment import register_other

KEY = "7.1763865028"
HOUR = 3600.0


@pytest.fixture
def project(make_settings: Callable[..., Settings], redis_url: str) -> ConnectedProject:
    """One whose round 2 is published, so that round 3 is next."""
    settings = make_settings(REDIS_URL=redis_url, NEXTSLICE_QUEUE_PREFIX="status")
    project = ConnectedProject(Service(settings), KEY)
    project.folder.published = Published(
        round=2, model_version="nextslice-r002-3fa9c1", classes=["background"], fingerprint="f"
    )
    project.folder.record = ProjectRecord(project=7, key=KEY)
    return project


def note(project: ConnectedProject, **fields: object) -> None:
    project.folder.record = project.record.model_copy(update=fields)


def said(status: ProjectStatus, state: State) -> str:
    (condition,) = [c for c in status.conditions if c.state == state]
    return condition.says


def test_a_project_that_waits_for_labels_says_so_and_leaves_nothing(
    project: ConnectedProject,
) -> None:
    status = project_status(project)
    assert (status.project, status.key, status.round) == (7, KEY, 3)
    assert status.model_version == "nextslice-r002-3fa9c1"
    (condition,) = status.conditions
    assert condition.state == "waiting"
    assert f"begins at {project.settings.k} new annotations" in condition.says
    folder = Path(project.settings.store, project.folder.path)
    assert {file.name for file in folder.iterdir()} == {"project.json", "published.json"}


def test_a_checkpoint_that_is_retired_and_a_project_without_one_say_so(
    project: ConnectedProject,
) -> None:
    published = project.published
    assert published is not None
    project.folder.published = published.model_copy(update={"retired": "class screw is new"})
    assert "without masks: class screw is new" in said(project_status(project), "retired")
    other = ConnectedProject(project.service, "8.1763865028")
    other.folder.record = ProjectRecord(project=8, key=other.key)
    status = project_status(other)
    assert (status.round, status.model_version) == (0, None)
    assert status.has("unpublished")


def test_who_runs_a_round_and_since_when(project: ConnectedProject) -> None:
    note(project, unended=1, began_at=time.time() - HOUR)
    with claimed(project.folder.round(3), ttl_s=60):
        status = project_status(project)
    assert status.holder is not None
    assert status.holder.pid == os.getpid()
    text = said(status, "running")
    assert text.startswith(f"Round 3 is held by process {os.getpid()} on {socket.gethostname()}")
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(status.holder.since))
    assert f"since {since}" in text
    (ago,) = re.findall(r"last sign of life was (\d+) s ago", text)
    assert int(ago) <= time.time() - status.holder.since + 1


def _hold(root: str, path: tuple[str, str], held: Event) -> None:
    with claimed(Store(root).project(*path).round(3), ttl_s=600):
        held.set()
        time.sleep(600)


def test_a_round_whose_worker_was_killed_is_not_running(project: ConnectedProject) -> None:
    context = multiprocessing.get_context("fork")
    held = context.Event()
    path = (project.settings.label_studio_host, KEY)
    worker = context.Process(target=_hold, args=(project.settings.store, path, held))
    worker.start()
    assert held.wait(240)
    began = time.time() - 30
    note(project, unended=1, began_at=began)
    assert project_status(project).has("running")

    worker.kill()
    worker.join()

    status = project_status(project)
    assert status.holder is None
    assert not status.has("running")
    text = said(status, "killed")
    assert text.startswith(f"Round 3 is not running: process {worker.pid} on ")
    next_at = time.strftime("%H:%M:%S", time.localtime(began + 60))
    assert next_at in text


def test_attempts_that_were_killed_again_and_again_are_counted(project: ConnectedProject) -> None:
    note(project, unended=3, began_at=time.time() - HOUR)
    assert "3 attempts at it have begun and not ended" in said(project_status(project), "killed")


def test_an_attempt_whose_round_is_published_has_ended(project: ConnectedProject) -> None:
    """Its process ended, or Redis was gone, before it could note so."""
    note(project, unended=2, began_at=time.time() - 5, last_error="StudioError: 500", attempted=2)
    assert [c.state for c in project_status(project).conditions] == ["waiting"]
    note(project, attempted=3)
    assert project_status(project).has("killed")


def test_an_attempt_that_has_just_begun_is_running(project: ConnectedProject) -> None:
    """It is noted before the round is claimed."""
    note(project, unended=1, began_at=time.time())
    assert said(project_status(project), "running").startswith("Round 3 began at ")


def test_an_attempt_from_the_future_is_not_running(project: ConnectedProject) -> None:
    """As after a clock was put back."""
    note(project, unended=1, began_at=time.time() + 3600)
    assert not project_status(project).has("running")
    assert project_status(project).has("killed")


def test_the_last_error_is_told_until_a_round_succeeds(project: ConnectedProject) -> None:
    note(project, failures=2, failed_at=time.time(), last_error="StudioError: 500")
    text = said(project_status(project), "failed")
    assert text.startswith(
        "The last attempt failed (2×): StudioError: 500. It is tried again from "
    )

    note(project, failures=5)
    assert "at 8 labels that no attempt has seen" in said(project_status(project), "failed")
    project.folder.round(3).save(METRICS, MetricsRecord())
    text = said(project_status(project), "failed")
    assert text.endswith("StudioError: 500. It is tried again only after Start Training.")
    note(project, failures=0, last_error=None)
    assert not project_status(project).has("failed")


def test_a_round_that_waits_for_a_worker_says_for_which(project: ConnectedProject) -> None:
    queue = project.service.schedule.queue(GPU)
    project.schedule.round("8 new annotations", 3)
    try:
        text = said(project_status(project), "queued")
        assert text.startswith("Round 3 is asked for and waits: no gpu worker runs")
        others = register_other(queue)
        assert said(project_status(project), "queued") == text
        others.register_death()
        worker = Worker([queue], connection=queue.connection, serializer=JSONSerializer)
        worker.register_birth()
        assert "none of the gpu workers that listen (1)" in said(project_status(project), "queued")
        worker.register_death()
    finally:
        queue.empty()


def told(project: ConnectedProject) -> str:
    return " ".join(condition.says for condition in project_status(project).conditions)


def paused(project: ConnectedProject, **fields: object) -> ConnectedProject:
    note(project, settings={"pause": True}, **fields)
    return again(project)


def again(project: ConnectedProject) -> ConnectedProject:
    return ConnectedProject(project.service, project.key)


@pytest.fixture
def asked(project: ConnectedProject) -> Iterator[None]:
    """Round 3 waits for a gpu worker."""
    project.schedule.round("8 new annotations", 3)
    yield
    project.service.schedule.queue(GPU).empty()


@pytest.mark.usefixtures("asked")
def test_of_a_round_that_is_asked_for_is_not_said_at_what_it_begins(
    project: ConnectedProject,
) -> None:
    drawing = TriesRecord(failures=3, failed_at=time.time(), last_error="UnreadableSlices: 9")
    project.folder.round(2).save(DRAWING, drawing)
    assert project_status(project).has("queued")
    assert "begins at" not in told(project)
    assert "could not be drawn (3×): UnreadableSlices: 9." in told(project)
    note(project, failures=5, failed_at=time.time(), last_error="StudioError: 500")
    assert "The last attempt failed (5×)" in told(project)
    assert "tried again" not in told(project)


@pytest.mark.usefixtures("asked")
def test_of_a_paused_project_nothing_is_said_to_begin(project: ConnectedProject) -> None:
    states = [c.state for c in project_status(paused(project)).conditions]
    assert states == ["paused"], "no worker begins the round that is asked for"
    failed = paused(project, failures=2, failed_at=time.time(), last_error="StudioError: 500")
    assert "The last attempt failed (2×): StudioError: 500." in told(failed)
    assert "tried again" not in told(failed)
    killed = paused(project, failures=0, last_error=None, unended=1, attempted=3,
                    began_at=time.time() - HOUR)  # fmt: skip
    assert "the next goes on from the last finished step" in said(project_status(killed), "killed")
    for other in (failed, killed):
        assert "nextslice project set 7 pause=false" in said(project_status(other), "paused")
        assert "may begin" not in told(other)


def test_of_a_round_that_is_given_up_is_not_said_that_it_may_begin(
    project: ConnectedProject,
) -> None:
    note(project, failures=5, failed_at=time.time() - HOUR, last_error="StudioError: 500",
         unended=1, attempted=3, began_at=time.time() - HOUR)  # fmt: skip
    assert "at 8 labels that no attempt has seen" in told(project)
    assert "may begin" not in told(project)


def test_a_project_that_is_retired_and_paused_says_both(project: ConnectedProject) -> None:
    published = project.published
    assert published is not None
    project.folder.published = published.model_copy(update={"retired": "class screw is new"})
    status = project_status(paused(project))
    assert "without masks: class screw is new." in said(status, "retired")
    assert said(status, "paused").startswith("No round begins: the project is paused.")


def test_masks_that_cannot_be_drawn_are_told_of_a_paused_project_too(
    project: ConnectedProject,
) -> None:
    """A pause does not hold them up; the training that goes on it does."""
    tries = {"failures": 3, "failed_at": time.time(), "last_error": "UnreadableSlices: 9"}
    project.folder.round(2).save(DRAWING, TriesRecord(**tries))
    project.folder.round(2).save(FURTHER, FurtherRecord(**tries))
    note(project, settings={"pause": True, "further_minutes": 10.0})
    text = said(project_status(project), "paused")
    drawing, _, further = text.partition("The training that goes on after it failed")
    assert "could not be drawn (3×): UnreadableSlices: 9. It is tried again from " in drawing
    assert further.endswith(" It is tried again when the project goes on.")


ASKED = " A training is asked for"


def ask_to_train(project: ConnectedProject, *, retired: bool) -> ConnectedProject:
    """Somebody asks for it, and a round has not begun yet."""
    note(project, start_requested_at="2026-11-30T12:00:00+00:00")
    published = project.published
    assert published is not None
    if retired:
        project.folder.published = published.model_copy(update={"retired": "class screw is new"})
    return again(project)


@pytest.mark.parametrize("retired", [False, True])
def test_a_training_that_is_asked_for_before_there_is_a_label_is_told(
    project: ConnectedProject, retired: bool
) -> None:
    project = ask_to_train(project, retired=retired)
    text = said(project_status(project), "retired" if retired else "waiting")
    assert text.endswith(f"{ASKED}: it begins as soon as a look finds an annotated slice.")
    assert said(project_status(paused(project)), "paused").endswith(" begins then.")


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("retired", [False, True])
def test_a_training_whose_round_is_queued_is_not_said_to_wait_for_labels(
    project: ConnectedProject, retired: bool
) -> None:
    status = project_status(ask_to_train(project, retired=retired))
    assert said(status, "queued").startswith("Round 3 is asked for and waits: no gpu worker runs.")
    text = said(status, "retired" if retired else "waiting")
    assert text.endswith(" trains anew." if retired else " is served.")


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("retired", [False, True])
def test_a_training_whose_job_has_just_begun_is_not_said_to_wait_for_labels(
    project: ConnectedProject, retired: bool
) -> None:
    """A worker is at the job, and has not noted the attempt yet."""
    found = project.service.schedule.job(project.schedule.job_id("round"))
    assert found is not None
    found[0].set_status(JobStatus.STARTED)
    status = project_status(ask_to_train(project, retired=retired))
    assert said(status, "retired" if retired else "waiting").endswith(f"{ASKED}.")


@pytest.mark.parametrize("retired", [False, True])
@pytest.mark.parametrize("tried", [True, False])
def test_a_training_that_is_asked_for_is_all_that_is_known_of_it_without_redis(
    make_settings: Callable[..., Settings], project: ConnectedProject, retired: bool, tried: bool
) -> None:
    ask_to_train(project, retired=retired)
    nowhere = make_settings(REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")
    status = project_status(ConnectedProject(Service(nowhere), KEY), redis=tried)
    assert status.has("redis") == tried
    assert said(status, "retired" if retired else "waiting").endswith(f"{ASKED}.")


def test_round_0_is_held_up_by_no_pause(project: ConnectedProject) -> None:
    other = ConnectedProject(project.service, "8.1763865028")
    other.folder.record = ProjectRecord(
        project=8, key=other.key, settings={"pause": True}, failures=1,
        failed_at=time.time(), last_error="StudioError: 500",
    )  # fmt: skip
    assert "tried again at each look" in said(project_status(other), "failed")


def test_a_redis_that_does_not_answer_is_named_and_the_rest_told(
    make_settings: Callable[..., Settings], project: ConnectedProject
) -> None:
    nowhere = make_settings(REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")
    status = project_status(ConnectedProject(Service(nowhere), KEY))
    assert said(status, "redis").startswith("Redis does not answer (")
    assert status.has("waiting")


def test_backends_that_fight_over_a_project_are_named(
    make_settings: Callable[..., Settings], redis_url: str
) -> None:
    settings = make_settings(REDIS_URL=redis_url, NEXTSLICE_QUEUE_PREFIX="fight")
    studio: Any = MemoryStudio(bitmask_config(["bone"]), 9, lambda _: np.zeros((8, 9)))
    studio.backend = Backend(id=1, url=settings.backend_url, title="nextslice")
    project = ConnectedProject(Service(settings, studio=studio), KEY)
    project.update(lambda record: None, adopting=True)
    reconcile.count(project)
    theirs = "nextslice-r004-abcdef"
    studio.import_predictions(7, [{"task": 0, "model_version": theirs, "score": 0, "result": []}])
    studio.other_backends = [
        Backend(id=2, url="http://other:9090", title=theirs),
        Backend(id=3, url="http://sam:9090", title="sam"),
    ]
    for time_ in range(3):
        assert not project_status(project).has("contended"), time_
        studio.update_project(7, model_version=theirs)
        switching.repair(project, project.in_studio())

    text = said(project_status(project), "contended")
    assert text.startswith("Another nextslice, with a store of its own, switches project 7 away")
    assert f"3 times in the last 10 minutes, last to {theirs} at " in text
    assert "Also connected: http://other:9090. " in text
    assert project.in_studio().model_version == project.published.model_version  # type: ignore[union-attr]

    backs = [b.model_copy(update={"moment": b.moment - 700}) for b in project.record.switched_back]
    note(project, switched_back=backs)
    assert not project_status(project).has("contended")


_ON_A_SMALL_DISK = """
import subprocess, sys
from ml_backend.rounds.store import Store, StoreFault
root = sys.argv[1]
store = Store(root)
def told(act):
    try:
        act()
    except StoreFault as error:
        print(error)
store.write("h/7.1/project.json", b"{}")
store.check_writable("h/7.1")
told(lambda: store.write("h/7.1/round-0001/weights.safetensors", bytes(1 << 20)))
store.create("h/7.1/round-0001/claims/000002.json", b"{}")
subprocess.run(["mount", "-o", "remount,ro", root], check=True)
told(lambda: store.check_writable("h/7.1"))
told(lambda: store.create("h/7.1/round-0001/claims/000001.json", b"{}"))
told(lambda: store.remove("h/7.1/project.json"))
print(store.read("h/7.1/project.json").decode())
"""


def _may_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not _may_mount(), reason="mounting a small disk needs user namespaces")
def test_a_store_that_is_full_or_read_only_is_named_with_its_path(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=128k none "$1" && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", tmp_path, sys.executable, _ON_A_SMALL_DISK],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=True,
    )
    where = f"The store's {tmp_path}/h/7.1"
    full = "cannot be written: No space left on device. Free space there"
    fixed = "Read-only file system. Its disk is mounted read-only"
    lines = done.stdout.splitlines()
    starts = [
        f"{where}/round-0001/weights.safetensors {full}",
        f"{where}/.nextslice-probe cannot be written: {fixed}",
        f"{where}/round-0001/claims/000001.json cannot be written: {fixed}",
        f"{where}/project.json cannot be deleted: {fixed}",
        "{}",
    ]
    assert len(lines) == len(starts), lines
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start)


def test_a_store_that_cannot_be_written_is_a_state(project: ConnectedProject) -> None:
    folder = Path(project.settings.store, project.folder.path)
    probe = folder / ".nextslice-probe"
    probe.mkdir()  # nothing can be written under this name
    (probe / "x").touch()
    text = said(project_status(project), "store")
    assert text.startswith(f"The store's {probe} cannot be written: Is a directory.")
    assert "no round begins or goes on" in text
