"""A look at what may be slow or gone: taken apart from who asks, kept for a moment."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Look", "Seen"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Seen(Generic[T]):
    """What a look has found, and when it was over (`time.monotonic`)."""

    found: T
    at: float


class Look(Generic[T]):
    """What ``take`` finds, seldom and one at a time, however many ask and however long it takes.

    ``fresh_s``: so long it is kept, in seconds; and ``rests`` times as long as the look took, so
    that slow ones do not follow each other without a pause. Safe to use from many threads.
    """

    def __init__(self, take: Callable[[], T], fresh_s: float, *, rests: float = 0.0) -> None:
        self._take = take
        self._fresh_s = fresh_s
        self._rests = rests
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._over.set()
        self._seen: Seen[T] | None = None
        self._fresh_until = 0.0
        self.began = 0.0
        """When the newest look began, whether or not it is over (`time.monotonic`)."""

    def newest(self, until: float) -> Seen[T] | None:
        """What was found last: fresh where a look that is needed is over by ``until``
        (`time.monotonic`), else older; None where there is nothing older."""
        with self._lock:
            if self._over.is_set() and time.monotonic() >= self._fresh_until:
                self._over.clear()
                self.began = time.monotonic()
                threading.Thread(target=self._look, daemon=True).start()
        self._over.wait(max(until - time.monotonic(), 0))
        return self._seen

    @property
    def over(self) -> bool:
        """Whether no look is being taken."""
        return self._over.is_set()

    def _look(self) -> None:
        try:
            found = self._take()
            at = time.monotonic()
            self._seen = Seen(found, at)
            self._fresh_until = at + max(self._fresh_s, self._rests * (at - self.began))
        except Exception:  # a bug; the next who asks looks again
            logger.exception("a look was not taken to its end")
        finally:
            self._over.set()
