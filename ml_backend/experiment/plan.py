"""From what a person asks for to an `Experiment` on disk, or the same one again."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ml_backend.durable import write_whole
from ml_backend.errors import OptionError
from ml_backend.experiment.data import Data, DataSpec
from ml_backend.experiment.record import Experiment, RecordError, load_experiment
from ml_backend.settings import DEVICE

__all__ = ["Request", "check_device", "check_folder", "keep", "other_versions", "plan"]

_LIBRARIES = ("torch", "timm", "numpy")
_MAY_DIFFER = {"versions", "threads", "data", "source"}


@dataclass(frozen=True)
class Request:
    """What is asked for; None means the default for device and data.

    ``processes``: runs side by side on this machine, which share its cores; None: RQ workers do
    them one at a time, each with as many threads as torch takes where it runs (`OMP_NUM_THREADS`).
    """

    title: str
    k: int = 8
    start: int | None = None
    rounds: int = 10
    spacing: bool = True
    judged: bool = False
    warm_start: bool = False
    architecture: str | None = None
    steps: int | None = None
    full_steps: int | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    processes: int | None = 1


def check_device(device: str, *, here: bool) -> None:
    """Raise OptionError unless ``device`` is ``cpu``, ``cuda`` or ``cuda:1``, ….

    ``here``: this machine must have it as well; torch is imported to see that, for CUDA alone.
    """
    if not re.fullmatch(DEVICE, device):
        raise OptionError(f"--device is {device!r}, expected cpu, cuda, cuda:1, …, or auto")
    if here and device != "cpu":
        from ml_backend.segmentation.checks import check_gpu

        check_gpu(device, "--device")


def plan(request: Request, spec: DataSpec, data: Data, data_hash: str) -> Experiment:
    """The experiment of ``request`` on ``data``."""
    from ml_backend.segmentation.networks import default_architecture

    architecture = request.architecture or default_architecture(request.device)
    return Experiment(
        data=request.title,
        source=dict(vars(spec)),
        data_hash=data_hash,
        classes=list(data.classes),
        pool=data.positions(data.pool),
        test=data.positions(data.test),
        k=request.k,
        start=request.k if request.start is None else request.start,
        rounds=request.rounds,
        cold_start="strided",
        spacing=request.spacing,
        judged=request.judged,
        warm_start=request.warm_start,
        architecture=architecture,
        steps=request.steps,
        full_steps=request.full_steps or _whole_run(request, data, architecture),
        training=dict(request.training),
        device=request.device,
        threads=_threads(request.processes),
        versions=_versions() | _precision(request, architecture),
    )


def check_folder(out: Path) -> None:
    """RecordError where something else is at ``out`` than an experiment or an empty folder: what
    an experiment writes there replaces files of the same names. Hidden files do not count."""
    if (out / "experiment.json").exists() or not out.exists():
        return
    if not out.is_dir():
        raise RecordError(
            f"{out} is a file, expected a folder for the experiment: give another --out"
        )
    found = sorted(one.name for one in out.iterdir() if not one.name.startswith("."))
    if found:
        raise RecordError(
            f"{out} holds something else ({found[0]}) and no experiment.json, expected an "
            "experiment, or an empty or new folder: give another --out"
        )


def keep(out: Path, wanted: Experiment) -> Experiment:
    """Write `experiment.json`; where there is one, check that it is the same experiment.

    Runs may be added to an experiment, but what its lines have in common stays. The number of
    threads is that of the first time: another one gives other rounding. Slices that moved are found
    where they are now: their hash says that they are the same.

    Other versions of the libraries are let through, and `other_versions` names them: what was
    written stays what the first rounds were computed with.

    Raises RecordError that names every difference, and as `check_folder`.
    """
    check_folder(out)
    if not (out / "experiment.json").exists():
        return _write(out, wanted)
    recorded = load_experiment(out)
    before, now = recorded.model_dump(), wanted.model_dump()
    differing = [
        f"{name} is {_short(before[name])} there, {_short(now[name])} now"
        for name in before
        if name not in _MAY_DIFFER and before[name] != now[name]
    ]
    if differing:
        raise RecordError(
            f"{out} holds another experiment: {'; '.join(differing)}. Give the options of then, or "
            "another --out"
        )
    if recorded.source != wanted.source:
        return _write(out, recorded.model_copy(update={"source": wanted.source}))
    return recorded


def other_versions(experiment: Experiment) -> Iterator[str]:
    """A sentence for each library that is not as it was when the experiment began, and one where
    trainings compute in another precision."""
    now = _versions()
    if "precision" in experiment.versions:
        now |= _usual_precision(experiment.architecture, experiment.device)
    for name, before in experiment.versions.items():
        if name in now and now[name] != before:
            yield (
                f"{name} was {before} when this experiment began and is {now[name]} here: rounds "
                "from now on may not be comparable to those before"
            )


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("nextslice", *_LIBRARIES)}


def _precision(request: Request, architecture: str) -> dict[str, str]:
    """That of the trainings, where nobody asked for one; nothing of RQ workers, which may run
    elsewhere."""
    if request.processes is None or "precision" in request.training:
        return {}
    return _usual_precision(architecture, request.device)


def _usual_precision(architecture: str, device: str) -> dict[str, str]:
    """Nothing where the device is another machine's."""
    import torch

    from ml_backend.segmentation.training import usual_precision

    if device != "cpu" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        return {}
    return {"precision": usual_precision(architecture, device)}


def _threads(processes: int | None) -> int:
    """CPU threads of a run; 0 leaves them to torch, on the machine of the worker."""
    return 0 if processes is None else max(1, (os.cpu_count() or 1) // processes)


def _write(out: Path, experiment: Experiment) -> Experiment:
    write_whole(out / "experiment.json", experiment.model_dump_json(indent=1).encode())
    return experiment


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _whole_run(request: Request, data: Data, architecture: str) -> int:
    """Optimiser steps of all rounds of a run together."""
    labelled = _labelled(request, len(data.pool))
    if request.steps is not None:
        return request.steps * len(labelled)
    from ml_backend.segmentation.training import TrainingConfig

    height, width = data.source.image(data.pool[0]).shape[:2]
    return sum(
        TrainingConfig.usual(
            architecture, request.device, (height, width), n, len(data.classes)
        ).steps
        for n in labelled
    )


def _labelled(request: Request, pool: int) -> list[int]:
    """Annotated slices in each round of a run, which ends when it has annotated the whole pool."""
    start = request.k if request.start is None else request.start
    counts = [min(start + request.k * i, pool) for i in range(request.rounds)]
    return counts[: counts.index(pool) + 1] if pool in counts else counts
