"""What a drag over a wrong place makes of a class map: the classes in its box, decided anew.

A person drags a box over what is wrong and says no more than that. So in the box one class that
stands there gives way to another: the pair that the network doubts the least of all that it did not
choose, over as much of the box as possible, and rather one that is seen nearby. Dragged again, the
next pair; what was not meant there is a little less likely elsewhere on the slice. Where one class
ends and the other begins is where the network's belief in both says so, not where the box ends:
inside the box what it is surest of may stay, and around it what hangs together with the box goes
along. All other pixels stay as they are, bit for bit.

NumPy and SciPy alone: no network is asked while a person waits.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ml_backend.errors import NextsliceError

__all__ = ["Box", "Change", "InvalidBox", "alternatives", "repair"]

ClassMap = npt.NDArray[np.uint8]
LogProbabilities = npt.NDArray[np.float16]

_LEAST_SIDE = 3
"""A click is a box of so many pixels."""
_LEAST_SHARE = 0.1
"""A class that stands in less of the box is not what was meant. The middle counts most."""
_CAP = 20.0
"""Nats: a network that is surer than that is no surer."""
_SHARE_WEIGHT = 2.0
"""Nats of doubt that a class must have more to be chosen before one on e times as much of the
box."""
_UNSEEN = 0.02
"""Of a class that is not seen near the box: what is wrong is mostly what is right beside it."""
_REJECTED = 1.0
"""Nats of doubt that a change must have more that was dragged away, or undone, on the slice."""
_STAYS = 0.1
"""Part of the pixels of the box that may stay, those which the network is surest of."""
_TWO_KINDS = 0.8
"""Part of the variance that two groups must explain to be two: of pixels spread evenly 0.75."""
_LEAST_KIND = 0.3
"""Part of the box that was meant, at least."""
_AROUND = 0.5
"""So far around the box a change may go on, in parts of its sides."""
_GOES_ALONG = 0.8
"""Around the box, what is believed no less than that part of the box's own pixels goes along."""


class InvalidBox(NextsliceError, ValueError):
    """A box that is not on its slice."""


@dataclass(frozen=True)
class Box:
    """Pixels ``top`` … ``bottom`` and ``left`` … ``right`` of a slice, the ends excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def window(self) -> tuple[slice, slice]:
        """The box as an index of an array (H, W)."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def grown(self, down: int, across: int, shape: tuple[int, int]) -> Box:
        """So many pixels larger on each side, as far as a slice of ``shape`` goes."""
        return Box(
            max(0, self.top - down),
            max(0, self.left - across),
            min(shape[0], self.bottom + down),
            min(shape[1], self.right + across),
        )

    def on(self, shape: tuple[int, int]) -> Box:
        """The part of it that is on a slice of ``shape`` (H, W), of 3 × 3 pixels at least where
        the slice has so many. Raises InvalidBox when nothing of it is."""
        top, bottom = _on(self.top, self.bottom, shape[0])
        left, right = _on(self.left, self.right, shape[1])
        return Box(top, left, bottom, right)

    def around(self, shape: tuple[int, int]) -> Box:
        """The box and all that a drag of it may change on a slice of ``shape``."""
        down, across = _reach(self.top, self.bottom), _reach(self.left, self.right)
        return self.grown(down, across, shape)

    def overlap(self, other: Box) -> float:
        """Intersection over union, in [0, 1]."""
        down = min(self.bottom, other.bottom) - max(self.top, other.top)
        across = min(self.right, other.right) - max(self.left, other.left)
        both = max(0, down) * max(0, across)
        return both / max(1, self._area + other._area - both)

    @property
    def _area(self) -> int:
        return (self.bottom - self.top) * (self.right - self.left)


class Change(NamedTuple):
    """``before``: the class that gives way, ``after``: the class that takes its place."""

    before: int
    after: int


def repair(
    log_probabilities: LogProbabilities,
    standing: ClassMap,
    box: Box,
    turn: int = 0,
    towards: int | None = None,
    rejected: Collection[Change] = (),
) -> ClassMap:
    """The class map after a drag of ``box`` over ``standing``.

    ``log_probabilities`` (C, H, W): as `Beliefs` has them. ``standing`` (H, W): class indices below
    C. ``turn``: how often the same spot was dragged before, since ``standing`` stood there; after
    all alternatives comes ``standing`` itself, and the first again. Returns a new array; what
    differs from ``standing`` lies in the box and around it, half its sides far at most.
    ``towards``: the class that takes the place, where the person says which; all that stand there
    give way to it at once, then one after the other. ``rejected``: as `alternatives` has it.
    Raises InvalidBox for one that is not on the slice, ValueError for arrays that do not fit.
    """
    if log_probabilities.shape[1:] != standing.shape:
        raise ValueError(
            f"expected the probabilities of a slice of {standing.shape}, found "
            f"{log_probabilities.shape[1:]}"
        )
    shape = (standing.shape[0], standing.shape[1])
    box = box.on(shape)
    repaired = standing.copy()
    changes = [
        change
        for change in alternatives(log_probabilities, standing, box, rejected)
        if towards in (None, change.after)
    ]
    guesses = [[change] for change in changes]
    if towards is not None and len(changes) > 1:
        guesses.insert(0, changes)
    place = turn % (len(guesses) + 1)
    around = box.around(shape)
    view = repaired[around.window]
    for change in guesses[place] if place < len(guesses) else ():
        changed = _changed(log_probabilities, standing, box, around, change)
        view[changed] = change.after
    return repaired


