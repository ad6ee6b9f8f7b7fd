"""`nextslice simulate`: which strategy suits a data set, measured where the truth is known."""

from __future__ import annotations

import os
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import typer

from ml_backend.cli import app, as_written, console
from ml_backend.cli.progress import round_progress
from ml_backend.cli.reading import (
    ChannelOption,
    DatasetOption,
    LabelsChannelOption,
    LabelsTimeOption,
    TimeOption,
)
from ml_backend.errors import OptionError

__all__ = ["simulate"]

_BLOCK = ("held_out", "held_out_at", "gap")
"""The options that say which slices are held out, where nothing else does."""


_VOLUME = (
    "axis", "dataset", "labels_dataset", "channel", "time", "labels_channel", "labels_time",
)  # fmt: skip
"""The options that say how a volume is read."""


def _refuse(context: typer.Context, names: Container[str | None], why: str) -> None:
    """Raise OptionError when one of the options ``names`` is on the command line."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in names and _on_command_line(context, parameter.name)
    ]
    if given:
        raise OptionError(f"{' and '.join(given)} cannot be given {why}")


def _on_command_line(context: typer.Context, name: str | None) -> bool:
    source = context.get_parameter_source(name or "")
    return source is not None and source.name == "COMMANDLINE"


def _check_options(
    context: typer.Context, data: Path | None, labels: Path | None, phantom: str | None
) -> None:
    """Raise OptionError for what does not go together, before anything is read."""
    if (data is None) == (phantom is None):
        raise OptionError("give either --data or --phantom")
    if phantom is not None:
        from ml_backend.experiment.data import phantom_has_test_split

        _refuse(context, ("labels", *_VOLUME), "with --phantom, which brings its masks")
        if phantom_has_test_split(phantom):
            why = f"with --phantom {phantom}, which has test slices of its own"
            _refuse(context, _BLOCK, why)
    if labels is None:
        _refuse(context, _VOLUME, "without --labels: only a volume has one")


def _check_target(device: str, architecture: str | None, workers: bool) -> None:
    """Raise OptionError for a device or network that no run could use; imports torch if it must."""
    if device != "auto":
        from ml_backend.experiment.plan import check_device

        check_device(device, here=not workers)
    elif workers:
        raise OptionError(
            "--workers needs --device cuda or --device cpu, whichever the gpu workers have: what "
            "this machine has says nothing about theirs"
        )
    if architecture is not None:
        from ml_backend.segmentation.checks import check_architecture  # with torch

        check_architecture(architecture, "--architecture")


def _names(text: str) -> list[str]:
    """The strategies of ``--strategies``, each once, in the order given."""
    from al_strategies import available_strategies, get_strategy
    from al_strategies.evidence import STANDARD

    if text == "all":
        names = [info.name for info in available_strategies()]
        return [name for name in names if not get_strategy(name).beyond(STANDARD)]
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if unknown := get_strategy(name).beyond(STANDARD):
            raise ValueError(
                f"strategy {name!r} needs {', '.join(unknown)}, which the network does not compute"
            )
    return names


@app.command()
def simulate(
    context: typer.Context,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the experiment; the same one to go on.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with images/ and masks/, or a volume: TIFF stack or folder, HDF5/NeXus, "
            "OME-Zarr, NIfTI, .npy, folder of PNG, x.raw with x.raw.json."
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="The label volume, where --data is a volume; of any of these formats."),
    ] = None,
    dataset: DatasetOption = None,
    labels_dataset: Annotated[
        str | None, typer.Option(help="The same, of the label volume; both may be in one file.")
    ] = None,
    channel: ChannelOption = None,
    time: TimeOption = None,
    labels_channel: LabelsChannelOption = None,
    labels_time: LabelsTimeOption = None,
    axis: Annotated[
        int, typer.Option(min=0, max=2, help="Axis that a volume's slices cut: 0 is z, 1 y, 2 x.")
    ] = 0,
    phantom: Annotated[str | None, typer.Option(help="A generated data set: small, seed.")] = None,
    strategies: Annotated[str, typer.Option(help="Comma-separated names; all: every one.")] = "all",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of a run.")] = 10,
    k: Annotated[int, typer.Option(min=1, help="Slices per round.")] = 8,
    start: Annotated[
        int | None, typer.Option(min=1, help="Slices of round 1 (default: k).")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each strategy.")] = 3,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Runs side by side here (default: cores, or 1 on a GPU)."),
    ] = None,
    supervised: Annotated[
        bool, typer.Option(help="Also train on the whole pool, as the ceiling.")
    ] = True,
    warm_start: Annotated[
        bool, typer.Option("--warm-start/--fresh", help="Train on from the round before.")
    ] = False,
    spacing: Annotated[bool, typer.Option(help="Keep slices apart, as the live loop does.")] = True,
    judged: Annotated[
        bool,
        typer.Option(
            "--judged/--all-taught",
            help="Hold a fifth of what is annotated out of the trainings, as the live loop does.",
        ),
    ] = False,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of a training (default: by the labels).")
    ] = None,
    full_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the ceiling (default: a whole run's).")
    ] = None,
    architecture: Annotated[str | None, typer.Option(help="Default: by device.")] = None,
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(
            help="Of the trainings; auto: bfloat16 on a GPU, and on a CPU with AMX where the "
            "network has filters, as the default has; else float32."
        ),
    ] = "auto",
    device: Annotated[
        str,
        typer.Option(help="cuda, cuda:1, cpu; auto: cuda when there, not with --workers."),
    ] = "auto",
    held_out: Annotated[
        float, typer.Option(help="Part of each volume to test on, one block along z.")
    ] = 0.2,
    held_out_at: Annotated[
        float, typer.Option(min=0, max=1, help="Where along z: 0 at its start, 0.5 in the middle.")
    ] = 0.5,
    gap: Annotated[float, typer.Option(help="Dropped on each side of that block, z units.")] = 5.0,
    workers: Annotated[
        bool,
        typer.Option("--workers", help="Let the RQ gpu workers run it, on --device (REDIS_URL)."),
    ] = False,
    report: Annotated[
        list[Path] | None, typer.Option(help="Only draw this experiment; several: compare them.")
    ] = None,
) -> None:
    """Rank the strategies on slices whose masks are known.

    Interrupted, it goes on from the last whole round when it is called again. Exit code 1: a run
    failed; 75: none did, but another process is still on some.
    """
    if report:
        others = context.params.keys() - {"report"}
        _refuse(context, others, "with --report, which draws an experiment where it is")
        from ml_backend.cli.experiment import show_report

        show_report(report)
        return
    if out is None:
        raise OptionError("give --out, a folder for the experiment")
    names = _names(strategies)
    _check_options(context, data, labels, phantom)
    if workers:
        _refuse(context, ("jobs",), "with --workers: as many runs go on as gpu workers listen")
    _check_target(device, architecture, workers)

    # what is wrong on the command line has been said without these
    from ml_backend.cli.experiment import (
        chosen_device,
        few_choices,
        missing,
        run,
        show_report,
        spec_of,
        warn,
        workers_schedule,
    )
    from ml_backend.experiment.data import load_data
    from ml_backend.experiment.files import RunTaken
    from ml_backend.experiment.plan import Request, check_folder, keep, other_versions, plan
    from ml_backend.experiment.record import FULLY_SUPERVISED, RecordError
    from ml_backend.experiment.runner import Job, RunFailed

    check_folder(out)
    schedule = workers_schedule() if workers else None
    if not 0 < held_out < 1 or not gap >= 0:
        raise OptionError(
            f"--held-out is {held_out} and --gap {gap}: expected a part between 0 and 1, and no "
            "less than 0"
        )
    spec, title = spec_of(
        data,
        labels,
        phantom,
        axis,
        (dataset, labels_dataset),
        (channel, time),
        (labels_channel, labels_time),
        gap,
        held_out,
        held_out_at,
    )
    loaded = load_data(spec)
    if loaded.named:
        _refuse(context, _BLOCK, f"for {title}, whose volumes.json names the test slices")
    console.print(
        f"{as_written(title)}: {len(loaded.pool)} slices to choose from, "
        f"{len(loaded.test)} to test on"
    )
    target = chosen_device(device)  # imports torch: only when nothing above is wrong
    processes = jobs or (1 if target.startswith("cuda") else os.cpu_count() or 1)
    with round_progress(console) as progress:
        contents = loaded.read(progress)
    warn(missing(contents))
    request = Request(
        title=title, k=k, start=start, rounds=rounds, spacing=spacing, judged=judged,
        warm_start=warm_start,
        architecture=architecture, steps=steps, full_steps=full_steps, device=target,
        processes=None if workers else processes,
        training={} if precision == "auto" else {"precision": precision},
    )  # fmt: skip
    loaded = loaded.without(contents.unlabelled)
    experiment = keep(out, plan(request, spec, loaded, contents.digest))
    warn(few_choices(experiment))
    warn(other_versions(experiment))
    queue = [Job(name, seed) for seed in range(seeds) for name in names]
    if supervised:
        queue += [Job(FULLY_SUPERVISED, seed) for seed in range(seeds)]
    try:
        run(out, queue, experiment, processes, schedule)
    except (RunFailed, RunTaken):
        with suppress(RecordError):  # what went wrong is that no run has a round
            show_report([out])
        raise
    show_report([out])
