"""The queue: stored predictions of one model version, lowest score first, then one switch.

Under *Uncertainty sampling* Label Studio hands out the unlabelled tasks that have a prediction
whose model version equals the project's, by ascending score. So a queue is published by storing
predictions of a new version V, and made current by moving the project and its ML backend's title
to V. Requests are O(K): nothing here depends on how many tasks the project has.
"""

from __future__ import annotations

import json
import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ml_backend.studio.client import (
    Backend,
    Project,
    Studio,
    StudioError,
    drafted,
    not_annotated,
    not_skipped,
    with_version,
)

__all__ = [
    "LIVE_SCORE",
    "PENDING_VERSION",
    "SAMPLING",
    "VERSION_PREFIX",
    "BackendLink",
    "QueuedPrediction",
    "StoredPlace",
    "draw",
    "lost",
    "place_behind",
    "prepare",
    "queue_length",
    "queue_score",
    "remove_predictions",
    "round_version",
    "still_open",
    "store_predictions",
    "stored_places",
    "switch",
    "switched",
    "unstored",
]

logger = logging.getLogger(__name__)

SAMPLING = "Uncertainty sampling"
VERSION_PREFIX = "nextslice-"
"""Every model version of ours begins with it; predictions of other versions are never touched."""
PENDING_VERSION = f"{VERSION_PREFIX}pending"
"""Version of answers given before round 0 is published."""
LIVE_SCORE = 0.999
"""Score of a prediction made by /predict when a task is opened: it joins the queue, at its end."""

_STEP = 1e-4
_LAST = 0.9
_PLACES = 10_000_000
_SAME_SCORE = 1e-9
_SETTLED_AFTER_S = 0.3
"""Between two looks that must agree: an opened task may put an old title back meanwhile."""
_ATTEMPTS = 3
"""How often predictions are sent that Label Studio takes and does not store."""
_BATCH_BYTES = 4_000_000
"""Label Studio's import is one transaction: a request much larger blocks SQLite for seconds."""


@dataclass(frozen=True)
class QueuedPrediction:
    """One place in the queue: ``result`` is a list of Label Studio regions, possibly empty."""

    task: int
    score: float
    result: list[dict[str, Any]]


@dataclass(frozen=True)
class BackendLink:
    """How Label Studio reaches us: the URL registered in the project, and its credentials."""

    url: str
    basic_auth: tuple[str, str] | None = None

    @property
    def auth_fields(self) -> dict[str, str]:
        """The ML backend's credentials as Label Studio's API takes them; empty without any."""
        if self.basic_auth is None:
            return {}
        user, password = self.basic_auth
        return {
            "auth_method": "BASIC_AUTH",
            "basic_auth_user": user,
            "basic_auth_pass": password,
        }


def round_version(number: int, digest: str) -> str:
    """``nextslice-r007-3fa9c1``: the round, and what tells two attempts at it apart."""
    return f"{VERSION_PREFIX}r{number:03d}-{digest[:6]}"


def queue_score(place: int) -> float:
    """Score of place 0, 1, 2, …: ascending, inside [0, 1], before `LIVE_SCORE`.

    Places up to 9,000 are 0.0001 apart so that the Data Manager's score column reads as the place;
    later ones go on in smaller steps.
    """
    if place < 0:
        raise ValueError(f"place {place}: expected 0 or more")
    score = (place + 1) * _STEP
    if score <= _LAST:
        return round(score, 6)
    beyond = place + 1 - round(_LAST / _STEP)
    return _LAST + 0.09 * beyond / (beyond + 100_000)


def place_behind(score: float) -> int:
    """The first place whose `queue_score` is behind ``score``."""
    return bisect_right(range(_PLACES), score + _SAME_SCORE, key=queue_score)


def prepare(studio: Studio, project: Project) -> None:
    """Make the project follow the queue: done once, harmless when done again."""
    if project.sampling != SAMPLING or not project.show_collab_predictions:
        # Both in one request: a PATCH with show_collab_predictions false blanks model_version.
        studio.update_project(project.id, sampling=SAMPLING, show_collab_predictions=True)


