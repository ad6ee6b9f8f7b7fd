"""One run of an experiment, and many of them side by side: processes of this machine or RQ workers.

`run_one` is what every process and every worker does: go on with a run from its last whole round.
What all runs of a seed have in common, the first training, is done once.
"""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from al_strategies import Selection, get_strategy
from al_strategies.effort import Correction
from al_strategies.learner import FitReport, Learner, Metrics
from al_strategies.simulation import (
    Learned,
    Protocol,
    SimulatedRound,
    Start,
    begin,
    fully_supervised,
    learn,
    simulate,
)
from ml_backend.durable import held, write_whole
from ml_backend.errors import NextsliceError, TimeUp
from ml_backend.experiment.data import Data, DataSpec, load_data
from ml_backend.experiment.files import RunFiles, RunTaken
from ml_backend.experiment.plan import other_versions
from ml_backend.experiment.record import (
    FULLY_SUPERVISED,
    Cost,
    Experiment,
    RoundLine,
    Validation,
    finite,
    load_experiment,
)
from ml_backend.settings import asked_log_level, configure_logging

__all__ = ["Job", "RunFailed", "check_ended", "run_in_processes", "run_one"]

logger = logging.getLogger(__name__)

_POLL_S = 0.5


class RunFailed(NextsliceError, RuntimeError):
    """A run ended with an error; the message holds it and where its log is."""


class Job(NamedTuple):
    """One run: a strategy (or `FULLY_SUPERVISED`) and a seed."""

    strategy: str
    seed: int


def run_one(out: str, strategy: str, seed: int) -> None:
    """Take the run from its last whole round to its end; nothing where it has ended.

    Called by dotted name in processes and RQ workers, so its arguments are plain. Raises RunTaken
    when another process is on it, RecordError, and whatever the learner raises.
    """
    root = Path(out)
    files = RunFiles(root, strategy, seed)
    with files.lock():
        files.failure_path.unlink(missing_ok=True)
        if files.ended():
            return
        try:
            _Run(root, files, Job(strategy, seed)).go_on()
        except (Exception, TimeUp) as error:
            write_whole(files.failure_path, f"{type(error).__name__}: {error}".encode(), alone=True)
            raise


class _Run:
    """A run in this process."""

    def __init__(self, out: Path, files: RunFiles, job: Job) -> None:
        import torch

        from ml_backend.rounds.learners import LearnerConfig, new_learner

        self.out, self.files, self.job = out, files, job
        self.experiment = load_experiment(out)
        for difference in other_versions(self.experiment):
            logger.warning("%s", difference)
        if self.experiment.threads:
            torch.set_num_threads(self.experiment.threads)
        self.data: Data = load_data(DataSpec(**self.experiment.source))
        self.protocol = _protocol(self.experiment, job)
        config = LearnerConfig(
            architecture=self.experiment.architecture,
            warm_start=self.experiment.warm_start,
            training=_training(self.experiment, job),
        )
        self.learner: Learner = new_learner(self.data.classes, config, self.experiment.device)

    def go_on(self) -> None:
        self.files.cut()
        # The ceiling scores nothing, so any strategy will do.
        name = "random" if self.job.strategy == FULLY_SUPERVISED else self.job.strategy
        rounds = simulate(
            get_strategy(name),
            self.learner,
            self.data.source,
            self.protocol,
            start=self._start(),
            progress=self.files.report,
        )
        for done in rounds:
            following = done.following
            weights = following and self.experiment.warm_start and self.learner.to_bytes()
            self.files.keep(
                _line(self.job, done), weights or None, following.pseudo if following else {}
            )

    def _start(self) -> Start:
        if self.job.strategy == FULLY_SUPERVISED:
            return fully_supervised(self.protocol, FULLY_SUPERVISED)
        lines = self.files.lines()
        if not lines:
            return self._first()
        last = lines[-1]
        assert last.following is not None
        if self.experiment.warm_start:
            self.learner.load_bytes(self.files.weights(last.round))
        selection = Selection.from_json(last.following)
        return Start(
            round=last.round + 1,
            labelled=tuple(i for line in lines for i in line.selected),
            selection=selection,
            pseudo=self.files.pseudo(last.round) if selection.pseudo else {},
            cost=_correction(last.following_cost),
            before=_metrics(last.following_before),
        )

    def _first(self) -> Start:
        """Round 1 with its training done: the same for every strategy of a seed, so done once."""
        start = begin(self.data.source, self.protocol, self.data.classes)
        stem = self.out / "start" / f"seed-{self.job.seed}"
        record, weights = stem.with_suffix(".json"), stem.with_suffix(".safetensors")
        with held(stem.with_suffix(".lock")):
            if record.exists():
                learned = _learned_from(json.loads(record.read_text()))
            else:
                learned = learn(
                    self.learner, self.data.source, self.protocol, start, self.files.report
                )
                write_whole(weights, self.learner.to_bytes(), alone=True)
                write_whole(record, json.dumps(_learned_record(learned)).encode(), alone=True)
        # Also where it was trained just now: what a run computes must not depend on who came first.
        self.learner.load_bytes(weights.read_bytes())
        return replace(start, learned=learned)


def _protocol(experiment: Experiment, job: Job) -> Protocol:
    return Protocol(
        pool=tuple(experiment.pool),
        test=tuple(experiment.test),
        k=experiment.k,
        rounds=1 if job.strategy == FULLY_SUPERVISED else experiment.rounds,
        start=experiment.start,
        cold_start=experiment.cold_start,
        spaced=experiment.spacing,
        judged=experiment.judged and job.strategy != FULLY_SUPERVISED,
        seed=job.seed,
    )


