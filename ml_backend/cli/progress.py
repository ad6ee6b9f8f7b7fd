"""Progress bars for what a round and a demo do: one bar a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from al_strategies.learner import Progress as Report

__all__ = ["round_progress"]


@contextmanager
def round_progress(console: Console) -> Iterator[Report]:
    """A callback ``progress(step, done, total)`` that draws a bar for each step."""
    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as bars:
        tasks: dict[str, int] = {}

        def report(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total or None)
            bars.update(tasks[step], completed=done, total=total or None)  # type: ignore[arg-type]

        yield report
