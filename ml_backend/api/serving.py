"""The published model of each project, as /setup and /predict use it.

`published.json` is read at most every few seconds; weights are loaded lazily, on the first
prediction that needs them, and swapped whole: an answer names the version whose weights made it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy.typing as npt

from al_strategies.learner import Beliefs, Learner
from ml_backend.api.metrics import Metrics, Outcome
from ml_backend.api.opened import OpenedSlices, SliceName, StillComputing
from ml_backend.api.pace import Pace
from ml_backend.api.server import PREDICTIONS
from ml_backend.errors import NextsliceError
from ml_backend.rounds.artefacts import ROUND
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import Published
from ml_backend.rounds.service import Service
from ml_backend.rounds.store import StoreFault
from ml_backend.rounds.upcoming import next_in_queue
from ml_backend.studio.annotations import regions
from ml_backend.studio.label_config import LabelConfig, LabelConfigError, parse_label_config
from ml_backend.studio.task_order import LIVE_SCORE, PENDING_VERSION

__all__ = ["Serving", "usable"]

logger = logging.getLogger(__name__)

_MODELS_KEPT = 4
_ANSWER_WITHIN_S = 80.0
"""Label Studio waits 100 s for all tasks of a request, and throws all away after that."""


_AHEAD = 2
"""Slices that are looked at before anybody opens them: the next in the queue."""

_seconds = time.monotonic


class _TooLate(Exception):
    """Label Studio will not wait for this task any more; the message says why, where it is not for
    those before it."""


@dataclass(frozen=True)
class _Seen:
    published: Published | None
    at: float


class Serving:
    """What is published per project, and predictions with it. Safe to use from many threads."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.metrics = Metrics()
        self._seen: dict[str, _Seen] = {}
        self._models: dict[tuple[str, str], Learner] = {}
        self._warmed: set[tuple[str, str]] = set()
        self._forward = threading.Lock()
        self._places = threading.BoundedSemaphore(PREDICTIONS)
        self.opened = OpenedSlices(self._believe, service.settings.opened_mib << 20)
        self._watchers: dict[bool, tuple[tuple[str, str], Learner]] = {}
        self._watching = {True: threading.Lock(), False: threading.Lock()}
        self._pace = Pace(lambda: _seconds())
        self._projects: dict[str, ConnectedProject] = {}
        self._adopted: set[str] = set()

    def project(self, key: str) -> ConnectedProject:
        """The project ``key``. Made once for those that something is published of: anybody may ask
        for others. Raises InvalidKey."""
        return self._projects.get(key) or ConnectedProject(self.service, key)

    def adopted(self, key: str) -> bool:
        """Whether the project is ours. Looked for in the store until it is, then known."""
        if key not in self._adopted and self.project(key).adopted:
            self._adopted.add(key)
        return key in self._adopted

    def wants_one(self, key: str) -> bool:
        """Whether a slice of the project is known to get one annotation and no more, as of the last
        look at the project. Reads the store; where that fails it is not known."""
        try:
            return self.project(key).record.wanted_annotations == 1
        except NextsliceError as error:
            logger.warning("project %s: how many annotations it wants: %s", key, error)
            return False

    def published(self, key: str) -> Published | None:
        """What is published for the project, at most ``published_ttl_s`` old; older while the store
        does not answer. Raises StoreFault where it never did."""
        seen = self._seen.get(key)
        moment = time.monotonic()
        if seen is None or moment - seen.at > self.service.settings.published_ttl_s:
            project = self.project(key)
            try:
                seen = _Seen(project.published, moment)
            except StoreFault as error:
                if seen is None:
                    raise
                logger.warning("project %s: what was published last is served: %s", key, error)
                seen = _Seen(seen.published, moment)
            if seen.published is not None:  # the first publication must not wait to be seen
                self._seen[key], self._projects[key] = seen, project
                self._warm(key, seen.published)
        return seen.published

    def _warm(self, key: str, published: Published) -> None:
        """Load new weights before anybody waits for them: importing torch takes seconds."""
        weights = published.weights
        if weights is None or (key, weights) in self._warmed:
            return
        self._warmed.add((key, weights))

        def load() -> None:
            try:
                with self._forward:
                    self._model(key, weights)
            except Exception:  # the prediction that needs them will say what is wrong
                logger.exception("project %s: %s cannot be loaded", key, weights)

        threading.Thread(target=load, daemon=True).start()

    def version(self, key: str) -> str:
        """The model version that the project is on."""
        published = self.published(key)
        return PENDING_VERSION if published is None else published.model_version

    def versions(self, key: str) -> list[str]:
        """Versions of the project's committed rounds, newest first."""
        folder = self.project(key).folder
        records = (folder.round(n).load(ROUND) for n in folder.rounds())
        return [record.model_version for record in records if record is not None][::-1]

    def predict(
        self, key: str, tasks: list[dict[str, Any]], label_config: str
    ) -> list[dict[str, Any] | list[Any]]:
        """One result per task, in order; of no region while there is no model.

        An empty list for a task that cannot be predicted, or not before Label Studio stops waiting
        for all of them (a forward that would not end by then is not begun, or given up): it stores
        nothing then, and asks again when the task is opened. The same for all tasks when
        `PREDICTIONS` requests are waited for already.
        """
        if not self._places.acquire(blocking=False):
            logger.warning("project %s: %d tasks are not predicted: %d requests are at it already",
                           key, len(tasks), PREDICTIONS)  # fmt: skip
            self.metrics.predicted("refused", len(tasks))
            return [[] for _ in tasks]
        try:
            return self._predict(key, tasks, label_config)
        finally:
            self._places.release()

    def _predict(
        self, key: str, tasks: list[dict[str, Any]], label_config: str
    ) -> list[dict[str, Any] | list[Any]]:
        until = _seconds() + _ANSWER_WITHIN_S
        published = self.published(key)
        version = PENDING_VERSION if published is None else published.model_version
        config, reason = usable(published, label_config)
        if reason is not None:
            logger.info("project %s: no masks: %s", key, reason)
        results: list[dict[str, Any] | list[Any]] = []
        for task in tasks:
            found: list[dict[str, Any]] | None = []
            if config is None or published is None or published.weights is None:
                self.metrics.predicted("none")
            else:
                opened = len(tasks) == 1 and bool(config.prompts)  # and may be dragged on
                found = self._predict_one(key, published.weights, task, config, until, opened)
            answer = {"result": found, "score": LIVE_SCORE, "model_version": version}
            results.append([] if found is None else answer)
        if len(results) > 1 and _seconds() > until:
            logger.warning("project %s: %d of %d tasks are predicted, the time was up", key,
                           sum(map(bool, results)), len(results))  # fmt: skip
        return results

    def open_ahead(self, key: str, label_config: str) -> None:
        """A person is at the project: what drags need of the next slices of its queue is computed
        in the background, where the config has a control for drags."""
        published = self.published(key)
        config, _ = usable(published, label_config)
        if config is None or not config.prompts or published is None or published.weights is None:
            return
        weights, project = published.weights, self.project(key)

        def names() -> Iterator[SliceName]:
            for row in islice(next_in_queue(project, published), _AHEAD):
                url = config.image_of(row.data)
                if isinstance(url, str):
                    yield SliceName(key, weights, row.id, url)

        self.opened.prefetch(names)

    def _believe(self, name: SliceName, ahead: bool, within_s: float) -> Beliefs:
        """What `OpenedSlices` keeps of a slice. In learners of their own, one for those that
        somebody waits for and one for those ahead: neither waits for other predictions, and none
        waits while another's image is read. Raises StillComputing where the network is not to be
        had in ``within_s``."""
        until = _seconds() + within_s
        with self._watcher(name, ahead, until) as learner:
            neighbours = learner.neighbours
        slices = self.project(name.project).images
        image = slices.around(name.task, name.image, neighbours, until - _seconds())
        with self._watcher(name, ahead, until) as learner:
            return learner.believe_image(image)

    @contextmanager
    def _watcher(self, name: SliceName, ahead: bool, until: float) -> Iterator[Learner]:
        """The learner for the slice, alone with it."""
        lock, key = self._watching[ahead], (name.project, name.weights)
        if not lock.acquire(timeout=max(0.0, until - _seconds())):
            raise StillComputing(f"task {name.task} waits for the network, which is at others")
        try:
            known = self._watchers.get(ahead)
            if known is None or known[0] != key:
                known = self._watchers[ahead] = key, self._load(*key)
            yield known[1]
        finally:
            lock.release()

    def _predict_one(
        self,
        key: str,
        weights: str,
        task: dict[str, Any],
        config: LabelConfig,
        until: float,
        opened: bool,
    ) -> list[dict[str, Any]] | None:
        """The regions of one task; None when it cannot be predicted, or its forward cannot begin
        before ``until``. ``opened``: somebody looks at it, so what is believed of it is kept."""
        outcome: Outcome = "failed"
        try:
            if _seconds() > until:
                raise _TooLate
            image = self._image(key, weights, task, config, until)
            self._check_pace(key, weights, image, until)
            with self._forward_before(until):
                name = SliceName(key, weights, int(task["id"]), config.image_of(task["data"]))
                kept = name if opened else None
                mask = self._forward_within(key, weights, image, until, kept)
            found = regions(mask, config)
            outcome = "masks"
            return found
        except _TooLate as error:
            outcome = "late"
            if error.args:
                logger.warning("project %s: task %s is left out: %s", key, _name(task), error)
        except (ArithmeticError, KeyError, TypeError, ValueError, NextsliceError) as error:
            logger.warning("task %s is not predicted: %s", _name(task), _say(error, config))
        except Exception:  # one broken slice must not throw away the batch
            logger.exception("task %s is not predicted", _name(task))
        finally:
            self.metrics.predicted(outcome)
        return None

    def _image(
        self, key: str, weights: str, task: dict[str, Any], config: LabelConfig, until: float
    ) -> npt.NDArray[Any]:
        """The task's slice as the network takes it; what cannot be read is counted and raised."""
        task_id = int(task["id"])
        url = config.image_of(task["data"])
        if not isinstance(url, str) or not url:
            raise KeyError(config.value_field)
        neighbours = self._neighbours(key, weights, until)
        try:
            left = until - _seconds()
            return self.project(key).images.around(task_id, url, neighbours, left)
        except Exception:
            self.metrics.images_failed.labels("/predict").inc()
            raise

    def _check_pace(self, key: str, weights: str, image: npt.NDArray[Any], until: float) -> None:
        """Raise _TooLate where forwards of that size do not end by ``until``."""
        takes = self._pace.expected((key, weights), image.shape[0] * image.shape[1])
        if takes > until - _seconds():
            raise self._too_slow(takes, image)

    def _too_slow(self, takes: float, image: npt.NDArray[Any]) -> _TooLate:
        height, width = image.shape[:2]
        device = self.service.settings.predict_device
        return _TooLate(
            f"the network takes some {takes:.0f} s for its {height} x {width} pixels "
            f"(PREDICT_DEVICE={device}), and Label Studio would not wait for it: it gets "
            "a mask when a round selects it"
        )

    def _forward_within(
        self,
        key: str,
        weights: str,
        image: npt.NDArray[Any],
        until: float,
        opened: SliceName | None,
    ) -> npt.NDArray[Any]:
        """The mask; all that is believed of ``opened`` is kept.

        Called under the forward's lock. Given up, with _TooLate, as soon as a part of it shows that
        the whole does not end by ``until``.
        """
        self._check_pace(key, weights, image, until)
        model, pixels = self._model(key, weights), image.shape[0] * image.shape[1]
        began = _seconds()

        def look(step: str, done: int, total: int) -> None:
            takes = (_seconds() - began) * total / done
            self._pace.note((key, weights), pixels, takes)
            if done < total and began + takes > until:
                raise self._too_slow(takes, image)

        if opened is None:
            mask = model.predict_image(image, progress=look).mask
        else:
            beliefs = model.believe_image(image, progress=look)
            self.opened.keep(opened, beliefs)
            mask = beliefs.mask
        self._pace.note((key, weights), pixels, _seconds() - began)
        return mask

    @contextmanager
    def _forward_before(self, until: float) -> Iterator[None]:
        """Hold the forward's lock. Raises _TooLate when it is not to be had by ``until``."""
        left = until - _seconds()
        if left <= 0 or not self._forward.acquire(timeout=left):
            raise _TooLate
        try:
            yield
        finally:
            self._forward.release()

    def _neighbours(self, key: str, weights: str, until: float) -> int:
        """How many slices on each side the network takes; waits for no forward once it is loaded,
        so that slices are read while another one is computed."""
        model = self._models.get((key, weights))
        if model is None:
            with self._forward_before(until):
                model = self._model(key, weights)
        return model.neighbours

    def _model(self, key: str, weights: str) -> Learner:
        """The network of these weights; loaded once. Called under the forward's lock."""
        name = (key, weights)
        if name not in self._models:
            model = self._load(key, weights)
            while len(self._models) >= _MODELS_KEPT:
                self._models.pop(next(iter(self._models)))
            self._models[name] = model
        else:  # move to the end: the least recently used one is dropped first
            self._models[name] = self._models.pop(name)
        return self._models[name]

    def _load(self, key: str, weights: str) -> Learner:
        # Imports torch: with the first prediction, not with the web process.
        from ml_backend.rounds.learners import load_learner

        settings = self.service.settings
        data = self.project(key).folder.read_at(weights)
        model = load_learner(settings, data, settings.predict_device)
        logger.info("project %s: loaded %s", key, weights)
        return model


def usable(published: Published | None, label_config: str) -> tuple[LabelConfig | None, str | None]:
    """The config to answer in, or why there is nothing that a network could say."""
    if published is None:
        return None, "round 0 is not published yet"
    if published.weights is None:
        return None, published.retired or "no round has trained a network yet"
    try:
        config = parse_label_config(label_config)
    except LabelConfigError as error:
        return None, str(error)
    if config.fingerprint != published.fingerprint:
        return None, "the classes changed since the published round: train again"
    return config, None


def _name(task: Any) -> Any:
    return task.get("id") if isinstance(task, dict) else task


def _say(error: Exception, config: LabelConfig) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error} (the labelling config reads data.{config.value_field})"
    return str(error)
