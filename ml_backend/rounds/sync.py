"""The first step of a round: what Label Studio holds, as a dataset of masks.

Label Studio holds the truth; a dataset is what it held at one moment, with the masks rendered.
Only what changed since the round before is asked for (`updated_at`, paged); two totals tell when
that is not enough: tasks were deleted, and all are listed, or annotations were, and those that have
some are. Who submits meanwhile causes neither.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from al_strategies.learner import Progress
from ml_backend.errors import NextsliceError
from ml_backend.rounds.artefacts import MASKS, METRICS
from ml_backend.rounds.effort import corrected_again, effort_of
from ml_backend.rounds.imageless import Imageless, note
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import (
    CLOCKS_DIFFER_S,
    DatasetLabels,
    DatasetRecord,
    EffortRecord,
    LabelRecord,
    TaskRecord,
    TaskState,
)
from ml_backend.rounds.store import RoundFolder, StoreError
from ml_backend.rounds.unreadable import UnreadableSlices, may_come_back
from ml_backend.studio.annotations import (
    Annotation,
    AnnotationError,
    choose_annotation,
    label_hash,
    label_map,
    parse_annotation,
)
from ml_backend.studio.client import (
    Project,
    StudioError,
    TaskRow,
    annotated,
    changed_since,
    drafted,
    not_annotated,
)
from ml_backend.studio.failures import ImageUnavailable
from ml_backend.studio.label_config import LabelConfig, LabelConfigError, parse_label_config
from ml_backend.volumes.address import is_slice_address, slice_of

__all__ = ["chosen_annotation", "finite", "new_labels", "reading", "sync"]

logger = logging.getLogger(__name__)

Mask = npt.NDArray[np.uint8]
_NAMED = 50
"""Of so many tasks without an image the fields are named."""
_OVERLAP = timedelta(seconds=2)
"""Label Studio stamps a task before it commits: look back a little."""


def _stamp(annotation: Annotation) -> str:
    changed = annotation.updated_at or datetime.fromtimestamp(0, UTC)
    return changed.isoformat()


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _state(row: TaskRow) -> TaskState:
    if row.total_annotations:
        return "labelled"
    return "skipped" if row.cancelled_annotations else "pool"


def _image(row: TaskRow, config: LabelConfig) -> str | None:
    """The address of the task's image; None when it has none."""
    image = config.image_of(row.data)
    return image if isinstance(image, str) and image else None


def _record(row: TaskRow, config: LabelConfig) -> TaskRecord | None:
    """The task as the dataset keeps it; None when it has no image."""
    image = _image(row, config)
    if image is None:
        return None
    z = row.data.get("z")
    return TaskRecord(
        id=row.id,
        image=image,
        volume=str(row.data.get("volume") or ""),
        z=finite(z),
        axis=str(row.data.get("axis") or "z"),
        state=_state(row),
        annotations=row.total_annotations,
    )


