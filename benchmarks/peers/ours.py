"""What nextslice trains and serves, and the network without the rest of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from al_strategies.evidence import SliceId
from al_strategies.learner import Learner, SliceSource
from benchmarks.peers.protocol import Mask, Task
from ml_backend.rounds.learners import LearnerConfig, new_learner

__all__ = ["NetworkAlone", "Ours"]


class Ours:
    """The learner of the product as a project's first round trains it, with default settings.

    ``training``: fields of `TrainingConfig` that differ, for tests.
    """

    def __init__(self, device: str = "cpu", training: dict[str, Any] | None = None) -> None:
        self.idle_s = 0.0
        self.steps: int | None = None
        self._device = device
        self._config = LearnerConfig(training=training or {})
        self._learner: Learner | None = None

    def fit(self, task: Task) -> None:
        self._learner = self._new(task.classes)
        self.steps = self._learner.fit(task.pool, task.labelled, seed=task.seed).steps

    def predict(self, source: SliceSource, ids: Sequence[SliceId]) -> Iterator[Mask]:
        assert self._learner is not None, "fit() comes first"
        for _, prediction in self._learner.predict(source, ids):
            yield prediction.mask

    def _new(self, classes: tuple[str, ...]) -> Learner:
        return new_learner(classes, self._config, self._device)


class NetworkAlone(Ours):
    """HRNet at a quarter of the resolution, without filters, pixel expert and pool: the product's
    learner until November 2026."""

    def _new(self, classes: tuple[str, ...]) -> Learner:
        config = replace(self._config, architecture="hrnet_w18_small")
        return new_learner(classes, config, self._device)