def alternatives(
    log_probabilities: LogProbabilities,
    standing: ClassMap,
    box: Box,
    rejected: Collection[Change] = (),
) -> list[Change]:
    """What may be meant by a drag of ``box``, the likeliest first. ``rejected``: what was not meant
    by earlier drags elsewhere on the slice."""
    there = standing[box.window]
    believed = log_probabilities[(slice(None), *box.window)].astype(np.float32)
    meant = _towards_the_middle(there.shape[0], there.shape[1])
    shape = (standing.shape[0], standing.shape[1])
    near = np.bincount(standing[box.around(shape).window].ravel(), minlength=len(believed))
    rarity = -np.log(near / near.sum() + _UNSEEN)
    found = []
    for before in np.unique(there):
        at = there == before
        share = meant[at].sum()
        if share < _LEAST_SHARE:
            continue
        odds = np.median(believed[:, at] - believed[before, at], axis=1).clip(-_CAP, _CAP)
        costs = rarity - odds - _SHARE_WEIGHT * np.log(share)
        changes = [Change(int(before), k) for k in range(len(costs)) if k != before]
        found += [(costs[c.after] + _REJECTED * (c in rejected), c) for c in changes]
    return [change for _, change in sorted(found)]


def _towards_the_middle(height: int, width: int) -> npt.NDArray[np.float64]:
    """(height, width), 1 in all: people put boxes around what is wrong."""
    down, across = (1 - abs(np.linspace(-1, 1, n + 2)[1:-1]) for n in (height, width))
    found: npt.NDArray[np.float64] = np.outer(down, across) / (down.sum() * across.sum())
    return found


def _changed(
    log_probabilities: LogProbabilities, standing: ClassMap, box: Box, around: Box, change: Change
) -> npt.NDArray[np.bool_]:
    """Which pixels of ``around``, a box around ``box``, are changed."""
    at = standing[around.window] == change.before
    believed = log_probabilities[(slice(None), *around.window)]
    doubt = believed[change.after].astype(np.float32) - believed[change.before]
    doubt = ndimage.median_filter(doubt, 3)  # single pixels are noise
    inside = np.zeros(at.shape, np.bool_)
    top, left = box.top - around.top, box.left - around.left
    inside[top : top + box.bottom - box.top, left : left + box.right - box.left] = True
    core = at & inside
    # What the network itself would have there is never too sure to be changed.
    surest, middle = np.minimum([_split(doubt[core]), np.quantile(doubt[core], _GOES_ALONG)], 0)
    core &= doubt >= surest
    along = at & ~inside & (doubt > middle)
    labels, _ = ndimage.label(core | along, np.ones((3, 3)))
    changed: npt.NDArray[np.bool_] = np.isin(labels, np.unique(labels[core])) & (labels > 0)
    return changed


def _split(doubt: npt.NDArray[np.float32]) -> float:
    """The doubt from which pixels of the box are changed: where two kinds of them part (Otsu, 1979,
    DOI 10.1109/TSMC.1979.4310076), or all but those that are surest."""
    ordered = np.sort(doubt).astype(np.float64)
    sums = ordered.cumsum()[:-1]
    below = np.arange(1, ordered.size)
    above = ordered.size - below
    apart = (sums / below - (ordered.sum() - sums) / above) ** 2 * below * above
    spread = ordered.var() * ordered.size**2
    kinds = np.flatnonzero((apart > _TWO_KINDS * spread) & (above >= _LEAST_KIND * ordered.size))
    if kinds.size:
        return float(ordered[kinds[apart[kinds].argmax()] + 1])
    return float(np.quantile(doubt, _STAYS))


def _reach(first: int, last: int) -> int:
    return 1 + round(_AROUND * (last - first))


def _on(first: int, last: int, length: int) -> tuple[int, int]:
    """A box along one axis of ``length`` pixels, cut and at least `_LEAST_SIDE` long."""
    if first >= length or last <= 0 or last < first:
        raise InvalidBox(f"expected a box on a slice of {length} pixels, found {first} to {last}")
    first, last = max(0, first), min(length, last)
    missing = max(0, min(_LEAST_SIDE, length) - (last - first))
    first = max(0, first - missing // 2)
    last = min(length, max(last, first + min(_LEAST_SIDE, length)))
    return min(first, max(0, last - _LEAST_SIDE)), last
