"""All that a person wants to know of one project: what /api/projects and the dashboard show.

`status` says what the store and Redis know; Label Studio is asked here for the rest, in a handful
of requests whatever the size of the project. Where it does not answer, that is said, and what the
store knows is shown all the same.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, JsonValue

from ml_backend.errors import NextsliceError
from ml_backend.rounds.advice import Advice, RoundScore, advise
from ml_backend.rounds.artefacts import LABELS, METRICS, ROUND, SELECTION, WARNINGS
from ml_backend.rounds.early import next_round_at, wanted_labels
from ml_backend.rounds.effort import opened_with_mask, totals_of
from ml_backend.rounds.extra_params import faults_of
from ml_backend.rounds.further import shown_metrics
from ml_backend.rounds.held_settings import HeldSetting, held_settings
from ml_backend.rounds.people import People, Seen, people_of, seen_now
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.queue import known_queue
from ml_backend.rounds.records import (
    DatasetLabels,
    MetricsRecord,
    Published,
    QueueKind,
    Record,
    RoundRecord,
)
from ml_backend.rounds.status import Condition, ProjectStatus, project_status
from ml_backend.rounds.store import RoundFolder, StoreError
from ml_backend.rounds.sync import finite, new_labels
from ml_backend.rounds.uncertainty_pictures import kept_tasks
from ml_backend.settings import without_passwords
from ml_backend.studio.client import (
    Project,
    TaskRow,
    annotated,
    not_annotated,
    not_skipped,
    skipped,
)

__all__ = [
    "HeldSetting",
    "Labels",
    "ProjectOverview",
    "ProjectSummary",
    "QueuePlace",
    "RoundSummary",
    "Running",
    "held_settings",
    "project_overview",
    "project_summary",
]

_WARNINGS = 20
"""A project of a thousand unusable annotations is told of by the first of them."""


class Running(Record):
    """What the round that runs is at. ``seconds_left``: of this step, at the pace it has had."""

    holder: str | None = None
    since: float | None = None
    step: str = ""
    done: int = 0
    total: int = 0
    seconds_left: float | None = None
    loss: float | None = None


class ProjectSummary(Record):
    """A project among others, as store and Redis know it. ``round``: the next, or the running one.

    ``title``: None where Label Studio has not told. ``label_studio``: its address there.
    """

    project: int
    key: str
    title: str | None = None
    label_studio: str
    model_version: str | None = None
    round: int
    k: int
    paused: bool
    conditions: list[Condition]
    running: Running | None = None
    last_error: str | None = None


class Labels(Record):
    """How much is labelled. ``fresh``: what the published round has not learned; the next round
    begins at ``wanted`` of them. ``pool``: slices without an annotation that nobody has skipped;
    ``skipped``: those that somebody has."""

    annotated: int
    fresh: int
    wanted: int
    pool: int
    skipped: int


class RoundSummary(Record):
    """A round that was committed, with what its network is worth on the slices held out."""

    round: int
    model_version: str
    labels: int
    pseudo: int = 0
    strategy: str
    miou: float | None = None
    iou: dict[str, float | None] = Field(default_factory=dict)
    validation: int = 0
    """Slices that this was measured on."""
    corrected: float | None = None
    """The share of pixels that people changed in the slices new to it; None: not measured."""
    corrected_shown: float | None = None
    """The same of those that were opened with a mask."""
    seconds_per_slice: float | None = None
    """Half of these slices took people longer."""
    flagged: str | None = None
    served: bool = False
    reason: str = ""
    committed_at: str = ""
    seconds: float = 0.0
    unread: int = 0
    """Slices that could not be read when the pool was scored."""
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    """What held when it was committed."""


class QueuePlace(Record):
    """A slice in the queue, from place 1. ``why``: in a sentence. ``image``: as the task has it."""

    place: int
    task: int
    kind: QueueKind
    why: str
    volume: str = ""
    z: float | None = None
    axis: str = "z"
    score: float | None = None
    """The strategy's, in its own unit; None where it gives none."""
    masked: bool = False
    """Whether its prediction has a mask by now."""
    uncertainty: bool = False
    """Whether a picture is kept of how uncertain the published network is of it."""
    label_studio: str = ""


class ProjectOverview(ProjectSummary):
    """A project by itself. None, or nothing, where Label Studio did not answer (``unanswered``)."""

    classes: list[str] = Field(default_factory=list)
    labels: Labels | None = None
    people: People = Field(default_factory=People)
    queue: list[QueuePlace] = Field(default_factory=list)
    """What is left of it: open slices, in order."""
    rounds: list[RoundSummary] = Field(default_factory=list)
    advice: Advice | None = None
    """What the next round will probably bring; None before the first training."""
    warnings: list[str] = Field(default_factory=list)
    settings: list[HeldSetting] = Field(default_factory=list)
    unanswered: str | None = None


