"""The masks that follow the publication of an early round, whose first slices should not wait, and
those that the backend did not give where the queue was filled."""

from __future__ import annotations

import time
from collections.abc import Iterator

from al_strategies.learner import Progress, UnreadableSlice
from ml_backend.errors import TimeUp
from ml_backend.rounds import publish, queue
from ml_backend.rounds.artefacts import DATASET, DRAWING
from ml_backend.rounds.coverage import Coverage
from ml_backend.rounds.live_masks import Regions
from ml_backend.rounds.looking_up import GivenWay, LookingUp
from ml_backend.rounds.pauses import known_drawing, next_job_at
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import Published, TriesRecord
from ml_backend.rounds.source import ProjectSource
from ml_backend.rounds.uncertainty_pictures import KeptPictures
from ml_backend.studio.annotations import regions
from ml_backend.studio.label_config import parse_label_config

__all__ = ["draw_pending", "may_draw"]

_LOOK_S = 1.0


def may_draw(project: ConnectedProject, published: Published) -> bool:
    """Whether masks are still to come, and no pause after a job that could not draw them."""
    if not queue.pending(project, published):
        return False
    return time.time() >= next_job_at(known_drawing(project.folder.round(published.round)))


def draw_pending(project: ConnectedProject, progress: Progress) -> int:
    """Draw the masks of the published queue that are still to come, until a round waits for a gpu
    worker; returns how many. ``progress("masks", done, total)``. What it raises is noted. Raises
    UnreadableSlices where so many images are out of reach that something is down: they still wait
    then."""
    published = project.published
    if published is None or published.weights is None:
        return 0
    folder = project.published_round(published.round)
    before = known_drawing(folder)
    tries = before.model_copy(update={"failures": before.failures + 1, "failed_at": time.time()})
    folder.save(DRAWING, tries)  # first, as a try: one that is killed can note nothing
    try:
        drawn = _draw(project, published, published.weights, progress)
    except (Exception, TimeUp) as error:
        tries.last_error = f"{type(error).__name__}: {error}"
        tries.failed_at = time.time()
        folder.save(DRAWING, tries)
        raise
    folder.save(DRAWING, TriesRecord() if drawn else before)
    return drawn


def _draw(project: ConnectedProject, published: Published, weights: str, progress: Progress) -> int:
    def look() -> None:
        if project.schedule.a_round_waits():
            raise GivenWay("a round waits for the worker")

    project.in_studio()  # is it ours still?
    step = LookingUp(progress, look, _LOOK_S)
    dataset = project.folder.round(published.round).need(DATASET)
    config = parse_label_config(dataset.label_config)
    source = ProjectSource(dataset, project.folder, project.images)

    def predict(tasks: list[int]) -> Iterator[tuple[int, Regions]]:
        if not tasks:
            return
        # Imports torch: only where there is something to draw.
        from ml_backend.rounds.learners import stored_learner

        learner = stored_learner(project.settings, project.folder, weights)
        coverage = Coverage(
            len(tasks),
            "the queue's {} slices that wait for their masks",
            "people would get them without, for good",
            "the masks that are drawn",
        )
        done = 0
        pictures = KeptPictures(project.published_round(published.round), published.model_version)

        def note(error: UnreadableSlice) -> None:
            coverage.note(error)
            step.look_up()  # of a long outage each slice may take its time

        for asked in coverage.passes(tasks, wait=step.wait):
            for task, prediction in learner.predict(
                source, asked, unreadable=note, uncertainty=True
            ):
                done += 1
                pictures.keep(int(task), prediction)
                progress("masks", done, len(tasks))
                yield int(task), regions(prediction.mask, config)

    return publish.draw_pending(
        project, published, predict, lambda: not project.schedule.a_round_waits()
    )
