"""`nextslice simulate`: which strategy suits a data set, measured where the truth is known."""

from __future__ import annotations

import os
import time
from collections.abc import Container, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from al_strategies import available_strategies, get_strategy
from al_strategies.evidence import STANDARD
from ml_backend.cli import app, as_written, console
from ml_backend.cli.progress import round_progress
from ml_backend.cli.reading import (
    ChannelOption,
    DatasetOption,
    LabelsChannelOption,
    LabelsTimeOption,
    TimeOption,
)
from ml_backend.cli.tables import whole
from ml_backend.embedded.processes import stop_on_sigterm
from ml_backend.embedded.stack import default_home
from ml_backend.errors import OptionError
from ml_backend.experiment import tables
from ml_backend.experiment.data import (
    Contents,
    DataSpec,
    load_data,
    phantom_folder,
    phantom_has_test_split,
)
from ml_backend.experiment.files import RunFiles, RunTaken
from ml_backend.experiment.plan import (
    Request,
    check_device,
    keep,
    other_versions,
    plan,
)
from ml_backend.experiment.record import FULLY_SUPERVISED, Experiment, RecordError
from ml_backend.experiment.runner import Job, RunFailed, run_in_processes
from ml_backend.experiment.summary import Summary
from ml_backend.experiment.tables import effort_table, final_table
from ml_backend.experiment.workers import gpu_workers, run_on_workers
from ml_backend.rounds.schedule import SIMULATE, Schedule
from ml_backend.settings import load_settings

__all__ = ["simulate"]

_BLOCK = ("held_out", "held_out_at", "gap")
"""The options that say which slices are held out, where nothing else does."""


_VOLUME = (
    "axis", "dataset", "labels_dataset", "channel", "time", "labels_channel", "labels_time",
)  # fmt: skip
"""The options that say how a volume is read."""

_FEW_CHOICES = 3
"""From so many on, strategies have room to differ."""


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
        _refuse(context, ("labels", *_VOLUME), "with --phantom, which brings its masks")
        if phantom_has_test_split(phantom):
            why = f"with --phantom {phantom}, which has test slices of its own"
            _refuse(context, _BLOCK, why)
    if labels is None:
        _refuse(context, _VOLUME, "without --labels: only a volume has one")


def _check_target(device: str, architecture: str | None, workers: bool) -> None:
    """Raise OptionError for a device or network that no run could use; imports torch if it must."""
    if device != "auto":
        check_device(device, here=not workers)
    elif workers:
        raise OptionError(
            "--workers needs --device cuda or --device cpu, whichever the gpu workers have: what "
            "this machine has says nothing about theirs"
        )
    if architecture is not None:
        from ml_backend.segmentation.checks import check_architecture  # with torch

        check_architecture(architecture, "--architecture")


def _spec(
    data: Path | None,
    labels: Path | None,
    phantom: str | None,
    axis: int,
    datasets: tuple[str | None, str | None],
    chosen: tuple[int | None, int | None],
    labels_chosen: tuple[int | None, int | None],
    gap: float,
    part: float,
    centre: float,
) -> tuple[DataSpec, str]:
    """Where the slices are, and what to call them; a phantom is generated the first time."""
    if data is not None:
        path = data.resolve()
        title = path.name
    else:
        assert phantom is not None
        console.print(f"phantom {phantom}: generating what is not there yet")
        with round_progress(console) as progress:
            path = phantom_folder(phantom, default_home(), progress, os.cpu_count() or 1)
        title = f"phantom {phantom}"
    spec = DataSpec(
        path=str(path),
        labels=None if labels is None else str(labels.resolve()),
        axis=axis,
        fraction=part,
        gap=gap,
        centre=centre,
        dataset=datasets[0],
        labels_dataset=datasets[1],
        channel=chosen[0],
        time=chosen[1],
        labels_channel=labels_chosen[0],
        labels_time=labels_chosen[1],
    )
    return spec, title


