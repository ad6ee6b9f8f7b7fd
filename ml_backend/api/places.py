"""How many requests of a kind have a thread at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["a_place"]


@contextmanager
def a_place(places: threading.BoundedSemaphore, full: Exception) -> Iterator[None]:
    """One of ``places`` for as long as the block lasts. Raises ``full`` when all are taken."""
    if not places.acquire(blocking=False):
        raise full
    try:
        yield
    finally:
        places.release()
