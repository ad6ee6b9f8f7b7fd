"""What a round and a demo do: a bar a step, and lines with the time of day."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ml_backend.cli import console as people

if TYPE_CHECKING:
    from al_strategies.learner import Progress as Report

__all__ = ["round_progress", "say"]


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


def say(text: str) -> None:
    """A line for people that begins with the time of day."""
    people.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {text}", highlight=False)
