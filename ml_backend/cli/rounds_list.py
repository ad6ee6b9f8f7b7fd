"""What `nextslice rounds list` shows of a project: a row a round, and what is under way."""

from __future__ import annotations

from collections.abc import Sequence

import typer
from rich.table import Table

from al_strategies.holdout import MINIMUM_JUDGED
from ml_backend.cli import as_written, console
from ml_backend.cli.tables import whole
from ml_backend.rounds.artefacts import ROUND
from ml_backend.rounds.effort import EffortTotals, totals_of
from ml_backend.rounds.further import shown_metrics
from ml_backend.rounds.overview import ProjectOverview, Running
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.queue import known_queue
from ml_backend.rounds.records import MetricsRecord, Published, QueueRecord, RoundRecord
from ml_backend.rounds.status import NO_GPU_WORKER
from ml_backend.rounds.store import ProjectStore

__all__ = ["rounds_table", "show"]

_NAMED = 8
"""Slices that a row of the table names."""
_COLUMNS = ("round", "model version", "annotated", "corrected px", "s/slice", "strategy",
            "validation mIoU", "s")  # fmt: skip


def _score(metrics: MetricsRecord | None) -> str:
    return "–" if metrics is None or metrics.miou is None else f"{metrics.miou:.3f}"


def _corrected(totals: EffortTotals | None) -> str:
    """``1,234 (4.7%)``: pixels of a slice that were corrected, on average."""
    return "–" if totals is None else f"{totals.per_slice:,.0f} ({totals.share:.1%})"


def _lead_time(totals: EffortTotals | None) -> str:
    return "–" if totals is None or totals.median_s is None else f"{totals.median_s:.0f}"


def _annotated(record: RoundRecord) -> str:
    """``16``, or ``16 + 8 pseudo``: what people labelled, and what a model did for the training."""
    pseudo = f" + {len(record.pseudo)} pseudo" if record.pseudo else ""
    return f"{record.annotated}{pseudo}"


def _state(record: RoundRecord, published: Published | None) -> str:
    if published is not None and published.round == record.round:
        if not published.retired and published.model_version != record.model_version:
            return f"published, trained further: {published.model_version}"
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


def rounds_table(folder: ProjectStore, seen: ProjectOverview | None = None) -> Table:
    """One row a round: version, labels, what the new ones cost, strategy, validation mIoU, time,
    state. ``seen``: its title, and what is under way."""
    called = "" if seen is None else f"{seen.project} {seen.title or ''}".rstrip()
    table = Table(
        title=f"Rounds of project {f'{called} ({folder.path})' if called else folder.path}"
    )
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in ("model version",) else "right")
    table.add_column("state", overflow="fold")
    published = folder.published
    for number in folder.rounds():
        record = folder.round(number).load(ROUND)
        if record is None:
            table.add_row(str(number), *[""] * (len(_COLUMNS) - 1), _begun(number, seen))
            continue
        metrics = shown_metrics(folder, number, published)
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


def _begun(number: int, seen: ProjectOverview | None) -> str:
    """The state of a round that is not committed: who is at it, or why nobody is."""
    if seen is None:
        return "begun"
    if number != seen.round:
        return "left"
    states = {condition.state: condition.says for condition in seen.conditions}
    if "running" in states:
        step = _step(seen.running) if seen.running else ""
        return f"running: {step}" if step else "running"
    if "queued" in states:
        none = ": none is running" if NO_GPU_WORKER in states["queued"] else ""
        return f"waiting for a gpu worker{none}"
    if "paused" in states:
        return "paused"
    return "its worker is gone" if "killed" in states else "waiting to go on"


def _step(running: Running) -> str:
    """``train, 120 of 600, 4 min left``; empty where it is not known."""
    said = [running.step] if running.step else []
    if running.total:
        said.append(f"{running.done:,} of {running.total:,}")
    if running.seconds_left is not None:
        minutes = running.seconds_left / 60
        said.append(f"{minutes:.0f} min left" if minutes >= 1 else f"{minutes * 60:.0f} s left")
    return ", ".join(said)


def _labels(seen: ProjectOverview) -> str:
    """How far it is to the next round; empty where Label Studio was not to be asked."""
    if seen.labels is None:
        return ""
    labels = seen.labels
    skipped = f", {labels.skipped:,} were skipped" if labels.skipped else ""
    return (
        f"{labels.fresh:,} of {labels.wanted:,} labels for the next round; {labels.annotated:,} "
        f"slices are annotated, {labels.pool:,} are not{skipped}."
    )


def show(project: ConnectedProject, seen: ProjectOverview) -> None:
    typer.echo(whole(rounds_table(project.folder, seen)))
    for condition in seen.conditions:
        console.print(as_written(condition.says), highlight=False)
    advice = seen.advice.says if seen.advice else ""
    for said in filter(None, (_labels(seen), advice, seen.unanswered)):
        console.print(as_written(said), highlight=False)