def _missing(contents: Contents) -> Iterator[str]:
    """What the split makes impossible."""
    move = "where the test slices are one block, --held-out-at moves it"
    if contents.missing_in_test:
        yield f"the test slices hold no {', '.join(contents.missing_in_test)}: not measured; {move}"
    if contents.missing_in_pool:
        yield f"the pool holds no {', '.join(contents.missing_in_pool)}: not learned; {move}"
    if contents.unlabelled:
        names = ", ".join(map(str, contents.unlabelled[:3]))
        more = "" if len(contents.unlabelled) <= 3 else ", …"
        yield (
            f"left out, {len(contents.unlabelled)} in all, for lack of a labelled pixel in the "
            f"mask: {names}{more}"
        )


def _few_choices(experiment: Experiment) -> Iterator[str]:
    """That strategies can hardly differ, where they can hardly differ."""
    if experiment.rounds > 1 and experiment.choices < _FEW_CHOICES:
        number = experiment.choices
        rounds = f"only {number} round{'' if number == 1 else 's'}" if number else "no round"
        yield (
            f"{experiment.labelled(1)} of {len(experiment.pool)} slices are "
            f"annotated in round 1 and {experiment.k} in each later one, so a strategy has a "
            f"choice in {rounds}: a smaller --k, --held-out or --gap tells more"
        )


def _warn(sentences: Iterator[str]) -> None:
    for sentence in sentences:
        console.print(f"[yellow]{as_written(sentence)}[/yellow]", highlight=False)


def _names(text: str) -> list[str]:
    """The strategies of ``--strategies``, each once, in the order given."""
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


def _device(setting: str) -> str:
    from ml_backend.rounds.learners import device_of

    return device_of(setting)


class _Board:
    """Progress bars of an experiment: the rounds of all runs, and where the running ones are."""

    def __init__(self, out: Path, jobs: list[Job], experiment: Experiment) -> None:
        self._files = {job: RunFiles(out, *job) for job in jobs}
        self._rounds = {
            job: 1 if job.strategy == FULLY_SUPERVISED else experiment.rounds for job in jobs
        }
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self.bars = Progress(*columns, TimeElapsedColumn(), console=console)
        self._total = self.bars.add_task("rounds", total=sum(self._rounds.values()))
        self._tasks: dict[Job, TaskID] = {}
        self._done: dict[Job, int] = {}
        self._ended: set[Job] = set()
        self._looked = 0.0

    def look(self, running: list[Job]) -> None:
        """Draw what the files say, once a second at most."""
        moment = time.monotonic()
        if moment - self._looked < 1.0 and running:
            return
        self._looked = moment
        for job in self._files.keys() - self._ended:
            lines = self._files[job].lines()
            self._done[job] = len(lines)
            if lines and lines[-1].following is None:
                self._ended.add(job)
        # A run that used its pool up has fewer rounds, and none to come.
        whole = sum(self._rounds[job] if job in self._ended else n for job, n in self._done.items())
        self.bars.update(self._total, completed=whole)
        for job in [job for job in self._tasks if job not in running]:
            self.bars.remove_task(self._tasks.pop(job))
        for job in running:
            text = f"  {job.strategy}, seed {job.seed}: {self._files[job].status()}"
            if job not in self._tasks:
                self._tasks[job] = self.bars.add_task(text, total=self._rounds[job])
            self.bars.update(self._tasks[job], description=text, completed=self._done[job])


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
        typer.Option(help="Of the trainings; auto: bfloat16 on a GPU, else float32."),
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
        _report(report)
        return
    if out is None:
        raise OptionError("give --out, a folder for the experiment")
    stop_on_sigterm()
    names = _names(strategies)
    _check_options(context, data, labels, phantom)
    if workers:
        _refuse(context, ("jobs",), "with --workers: as many runs go on as gpu workers listen")
    _check_target(device, architecture, workers)
    schedule = _schedule() if workers else None
    if not 0 < held_out < 1 or gap < 0:
        raise OptionError(
            f"--held-out is {held_out} and --gap {gap}: expected a part between 0 and 1, and no "
            "less than 0"
        )
    spec, title = _spec(
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
        f"{title}: {len(loaded.pool)} slices to choose from, {len(loaded.test)} to test on"
    )
    target = _device(device)  # imports torch: only when nothing above is wrong
    processes = jobs or (1 if target.startswith("cuda") else os.cpu_count() or 1)
    with round_progress(console) as progress:
        contents = loaded.read(progress)
    _warn(_missing(contents))
    request = Request(
        title=title, k=k, start=start, rounds=rounds, spacing=spacing, judged=judged,
        warm_start=warm_start,
        architecture=architecture, steps=steps, full_steps=full_steps, device=target,
        processes=None if workers else processes,
        training={} if precision == "auto" else {"precision": precision},
    )  # fmt: skip
    loaded = loaded.without(contents.unlabelled)
    experiment = keep(out, plan(request, spec, loaded, contents.digest))
    _warn(_few_choices(experiment))
    _warn(other_versions(experiment))
    queue = [Job(name, seed) for seed in range(seeds) for name in names]
    if supervised:
        queue += [Job(FULLY_SUPERVISED, seed) for seed in range(seeds)]
    try:
        _run(out, queue, experiment, processes, schedule)
    except (RunFailed, RunTaken):
        with suppress(RecordError):  # what went wrong is that no run has a round
            _report([out])
        raise
    _report([out])


