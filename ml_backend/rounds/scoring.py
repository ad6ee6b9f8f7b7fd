"""The scoring step: evidence of the whole pool, or the reason why there is none.

A selection from what happened to be in reach would be no selection (`Coverage`). What was gathered
is kept, and the next attempt goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from al_strategies.evidence import Evidence
from al_strategies.learner import Unreadable
from ml_backend.rounds.coverage import Coverage, StillHas

__all__ = ["Gather", "whole_pool"]

Gather = Callable[[Sequence[int], Unreadable], Evidence]
"""One pass over slices: their evidence; what cannot be read is told, and left out."""


def whole_pool(
    gather: Gather,
    ids: Sequence[int],
    found: Evidence,
    keep: Callable[[Evidence], None],
    still_has: StillHas | None = None,
) -> Evidence:
    """The evidence of ``ids``, in their order, but for single slices that cannot be read.

    ``found``: what an earlier attempt has of them already. ``keep``: is given what there is before
    each pause, and before an error. ``still_has``: as in `Coverage`. Raises UnreadableSlices.
    """
    coverage = Coverage(
        len(ids),
        "the project's {} slices",
        "the selection would be from a pool that was not seen",
        "the selection",
        still_has,
    )
    known = set(found.ids)
    parts = [found]
    unknown = [i for i in ids if i not in known]
    for asked in coverage.passes(unknown, lambda: keep(Evidence.concat(parts))):
        parts.append(gather(asked, coverage.note))
    found = Evidence.concat(parts)
    place = {slice_id: row for row, slice_id in enumerate(found.ids)}
    return found.take([place[i] for i in ids if i in place])
