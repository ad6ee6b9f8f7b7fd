"""Per-volume quota and minimum z gap, under any strategy: neighbouring slices are near-copies.

`Admission` says at each pick which slices may be taken next, so a greedy strategy keeps to the
spacing while it picks, and a ranking keeps to it while it is read from the top.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from al_strategies.evidence import Position

__all__ = ["Admission", "Spacing", "even_spacing"]


@dataclass(frozen=True)
class Spacing:
    """How far apart the slices of one selection are kept.

    ``quota``: at most that many slices of one volume in a selection, None for no limit. ``gap``:
    two slices of one volume that are labelled or selected have z at least ``gap`` apart; 0 for no
    limit. Both are wishes: they are relaxed rather than leave a selection short of K (`Admission`).

    Raises ValueError when ``quota`` is below 1 or ``gap`` is negative or not finite.
    """

    quota: int | None = None
    gap: float = 0.0

    def __post_init__(self) -> None:
        if self.quota is not None and self.quota < 1:
            raise ValueError(f"spacing quota is {self.quota}, expected at least 1 or None")
        if not (np.isfinite(self.gap) and self.gap >= 0):
            raise ValueError(f"spacing gap is {self.gap}, expected a finite number of at least 0")


def even_spacing(positions: Iterable[Position], k: int) -> Spacing:
    """The spacing that shares K slices between the volumes of ``positions`` and keeps them apart.

    Quota: an even share, rounded up. Gap: a quarter of the distance that the share would have if
    it were spread evenly over a volume's slices, so that a strategy can still concentrate.
    """
    heights: dict[str, list[float]] = {}
    for place in positions:
        heights.setdefault(place.volume, []).append(place.z)
    if not heights:
        return Spacing()
    quota = max(1, math.ceil(k / len(heights)))
    span = float(np.median([max(z) - min(z) for z in heights.values()]))
    return Spacing(quota=quota if len(heights) > 1 else None, gap=span / (4 * quota))


class Admission:
    """Which of N slices may be picked next, given those picked before.

    In this order, the later only when the earlier leaves nothing to pick:

    1. slices that keep to gap and quota;
    2. the quota is raised, by one at a time: near-copies are worse than a volume seen once more;
    3. the gap is halved, again and again, and given up below one slice; after each halving 1 and 2
       are tried again;
    4. deferred slices (skipped, postponed, drafted), spaced by what is left of 1 to 3.

    What is relaxed stays relaxed for the rest of the selection; `spacing_of` tells what held.
    The quota counts what is picked here, the gap also looks at ``labelled``.
    """

    def __init__(
        self,
        positions: Sequence[Position],
        *,
        labelled: Iterable[Position] = (),
        spacing: Spacing | None = None,
        deferred: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        n = len(positions)
        self._free = np.ones(n, dtype=bool)
        self._deferred = np.zeros(n, dtype=bool) if deferred is None else deferred
        self._prompt = int(np.count_nonzero(~self._deferred))
        self._spacing = spacing or Spacing()
        self._held = [self._spacing]
        self._spaced = spacing is not None and (spacing.quota is not None or spacing.gap > 0)
        if self._spaced:
            self._place(positions, labelled)

    def spacing_of(self, picks: int) -> Spacing:
        """The spacing that held for the first ``picks`` picks (or for all, if there are fewer)."""
        return self._held[min(picks, len(self._held) - 1)]

    @property
    def unconstrained(self) -> bool:
        """Whether any free slice may be picked at any time: no spacing and nothing deferred."""
        return not self._spaced and not self._deferred.any()

    def allowed(self) -> npt.NDArray[np.bool_]:
        """(N,) bool: what may be picked now. All False only when everything has been picked."""
        free = self._free & ~self._deferred if self._prompt else self._free
        if not self._spaced or not free.any():
            return free.copy()
        while True:
            apart = free & (self._clearance >= self._spacing.gap)
            if apart.any():
                return self._within_quota(apart)
            self._halve_gap()

    def pick(self, row: int) -> None:
        """Take slice ``row``, which must be free; what does not let it is relaxed."""
        if not self._free[row]:
            raise ValueError(f"slice {row} has been picked before")
        self._free[row] = False
        self._prompt -= not self._deferred[row]
        if self._spaced:
            volume = self._volume[row]
            while self._clearance[row] < self._spacing.gap:
                self._halve_gap()
            self._counts[volume] += 1
            self._raise_quota(int(self._counts[volume]))
            self._clear(volume, self._z[row])
            self._held.append(self._spacing)

    def pick_in_order(self, order: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
        """Read ``order`` from the top and pick what is allowed, up to ``count`` rows: fewer when
        what is left of ``order`` is not allowed, but a row outside of it is."""
        count = min(count, len(order))
        if not self._spaced:
            late = self._deferred[order]
            rows: npt.NDArray[np.int64] = np.concatenate([order[~late], order[late]])[:count]
            for row in rows:
                self.pick(int(row))
            return rows
        picks = np.empty(count, dtype=np.int64)
        for i in range(count):
            allowed = self.allowed()[order]
            if not allowed.any():
                return picks[:i]
            picks[i] = order[np.argmax(allowed)]
            self.pick(int(picks[i]))
        return picks

    def _place(self, positions: Sequence[Position], labelled: Iterable[Position]) -> None:
        index: dict[str, int] = {}
        volumes = [index.setdefault(position.volume, len(index)) for position in positions]
        self._volume = np.array(volumes, dtype=np.int64)
        self._z = np.array([position.z for position in positions], dtype=np.float64)
        self._counts = np.zeros(len(index), dtype=np.int64)
        self._rows = [np.flatnonzero(self._volume == v) for v in range(len(index))]
        self._clearance = np.full(len(positions), np.inf)
        for position in labelled:
            if position.volume in index:
                self._clear(index[position.volume], position.z)

    def _clear(self, volume: int, z: float) -> None:
        rows = self._rows[volume]
        self._clearance[rows] = np.minimum(self._clearance[rows], np.abs(self._z[rows] - z))

    def _within_quota(self, apart: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        if self._spacing.quota is None:
            return apart
        counts = self._counts[self._volume]
        self._raise_quota(int(counts[apart].min()) + 1)
        within: npt.NDArray[np.bool_] = apart & (counts < self._spacing.quota)
        return within

    def _halve_gap(self) -> None:
        gap = self._spacing.gap / 2
        self._spacing = Spacing(self._spacing.quota, gap if gap >= 1 else 0.0)

    def _raise_quota(self, needed: int) -> None:
        if self._spacing.quota is not None and self._spacing.quota < needed:
            self._spacing = Spacing(needed, self._spacing.gap)