def _schedule() -> Schedule:
    """The queues of the gpu workers, after a word on how many there are."""
    schedule, number = gpu_workers(load_settings())
    console.print(_workers_are(number, schedule.queue(SIMULATE).name))
    return schedule


def _run(
    out: Path, queue: list[Job], experiment: Experiment, processes: int, schedule: Schedule | None
) -> None:
    """On the gpu workers of ``schedule``, else in processes.

    Raises RunFailed, RunTaken, NoRedis.
    """
    open_runs = [job for job in queue if not RunFiles(out, *job).ended()]
    console.print(f"{len(queue)} runs, {len(queue) - len(open_runs)} of them done before")
    board = _Board(out, queue, experiment)
    with board.bars:
        if schedule is None:
            run_in_processes(out, open_runs, processes, board.look)
        else:
            run_on_workers(schedule, out.resolve(), open_runs, board.look)
        board.look([])


def _workers_are(number: int, queue: str) -> str:
    if number:
        return f"gpu workers that listen on the queue {queue}: {number}"
    return (
        f"[yellow]no gpu worker listens on the queue {queue}: start `nextslice worker gpu`, here "
        "or on a machine that sees the folder[/yellow]; this waits for one"
    )


def _report(folders: list[Path]) -> None:
    """Draw the report of each folder and say what it recommends; several are compared."""
    from ml_backend.experiment.report import compare, write_report

    summaries = []
    for folder in folders:
        written = write_report(folder)
        summaries.append(written.summary)
        default = compare([written.summary]).default
        typer.echo(whole(_standings(written.summary, default)))
        if cost := effort_table(written.summary, default):
            typer.echo(whole(_rich(cost, f"{written.summary.experiment.data}: what labels cost")))
        typer.echo(written.recommendation)
        typer.echo(f"Report: {written.page}")
    if len(summaries) > 1:
        comparison = compare(summaries)
        table = Table(title=f"Mean rank by area over {', '.join(comparison.data)}")
        for column in ("strategy", "mean rank", *comparison.data):
            table.add_column(column, justify="left" if column == "strategy" else "right")
        for name, mean in comparison.mean_ranks.items():
            table.add_row(name, f"{mean:.1f}", *(f"{r:.1f}" for r in comparison.ranks[name]))
        typer.echo(whole(table))
        typer.echo(comparison.reason)


def _standings(summary: Summary, default: str | None) -> Table:
    """The report's final table, best area first."""
    title = f"{summary.experiment.data}: test mIoU, by the area under the curve"
    return _rich(final_table(summary, default), title)


def _rich(content: tables.Table, title: str) -> Table:
    table = Table(title=title)
    for i, column in enumerate(content.head):
        table.add_column(column, justify="right" if i else "left")
    for row in content.rows:
        table.add_row(*row, style="bold" if row[0] == content.marked else "")
    return table
