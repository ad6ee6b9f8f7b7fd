"""Work that asks now and then whether it should go on."""

from __future__ import annotations

import time
from collections.abc import Callable

from al_strategies.learner import HearsLoss, Progress

__all__ = ["GivenWay", "LookingUp"]


class GivenWay(BaseException):  # no error, and nothing on the way may take it for one
    """The work is left: the worker is needed, or the time is up."""


class LookingUp:
    """A ``progress`` beside which ``look`` is called, ``every_s`` seconds after the last time and
    from then on. It may raise something that ends the work."""

    def __init__(self, progress: Progress, look: Callable[[], None], every_s: float) -> None:
        self._progress, self._look, self._every_s = progress, look, every_s
        self._next = time.monotonic() + every_s

    def __call__(self, step: str, done: int, total: int) -> None:
        self.look_up()
        self._progress(step, done, total)

    def look_up(self) -> None:
        """Call ``look`` when it is time: for work between two steps."""
        if time.monotonic() >= self._next:
            self._look()
            self._next = time.monotonic() + self._every_s

    def wait(self, seconds: float) -> None:
        """Sleep so long, and look up meanwhile."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.look_up()
            time.sleep(min(left, self._every_s))

    def told_loss(self, loss: float) -> None:
        """See `HearsLoss`."""
        listening: object = self._progress
        if isinstance(listening, HearsLoss):
            listening.told_loss(loss)