def finite(value: object) -> float | None:
    """The number, None for what is none: JSON has 1e999 and integers of any length."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


class _Sync:
    """One run of the step: what it reads from and writes to."""

    def __init__(self, project: ConnectedProject, config: LabelConfig, folder: RoundFolder) -> None:
        self.studio = project.studio
        self.policy = config.unlabelled(project.settings.unlabelled)
        self.id = project.number
        self.config = config
        self.folder = folder
        self.images = project.images
        self.warnings: list[str] = []
        self.without_image: dict[int, int] = {}
        """Tasks that are left out for want of an image, and how many annotations each has."""
        self.labelled = 0
        """How many slices are labelled."""
        self.measured: dict[tuple[int, str], EffortRecord] = {}
        """Annotation and when it was submitted → what it cost, as earlier rounds have measured."""
        self.clock_put_back = False
        """Whether somebody has submitted a slice before the moment of the dataset that lacks it."""
        self._unavailable = 0
        self._annotated_before: set[int] = set()
        self._moment_before = datetime.min.replace(tzinfo=UTC)
        """A minute before that of the dataset before, as clocks of several machines differ."""

    def unavailable(self, error: Exception) -> None:
        """A label waits for its slice. Raises UnreadableSlices when more than a tenth of them do,
        and two at least: something is down."""
        self._unavailable += 1
        if self._unavailable > max(1, self.labelled // 10):
            raise UnreadableSlices(
                f"{self._unavailable} of the {self.labelled} labelled slices cannot be read for "
                "now, expected a tenth at most. Are Label Studio, its storage and the volumes in "
                f"reach of this machine? The next attempt reads them again. The last: {error}"
            ) from error

    def tasks(self, previous: DatasetRecord | None) -> tuple[dict[int, TaskRecord], datetime]:
        """Every task by id, and the newest ``updated_at`` seen."""
        known = {t.id: t for t in previous.tasks} if previous else {}
        if previous:
            self.without_image = dict(previous.without_image)
            began = _moment(previous.synced_at)
            self._annotated_before = previous.noted().annotated_tasks() or set()
            self._moment_before = began - timedelta(seconds=CLOCKS_DIFFER_S)
            # A draft that is discarded touches no task. What else changes meanwhile is read below.
            begun = [task.id for task in known.values() if task.state == "drafted"]
            self._update(known, self.studio.tasks_by_id(self.id, begun), began)
        else:
            began = self.studio.newest_change(self.id) or datetime.fromtimestamp(0, UTC)
        changed = [changed_since(began - _OVERLAP)]
        newest = self._update(known, self.studio.tasks(self.id, changed if previous else ()), began)
        if not all(self._agree(known)):
            # Somebody submitted meanwhile, most likely.
            newest = self._update(known, self.studio.tasks(self.id, changed), newest)
            newest = self._complete(known, newest)
        for row in self.studio.tasks(self.id, [drafted(), not_annotated()]):
            if row.id in known:
                known[row.id] = known[row.id].in_state("drafted")
        return known, newest

    def lacking(self, others: int) -> str:
        """What is to be said of the tasks without an image; ``others``: how many have one."""
        some = sorted(self.without_image)[:_NAMED]
        rows = self.studio.tasks_by_id(self.id, some) if some else ()
        lacking = len(self.without_image)
        return Imageless.counted(self.config, others + lacking, lacking, rows).sentence()

    def _agree(self, known: dict[int, TaskRecord]) -> tuple[bool, bool]:
        """Whether there are as many tasks, and as many annotations, as Label Studio has."""
        total, annotations = self.studio.totals(self.id)
        counted = sum(t.annotations for t in known.values()) + sum(self.without_image.values())
        return len(known) + len(self.without_image) == total, counted == annotations

    def _complete(self, known: dict[int, TaskRecord], newest: datetime) -> datetime:
        """See what touched no task: deleted tasks, deleted annotations."""
        tasks, annotations = self._agree(known)
        if not tasks:
            known.clear()
            self.without_image.clear()
            return self._update(known, self.studio.tasks(self.id), newest)
        if annotations:
            return newest
        had = {t.id for t in known.values() if t.annotations}
        had |= {task for task, count in self.without_image.items() if count}
        have = list(self.studio.tasks(self.id, [annotated()]))
        gone = sorted(had - {row.id for row in have})
        newest = self._update(known, have, newest)
        return self._update(known, self.studio.tasks_by_id(self.id, gone), newest)

    def _update(
        self, known: dict[int, TaskRecord], rows: Iterable[TaskRow], newest: datetime
    ) -> datetime:
        for row in rows:
            newest = max(newest, row.updated_at)
            if row.updated_at < self._moment_before and row.total_annotations:
                self.clock_put_back |= row.id not in self._annotated_before
            record = _record(row, self.config)
            known.pop(row.id, None)
            self.without_image.pop(row.id, None)
            if record is None:
                self.without_image[row.id] = row.total_annotations
            else:
                known[row.id] = record
        return newest

    def label(
        self,
        chosen: Annotation,
        record: TaskRecord,
        previous: LabelRecord | None,
        predictions: Sequence[Mapping[str, Any]],
    ) -> LabelRecord:
        """The task's label, rendered anew only when the annotation was submitted again, or the
        slice is another. ``predictions``: those stored of the task, as JSON."""
        with reading():
            digest = self._digest(chosen, record)
        seen = previous and (previous.hash, previous.annotation, previous.updated_at)
        if previous is not None and seen == (digest, chosen.id, _stamp(chosen)):
            return previous
        # The size comes from the slice: it may have been shown to the annotator at another one.
        try:
            height, width = self.images.image(record.id, record.image).shape[:2]
        except (LookupError, OSError) as error:
            kind = ImageUnavailable if may_come_back(error) else StudioError
            raise kind(f"its slice {record.image} cannot be read: {error}") from error
        with reading():
            mask, warnings = label_map(chosen.result, self.config, height, width, self.policy)
        self.warnings += [f"task {record.id}, annotation {chosen.id}: {w}" for w in warnings]
        file = MASKS[f"{record.id}-{digest[:12]}"]
        self.folder.save(file, mask)
        return LabelRecord(
            task=record.id,
            annotation=chosen.id,
            updated_at=_stamp(chosen),
            completed_by=chosen.completed_by,
            hash=digest,
            mask=self.folder.relative(file),
            effort=self._effort(chosen, record, mask, previous, predictions),
        )

    def _effort(
        self,
        chosen: Annotation,
        record: TaskRecord,
        mask: Mask,
        previous: LabelRecord | None,
        predictions: Sequence[Mapping[str, Any]],
    ) -> EffortRecord | None:
        """What the label cost: measured once, since its prediction is deleted later on."""
        known = self.measured.get((chosen.id, _stamp(chosen)))
        if known is not None:
            return known
        if previous is not None and previous.annotation == chosen.id and previous.effort:
            with suppress(StoreError):  # it is damaged
                before = self.folder.project.mask(previous)
                if before.shape == mask.shape:
                    return corrected_again(previous.effort, chosen, before, mask, self.config)
        return effort_of(record.id, chosen, mask, predictions, self.config, self.policy)

    def left_out(self, previous: DatasetRecord | None) -> set[int]:
        """Slices that the training on ``previous`` went on without: their masks may be outdated."""
        if previous is None:
            return set()
        metrics = self.folder.project.round(previous.round).load(METRICS)
        return set(metrics.left_out) if metrics else set()

    def kept(self, labels: Iterable[LabelRecord]) -> dict[int, LabelRecord]:
        """Those by task whose mask is still in the store: one listing for each round's folder."""
        labels = list(labels)
        project = self.folder.project
        masks = {
            f"{folder}/{name}"
            for folder in {label.mask.rpartition("/")[0] for label in labels}
            for name in project.store.names(f"{project.path}/{folder}")
        }
        kept = {label.task: label for label in labels if label.mask in masks}
        if len(kept) < len(labels):
            logger.warning(
                "project %s: %d masks of earlier rounds are gone from the store: they are rendered "
                "anew", self.id, len(labels) - len(kept),
            )  # fmt: skip
        return kept

    def _digest(self, annotation: Annotation, task: TaskRecord) -> str:
        """Of all that the rendered mask depends on. The slice gives it its size."""
        image = slice_of(task.image) if is_slice_address(task.image) else task.image
        parts = (label_hash(annotation.result), self.config.fingerprint, self.policy, image)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