def _batches(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        length = len(json.dumps(row))
        if batch and size + length > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += length
    if batch:
        yield batch


def still_open(studio: Studio, project_id: int, tasks: Iterable[int]) -> set[int]:
    """Those of ``tasks`` that nobody has annotated yet."""
    return {row.id for row in studio.tasks_by_id(project_id, tasks, [not_annotated()])}


def _in_place(
    studio: Studio, project_id: int, version: str, scores: Mapping[int, float]
) -> set[int]:
    """Those of the tasks that have a stored prediction of ``version`` at their score or before it.

    One made when the task was opened does not count, unless that is the place: it sorts last.
    Predictions are read of those tasks alone that have one of ``version``: they carry masks.
    """
    some = [row.id for row in studio.tasks_by_id(project_id, scores, [with_version(version)])]
    found = set()
    for task in studio.full_tasks_by_id(project_id, some):
        stored = [
            float(prediction["score"])
            for prediction in task.get("predictions") or ()
            if prediction.get("model_version") == version and prediction.get("score") is not None
        ]
        if min(stored, default=2.0) <= scores[task["id"]] + _SAME_SCORE:
            found.add(int(task["id"]))
    return found


@dataclass(frozen=True)
class StoredPlace:
    """Where a stored prediction stands, and whether it is ``bare``: without a region."""

    score: float
    bare: bool


def stored_places(studio: Studio, project_id: int, version: str) -> dict[int, StoredPlace]:
    """Task → the first stored prediction of ``version``, lowest score first; annotated tasks too,
    but none that was made when its task was opened. Reads their masks: for when nobody knows
    better."""
    found: dict[int, StoredPlace] = {}
    for task in studio.full_tasks(project_id, [with_version(version)]):
        stored = [
            StoredPlace(float(prediction["score"]), not prediction.get("result"))
            for prediction in task.get("predictions") or ()
            if prediction.get("model_version") == version and prediction.get("score") is not None
        ]
        first = min(stored, key=lambda place: place.score, default=None)
        if first is not None and first.score < LIVE_SCORE:
            found[int(task["id"])] = first
    return dict(sorted(found.items(), key=lambda place: place[1].score))


def lost(studio: Studio, project_id: int, version: str, scores: Mapping[int, float]) -> list[int]:
    """Tasks of a queue, task → score, that nobody has annotated and whose prediction is gone.

    In the order of ``scores``. One request per 500 places while all are there.
    """
    there = {row.id for row in studio.tasks(project_id, [with_version(version)])}
    missing = [task for task in scores if task not in there]
    if not missing or not still_open(studio, project_id, missing):
        return []
    # Since then, slices may have been opened: their live predictions stand at the end of the queue.
    open_tasks = still_open(studio, project_id, scores)
    wanted = {task: score for task, score in scores.items() if task in open_tasks}
    in_place = _in_place(studio, project_id, version, wanted)
    return [task for task in wanted if task not in in_place]


def store_predictions(
    studio: Studio, project_id: int, version: str, predictions: Iterable[QueuedPrediction]
) -> int:
    """Store the predictions that ``version`` does not have yet; returns how many were new.

    A task that disappeared or was annotated meanwhile is left out. Calling it again with the same
    predictions stores nothing twice. A prediction that was made when the task was opened is none
    in the queue's order: the task gets its own beside it, and Label Studio goes by the lower score.
    What Label Studio took and did not store is sent again; StudioError when it never does.
    """
    wanted = {p.task: p for p in predictions}
    missing = _not_stored(studio, project_id, version, wanted)
    new = len(missing)
    for _ in range(_ATTEMPTS):
        rows = [
            {"task": p.task, "model_version": version, "score": p.score, "result": p.result}
            for p in missing
        ]
        created = [studio.import_predictions(project_id, batch) for batch in _batches(rows)]
        if sum(created) >= len(rows):
            return new
        missing = _not_stored(studio, project_id, version, wanted)
    if missing:
        raise StudioError(
            f"Label Studio took predictions of {version} and did not store those of "
            f"{len(missing)} tasks of project {project_id} (task {missing[0].task} and the next), "
            f"also when they were sent {_ATTEMPTS} times. Is its database locked?"
        )
    return new


def draw(
    studio: Studio, project_id: int, version: str, masks: Mapping[int, list[dict[str, Any]]]
) -> None:
    """Give the stored predictions of ``version`` their regions, task → regions, in their places.

    One that has regions already is left as it is: it was made when its task was opened, or drawn
    before.
    """
    if not masks:
        return
    for task in studio.full_tasks_by_id(project_id, masks):
        for prediction in task.get("predictions") or ():
            if prediction.get("model_version") == version and not prediction.get("result"):
                studio.draw_prediction(prediction["id"], masks[task["id"]])


def _not_stored(
    studio: Studio, project_id: int, version: str, wanted: Mapping[int, QueuedPrediction]
) -> list[QueuedPrediction]:
    """Those of ``wanted``, task → prediction, that are open and not in their place."""
    scores = {task: p.score for task, p in wanted.items()}
    return [wanted[task] for task in unstored(studio, project_id, version, scores)]


def unstored(
    studio: Studio, project_id: int, version: str, scores: Mapping[int, float]
) -> list[int]:
    """Those tasks of ``scores``, task → score, that are open and have no prediction of ``version``
    in their place, in the order given."""
    if not scores:
        return []
    open_tasks = still_open(studio, project_id, scores)
    wanted = {task: score for task, score in scores.items() if task in open_tasks}
    stored = _in_place(studio, project_id, version, wanted)
    return [task for task in wanted if task not in stored]


def _rename(
    studio: Studio, project_id: int, backend: Backend, link: BackendLink, version: str
) -> None:
    """Set the backend's title. Without url it is a 500; without credentials a refused /health."""
    fields = {"title": version, "url": backend.url, "project": project_id, **link.auth_fields}
    studio.call(f"rename ML backend {backend.id}", studio.sdk.ml.update, backend.id, **fields)


def _has_predictions(studio: Studio, project_id: int, version: str) -> bool:
    return studio.count_tasks(project_id, [with_version(version)]) > 0


def switched(studio: Studio, project: Project, link: BackendLink | None, version: str) -> bool:
    """Whether ``project``, as it was read, and now its backend if it has one are on ``version``.

    Also when neither can be: a project without a backend takes no version without a prediction.
    """
    there = project.model_version == version
    if not there and _has_predictions(studio, project.id, version):
        return False
    backend = studio.find_backend(project.id, link.url) if link else None
    return backend is None or (there and backend.title == version)


def _move(studio: Studio, seen: Project, link: BackendLink | None, version: str) -> None:
    """One try at `switch`; ``seen``: the project a moment ago."""
    backend = studio.find_backend(seen.id, link.url) if link else None
    by_title = backend is not None and version != backend.title == seen.model_version
    moves = seen.model_version != version and not by_title
    project_first = moves and _has_predictions(studio, seen.id, version)
    if project_first:
        studio.update_project(seen.id, model_version=version)
    if backend is not None and link is not None and backend.title != version:
        _rename(studio, seen.id, backend, link, version)
    if moves and not project_first:
        studio.update_project(seen.id, model_version=version)


def switch(
    studio: Studio,
    project_id: int,
    link: BackendLink | None,
    version: str,
    *,
    attempts: int = 20,
) -> None:
    """Make ``version`` current, project and backend's title, then verify: two looks in a row must
    agree. Raises StudioError when they never do.

    Where the backend's title is the project's version, a new title moves the project too, and
    writes nothing else of it. A change of the project writes its whole row as it was read some
    100 ms before, and puts back what a person saved meanwhile: it is made only where a new title
    would not move the project. That is so without a backend, after somebody moved one of the two,
    and after a race: every opened task ends in a full ``save()`` of the backend, which can put the
    old title back. Then the project comes first, so that the queue moves however often that is.

    A version without a stored prediction, since nothing is left to annotate, is refused by the
    project until a backend has it as its title: then the backend comes first.
    """
    agreed = 0
    for attempt in range(attempts):
        seen = studio.project(project_id)
        if switched(studio, seen, link, version):
            agreed += 1
            if agreed == 2:
                return
        else:
            agreed = 0
            _move(studio, seen, link, version)
            if attempt:
                logger.info("project %s: switch to %s again (%d)", project_id, version, attempt)
        time.sleep(_SETTLED_AFTER_S * agreed)
    raise StudioError(
        f"Project {project_id} would not stay on model version {version!r} after {attempts} tries. "
        "Another program may be setting the project's model version or the ML backend's title."
    )


def queue_length(studio: Studio, project_id: int, version: str) -> int:
    """How many tasks of ``version`` are left to hand out. Three small requests."""
    left = [with_version(version), not_annotated(), not_skipped()]
    return studio.count_tasks(project_id, left) - studio.count_tasks(project_id, [*left, drafted()])


def remove_predictions(
    studio: Studio,
    project_id: int,
    version: str,
    spare: Callable[[dict[str, Any]], bool] = lambda task: False,
) -> int:
    """Delete every stored prediction of one old version of ours; returns how many. ``spare``: of
    which tasks, as JSON, they stay.

    One by one, by id: the bulk endpoint nulls the project's model version. Predictions of other
    programs and of people are never touched: ``version`` must be one of ours.
    """
    if not version.startswith(VERSION_PREFIX):
        raise ValueError(f"{version!r} is not a nextslice version; expected {VERSION_PREFIX}…")
    ids = {
        prediction["id"]
        for task in studio.full_tasks(project_id, [with_version(version)])
        if not spare(task)
        for prediction in task.get("predictions") or ()
        if prediction.get("model_version") == version
    }
    for prediction_id in sorted(ids):
        studio.delete_prediction(prediction_id)
    return len(ids)