def project_summary(
    project: ConnectedProject, seen: Project | None, *, redis: bool = True
) -> ProjectSummary:
    """``project`` among others; ``seen``: as Label Studio has it. Raises StoreError, SettingsError,
    StoreFault as `project_status`. ``redis``: ask it."""
    return ProjectSummary(**_summary(project, seen, project_status(project, redis=redis)))


def _summary(
    project: ConnectedProject, seen: Project | None, status: ProjectStatus
) -> dict[str, Any]:
    record, settings = project.record, project.settings
    return {
        "project": project.number,
        "key": project.key,
        "title": None if seen is None else seen.title,
        "label_studio": f"{settings.label_studio_url}/projects/{project.number}",
        "model_version": status.model_version,
        "round": status.round,
        "k": settings.k,
        "paused": settings.pause,
        "conditions": status.conditions,
        "running": _running(status),
        "last_error": record.last_error,
    }


def _running(status: ProjectStatus) -> Running | None:
    if not status.has("running"):
        return None
    holder, progress = status.holder, status.progress
    found = Running()
    if holder is not None:
        found.holder, found.since = str(holder), holder.since
    if progress is not None:
        found.step, found.done, found.total = progress.step, progress.done, progress.total
        found.seconds_left, found.loss = progress.seconds_left(time.time()), progress.loss
    return found


def project_overview(project: ConnectedProject, *, redis: bool = True) -> ProjectOverview:
    """All of one project, at this moment. Raises as `project_summary`."""
    published, unanswered = project.published, None
    seen: Project | None = None
    labels: Labels | None = None
    rows: dict[int, TaskRow] = {}
    there = _known_labels(project, published)
    people = Seen()
    try:
        seen = project.in_studio()
        rows = _open_rows(project, published)
        labels = _labels(project, published, there)
        people = seen_now(project.studio, project.number, rows)
    except NextsliceError as error:
        unanswered = without_passwords(str(error))
    status = project_status(project, redis=redis)
    rounds = _rounds(project, published)
    return ProjectOverview(
        **_summary(project, seen, status),
        classes=[] if published is None else published.classes,
        labels=labels,
        people=_people(project, published, there, people),
        queue=_queue(project, published, rows),
        rounds=rounds,
        advice=_advice(rounds, labels, project.settings.k),
        warnings=_warnings(project, published),
        settings=held_settings(project),
        unanswered=unanswered,
    )


# -- what Label Studio knows


def _labels(
    project: ConnectedProject, published: Published | None, there: DatasetLabels | None
) -> Labels:
    """``there``: those of the published round."""
    studio, number = project.studio, project.number
    settings = project.settings
    fresh = count = studio.count_tasks(number, [annotated()])
    wanted = next_round_at(0, settings.k, settings.early_labels)
    if published is not None and there is not None:
        fresh = new_labels(project, there)
        if not published.round:  # there when the project was adopted: nothing has learned them
            fresh += len(there.labels)
        wanted = wanted_labels(published, len(there.labels), settings)
    return Labels(
        annotated=count,
        fresh=fresh,
        wanted=wanted,
        pool=studio.count_tasks(number, [not_annotated(), not_skipped()]),
        skipped=studio.count_tasks(number, [not_annotated(), skipped()]),
    )


def _open_rows(project: ConnectedProject, published: Published | None) -> dict[int, TaskRow]:
    """The queue's tasks that nobody has annotated or skipped, first place first."""
    queue = None if published is None else known_queue(project.folder.round(published.round))
    if queue is None:
        return {}
    ids = [entry.task for entry in queue.in_order()]
    rows = project.studio.tasks_by_id(project.number, ids, [not_annotated(), not_skipped()])
    found = {row.id: row for row in rows}
    return {task: found[task] for task in ids if task in found}


def _queue(
    project: ConnectedProject, published: Published | None, rows: Mapping[int, TaskRow]
) -> list[QueuePlace]:
    if published is None or not rows:
        return []
    folder = project.folder.round(published.round)
    queue, selection = known_queue(folder), folder.load(SELECTION)
    if queue is None:
        return []
    why = {} if selection is None else selection.reasons
    scores = {} if selection is None else selection.scores
    pictures = kept_tasks(project.folder, published)
    entries, bare = queue.in_order(), queue.bare
    return [
        QueuePlace(
            place=place,
            task=entry.task,
            kind=entry.kind,
            why=why.get(entry.task, _UNSELECTED),
            score=scores.get(entry.task),
            masked=published.weights is not None and entry.task not in bare,
            uncertainty=entry.task in pictures,
            label_studio=project.page_of(entry.task),
            **_where(rows[entry.task]),
        )
        for place, entry in enumerate((e for e in entries if e.task in rows), start=1)
    ]