def _training(experiment: Experiment, job: Job) -> dict[str, Any]:
    steps = experiment.full_steps if job.strategy == FULLY_SUPERVISED else experiment.steps
    return {**experiment.training, **({} if steps is None else {"steps": steps})}


def _line(job: Job, done: SimulatedRound) -> RoundLine:
    metrics, report = done.learned.metrics, done.learned.report
    return RoundLine(
        strategy=job.strategy,
        seed=job.seed,
        round=done.start.round,
        labelled=len(done.start.training),
        selected=[str(i) for i in done.start.selection.chosen],
        pseudo=[str(i) for i in done.start.pseudo],
        miou=metrics.miou,
        iou=finite(metrics.iou),
        accuracy=metrics.accuracy,
        steps=report.steps,
        loss=report.losses[-1][1] if report.losses else None,
        seconds={name: round(value, 3) for name, value in done.seconds.items()},
        validation=_validation(done.learned.validation),
        before=_validation(done.start.before),
        cost=_cost(done.start.cost),
        following=done.following.selection.to_json() if done.following else None,
        following_cost=_cost(done.following.cost) if done.following else None,
        following_before=_validation(done.following.before) if done.following else None,
    )


def _validation(metrics: Metrics | None) -> Validation | None:
    if metrics is None or math.isnan(metrics.miou):
        return None
    return Validation(slices=metrics.slices, miou=metrics.miou, iou=finite(metrics.iou))


def _metrics(found: Validation | None) -> Metrics | None:
    return None if found is None else Metrics(found.miou, _nan(found.iou), math.nan, found.slices)


def _nan(iou: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in iou.items()}


def _cost(correction: Correction | None) -> Cost | None:
    return None if correction is None else Cost(**asdict(correction))


def _correction(cost: Cost | None) -> Correction | None:
    return None if cost is None else Correction(**cost.model_dump())


def _learned_record(learned: Learned) -> dict[str, Any]:
    report, metrics = learned.report, learned.metrics
    found = _validation(learned.validation)
    return {
        "steps": report.steps,
        "slices": report.slices,
        "losses": report.losses,
        "settings": report.settings,
        "miou": metrics.miou,
        "iou": finite(metrics.iou),
        "accuracy": metrics.accuracy,
        "tested": metrics.slices,
        "validation": found.model_dump() if found else None,
        "seconds": dict(learned.seconds),
    }


def _learned_from(record: dict[str, Any]) -> Learned:
    seconds = record["seconds"]
    found = record.get("validation")
    losses = tuple((int(step), float(loss)) for step, loss in record["losses"])
    return Learned(
        FitReport(record["steps"], record["slices"], seconds["train"], losses, record["settings"]),
        Metrics(record["miou"], _nan(record["iou"]), record["accuracy"], record["tested"]),
        _metrics(Validation(**found)) if found else None,
        seconds,
    )


# -- many runs


def run_in_processes(
    out: Path, jobs: Sequence[Job], processes: int, watch: Callable[[list[Job]], None]
) -> None:
    """Run ``jobs``, at most ``processes`` at a time, each in an interpreter of its own.

    ``watch(running)`` twice a second. A run that fails, or that another process is on, does not
    stop the others; `check_ended` raises at the end. An exception in ``watch`` (Ctrl-C) stops all.
    """
    context = multiprocessing.get_context("spawn")
    waiting = list(jobs)
    running: dict[Job, Any] = {}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                job = waiting.pop(0)
                running[job] = context.Process(target=_child, args=(str(out), *job), daemon=True)
                running[job].start()
            next(iter(running.values())).join(_POLL_S)
            for job, process in list(running.items()):
                if process.exitcode is not None:
                    del running[job]
            watch(list(running))
    finally:
        for process in running.values():
            process.terminate()
            process.join()
    check_ended(out, jobs)


def check_ended(out: Path, jobs: Sequence[Job]) -> None:
    """Say what became of those of ``jobs`` that have not ended, a line each.

    Raises RunFailed when one of them failed, RunTaken when other processes are on all of them.
    """
    lines: list[str] = []
    failed = False
    for job in jobs:
        files = RunFiles(out, *job)
        # In this order: a run that another process ends meanwhile is neither taken nor failed.
        taken = files.taken()
        if files.ended():
            continue
        failed = failed or not taken
        what = "another process is on it" if taken else _failure(files)
        lines.append(f"{job.strategy}, seed {job.seed}: {what}")
    if failed:
        raise RunFailed("\n".join(lines))
    if lines:
        raise RunTaken("\n".join([*lines, "The same command goes on with what they leave"]))


def _failure(files: RunFiles) -> str:
    """What went wrong in a run, and where its log is, if it has one: a worker's are elsewhere."""
    what = files.failure_path.read_text() if files.failure_path.exists() else "it was killed"
    return f"{what} (log: {files.log_path})" if files.log_path.exists() else what


def _child(out: str, strategy: str, seed: int) -> None:
    """`run_one` in a process that ends with its parent and writes to its own log."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    log = RunFiles(Path(out), strategy, seed).log_path
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    configure_logging(asked_log_level() or "WARNING")
    try:
        run_one(out, strategy, seed)
    except RunTaken:  # and so is its log
        sys.exit(1)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _end_with(parent: Any) -> None:
    # A parent that was killed cannot stop us; the run would hold its lock and go on alone.
    parent.join()
    os._exit(1)
