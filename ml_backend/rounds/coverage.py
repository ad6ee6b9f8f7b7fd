"""Slices are asked for until they are read, or until it is clear that something is down.

One rule for scoring the pool, pseudo-labelling and publishing: what may come back is asked for
again after pauses, single slices may be left out by name, and beyond that the attempt ends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress

from al_strategies.learner import UnreadableSlice
from ml_backend.rounds.unreadable import UnreadableSlices, may_come_back
from ml_backend.studio.failures import StudioError

__all__ = ["Coverage", "StillHas"]

logger = logging.getLogger(__name__)

_PAUSES_S = (2.0, 10.0, 20.0, 30.0)
"""Before slices that may come back are asked for again: an outage of a minute costs no attempt."""
_DOWN, _LOST = 10, 4
"""At most a tenth of the slices (one at least) may be left out because they stay out of reach, and
a quarter for any reason."""

_wait = time.sleep

StillHas = Callable[[Iterable[int]], Collection[int]]
"""Which of these slices the project still has. Raises StudioError."""


class Coverage:
    """Which of ``total`` slices stay unread: ``failures``, slice → why.

    ``of``: these slices in words, after "n of", with {} for how many they are. ``otherwise``: what
    would come of going on without them. ``left_out``: what they are left out of. ``still_has``:
    what a person has deleted since the slices were listed is not counted; None: nothing was.
    """

    def __init__(
        self,
        total: int,
        of: str,
        otherwise: str,
        left_out: str,
        still_has: StillHas | None = None,
    ) -> None:
        self.failures: dict[int, UnreadableSlice] = {}
        self._total = total
        self._of = of
        self._otherwise = otherwise
        self._left_out = left_out
        self._still_has = still_has

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
            self._check(asked)
        except UnreadableSlices:
            keep()
            raise

    def _check(self, out_of_reach: Collection[int]) -> None:
        """Raise UnreadableSlices where too many failed; those ``out_of_reach`` may come back."""
        if self._bearable(len(out_of_reach)):
            return
        self._forget_deleted()
        down = len(self.failures.keys() & set(out_of_reach))
        if self._bearable(down):
            return
        of, last = self._of.format(self._total), list(self.failures.values())[-1]
        raise UnreadableSlices(
            f"{len(self.failures)} of {of} cannot be read, {down} of them for now; expected "
            f"{self._most(_LOST)} and {self._most(_DOWN)} at most, or {self._otherwise}. Are Label "
            "Studio, its storage and the volumes in reach of this machine? The next attempt goes "
            "on from here. Delete the tasks of images that are gone for good. The last: "
            f"{last}"
        )

    def _bearable(self, down: int) -> bool:
        return down <= self._most(_DOWN) and len(self.failures) <= self._most(_LOST)

    def _most(self, part: int) -> int:
        return max(1, self._total // part)

    def _forget_deleted(self) -> None:
        """What the error asks a person for may be done: the next attempt has the same slices."""
        if self._still_has is None:
            return
        with suppress(StudioError):  # it may be what is down
            there = self._still_has(self.failures)
            for i in self.failures.keys() - set(there):
                del self.failures[i]
                self._total -= 1