_UNSELECTED = (
    "Appended as the queue ran low: next of what the strategy ranked behind it, or of the pool."
)


def _where(row: TaskRow) -> dict[str, Any]:
    """The slice's place, as far as its task says."""
    return {
        "volume": str(row.data.get("volume") or ""),
        "z": finite(row.data.get("z")),
        "axis": str(row.data.get("axis") or "z"),
    }


# -- what the store knows


def _known_labels(project: ConnectedProject, published: Published | None) -> DatasetLabels | None:
    """The labels of the published round."""
    return None if published is None else project.folder.round(published.round).load(LABELS)


def _people(
    project: ConnectedProject,
    published: Published | None,
    there: DatasetLabels | None,
    seen: Seen,
) -> People:
    """With the labels of the round that is being made, where it has read them, else ``there``."""
    if published is None:
        return people_of(None, None, seen)
    number = published.round + 1
    following = project.folder.round(number).load(LABELS)
    if following is None:
        return people_of(there, published.round, seen)
    return people_of(following, number, seen)


def _rounds(project: ConnectedProject, published: Published | None) -> list[RoundSummary]:
    found = []
    for number in project.folder.rounds():
        folder = project.folder.round(number)
        record = folder.load(ROUND)
        if record is not None:
            served = published is not None and published.weights_round == number
            metrics = shown_metrics(project.folder, number, published)
            found.append(_round(record, metrics, served=served))
    return found


def _round(record: RoundRecord, metrics: MetricsRecord | None, *, served: bool) -> RoundSummary:
    measured = metrics or MetricsRecord()
    effort = totals_of(measured.effort)
    shown = totals_of(opened_with_mask(measured.effort))
    return RoundSummary(
        round=record.round,
        model_version=record.model_version,
        labels=record.annotated,
        pseudo=len(record.pseudo),
        strategy=record.strategy,
        miou=measured.miou,
        iou=measured.iou,
        validation=len(measured.validation),
        corrected=None if effort is None else effort.share,
        corrected_shown=None if shown is None else shown.share,
        seconds_per_slice=None if effort is None else effort.median_s,
        flagged=record.flagged,
        served=served,
        reason=record.reason,
        committed_at=record.committed_at,
        seconds=sum(record.seconds.values()),
        unread=len(record.unseen),
        settings=record.settings,
    )


def _advice(rounds: Sequence[RoundSummary], labels: Labels | None, k: int) -> Advice | None:
    """Of the labels that begin the next round: as many as there are slices left, at most."""
    if labels is not None:
        k = min(labels.wanted, labels.fresh + labels.pool)
    seen = [
        RoundScore(
            labels=one.labels,
            held_out=one.validation,
            miou=one.miou,
            served=one.flagged is None,
            corrected=one.corrected_shown,
            unjudged=tuple(name for name, iou in one.iou.items() if iou is None),
        )
        for one in rounds
        if one.round
    ]
    return advise(seen, k)


def _warnings(project: ConnectedProject, published: Published | None) -> list[str]:
    """What is wrong with its settings, and what was left out of the published round and of the one
    that is being made."""
    said = faults_of(project)
    if published is None:
        return said
    folder = project.folder.round(published.round)
    following = project.folder.round(published.round + 1)
    found = [*said, *_of_training(folder), *_of_dataset(following), *_of_dataset(folder)]
    found = list(dict.fromkeys(found))
    more = len(found) - _WARNINGS
    return found[:_WARNINGS] + ([f"… and {more:,} more, in the round's dataset.json."] * (more > 0))


def _of_dataset(folder: RoundFolder) -> list[str]:
    try:
        found = folder.load(WARNINGS)
    except StoreError as error:
        return [str(error)]
    if found is None:
        return []
    lacking = f"{len(found.without_image):,} tasks have no image and are left out."
    return [*([lacking] if found.without_image else []), *found.warnings]


def _of_training(folder: RoundFolder) -> list[str]:
    record, metrics = folder.load(ROUND), folder.load(METRICS)
    found = []
    if record is not None and record.unseen:
        found.append(_counted(len(record.unseen), "could not be read when the pool was scored"))
    if metrics is not None and metrics.left_out:
        found.append(_counted(len(metrics.left_out), "with a label could not be learned from"))
    if metrics is not None and metrics.not_loaded:
        found.append(
            "The checkpoint before could not be loaded, so the network has learned afresh and was "
            f"compared with nothing: {metrics.not_loaded}"
        )
    return found


def _counted(count: int, what: str) -> str:
    return f"{count:,} {'slice' if count == 1 else 'slices'} {what}."


# -- settings
