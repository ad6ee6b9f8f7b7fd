"""The runs of an experiment on RQ gpu workers, of any machine that sees the experiment's folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ml_backend.experiment.files import RunFiles
from ml_backend.experiment.runner import Job, RunFailed, failures, run_one
from ml_backend.rounds.schedule import Schedule

__all__ = ["run_on_workers"]

_POLL_S = 1.0
_ENTRY_POINT = f"{run_one.__module__}.{run_one.__name__}"


def run_on_workers(
    schedule: Schedule, out: Path, jobs: Sequence[Job], watch: Callable[[list[Job]], None]
) -> None:
    """Enqueue ``jobs`` for ``nextslice worker gpu`` and wait until the last has ended.

    ``out`` must be the same path on every worker's machine. ``watch(running)`` once a second.
    Interrupted, the jobs go on; called again, it waits for them. Raises RunFailed at the end, with
    the error of each run that failed.
    """
    ids = {job: schedule.run(_ENTRY_POINT, str(out), *job) for job in jobs}
    waiting = list(jobs)
    while waiting:
        time.sleep(_POLL_S)
        waiting = [job for job in waiting if not schedule.ended(ids[job])]
        watch([job for job in waiting if RunFiles(out, *job).status()])
    failed = [job for job in jobs if not RunFiles(out, *job).ended()]
    if failed:
        raise RunFailed("\n".join(failures(out, failed)))
