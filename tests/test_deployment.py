"""Whose workers those are that take jobs of the queues."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rq import Worker
from rq.serializers import JSONSerializer

from ml_backend.rounds.deployment import QueuesTaken, check_queues, named_store, our_workers
from ml_backend.rounds.schedule import CONTROL, GPU, Schedule, WorkerSign
from ml_backend.rounds.store import Store
from ml_backend.rounds.worker import ForkingWorker
from ml_backend.settings import Settings

HERE = socket.gethostname()


def of(store: str) -> Settings:
    """Settings of this store; that its library is installed is not looked at."""
    return Settings.model_construct(store=store)


class Queues:
    """A schedule with one worker, which says of itself what `ForkingWorker` says."""

    def __init__(self, settings: Settings, host: str) -> None:
        studio, store = settings.label_studio_host, named_store(settings)
        self._sign = WorkerSign(host, os.getpid(), "idle", "", studio, store, 0.0)

    def workers(self, kind: str) -> list[WorkerSign]:
        return [self._sign] if kind == CONTROL else []


def check(one: Settings, other: Settings, host: str) -> None:
    """Raise QueuesTaken where ``other`` may not work beside a worker of ``one`` on ``host``."""
    queues: Any = Queues(one, host)
    check_queues(queues, other)


@pytest.mark.parametrize("host", [HERE, "another-machine"])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("memory://lab/nextslice", "memory://lab/nextslice/"),
        ("/data/rounds", "/data/rounds/"),
        ("/data/rounds", "file:///data/rounds"),
        ("file:///data/rounds/", "local:///data/./rounds"),
        ("~/rounds", f"{Path.home()}/rounds"),
    ],
)
def test_a_store_that_is_spelt_in_two_ways_is_one(one: str, other: str, host: str) -> None:
    first, second = of(one), of(other)
    assert os.path.realpath(Store(one).root) == os.path.realpath(Store(other).root)
    check(first, second, host)
    check(second, first, host)


@pytest.mark.parametrize(
    ("one", "other", "host"),
    [
        ("s3://lab/nextslice", "s3://lab/other", "another-machine"),
        ("sftp://first/rounds", "sftp://second/rounds", "another-machine"),
        ("s3://lab/rounds", "gs://lab/rounds", "another-machine"),
        ("/data/rounds", "/data/other", HERE),
        ("/data/rounds", "s3://data/rounds", HERE),
    ],
)
def test_two_stores_are_two_deployments_and_what_to_compare_is_said_first(
    one: str, other: str, host: str
) -> None:
    first, second = of(one), of(other)
    for others, ours in ((first, second), (second, first)):
        with pytest.raises(QueuesTaken, match=r"NEXTSLICE_STORE alike.*NEXTSLICE_QUEUE_PREFIX"):
            check(others, ours, host)


@pytest.mark.parametrize("one", ["/data/rounds", "s3://lab/rounds"])
def test_a_folder_of_another_machine_may_be_any_store(one: str) -> None:
    """Also a bucket, mounted there or here."""
    first, second = of(one), of("/mnt/rounds")
    check(first, second, "another-machine")
    check(second, first, "another-machine")


def test_a_password_of_the_store_is_told_to_nobody() -> None:
    assert named_store(of("sftp://me:secret@host/rounds/")) == "sftp://me:***@host/rounds"


def test_our_workers_are_those_of_our_label_studio_and_store(
    make_settings: Callable[..., Settings],
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that do not say whom they work for are ours."""
    common = {"REDIS_URL": redis_url, "NEXTSLICE_QUEUE_PREFIX": "deployment"}
    ours = make_settings(**common, NEXTSLICE_STORE=tmp_path)
    schedule = Schedule(ours)
    queue = schedule.queue(CONTROL)

    def began(kind: type[Worker], settings: Settings) -> Worker:
        monkeypatch.setattr("ml_backend.rounds.worker.load_settings", lambda: settings)
        worker = kind([queue], connection=queue.connection, serializer=JSONSerializer)
        worker.register_birth()
        return worker

    moved = make_settings(**common, NEXTSLICE_STORE=tmp_path / "moved")
    elsewhere = make_settings(
        **common, NEXTSLICE_STORE=tmp_path, LABEL_STUDIO_URL="http://lab-a.example"
    )
    workers = [began(ForkingWorker, settings) for settings in (moved, elsewhere)]
    try:
        assert our_workers(schedule, ours, CONTROL) == []
        assert schedule.listening(CONTROL) == 2
        workers += [began(ForkingWorker, ours), began(Worker, ours)]
        assert len(our_workers(schedule, ours, CONTROL)) == 2
        assert len(our_workers(schedule, elsewhere, CONTROL)) == 2
        assert our_workers(schedule, ours, GPU) == []
    finally:
        for worker in workers:
            worker.register_death()