@contextmanager
def reading() -> Iterator[None]:
    """Whatever a part of an annotation raises inside, as one AnnotationError.

    People, scripts and other programs write annotations, and nobody foresees all that is in them:
    one of them must not stop the project.
    """
    try:
        yield
    except NextsliceError:
        raise
    except Exception as error:
        logger.debug("an annotation raised", exc_info=True)
        reason = str(error).partition("\n")[0][:200]
        raise AnnotationError(f"it cannot be read ({type(error).__name__}: {reason})") from error


def sync(
    project: ConnectedProject,
    seen: Project,
    folder: RoundFolder,
    previous: DatasetRecord | None,
    progress: Progress | None = None,
) -> DatasetRecord:
    """Read the project and render its labels into ``folder``.

    ``seen``: the project as Label Studio has it. ``previous``: the dataset of the round before, or
    None (then everything is read); one of another labelling config, of another way to read regions
    (`LabelConfig.reading`), or of another policy for unlabelled pixels, is not used. A label whose
    mask is gone from the store, or that could not be trained on, is rendered anew. An annotation
    that cannot be read is left out and named in ``warnings``, so that one broken annotation does
    not stop the loop. Raises UnreadableSlices when the slices of too many labels are out of reach
    at the moment.
    """
    config = parse_label_config(seen.label_config)
    step = _Sync(project, config, folder)
    before = previous
    for label in previous.labels if previous else ():
        if label.effort is not None:
            step.measured[label.annotation, label.updated_at] = label.effort
    if previous is not None and (
        (previous.fingerprint, previous.reading) != (config.fingerprint, config.reading)
        or previous.unlabelled not in (None, step.policy)
    ):
        previous = None
    tasks, newest = step.tasks(previous)
    lacking = step.lacking(len(tasks))
    note(project, lacking)
    left_out = step.left_out(previous)
    labels = step.kept(
        label
        for label in (previous.labels if previous else ())
        if label.task in tasks
        and tasks[label.task].state == "labelled"
        and label.task not in left_out
    )
    filters = [annotated()]
    # After its clock was put back, what was submitted again has an earlier moment too.
    if previous is not None and not step.clock_put_back:
        filters.append(changed_since(_moment(previous.synced_at) - _OVERLAP))
    labelled = {t.id for t in tasks.values() if t.state == "labelled"}
    step.labelled = len(labelled)
    missing = labelled - labels.keys()
    done = 0
    for row in step.studio.full_tasks(step.id, filters):
        missing.discard(row["id"])
        done += _apply(step, row, tasks, labels)
        if progress is not None:
            progress("sync", done, done + len(missing))
    if missing:
        for row in step.studio.full_tasks_by_id(step.id, sorted(missing)):
            _apply(step, row, tasks, labels)
    for warning in step.warnings:
        logger.warning("%s", warning)
    return DatasetRecord(
        round=folder.number,
        classes=list(config.classes),
        label_config=seen.label_config,
        fingerprint=config.fingerprint,
        unlabelled=step.policy,
        reading=config.reading,
        synced_at=newest.isoformat(),
        tasks=[tasks[i] for i in sorted(tasks)],
        labels=[labels[i] for i in sorted(labels)],
        without_image=step.without_image,
        places=_places(tasks.values(), before),
        warnings=[warning for warning in [*step.warnings, lacking] if warning],
    ).noted()


