"""The experiment of `nextslice simulate`: its data, its runs with a bar each, and its report."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

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

from ml_backend.cli import as_written, console
from ml_backend.cli.progress import round_progress
from ml_backend.cli.tables import whole
from ml_backend.experiment import tables
from ml_backend.experiment.data import Contents, DataSpec, phantom_folder
from ml_backend.experiment.files import RunFiles
from ml_backend.experiment.record import FULLY_SUPERVISED, Experiment
from ml_backend.experiment.runner import Job, run_in_processes
from ml_backend.experiment.summary import Summary
from ml_backend.experiment.tables import effort_table, final_table
from ml_backend.experiment.workers import gpu_workers, run_on_workers
from ml_backend.rounds.schedule import SIMULATE, Schedule
from ml_backend.settings import default_home, load_settings

__all__ = [
    "chosen_device",
    "few_choices",
    "missing",
    "run",
    "show_report",
    "spec_of",
    "warn",
    "workers_schedule",
]

_FEW_CHOICES = 3
"""From so many on, strategies have room to differ."""
_MANY = 5
"""More names than these are counted; and so many classes without a pixel are none, probably."""


def spec_of(
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
        console.print(f"phantom {as_written(phantom)}: generating what is not there yet")
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


def missing(contents: Contents) -> Iterator[str]:
    """What the split makes impossible."""
    move = "where the test slices are one block, --held-out-at moves it"
    if contents.missing_in_test:
        yield f"the test slices hold no {_listed(contents.missing_in_test)}: not measured; {move}"
    if contents.missing_in_pool:
        yield f"the pool holds no {_listed(contents.missing_in_pool)}: not learned; {move}"
    nowhere = [name for name in contents.missing_in_pool if name in contents.missing_in_test]
    if len(nowhere) >= _MANY:
        yield (
            f"{len(nowhere)} classes are in no slice: where no classes.json names them, there are "
            "as many as the largest grey value in a mask says, and each makes a training longer; "
            "is that grey value a class?"
        )
    if contents.unlabelled:
        yield (
            f"left out, {len(contents.unlabelled)} in all, for lack of a labelled pixel in the "
            f"mask: {_first(contents.unlabelled, 3)}"
        )


def _listed(names: Sequence[object]) -> str:
    """The first of ``names``, and how many there are where these are not all."""
    return _first(names, _MANY) + ("" if len(names) <= _MANY else f" ({len(names)} in all)")


def _first(names: Sequence[object], number: int) -> str:
    return ", ".join(map(str, names[:number])) + ("" if len(names) <= number else ", …")


def few_choices(experiment: Experiment) -> Iterator[str]:
    """That strategies can hardly differ, where they can hardly differ."""
    if experiment.rounds > 1 and experiment.choices < _FEW_CHOICES:
        number = experiment.choices
        rounds = f"only {number} round{'' if number == 1 else 's'}" if number else "no round"
        yield (
            f"{experiment.labelled(1)} of {len(experiment.pool)} slices are "
            f"annotated in round 1 and {experiment.k} in each later one, so a strategy has a "
            f"choice in {rounds}: a smaller --k, --held-out or --gap tells more"
        )


def warn(sentences: Iterator[str]) -> None:
    """Each on a line of its own."""
    for sentence in sentences:
        console.print(f"[yellow]{as_written(sentence)}[/yellow]", highlight=False)


def chosen_device(setting: str) -> str:
    """The device that ``auto`` or another name stands for. Imports torch."""
    from ml_backend.rounds.learners import device_of

    return device_of(setting)


class _Board:
    """Progress bars of an experiment: the rounds of all runs, and where the running ones are."""

    def __init__(self, out: Path, jobs: list[Job], experiment: Experiment) -> None:
        self._files = {job: RunFiles(out, *job) for job in jobs}
        self._rounds = {
            job: 1 if job.strategy == FULLY_SUPERVISED else experiment.rounds for job in jobs
        }
        what = TextColumn("{task.description}", markup=False)
        columns = (what, BarColumn(), MofNCompleteColumn())
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


def workers_schedule() -> Schedule:
    """The queues of the gpu workers, after a word on how many there are."""
    schedule, number = gpu_workers(load_settings())
    console.print(_workers_are(number, schedule.queue(SIMULATE).name))
    return schedule


def run(
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


def show_report(folders: list[Path]) -> None:
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
