"""The training that goes on after a round, as long as nobody needs the worker. Imports torch.

The network is trained once more from the same labels, beside what the served one believes of slices
that nobody labelled, where it is sure. What comes out is served if it is better on the labels that
neither has seen, and else forgotten.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from al_strategies.evidence import Position, SliceId
from al_strategies.learner import IGNORE, Learner, Progress, UnreadableSlice
from ml_backend.errors import TimeUp
from ml_backend.rounds import publish
from ml_backend.rounds.artefacts import DATASET, FURTHER, FURTHER_WEIGHTS, METRICS
from ml_backend.rounds.coverage import Coverage
from ml_backend.rounds.further import (
    FAILURES,
    TRIES,
    judges,
    known_further,
    may_go_on,
    next_round_is_on,
)
from ml_backend.rounds.learners import device_of, learner_config, new_learner, stored_learner
from ml_backend.rounds.live_masks import Regions
from ml_backend.rounds.looking_up import GivenWay, LookingUp
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.pseudo import Mask, pseudo_slices
from ml_backend.rounds.records import DatasetRecord, FurtherRecord, MetricsRecord, Published
from ml_backend.rounds.source import ProjectSource, positions
from ml_backend.rounds.uncertainty_pictures import KeptPictures
from ml_backend.segmentation.learner import evenly_spread
from ml_backend.studio import task_order
from ml_backend.studio.annotations import regions
from ml_backend.studio.label_config import parse_label_config

__all__ = ["go_on"]

logger = logging.getLogger(__name__)

_BELIEVED = 64
"""Slices of the pool that are trained on beside the labels, evenly spread."""
_SURE = 0.8
"""Where the most likely class is less likely, a pixel is left out."""
_LOOK_S = 1.0
_ANOTHER_SEED = 1000


class _Source:
    """A round's slices, which are read no more once the worker is needed."""

    def __init__(self, source: ProjectSource, look: Callable[[], None]) -> None:
        self._source, self._look = source, look
        self.ids, self.mask, self.position = source.ids, source.mask, source.position

    def image(self, slice_id: SliceId) -> npt.NDArray[Any]:
        """The slice as read."""
        self._look()
        return self._source.image(slice_id)

    def around(self, slice_id: SliceId, neighbours: int) -> npt.NDArray[Any]:
        """The slice between its neighbours."""
        self._look()
        return self._source.around(slice_id, neighbours)


def go_on(project: ConnectedProject, progress: Progress) -> bool:
    """Train on after the published round, and publish what comes out better; whether it did.

    Gives way to whatever else waits for a gpu worker, and to the next round. Killed at any moment,
    it leaves what is served. What it raises is noted, and it is gone on with after a pause, up to
    `FAILURES` times; what came out better is kept. Raises UnreadableSlices where so many images are
    out of reach that something is down.
    """
    published = project.published
    if published is None or not may_go_on(project, published):
        return False
    return _GoingOn(project, published, progress).run()