def _places(tasks: Iterable[TaskRecord], before: DatasetRecord | None) -> dict[int, int]:
    """`DatasetRecord.places` of ``tasks``. Whoever has one in the dataset ``before`` keeps it, also
    while it is gone or has no image; others come behind all of them."""
    places = dict(before.places_of_tasks()) if before else {}
    new = sorted(task.id for task in tasks if task.z is None and task.id not in places)
    behind = 1 + max(places.values(), default=-1)
    return places | {task: place for place, task in enumerate(new, behind)}


def _apply(
    step: _Sync,
    row: dict[str, Any],
    tasks: dict[int, TaskRecord],
    labels: dict[int, LabelRecord],
) -> int:
    """Put the label of the task ``row`` into ``labels``; 1 when it has one."""
    number: int = row["id"]
    record = tasks.get(number)
    if record is None:
        return 0
    try:
        chosen = chosen_annotation(row)
        stored = row.get("predictions") or ()
        label = step.label(chosen, record, labels.get(number), stored) if chosen else None
    except (ValueError, StudioError) as error:
        if may_come_back(error):
            step.unavailable(error)
        step.warnings.append(f"task {number}: its annotation cannot be used: {error}")
        label = None
    if label is None:
        labels.pop(number, None)
        return 0
    labels[number] = label
    # It may have been submitted since the tasks were listed.
    tasks[number] = record.in_state("labelled")
    return 1


