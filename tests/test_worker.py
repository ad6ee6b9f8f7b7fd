"""`nextslice worker` on a real Redis."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from rq import SpawnWorker

from ml_backend.cli.worker import Kind, _worker_class
from ml_backend.rounds.schedule import Schedule
from ml_backend.settings import Settings
from tests.conftest import REPOSITORY
from tests.test_cli import nextslice


def imported(module: str) -> bool:
    """A job: whether its process had ``module`` before the job asked for anything."""
    return module in sys.modules


@pytest.mark.parametrize(("kind", "torch"), [("control", False), ("gpu", True)])
def test_a_job_finds_the_loop_imported_and_torch_where_it_trains(
    make_settings: Callable[..., Settings], redis_url: str, kind: str, torch: bool
) -> None:
    schedule = Schedule(make_settings(REDIS_URL=redis_url, NEXTSLICE_QUEUE_PREFIX="warm"))
    queue = schedule.queue(kind)
    modules = ("ml_backend.rounds.jobs", "ml_backend.segmentation.learner", "torch")
    asked = [queue.enqueue(imported, module) for module in modules]

    done = nextslice(
        "worker",
        kind,
        "--burst",
        REDIS_URL=redis_url,
        NEXTSLICE_QUEUE_PREFIX="warm",
        NEXTSLICE_TRAIN_DEVICE="cpu",
        LABEL_STUDIO_API_KEY="token",
        PYTHONPATH=str(REPOSITORY),
    )

    assert done.returncode == 0, done.stderr
    assert [job.return_value(refresh=True) for job in asked] == [True, torch, torch]


def test_a_job_on_a_gpu_gets_an_interpreter_of_its_own() -> None:
    assert _worker_class(Kind.gpu, "cuda:1") is SpawnWorker
