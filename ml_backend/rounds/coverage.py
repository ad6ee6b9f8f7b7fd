"""Slices are asked for until they are read, or until it is clear that something is down.

One rule for scoring the pool, pseudo-labelling and publishing: what may come back is asked for
again after pauses, single slices may be left out by name, and beyond that the attempt ends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence

from al_strategies.learner import UnreadableSlice
from ml_backend.rounds.unreadable import UnreadableSlices, may_come_back

__all__ = ["Coverage"]

logger = logging.getLogger(__name__)

_PAUSES_S = (2.0, 10.0, 20.0, 30.0)
"""Before slices that may come back are asked for again: an outage of a minute costs no attempt."""
_DOWN, _LOST = 10, 4
"""At most a tenth of the slices (one at least) may be left out because they stay out of reach, and
a quarter for any reason."""

_wait = time.sleep


class Coverage:
    """Which of ``total`` slices stay unread: ``failures``, slice → why.

    ``of``: these slices in words, after "n of". ``otherwise``: what would come of going on without
    them. ``left_out``: what they are left out of.
    """

    def __init__(self, total: int, of: str, otherwise: str, left_out: str) -> None:
        self.failures: dict[int, UnreadableSlice] = {}
        self._total = total
        self._of = of
        self._otherwise = otherwise
        self._left_out = left_out

    def note(self, error: UnreadableSlice) -> None:
        """A slice of this pass cannot be read."""
        self.failures[int(error.slice_id)] = error

    def passes(
        self,
        ids: Sequence[int],
        keep: Callable[[], None] = lambda: None,
        wait: Callable[[float], None] | None = None,
    ) -> Iterator[list[int]]:
        """What each pass is to read, which gives `note` what it cannot: ``ids``, then, after a
        pause each, what may come back.

        ``keep``: is called before each pause and before an error. ``wait``: spends the seconds of a
        pause; None: sleeps. Raises UnreadableSlices after the last pass, where too much of it stays
        unread.
        """
        asked = list(ids)
        for pause in (*_PAUSES_S, None):
            for i in asked:
                self.failures.pop(i, None)
            if asked:
                yield asked
            asked = [i for i, why in self.failures.items() if may_come_back(why.__cause__)]
            if not asked or pause is None:
                break
            keep()
            logger.warning("%d slices are asked for again in %g s: %s", len(asked), pause,
                           self.failures[asked[0]])  # fmt: skip
            (wait or _wait)(pause)
        for error in self.failures.values():
            logger.warning("left out of %s: %s", self._left_out, error)
        try:
            self._check(len(asked))
        except UnreadableSlices:
            keep()
            raise

    def _check(self, down: int) -> None:
        lost = len(self.failures)
        most_lost, most_down = max(1, self._total // _LOST), max(1, self._total // _DOWN)
        if down <= most_down and lost <= most_lost:
            return
        last = list(self.failures.values())[-1]
        raise UnreadableSlices(
            f"{lost} of {self._of} cannot be read, {down} of them for now; expected {most_lost} "
            f"and {most_down} at most, or {self._otherwise}. Are Label Studio, its storage and the "
            "volumes in reach of this machine? The next attempt goes on from here. Delete the "
            f"tasks of images that are gone for good. The last: {last}"
        )
