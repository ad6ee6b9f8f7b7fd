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
        summary="Evenly spaced along z with a random phase, volume by volume; needs no model.",
        source="Control; strong as a cold start: Chen et al. 2023 (COLosSAL), Zhang et al. 2024",
    )
)
@dataclass(frozen=True)
class Strided(Strategy):
    """Evenly spaced slices of each volume, the volumes in turn: round 0, and a control.

    K is shared out as evenly as the sizes of the volumes permit; which volumes get one more is
    random. In a volume of n pool slices, m of them are taken at every n/m-th place by z, from a
    random phase on. The reserve is strided again over what is left. No score.
    """

    def rank(self, problem: Problem) -> Ranking:
        left: Rows = np.flatnonzero(~problem.deferred())
        parts: list[Rows] = []
        for count in (problem.k, problem.count - problem.k):
            part = _strided(problem, left, count)
            parts.append(part)
            left = np.setdiff1d(left, part, assume_unique=True)
        taken = np.concatenate(parts)
        others = np.setdiff1d(np.arange(len(problem)), taken, assume_unique=True)
        order = np.concatenate([taken, problem.rng.permutation(others)])
        return Ranking(problem.admission.pick_in_order(order, problem.count))


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
    """Random, but ``fraction`` of the slices are drawn in proportion to their foreground.

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
        order = _interleave(np.argsort(-weighted), np.argsort(uniform), self.fraction)
        rows = problem.admission.pick_in_order(order, problem.count)
        return Ranking(rows, foreground[rows])


def _strided(problem: Problem, rows: Rows, count: int) -> Rows:
    """``count`` of ``rows``, evenly spaced in each volume, the volumes taking turns."""
    volumes: dict[str, list[int]] = {}
    for row in rows:
        volumes.setdefault(problem.pool.positions[row].volume, []).append(int(row))
    members = [np.array(volumes[name]) for name in sorted(volumes)]
    shares = _shares([len(m) for m in members], count, problem.rng)
    picks = [
        _evenly(problem, m, share, problem.rng.random())
        for m, share in zip(members, shares, strict=True)
    ]
    turns = [(turn, volume) for volume, share in enumerate(shares) for turn in range(share)]
    return np.array([picks[volume][turn] for turn, volume in sorted(turns)], dtype=np.int64)


def _shares(sizes: list[int], count: int, rng: np.random.Generator) -> list[int]:
    """``count`` shared out over volumes of ``sizes`` slices, as evenly as they permit."""
    shares = [0] * len(sizes)
    open_volumes = [v for v, size in enumerate(sizes) if size]
    while count > 0 and open_volumes:
        each = max(1, count // len(open_volumes))
        for v in rng.permutation(open_volumes)[:count]:
            more = min(each, sizes[v] - shares[v])
            shares[v] += more
            count -= more
        open_volumes = [v for v in open_volumes if shares[v] < sizes[v]]
    return shares


def _evenly(problem: Problem, rows: Rows, count: int, phase: float) -> Rows:
    """``count`` of one volume's ``rows`` at equal steps along z, in an order whose every beginning
    is spread out too."""
    z: Floats = np.array([problem.pool.positions[row].z for row in rows])
    along = rows[np.argsort(z, kind="stable")]
    places = ((np.arange(count) + phase) * len(rows) / max(count, 1)).astype(np.int64)
    return along[places[_spread(count)]]


def _spread(count: int) -> Rows:
    """0 … count-1 in van der Corput order: each next one falls into the widest gap."""
    bits = max(count - 1, 1).bit_length()
    reversed_bits = [int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits)]
    return np.array([i for i in reversed_bits if i < count], dtype=np.int64)


def _interleave(first: Rows, second: Rows, fraction: float) -> Rows:
    """All rows once, ``fraction`` of every beginning from ``first``, the rest from ``second``."""
    queues = (iter(first.tolist()), iter(second.tolist()))
    seen: set[int] = set()
    order: list[int] = []
    for slot in range(len(first)):
        from_first = round((slot + 1) * fraction) > round(slot * fraction)
        row = next(r for r in queues[0 if from_first else 1] if r not in seen)
        seen.add(row)
        order.append(row)
    return np.array(order, dtype=np.int64)
