"""`nextslice rounds`: what each round did, running one now, and freeing space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table

from al_strategies.holdout import MINIMUM_JUDGED
from ml_backend.cli import app, as_written, console
from ml_backend.cli.progress import round_progress
from ml_backend.cli.tables import whole
from ml_backend.rounds.artefacts import METRICS, ROUND
from ml_backend.rounds.attempt import attempt
from ml_backend.rounds.effort import EffortTotals, totals_of
from ml_backend.rounds.project import find_project, known_project, stored_projects
from ml_backend.rounds.publish import known_queue
from ml_backend.rounds.reconcile import request_start
from ml_backend.rounds.records import MetricsRecord, Published, QueueRecord, RoundRecord
from ml_backend.rounds.service import Service
from ml_backend.rounds.status import project_status
from ml_backend.rounds.store import ProjectStore
from ml_backend.settings import configure_logging

__all__ = ["rounds_app"]

rounds_app = typer.Typer(
    help="List a project's rounds, run one now, or free space.", no_args_is_help=True
)
app.add_typer(rounds_app, name="rounds")

_NAMED = 8
"""Slices that a row of the table names."""
_COLUMNS = ("round", "model version", "annotated", "corrected px", "s/slice", "strategy",
            "validation mIoU", "s")  # fmt: skip


def _score(metrics: MetricsRecord | None) -> str:
    return "–" if metrics is None or metrics.miou is None else f"{metrics.miou:.3f}"


def _corrected(totals: EffortTotals | None) -> str:
    """``1,234 (4.7 %)``: pixels of a slice that were corrected, on average."""
    return "–" if totals is None else f"{totals.per_slice:,.0f} ({totals.share:.1%})"


def _lead_time(totals: EffortTotals | None) -> str:
    return "–" if totals is None or totals.median_s is None else f"{totals.median_s:.0f}"


def _annotated(record: RoundRecord) -> str:
    """``16``, or ``16 + 8 pseudo``: what people labelled, and what a model did for the training."""
    pseudo = f" + {len(record.pseudo)} pseudo" if record.pseudo else ""
    return f"{record.annotated}{pseudo}"


def _state(record: RoundRecord, published: Published | None) -> str:
    if published is not None and published.round == record.round:
        return f"published, retired: {published.retired}" if published.retired else "published"
    return "committed" if published is None or record.round > published.round else ""


def _counted(tasks: Sequence[int], what: str) -> str:
    """``2 slices could not be read: 5, 11``; empty without any."""
    if not tasks:
        return ""
    named = ", ".join(map(str, tasks[:_NAMED]))
    more = f" and {len(tasks) - _NAMED} more" if len(tasks) > _NAMED else ""
    slices = "slice" if len(tasks) == 1 else "slices"
    return f"{len(tasks)} {slices} {what}: {named}{more}"


def _judged(metrics: MetricsRecord | None) -> str:
    """Whether the validation mIoU rests on too little; empty where it does not."""
    if metrics is None or metrics.flagged or len(metrics.validation) >= MINIMUM_JUDGED:
        return ""
    count = len(metrics.validation)
    return f"held-out slices with a label: {count}, too few to judge by (at least {MINIMUM_JUDGED})"


def _unread(record: RoundRecord, queue: QueueRecord | None) -> list[str]:
    """What each step went on without."""
    unmasked, pending = (queue.unmasked, queue.pending) if queue else ([], [])
    return [
        _counted(record.unseen, "could not be read"),
        _counted(record.pseudo_unread, "could not be read to be pseudo-labelled"),
        _counted(unmasked, "could not be read again and have no mask"),
        _counted(pending, "in the queue, whose masks are still to come"),
    ]


def rounds_table(folder: ProjectStore) -> Table:
    """One row a round: version, labels, what the new ones cost, strategy, validation mIoU, time,
    state."""
    table = Table(title=f"Rounds of project {folder.path}")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in ("model version",) else "right")
    table.add_column("state", overflow="fold")
    published = folder.published
    for number in folder.rounds():
        record = folder.round(number).load(ROUND)
        if record is None:
            table.add_row(str(number), *[""] * (len(_COLUMNS) - 1), "in progress")
            continue
        metrics = folder.round(number).load(METRICS)
        cost = totals_of(metrics.effort if metrics else ())
        unread = _unread(record, known_queue(folder.round(number)))
        said = (_state(record, published), record.flagged, _judged(metrics), *unread)
        state = "; ".join(s for s in said if s)
        table.add_row(
            str(number), record.model_version, _annotated(record), _corrected(cost),
            _lead_time(cost), record.strategy, _score(metrics),
            f"{sum(record.seconds.values()):.0f}", state,
        )  # fmt: skip
    return table


@rounds_app.command("list")
def list_rounds(
    project: Annotated[int | None, typer.Argument(help="Project number; empty: all.")] = None,
) -> None:
    """Show every round of a project."""
    service = Service.from_environment()
    found = stored_projects(service) if project is None else [known_project(service, project)]
    if not found:
        console.print(
            f"No project is known in {as_written(service.store.root)}. Connect one first."
        )
        raise typer.Exit(1)
    for one in found:
        typer.echo(whole(rounds_table(one.folder)))
        for condition in project_status(one).conditions:
            console.print(as_written(condition.says))


@rounds_app.command("run")
def run(
    project: Annotated[int, typer.Argument(help="Project number.")],
    here: Annotated[
        bool, typer.Option("--here", help="Run it in this process instead of a gpu worker.")
    ] = False,
) -> None:
    """Run a round now, without waiting for K annotations."""
    service = Service.from_environment()
    configure_logging(service.settings.log_level)
    found = find_project(service, project)
    if not here:
        found.schedule.start()
        console.print(f"Project {project}: asked for a round. Watch it: nextslice rounds list")
        return
    request_start(found)  # so that it is a whole one
    with round_progress(console) as progress:
        record = attempt(found, "nextslice rounds run", progress)
    if record is None:
        console.print(f"Project {project}: nothing to train on: nobody has annotated a slice yet.")
        raise typer.Exit(1)
    console.print(f"Project {project}: {record.model_version} is published.")


@rounds_app.command("prune")
def prune(project: Annotated[int, typer.Argument(help="Project number.")]) -> None:
    """Delete weights and evidence of rounds before the published one, but for what is served.

    Labels, records and metrics of every round are kept.
    """
    deleted = known_project(Service.from_environment(), project).folder.prune()
    console.print(f"Project {project}: {deleted} files of earlier rounds are deleted.")