class _GoingOn:
    """One job's work on the published round."""

    def __init__(self, project: ConnectedProject, published: Published, progress: Progress) -> None:
        self.project, self.settings, self.published = project, project.settings, published
        self.folder = project.published_round(published.round)
        self.dataset: DatasetRecord = self.folder.need(DATASET)
        self.further: FurtherRecord = known_further(self.folder)
        self._began = time.monotonic()
        self._step = LookingUp(progress, self._look, _LOOK_S)
        self.source = _Source(
            ProjectSource(self.dataset, project.folder, project.images), self._step.look_up
        )

    def run(self) -> bool:
        before = self.further.failures, self.further.failed_at
        self._note_failures(before[0] + 1, time.time())  # first, as a try
        try:
            done = self._found_and_served()
        except GivenWay as why:
            logger.info("project %s: the training that goes on is left: %s", self.project.key, why)
            done = False
        except (Exception, TimeUp) as error:
            self.further.last_error = f"{type(error).__name__}: {error}"
            if self.further.failures >= FAILURES:
                self.further.ended = f"it failed {self.further.failures} times"
            self._note_failures(self.further.failures, time.time())
            raise
        if done:
            before, self.further.last_error = (0, 0.0), None
            self.further.ended = "better weights are served"
        self._note_failures(*before)
        return done

    def _note_failures(self, failures: int, moment: float) -> None:
        self.further.failures, self.further.failed_at = failures, moment
        self.folder.save(FURTHER, self.further)

    def _found_and_served(self) -> bool:
        if self.further.model_version is None and not self._found_better():
            return False
        return self.published.model_version == self.further.model_version or self._publish()

    def _look(self) -> None:
        """Raise GivenWay when the worker is needed, or the time is up."""
        if self.project.schedule.others_need_the_worker():
            raise GivenWay("somebody needs the worker")
        if self.project.published != self.published:
            raise GivenWay("another version is published")
        if next_round_is_on(self.project, self.published):
            raise GivenWay("another worker is at the next round")
        if self.further.model_version is None and self._spent > 60 * self.settings.further_minutes:
            raise GivenWay("the time is up")

    @property
    def _spent(self) -> float:
        return self.further.seconds + time.monotonic() - self._began

    # -- training

    def _found_better(self) -> bool:
        """Try until something is better; whether its weights are kept and named."""
        assert self.published.weights is not None
        served = stored_learner(self.settings, self.project.folder, self.published.weights)
        metrics = self.folder.need(METRICS)
        while self.further.tries < TRIES:
            self.further.tries += 1  # noted first: a process that is killed notes nothing more
            self.folder.save(FURTHER, self.further)
            try:
                better = self._try(served, metrics)
            except GivenWay:
                self.further.tries -= 1
                self._note_time()
                raise
            self._note_time()
            if better:
                return True
        self.further.ended = f"{TRIES} trainings were no better"
        self.folder.save(FURTHER, self.further)
        return False

    def _note_time(self) -> None:
        self.further.seconds, self._began = self._spent, time.monotonic()
        self.folder.save(FURTHER, self.further)

    def _try(self, served: Learner, metrics: MetricsRecord) -> bool:
        """Train once; keep the weights where they are better than ``served``."""
        pseudo = self._believed(served, metrics)
        device = device_of(self.settings.train_device)
        learner = new_learner(
            tuple(self.dataset.classes), learner_config(self.settings, device), device
        )
        seed = self.settings.seed + self.folder.number + _ANOTHER_SEED * self.further.tries
        report = learner.fit(
            self.source, metrics.trained, pseudo=pseudo, seed=seed, progress=self._step
        )
        asked = judges(metrics)
        new = learner.evaluate(self.source, asked, progress=self._step)
        old = served.evaluate(self.source, asked, progress=self._step)
        logger.info(
            "project %s: going on after round %d, mIoU %.3f on %d slices, served: %.3f",
            self.project.key,
            self.folder.number,
            new.miou,
            new.slices,
            old.miou,
        )
        if not new.miou > old.miou:  # NaN is not better either
            return False
        weights = learner.to_bytes()
        self.folder.save(FURTHER_WEIGHTS, weights)
        found = metrics.model_copy(deep=True)
        found.miou, found.published_miou = new.miou, old.miou
        found.published_weights = self.published.weights
        found.iou = {name: None if iou != iou else iou for name, iou in new.iou.items()}
        found.pseudo = sorted({*metrics.pseudo, *(int(i) for i in pseudo)})
        found.training = {**report.settings, "seconds": report.seconds, "steps": report.steps}
        self.further.metrics = found
        digest = hashlib.sha256(weights).hexdigest()
        self.further.model_version = task_order.round_version(self.folder.number, digest)
        return True

    def _believed(self, served: Learner, metrics: MetricsRecord) -> dict[SliceId, Mask]:
        """What ``served`` is sure of in slices of the pool that are not held out."""
        places: dict[int, Position] = positions(self.dataset)
        pool = [task.id for task in self.dataset.tasks]
        wanted = evenly_spread(pseudo_slices(pool, self.dataset, places, metrics.blocks), _BELIEVED)
        found: dict[SliceId, Mask] = {}
        for task in wanted:
            try:
                ((_, maps),) = served.maps(self.source, [task], probability=True)
            except UnreadableSlice as error:
                logger.warning("not pseudo-labelled: %s", error)
                continue
            assert maps.probabilities is not None
            sure = maps.probabilities.max(0) >= round(_SURE * 255)
            found[task] = np.where(sure, maps.mask, np.uint8(IGNORE))
            self._step("pseudo-label", len(found), len(wanted))
        return found

    # -- publishing

    def _publish(self) -> bool:
        """Serve the weights that are kept; killed in between, the next job does it again."""
        version = self.further.model_version
        assert version is not None
        self.project.in_studio()  # is it ours still?
        weights = self.folder.relative(FURTHER_WEIGHTS)
        learner = stored_learner(self.settings, self.project.folder, weights)
        config = parse_label_config(self.dataset.label_config)

        pictures = KeptPictures(self.folder, version)

        def predict(tasks: list[int]) -> Iterator[tuple[int, Regions]]:
            coverage = Coverage(
                len(tasks),
                "the queue's {} slices",
                "people would lose the masks that they have",
                "the masks of better weights",
            )
            done = 0
            for asked in coverage.passes(tasks, wait=self._step.wait):
                for task, prediction in learner.predict(
                    self.source, asked, unreadable=coverage.note, uncertainty=True
                ):
                    done += 1
                    self._step("publish", done, len(tasks))
                    pictures.keep(int(task), prediction)
                    yield int(task), regions(prediction.mask, config)

        return publish.republish(self.project, self.published, weights, version, predict)
