"""Core-set selection: k-center greedy in embedding space, in float32 and bounded memory.

Squared distances come from ‖x‖² + ‖c‖² - 2 x·c with both centred near the pool's mean, which keeps
float32 from cancelling when embeddings share a large offset, as averages after a ReLU do. Of the
farthest rows, those that float32 cannot tell apart are compared again in float64, so that picks of
k-center greedy, ties included, are those of the textbook. Small distances, as `CoresetNearest` asks
for, have the error of float32: near-copies of a labelled slice are all at about 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from al_strategies.base import (
    Features,
    Floats,
    Problem,
    Ranking,
    ScoreStrategy,
    Strategy,
    StrategyInfo,
    register,
)
from al_strategies.clustering import squared_norms
from al_strategies.evidence import EMBEDDING, EvidenceError

__all__ = ["Coreset", "CoresetNearest", "Cover", "k_center_greedy"]

_BLOCK_BYTES = 1 << 20  # of embeddings at a time: they stay in a core's cache
_CENTRE_CHUNK = 1_024
_ROWS_AT_ONCE = 2_048
_LEAST_EAGER = 32
_EAGER = 1 / 8  # of the labelled rows: more of them cost more at first and spare more later
_WORKING_SET = 1 / 8  # of the rows, within these limits
_LEAST_WORKING_SET = 1_024
_WORKING_SET_BYTES = 16 << 20
_ROUNDING = 16 * float(np.finfo(np.float32).eps)
_TIES_COMPARED = 32

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]


def k_center_greedy(embeddings: Features, labelled: Features, k: int) -> Rows:
    """The ``k`` rows that k-center greedy picks, in order: (min(k, N),) int64.

    Each pick is the row of ``embeddings`` (N, D) float32 whose Euclidean distance to the nearest
    row that is labelled or picked is largest; of equals the lowest row. ``labelled`` (L, D) float32
    may be empty: the first pick is then the row nearest to the mean of ``embeddings``, which is
    typical, and the same every time, where a random or first row is neither.

    Memory beyond the arguments is about 50 MiB at a million rows, whatever D and L.
    Raises `EvidenceError` on entries that are not finite or too large, ValueError on shapes that do
    not fit.

    Sener & Savarese 2018, "Active Learning for Convolutional Neural Networks: A Core-Set Approach".
    """
    if k < 0:
        raise ValueError(f"k is {k}, expected at least 0")
    cover = Cover(embeddings, labelled)
    picks = np.empty(min(k, len(embeddings)), dtype=np.int64)
    for i in range(len(picks)):
        picks[i] = cover.farthest()
        cover.add(int(picks[i]))
    return picks


class Cover:
    """N rows, and how far each is from the nearest centre: labelled rows, then those added.

    Exact, but lazy. Distances only shrink as centres are looked at, so the distance to some of them
    is an upper bound of the distance to all. Every row is compared with a few labelled ones at
    first; a working set of the rows with the largest bounds, contiguous in memory, is compared with
    every centre, and the other rows only when one of their bounds could win.
    """

    def __init__(self, embeddings: Features, labelled: Features) -> None:
        self._x = _matrix("embeddings", embeddings)
        self._labelled = _matrix("labelled", labelled)
        n, width = self._x.shape
        if self._labelled.shape[1] != width:
            raise ValueError(
                f"embeddings have {width} columns but labelled have {self._labelled.shape[1]}"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            _check_squares("labelled embeddings", self._labelled, squared_norms(self._labelled))
        self._block = max(64, _BLOCK_BYTES // (4 * width))
        self._shift = _mean_of_some(self._x)
        eager = min(len(self._labelled), max(_LEAST_EAGER, int(len(self._labelled) * _EAGER)))
        self._order = _spread_first(len(self._labelled), eager)
        self._added: Rows = np.empty(0, dtype=np.int64)
        self._squares = np.empty(n, dtype=np.float32)  # ‖x - shift‖²
        self._bounds = np.full(n, np.inf, dtype=np.float32)  # of squared distances, from above
        self._seen = np.zeros(n, dtype=np.int32)  # the first so many centres are in the bound
        size = min(int(n * _WORKING_SET), _WORKING_SET_BYTES // (4 * width))
        size = min(n, max(size, _LEAST_WORKING_SET))
        self._buffer = np.empty((size, width), dtype=np.float32)
        self._all_in_set = size == n
        self._measure(eager)
        self._load(np.arange(n) if self._all_in_set else self._largest_bounds(None))

    @property
    def empty(self) -> bool:
        """Whether there is no centre yet, and so no distance."""
        return self._centres == 0

    def distance(self, row: int) -> float:
        """Distance of ``row`` to the nearest centre, or to the mean of all rows without one."""
        if self.empty:
            return float(np.sqrt(self._from_mean[row]))
        place = int(np.searchsorted(self._set, row))
        if place < len(self._set) and self._set[place] == row:
            return float(np.sqrt(max(self._set_bounds[place], 0)))
        self._refresh(np.array([row]))
        return float(np.sqrt(max(self._bounds[row], 0)))

    def distances(self) -> Floats:
        """`distance` of every row, (N,) float64."""
        if self.empty:
            return np.sqrt(self._from_mean.astype(np.float64))
        self._refresh_all()
        return np.sqrt(np.maximum(self._bounds, 0).astype(np.float64))

    def farthest(self, allowed: Mask | None = None) -> int:
        """Of the rows that are no centre (and ``allowed``, (N,) bool) the one farthest from all.

        While there is no centre, the one nearest to the mean. Of equals the lowest row. Raises
        ValueError when no row is left.
        """
        if self.empty:
            return self._most_typical(allowed)
        looked_at, ties = 0, self._contenders(allowed)
        while ties is None:
            looked_at += len(self._set)
            if 4 * looked_at > len(self._x) or not np.isfinite(self._outside(allowed)):
                # Bounds are too loose to go on set by set, or there is nothing but ties.
                self._refresh_all()
                ties = self._all_contenders(allowed)
                self._reload(allowed)
                break
            self._reload(allowed)
            ties = self._contenders(allowed)
        return self._first_of(ties, self._exact_distance)

    def add(self, row: int) -> None:
        """Make ``row`` a centre: it will not be returned again."""
        self._added = np.append(self._added, row)
        distances = self._buffer @ (-2 * (self._x[row] - self._shift))
        distances += self._set_squares
        distances += self._squares[row]
        np.minimum(self._set_bounds, distances, out=self._set_bounds)
        self._set_bounds[self._set == row] = -np.inf
        self._bounds[row] = -np.inf

    @property
    def _centres(self) -> int:
        return len(self._labelled) + len(self._added)

    def _measure(self, centres: int) -> None:
        """Squares of all rows, and their bounds under the first so many centres."""
        for start in range(0, len(self._x), self._block):
            block = slice(start, start + self._block)
            with np.errstate(over="ignore", invalid="ignore"):
                centred = self._x[block] - self._shift
                self._squares[block] = squared_norms(centred)
            _check_squares("embeddings", self._x, self._squares[block])
            self._lower(self._bounds[block], centred, 0, centres)
            self._bounds[block] += self._squares[block]
        self._seen[:] = centres

    def _lower(self, bounds: Features, centred: Features, first: int, last: int) -> None:
        """Lower ``bounds``, which lack the squares of the rows ``centred``, to the centres from
        ``first`` to ``last``."""
        for start in range(first, last, _CENTRE_CHUNK):
            centres = self._centred_centres(start, min(start + _CENTRE_CHUNK, last))
            target, squares = (-2 * centres).T, squared_norms(centres)
            for row in range(0, len(centred), _ROWS_AT_ONCE):
                rows = slice(row, row + _ROWS_AT_ONCE)
                distances = centred[rows] @ target
                distances += squares
                np.minimum(bounds[rows], distances.min(axis=1), out=bounds[rows])

    def _centred_centres(self, first: int, last: int) -> Features:
        count = len(self._labelled)
        labelled = self._labelled[self._order[first:last]]
        added = self._x[self._added[max(first - count, 0) : max(last - count, 0)]]
        both = added if not len(labelled) else labelled
        if len(added) and len(labelled):
            both = np.concatenate([labelled, added])
        return both - self._shift

    def _updated(self, centred: Features, rows: Rows) -> Features:
        """Bounds of ``rows`` under every centre, given their ``centred`` embeddings."""
        bounds, squares, seen = self._bounds[rows], self._squares[rows], self._seen[rows]
        bounds -= squares
        early = seen < len(self._labelled)
        for group in (early, ~early):
            if not group.any():
                continue
            if group.all():
                self._lower(bounds, centred, int(seen.min()), self._centres)
            else:
                part = bounds[group]
                self._lower(part, centred[group], int(seen[group].min()), self._centres)
                bounds[group] = part
        bounds += squares
        return bounds

    def _load(self, rows: Rows) -> None:
        """Make ``rows``, ascending, the working set and bring their bounds up to date."""
        self._set = rows
        # mode="clip": "raise" would copy the output first
        np.take(self._x, rows, axis=0, out=self._buffer, mode="clip")
        self._buffer -= self._shift
        self._set_squares = self._squares[rows]
        self._set_bounds = self._updated(self._buffer, rows)
        self._outside_bound = self._outside_of(None)

    def _store(self) -> None:
        self._bounds[self._set] = self._set_bounds
        self._seen[self._set] = self._centres

    def _reload(self, allowed: Mask | None) -> None:
        self._store()
        if not self._all_in_set:
            self._load(self._largest_bounds(allowed))

    def _largest_bounds(self, allowed: Mask | None) -> Rows:
        bounds = self._bounds if allowed is None else np.where(allowed, self._bounds, -np.inf)
        first = len(bounds) - len(self._buffer)
        return np.sort(np.argpartition(bounds, first)[first:])

    def _refresh(self, rows: Rows) -> None:
        self._bounds[rows] = self._updated(self._x[rows] - self._shift, rows)
        self._seen[rows] = self._centres

    def _refresh_all(self) -> None:
        self._store()
        for start in range(0, len(self._x), self._block):
            self._refresh(np.arange(start, min(start + self._block, len(self._x))))

    def _outside(self, allowed: Mask | None) -> float:
        return self._outside_bound if allowed is None else self._outside_of(allowed)

    def _outside_of(self, allowed: Mask | None) -> float:
        """Upper bound of what a row outside the working set (and ``allowed``) could reach."""
        if self._all_in_set:
            return -np.inf
        outside = _above(self._bounds, self._squares)
        outside[self._set] = -np.inf
        if allowed is not None:
            outside[~allowed] = -np.inf
        return float(outside.max())

    def _contenders(self, allowed: Mask | None) -> Rows | None:
        """The rows of the working set that float32 cannot tell from the farthest; None when a row
        outside of it might be farther."""
        bounds = self._set_bounds
        if allowed is not None:
            bounds = np.where(allowed[self._set], bounds, -np.inf)
        least = _least_of_largest(bounds, self._set_squares)
        if self._outside(allowed) >= least:
            return None
        return self._set[_above(bounds, self._set_squares) >= least]

    def _all_contenders(self, allowed: Mask | None) -> Rows:
        bounds = self._bounds if allowed is None else np.where(allowed, self._bounds, -np.inf)
        least = _least_of_largest(bounds, self._squares)
        if least == -np.inf:
            raise ValueError("no row is left to pick")
        return np.flatnonzero(_above(bounds, self._squares) >= least)

    def _most_typical(self, allowed: Mask | None) -> int:
        squares = self._from_mean if allowed is None else np.where(allowed, self._from_mean, np.inf)
        smallest = squares.min(initial=np.inf)
        if smallest == np.inf:
            raise ValueError("no row is left to pick")
        ties = np.flatnonzero(squares <= smallest + 2 * _ROUNDING * smallest)
        mean = _mean(self._x)
        return self._first_of(ties, lambda row: -float(_distance(self._x[row], mean)))

    @functools.cached_property
    def _from_mean(self) -> Features:
        """Squared distances (N,) of the rows from their mean."""
        mean = _mean(self._x).astype(np.float32)
        blocks = range(0, len(self._x), self._block)
        return np.concatenate([squared_norms(self._x[s : s + self._block] - mean) for s in blocks])

    def _exact_distance(self, row: int) -> float:
        """Squared distance to the nearest centre in float64."""
        nearest = np.inf
        for centres, count in ((self._labelled, len(self._labelled)), (self._x, len(self._added))):
            for start in range(0, count, _CENTRE_CHUNK):
                part = slice(start, start + _CENTRE_CHUNK)
                chunk = centres[part if centres is self._labelled else self._added[part]]
                nearest = min(nearest, float(_distance(self._x[row], chunk).min()))
        return nearest

    def _first_of(self, ties: Rows, value: Callable[[int], float]) -> int:
        """The lowest row of the largest ``value`` among (the first few of) ``ties``."""
        if len(ties) == 1:
            return int(ties[0])
        first = ties[:_TIES_COMPARED]
        return int(first[np.argmax([value(int(row)) for row in first])])


def _matrix(name: str, values: Features) -> Features:
    if values.ndim != 2 or values.shape[1] < 1:
        raise ValueError(f"{name} have shape {values.shape}, expected (rows, columns)")
    if values.dtype != np.float32:
        raise ValueError(f"{name} are {values.dtype}, expected float32")
    return values


def _check_squares(name: str, x: Features, squares: Features) -> None:
    """Raise EvidenceError unless all ``squares``, those of rows of ``x``, are finite."""
    if np.isfinite(squares).all():
        return
    for row, values in enumerate(x):
        if not np.isfinite(values).all():
            raise EvidenceError(f"row {row} of the {name} is not a finite number everywhere")
    raise EvidenceError(f"the {name} are too large to be squared in float32")


def _spread_first(count: int, first: int) -> Rows:
    """0 … count-1 with ``first`` evenly spread ones in front."""
    if count <= first:
        return np.arange(count)
    front = np.linspace(0, count - 1, first).astype(np.int64)
    return np.concatenate([front, np.setdiff1d(np.arange(count), front)])


def _mean(x: Features) -> Floats:
    total, step = np.zeros(x.shape[1]), 2_048
    for start in range(0, len(x), step):
        total += x[start : start + step].sum(axis=0)
    return total / max(len(x), 1)


def _mean_of_some(x: Features) -> Features:
    """The mean of some rows from all over ``x``: near enough to centre on."""
    return _mean(x[:: max(1, len(x) // 256)]).astype(np.float32)


def _distance(a: Features, b: npt.NDArray[Any]) -> Floats:
    """Squared Euclidean distances along the last axis, in float64."""
    difference = np.subtract(a, b, dtype=np.float64)
    return np.asarray((difference * difference).sum(axis=-1))


def _above(bounds: Features, squares: Features) -> Features:
    """``bounds`` plus what rounding in float32 may have taken from them."""
    return bounds + _ROUNDING * (bounds + squares)


def _least_of_largest(bounds: Features, squares: Features) -> float:
    """What the largest of ``bounds`` is worth at least, rounding considered."""
    i = int(np.argmax(bounds))
    if bounds[i] == -np.inf:
        return -np.inf
    return float(bounds[i] - _ROUNDING * (bounds[i] + squares[i]))


@register(
    StrategyInfo(
        name="coreset",
        summary="One at a time, the slice farthest from all that are labelled or chosen.",
        evidence=(EMBEDDING,),
        labelled_evidence=(EMBEDDING,),
        source="Sener & Savarese 2018",
    )
)
@dataclass(frozen=True)
class Coreset(Strategy):
    """K-center greedy over the embeddings, see `k_center_greedy`. Reports the distance at which
    each slice was picked."""

    def rank(self, problem: Problem) -> Ranking:
        cover = Cover(problem.feature(EMBEDDING), problem.labelled_feature(EMBEDDING))
        return pick_farthest(problem, cover, problem.count)


@register(
    StrategyInfo(
        name="coreset_nearest",
        summary="The K nearest to what is labelled; for comparison, the opposite of coreset.",
        evidence=(EMBEDDING,),
        labelled_evidence=(EMBEDDING,),
        source="Kazimi et al. 2022, as its slide says",
    )
)
@dataclass(frozen=True)
class CoresetNearest(ScoreStrategy):
    """Distance to the nearest labelled slice: the K smallest, all at once. Before anything is
    labelled the distance is that to the mean of the pool."""

    lowest: ClassVar[bool] = True

    def score(self, problem: Problem) -> Floats:
        embeddings = problem.feature(EMBEDDING)
        return Cover(embeddings, problem.labelled_feature(EMBEDDING)).distances()


def pick_farthest(problem: Problem, cover: Cover, count: int) -> Ranking:
    """``count`` greedy picks from ``cover`` through the problem's admission."""
    admission = problem.admission
    rows, scores = np.empty(count, dtype=np.int64), np.empty(count)
    for i in range(count):
        row = cover.farthest(None if admission.unconstrained else admission.allowed())
        rows[i], scores[i] = row, cover.distance(row)
        admission.pick(row)
        cover.add(row)
    return Ranking(rows, scores)
