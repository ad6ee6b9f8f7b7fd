"""The controls that every experiment runs, and round 0: no model has to have an opinion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from al_strategies.base import (
    Floats,
    Problem,
    Ranking,
    Rows,
    Strategy,
    StrategyInfo,
    register,
)
from al_strategies.evidence import FOREGROUND

__all__ = ["ForegroundRandom", "Random", "Strided"]


@register(StrategyInfo(name="random", summary="K slices at random, all equally likely."))
@dataclass(frozen=True)
class Random(Strategy):
    """K at random, without replacement. No score."""

    def rank(self, problem: Problem) -> Ranking:
        order = problem.rng.permutation(len(problem))
        return Ranking(problem.admission.pick_in_order(order, problem.count))


@register(
    StrategyInfo(
        name="strided",
        summary="Evenly spaced along z between what is labelled, in each volume; needs no model.",
        source="Control; strong as a cold start: Chen et al. 2023 (COLosSAL), Zhang et al. 2024",
    )
)
@dataclass(frozen=True)
class Strided(Strategy):
    """Evenly spaced slices of each volume, the volumes in turn: round 0, and a control.

    K is shared out as evenly as the sizes of the volumes permit; those with the fewest labelled
    slices get one more, at random among equals. Of a volume of n pool slices without a label, m are
    taken at every n/m-th place by z, from a random phase on. Where slices are labelled, each next
    one goes to the widest gap between them, and those of a gap divide it evenly. What the spacing
    does not allow is replaced by the nearest allowed slice of the volume. The reserve is strided
    again between all of these. No score.
    """

    def rank(self, problem: Problem) -> Ranking:
        taken: list[int] = []
        for end in (problem.k, problem.count):
            for row in _strided(problem, taken, end - len(taken)):
                taken.append(_nearest_allowed(problem, int(row)))
                problem.admission.pick(taken[-1])
            others = np.setdiff1d(np.arange(len(problem)), taken, assume_unique=True)
            order = problem.rng.permutation(others)
            taken += problem.admission.pick_in_order(order, end - len(taken)).tolist()
        return Ranking(np.array(taken, dtype=np.int64))


@register(
    StrategyInfo(
        name="foreground_random",
        summary="At random, two in three by how much foreground the model sees in them.",
        evidence=(FOREGROUND,),
        source="Lüth et al. 2025 (nnActive), foreground-aware random",
    )
)
@dataclass(frozen=True)
class ForegroundRandom(Strategy):
    """Random, but ``fraction`` of the slices are drawn in proportion to their foreground, counted
    over all rounds, so that a small K comes to it too.

    In the paper an oracle says where foreground is; here the model does, since an annotator has not
    looked yet. Drawn without replacement by the Gumbel trick: the highest of log weight + Gumbel
    noise. Reports the mean foreground probability.
    """

    fraction: float = 2 / 3

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"fraction is {self.fraction}, expected a number in [0, 1]")

    def rank(self, problem: Problem) -> Ranking:
        foreground = problem.score(FOREGROUND)
        weighted = np.log(np.maximum(foreground, 1e-12)) + problem.rng.gumbel(size=len(problem))
        uniform = problem.rng.random(len(problem))
        before = problem.query.chosen_before
        order = _interleave(np.argsort(-weighted), np.argsort(uniform), self.fraction, before)
        rows = problem.admission.pick_in_order(order, problem.count)
        return Ranking(rows, foreground[rows])


def _nearest_allowed(problem: Problem, row: int) -> int:
    """The slice that may be picked now and is nearest to ``row`` along z, in its volume if any."""
    may_be = problem.admission.allowed()
    if may_be[row]:
        return row
    allowed = np.flatnonzero(may_be)
    here = problem.pool.positions[row]
    places = [problem.pool.positions[other] for other in allowed]
    apart = [(place.volume != here.volume, abs(place.z - here.z)) for place in places]
    return int(allowed[min(range(len(apart)), key=apart.__getitem__)])


def _strided(problem: Problem, taken: list[int], count: int) -> Rows:
    """``count`` rows, evenly spaced in each volume between what is labelled and ``taken``, the
    volumes taking turns; fewer when fewer are left that are not deferred."""
    positions = problem.pool.positions
    left = np.setdiff1d(np.flatnonzero(~problem.deferred()), taken, assume_unique=True)
    members: dict[str, list[int]] = {}
    for row in left:
        members.setdefault(positions[row].volume, []).append(int(row))
    known: dict[str, list[float]] = {name: [] for name in members}
    for place in (*problem.query.labelled.positions, *(positions[row] for row in taken)):
        if place.volume in known:
            known[place.volume].append(place.z)
    names = sorted(members)
    shares = _shares(
        [len(members[v]) for v in names], [len(known[v]) for v in names], count, problem.rng
    )
    picks = [
        _evenly(problem, np.array(members[v]), np.sort(known[v]), share)
        for v, share in zip(names, shares, strict=True)
    ]
    turns = [(turn, volume) for volume, share in enumerate(shares) for turn in range(share)]
    return np.array([picks[volume][turn] for turn, volume in sorted(turns)], dtype=np.int64)


def _shares(sizes: list[int], known: list[int], count: int, rng: np.random.Generator) -> list[int]:
    """``count`` shared out over volumes of ``sizes`` slices, as evenly as they permit; one more for
    those of which the fewest are ``known``."""
    shares = [0] * len(sizes)
    open_volumes = [v for v, size in enumerate(sizes) if size]
    while count > 0 and open_volumes:
        each = max(1, count // len(open_volumes))
        for v in sorted(rng.permutation(open_volumes), key=known.__getitem__)[:count]:
            more = min(each, sizes[v] - shares[v])
            shares[v] += more
            count -= more
        open_volumes = [v for v in open_volumes if shares[v] < sizes[v]]
    return shares


@dataclass(frozen=True)
class _Gap:
    """``size`` rows of a volume in a run along z, from place ``start`` on, with a known slice
    before (``left``) or after them (``right``), or an end of the volume."""

    start: int
    size: int
    left: bool
    right: bool

    @property
    def ends(self) -> float:
        """Half a step for each known slice, which lies half a row outside of the gap."""
        return (self.left + self.right) / 2

    def step(self, teeth: int) -> float:
        """How far apart ``teeth`` evenly spaced slices would be, in rows."""
        return (self.size + self.ends) / (teeth + self.ends) if teeth < self.size else 0.0

    def places(self, teeth: int, phase: float) -> list[int]:
        """``teeth`` places, a step from a known slice, half of one from the volume's end; from
        ``phase`` of one on where nothing is known."""
        first = 1.0 if self.left else 0.5 if self.right else phase
        steps = (np.arange(teeth) + first) * (self.size + self.ends) / max(teeth + self.ends, 1)
        return [int(place) for place in self.start - self.left / 2 + steps]


def _evenly(problem: Problem, rows: Rows, known: Floats, count: int) -> Rows:
    """``count`` of one volume's ``rows``, evenly spaced along z between the ``known`` z, which
    ascend, in an order whose every beginning is spread out too."""
    z: Floats = np.array([problem.pool.positions[row].z for row in rows])
    order = np.argsort(z, kind="stable")
    bounds = [0, *np.searchsorted(z[order], known).tolist(), len(rows)]
    last = len(known)
    gaps = [_Gap(bounds[i], bounds[i + 1] - bounds[i], i > 0, i < last) for i in range(last + 1)]
    phase = problem.rng.random()
    if len(gaps) == 1:
        teeth = [count]
    else:  # each next one to the widest gap
        teeth = [0] * len(gaps)
        ties = problem.rng.permutation(len(gaps)).tolist()
        for _ in range(count):
            teeth[max(ties, key=lambda gap: gaps[gap].step(teeth[gap]))] += 1
    places = [p for gap, n in zip(gaps, teeth, strict=True) for p in gap.places(n, phase)]
    return rows[order][np.array(places, dtype=np.int64)[_spread(count)]]


def _spread(count: int) -> Rows:
    """0 … count-1 in van der Corput order: each next one falls into the widest gap."""
    bits = max(count - 1, 1).bit_length()
    reversed_bits = [int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits)]
    return np.array([i for i in reversed_bits if i < count], dtype=np.int64)


def _interleave(first: Rows, second: Rows, fraction: float, before: int) -> Rows:
    """All rows once, ``fraction`` of every beginning from ``first``, the rest from ``second``, as
    they go on after ``before`` others."""
    queues = (iter(first.tolist()), iter(second.tolist()))
    seen: set[int] = set()
    order: list[int] = []
    for slot in range(before, before + len(first)):
        from_first = round((slot + 1) * fraction) > round(slot * fraction)
        row = next(r for r in queues[0 if from_first else 1] if r not in seen)
        seen.add(row)
        order.append(row)
    return np.array(order, dtype=np.int64)
