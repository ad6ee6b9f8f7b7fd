"""The scoring step: evidence of the whole pool, or the reason why there is none.

A selection from what happened to be in reach would be no selection. So slices that cannot be read
are asked for again, and a pool too much of which stays unread ends the attempt; what was gathered
is kept, and the next attempt goes on from there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from al_strategies.evidence import Evidence
from al_strategies.learner import Unreadable, UnreadableSlice
from ml_backend.rounds.slices import UnreadableSlices, may_come_back

__all__ = ["Gather", "whole_pool"]

logger = logging.getLogger(__name__)

Gather = Callable[[Sequence[int], Unreadable], Evidence]
"""One pass over slices: their evidence; what cannot be read is told, and left out."""

_PAUSES_S = (2.0, 10.0, 20.0, 30.0)
"""Before slices that may come back are asked for again: an outage of a minute costs no attempt."""
_DOWN, _LOST = 10, 4
"""At most a tenth of the pool (one slice at least) may be left out because it stays out of reach,
and a quarter for any reason."""

_wait = time.sleep


def whole_pool(
    gather: Gather,
    ids: Sequence[int],
    found: Evidence,
    keep: Callable[[Evidence], None],
) -> Evidence:
    """The evidence of ``ids``, in their order, but for single slices that cannot be read.

    ``found``: what an earlier attempt has of them already. ``keep``: is given what there is before
    each pause, and before an error. Raises UnreadableSlices.
    """
    known = set(found.ids)
    asked = [i for i in ids if i not in known]
    failures: dict[int, UnreadableSlice] = {}
    for pause in (*_PAUSES_S, None):
        if asked:
            found = _more(gather, asked, found, failures)
        asked = [i for i, error in failures.items() if may_come_back(error.__cause__)]
        if not asked or pause is None:
            break
        keep(found)
        logger.warning("%d slices are asked for again in %g s: %s", len(asked), pause,
                       failures[asked[0]])  # fmt: skip
        _wait(pause)
    for error in failures.values():
        logger.warning("left out of the selection: %s", error)
    try:
        _check(len(ids), failures, len(asked))
    except UnreadableSlices:
        keep(found)
        raise
    place = {slice_id: row for row, slice_id in enumerate(found.ids)}
    return found.take([place[i] for i in ids if i in place])


def _more(
    gather: Gather, ids: Sequence[int], found: Evidence, failures: dict[int, UnreadableSlice]
) -> Evidence:
    """``found`` and the evidence of ``ids``; ``failures``: those of them that cannot be read."""
    for i in ids:
        failures.pop(i, None)

    def note(error: UnreadableSlice) -> None:
        failures[int(error.slice_id)] = error

    return Evidence.concat([found, gather(ids, note)])


def _check(total: int, failures: dict[int, UnreadableSlice], down: int) -> None:
    lost = len(failures)
    if down <= max(1, total // _DOWN) and lost <= max(1, total // _LOST):
        return
    last = list(failures.values())[-1]
    raise UnreadableSlices(
        f"{lost} of the project's {total} slices cannot be read, {down} of them for now; expected "
        f"{max(1, total // _LOST)} and {max(1, total // _DOWN)} at most, or the selection would be "
        "from a pool that was not seen. Are Label Studio, its storage and the volumes in reach of "
        "this machine? The next attempt goes on from here. Delete the tasks of images that are "
        f"gone for good. The last: {last}"
    )