def chosen_annotation(row: dict[str, Any]) -> Annotation | None:
    """The annotation of the task ``row`` that counts; of drafts and predictions nothing is asked.

    Raises AnnotationError for one that cannot be read, unless another counts instead of it for
    sure, whatever it holds: a ground truth of an ordinary one, else one changed later.
    """
    readable: list[Annotation] = []
    broken: list[tuple[dict[str, Any], AnnotationError]] = []
    for found in row.get("annotations") or ():
        try:
            with reading():
                readable.append(parse_annotation(found))
        except AnnotationError as error:
            broken.append((found, error))
    chosen = choose_annotation(readable)
    for found, why in broken:
        if not found.get("was_cancelled") and not (chosen and _yields(found, chosen)):
            raise why
    return chosen


def _yields(found: dict[str, Any], chosen: Annotation) -> bool:
    """Whether ``chosen`` counts instead of ``found``, which cannot be read: `choose_annotation`."""
    if bool(found.get("ground_truth")) != chosen.ground_truth:
        return chosen.ground_truth
    try:
        return _moment(found["updated_at"]) < _moment(_stamp(chosen))
    except (KeyError, TypeError, ValueError):  # it may as well be the last
        return False


def new_labels(project: ConnectedProject, dataset: DatasetLabels) -> int:
    """How many tasks have a label now that the dataset does not have: new ones and changed ones.

    Neither skips count, nor tasks without an image. Only tasks touched since the dataset are looked
    at, unless more are annotated than that explains: then all that are.
    """
    since = changed_since(_moment(dataset.synced_at) - _OVERLAP)
    known = {label.task: label for label in dataset.labels}
    unusable = set(dataset.unusable or ())
    studio, number = project.studio, project.number
    count = studio.count_tasks(number, [annotated()])  # first: who submits meanwhile is touched
    rows = list(studio.tasks(number, [since, annotated()]))
    before = dataset.annotated_tasks()
    if before is not None and count > len(seen := before.union(row.id for row in rows)):
        # As after Label Studio's clock was put back: what is submitted has an earlier moment.
        rows += [row for row in studio.tasks(number, [annotated()]) if row.id not in seen]
    touched = _with_image(project, dataset, rows)
    # Storing and deleting predictions touches tasks too: only another annotation is a change.
    again = [task for task in touched if task in known or task in unusable]
    changed = 0
    if again:
        for row in project.studio.full_tasks_by_id(project.number, again):
            try:
                chosen = chosen_annotation(row)
            except AnnotationError as error:  # the next sync names it in the round's warnings
                logger.warning("project %s: not counted: %s", project.key, error)
                continue
            old = known.get(row["id"])
            if chosen is not None and (
                _moment(_stamp(chosen)) > _moment(dataset.synced_at)
                if old is None
                else chosen.id != old.annotation
                or _moment(_stamp(chosen)) > _moment(old.updated_at)
            ):
                changed += 1
    return len(touched) - len(again) + changed


def _with_image(
    project: ConnectedProject, dataset: DatasetLabels, rows: Sequence[TaskRow]
) -> list[int]:
    """The tasks among ``rows`` that have an image. No sync takes the others."""
    config = parse_label_config(dataset.label_config)
    if not all(_image(row, config) for row in rows):
        with suppress(LabelConfigError):  # it reads another field by now, or cannot be used
            config = parse_label_config(project.in_studio().label_config)
    return [row.id for row in rows if _image(row, config)]
