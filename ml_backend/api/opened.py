"""What is believed of the slices that people have opened, ready before somebody drags.

The network takes seconds for a large slice; a drag is to be answered in a part of one. So what it
believes of a slice is computed once, when the slice is opened or next in the queue, and kept within
a bound of bytes. It runs in learners of its own: a drag waits for no other prediction.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from al_strategies.learner import Beliefs
from ml_backend.errors import NextsliceError

__all__ = ["OpenedSlices", "SliceName", "StillComputing"]

logger = logging.getLogger(__name__)


class StillComputing(NextsliceError, TimeoutError):
    """A slice that is not ready in the time that somebody would wait."""


class SliceName(NamedTuple):
    """A slice and the weights that it is looked at with."""

    project: str
    weights: str
    task: int
    image: str


Compute = Callable[[SliceName, bool, float], Beliefs]
"""``compute(slice, ahead, within_s)``; ahead: nobody waits for it yet."""

_AHEAD_WITHIN_S = 60.0
"""So long a slice that nobody waits for may hold up the next one."""


class OpenedSlices:
    """Beliefs of the slices looked at last, ``limit_bytes`` of them at most. Safe to use from many
    threads; each slice is computed by one of them, the others wait for it.

    ``compute`` is called from several threads.
    """

    def __init__(self, compute: Compute, limit_bytes: int) -> None:
        self._compute, self._limit = compute, limit_bytes
        self._kept: OrderedDict[SliceName, Beliefs] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._under_way: dict[SliceName, threading.Event] = {}
        self._ahead: list[SliceName] = []
        self._busy = False

    def __contains__(self, name: SliceName) -> bool:
        with self._lock:
            return name in self._kept

    @property
    def bytes(self) -> int:
        """How many are kept."""
        return self._bytes

    def get(self, name: SliceName, within_s: float, *, ahead: bool = False) -> Beliefs:
        """What is believed of a slice. Raises StillComputing after ``within_s`` where another
        thread is at it, and what ``compute`` raises, which has what is left of that."""
        until = time.monotonic() + within_s
        while True:
            with self._lock:
                found = self._kept.get(name)
                if found is not None:
                    self._kept.move_to_end(name)
                    return found
                other = self._under_way.get(name)
                if other is None:
                    mine = self._under_way[name] = threading.Event()
                    break
            if not other.wait(until - time.monotonic()):
                raise StillComputing(
                    f"task {name.task} is still being computed after {within_s:.0f} s"
                )
        try:
            found = self._compute(name, ahead, until - time.monotonic())
            self.keep(name, found)
            return found
        finally:
            with self._lock:
                del self._under_way[name]
            mine.set()

    def keep(self, name: SliceName, beliefs: Beliefs) -> None:
        """Keep what somebody has computed; the least recently used go first beyond the limit."""
        size = _size(beliefs)
        if size > self._limit:
            return
        with self._lock:
            before = self._kept.pop(name, None)
            if before is not None:
                self._bytes -= _size(before)
            self._kept[name] = beliefs
            self._bytes += size
            while self._bytes > self._limit:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= _size(dropped)

    def prefetch(self, names: Callable[[], Iterable[SliceName]]) -> None:
        """Compute slices in the background, one after the other. ``names`` says which, asked in the
        background too; nothing happens where an earlier call is still at work."""
        with self._lock:
            if self._busy:
                return
            self._busy = True

        def work() -> None:
            try:
                for name in names():
                    if name not in self:
                        self.get(name, _AHEAD_WITHIN_S, ahead=True)
            except StillComputing:
                pass  # somebody who drags there will wait for it
            except Exception as error:  # a drag will say what is wrong
                logger.info("no slice is looked at ahead: %s", error)
            finally:
                with self._lock:
                    self._busy = False

        threading.Thread(target=work, name="opened", daemon=True).start()


def _size(beliefs: Beliefs) -> int:
    return beliefs.mask.nbytes + beliefs.log_probabilities.nbytes
