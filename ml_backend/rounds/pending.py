"""The masks that follow the publication of an early round, whose first slices should not wait, and
those that the backend did not give where the queue was filled."""

from __future__ import annotations

from collections.abc import Iterator

from al_strategies.learner import Progress, UnreadableSlice
from ml_backend.rounds import publish
from ml_backend.rounds.artefacts import DATASET
from ml_backend.rounds.coverage import Coverage
from ml_backend.rounds.live_masks import Regions
from ml_backend.rounds.looking_up import GivenWay, LookingUp
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.source import ProjectSource
from ml_backend.rounds.uncertainty_pictures import KeptPictures
from ml_backend.studio.annotations import regions
from ml_backend.studio.label_config import parse_label_config

__all__ = ["draw_pending"]

_LOOK_S = 1.0


def draw_pending(project: ConnectedProject, progress: Progress) -> int:
    """Draw the masks of the published queue that are still to come, until a round waits for a gpu
    worker; returns how many. ``progress("masks", done, total)``. Raises UnreadableSlices where so
    many images are out of reach that something is down: they still wait then."""

    def look() -> None:
        if project.schedule.a_round_waits():
            raise GivenWay("a round waits for the worker")

    step = LookingUp(progress, look, _LOOK_S)
    published = project.published
    if published is None or published.weights is None:
        return 0
    dataset = project.folder.round(published.round).need(DATASET)
    config = parse_label_config(dataset.label_config)
    source = ProjectSource(dataset, project.folder, project.images)
    weights = published.weights

    def predict(tasks: list[int]) -> Iterator[tuple[int, Regions]]:
        if not tasks:
            return
        # Imports torch: only where there is something to draw.
        from ml_backend.rounds.learners import load_learner

        data = project.folder.read_at(weights)
        learner = load_learner(project.settings, data, project.settings.train_device)
        coverage = Coverage(
            len(tasks),
            f"the queue's {len(tasks)} slices that wait for their masks",
            "people would get them without, for good",
            "the masks that are drawn",
        )
        done = 0
        pictures = KeptPictures(project.folder.round(published.round), published.model_version)

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
