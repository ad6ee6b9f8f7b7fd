"""When a project that somebody else switches to and fro is switched back: at once, until it is a
fight; from then on after pauses that grow, so that two backends do not chase each other for ever.
"""

from __future__ import annotations

import time
from itertools import pairwise

from ml_backend.rounds.records import CLOCKS_DIFFER_S, ProjectRecord

__all__ = ["FIGHT", "FIGHT_S", "fight", "next_switch_at"]

FIGHT_S = 600.0
FIGHT = 3
"""So many switches back in `FIGHT_S` seconds are no accident."""
_PAUSE_S = 300.0
_LONGEST_PAUSE_S = 3600.0


def _pause_after(switches: int) -> float:
    """5, 10, 20, 40 minutes, at most an hour; none before it is a fight."""
    if switches < FIGHT:
        return 0.0
    return min(_PAUSE_S * 2.0 ** (switches - FIGHT), _LONGEST_PAUSE_S)


def _switches(record: ProjectRecord) -> int:
    """How many switches back followed closely on each other, the last one included.

    Once it is a fight, two of them lie apart by a pause: by ours, or by that of the other one, who
    may be one step further.
    """
    moments = [back.moment for back in record.switched_back]
    count = min(len(moments), 1)
    for before, after in pairwise(moments):
        pause = _pause_after(count)
        close = FIGHT_S + 2 * pause if pause else FIGHT_S / (FIGHT - 1)
        count = count + 1 if after - before <= close else 1
    return count


def next_switch_at(record: ProjectRecord) -> float:
    """The moment before which the project is not switched back, in seconds since 1970.

    There is no pause after a switch that was noted in the future: a clock was put back, and the
    pause would last for as long.
    """
    if not record.switched_back:
        return 0.0
    last = record.switched_back[-1].moment
    return 0.0 if last - time.time() > CLOCKS_DIFFER_S else last + _pause_after(_switches(record))


def fight(record: ProjectRecord, moment: float) -> int:
    """How many switches back the fight has that goes on at ``moment``; 0: there is none."""
    count = _switches(record)
    if count < FIGHT:
        return 0
    last = record.switched_back[-1].moment
    if last - moment > CLOCKS_DIFFER_S:
        return 0
    return count if moment <= last + max(FIGHT_S, _pause_after(count)) else 0
