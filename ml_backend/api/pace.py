"""How long the network takes for a slice of some size: known from those before, of the same model.

A forward that nobody waits for any more holds up all others, so it is not begun, or given up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["Pace"]

_REMEMBERED_S = 600.0
"""What was slow beside a training need not be so for ever: then it is tried again."""
_SIZES = 64
"""Of all models together, the last ones."""


class Pace:
    """Seconds for slices of some pixels, by model. Safe from many threads. ``seconds``: the
    clock."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._took: dict[tuple[object, int], tuple[float, float]] = {}

    def note(self, model: object, pixels: int, seconds: float) -> None:
        """So long took, or would have taken, a slice of ``pixels``."""
        with self._lock:
            self._took.pop((model, pixels), None)
            while len(self._took) >= _SIZES:
                self._took.pop(next(iter(self._took)))
            self._took[model, pixels] = seconds, self._seconds()

    def expected(self, model: object, pixels: int) -> float:
        """Seconds that a slice of ``pixels`` takes at least, as one of no more pixels took in the
        last ten minutes; 0 where there was none."""
        oldest = self._seconds() - _REMEMBERED_S
        with self._lock:
            return max(
                (
                    took
                    for (other, size), (took, noted) in self._took.items()
                    if other == model and size <= pixels and noted >= oldest
                ),
                default=0.0,
            )
