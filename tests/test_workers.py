"""Runs of an experiment on a real RQ worker."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ml_backend.experiment.files import RunFiles
from ml_backend.experiment.runner import Job, RunFailed
from ml_backend.experiment.workers import NoRedis, gpu_workers, run_on_workers
from ml_backend.rounds.schedule import SIMULATE, Schedule
from ml_backend.settings import Settings
from tests.tiny_experiment import experiment, write_slices


def test_a_gpu_worker_runs_them_and_says_what_failed(
    tmp_path: Path, redis_url: str, make_settings: Callable[..., Settings]
) -> None:
    slices = tmp_path / "slices"
    slices.mkdir()
    out = experiment(tmp_path / "out", write_slices(slices), rounds=2)
    schedule = Schedule(make_settings(REDIS_URL=redis_url, NEXTSLICE_QUEUE_PREFIX="simulate-test"))
    env = {**os.environ, "REDIS_URL": redis_url, "NEXTSLICE_QUEUE_PREFIX": "simulate-test"}
    assert schedule.listening(SIMULATE) == 0
    worker = subprocess.Popen([sys.executable, "-m", "ml_backend.cli", "worker", "gpu"], env=env)
    try:
        jobs = [Job("random", 0), Job("no_such_strategy", 0)]
        with pytest.raises(RunFailed, match="no_such_strategy, seed 0: Unknown") as failure:
            run_on_workers(schedule, out, jobs, lambda running: None)
        assert "log.txt" not in str(failure.value)  # it is the worker's
        assert schedule.listening(SIMULATE) == 1
    finally:
        worker.terminate()
        worker.wait()
    assert [line.round for line in RunFiles(out, "random", 0).lines()] == [1, 2]


def test_a_run_that_waits_is_enqueued_once(
    tmp_path: Path, redis_url: str, make_settings: Callable[..., Settings]
) -> None:
    schedule = Schedule(make_settings(REDIS_URL=redis_url, NEXTSLICE_QUEUE_PREFIX="twice"))
    ids = {
        schedule.run("ml_backend.experiment.runner.run_one", str(tmp_path), "random", seed)
        for seed in (0, 1, 0)
    }
    assert len(ids) == 2
    (first, second) = schedule.queue(SIMULATE).jobs
    assert first.func_name == "ml_backend.experiment.runner.run_one"
    assert (first.args, second.args) == ([str(tmp_path), "random", 0], [str(tmp_path), "random", 1])
    assert not schedule.ended(first.id)


def test_a_redis_that_does_not_answer_is_named(
    tmp_path: Path, make_settings: Callable[..., Settings]
) -> None:
    settings = make_settings(REDIS_URL="redis://127.0.0.1:9/0")
    with pytest.raises(NoRedis, match=r"127\.0\.0\.1:9.*set REDIS_URL"):
        gpu_workers(settings)
    with pytest.raises(NoRedis, match="set REDIS_URL"):
        run_on_workers(Schedule(settings), tmp_path, [Job("random", 0)], lambda running: None)
