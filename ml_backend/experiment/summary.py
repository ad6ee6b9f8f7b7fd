"""The rounds of an experiment as numbers: final mIoU, area under the curve, paired differences.

A run counts in finals, areas, differences and ranks when it has ended. Runs with the same seed
start from the same slices and the same weights, so strategies are compared seed by seed.
`OddStart` names those that did not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, isfinite, sqrt
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ml_backend.experiment.notation import signed
from ml_backend.experiment.record import (
    FULLY_SUPERVISED,
    Experiment,
    RecordError,
    RoundLine,
    load_experiment,
    runs_of,
)

__all__ = [
    "CONFIDENCE",
    "CONTROLS",
    "PUBLISHED_LABELS",
    "PUBLISHED_SHARE",
    "CurvePoint",
    "Difference",
    "Effort",
    "Estimate",
    "Mark",
    "OddStart",
    "Runs",
    "Standing",
    "Summary",
    "area",
    "effort_areas",
    "mean_ranks",
    "odd_starts",
    "paired_difference",
    "seeds_to_rank",
    "summarise",
    "summary_of",
]

PUBLISHED_LABELS, PUBLISHED_SHARE = 0.0116, 0.971
"""Kazimi et al. 2022: 97.1 % of the fully supervised mIoU from 1.16 % of the slices (coreset)."""
CONFIDENCE = 0.95
"""Of every interval."""
CONTROLS = ("random", "strided", "foreground_random")
"""What a strategy has to beat (Lüth et al. 2025, nnActive)."""

Runs = Mapping[tuple[str, int], Sequence[RoundLine]]
"""(strategy, seed) → its rounds, in order."""
_BySeed = dict[int, Sequence[RoundLine]]
_Curve = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """Mean of ``n`` seeds and their sample standard deviation; None for one seed."""

    mean: float
    std: float | None
    n: int

    @staticmethod
    def of(values: Iterable[float]) -> Estimate | None:
        """None when there is no value."""
        array = np.array(list(values), dtype=np.float64)
        if not array.size:
            return None
        return Estimate(
            float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else None, array.size
        )

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.std is None else f" ± {self.std:.3f}")


@dataclass(frozen=True)
class Difference:
    """Mean of ``pairs`` paired differences, with its two-sided 95 % t interval."""

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def above(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.low > 0

    @property
    def below(self) -> bool:
        """Whether the whole interval is below 0."""
        return self.high < 0

    @property
    def interval(self) -> str:
        """``[−0.003, +0.027]``."""
        return f"[{signed(self.low)}, {signed(self.high)}]"

    def __str__(self) -> str:
        return f"{signed(self.mean)} {self.interval}"


@dataclass(frozen=True)
class CurvePoint:
    """A round of a strategy, over its seeds.

    ``share``: mean mIoU over the mean fully supervised mIoU; None without that run. ``iou``: per
    class, over the seeds that have a value.
    """

    round: int
    labelled: int
    miou: Estimate
    share: float | None
    iou: Mapping[str, float | None]


@dataclass(frozen=True)
class Mark:
    """The first round with at least the published share of labels, which is ``needed`` slices."""

    needed: int
    round: int
    labelled: int


@dataclass(frozen=True)
class OddStart:
    """Runs of ``seed`` whose round 1 is not that of the rest, so not exactly paired with them.

    ``slices``: whether they annotated other slices; else the same, with other results on the test
    slices, so their first weights are others.
    """

    seed: int
    strategies: tuple[str, ...]
    slices: bool


@dataclass(frozen=True)
class Effort:
    """What the labels of one ended run cost, all rounds together: ``corrected`` of ``pixels``, and
    ``boundary`` pixel edges of outline."""

    corrected: int
    boundary: int
    pixels: int

    @staticmethod
    def of(lines: Sequence[RoundLine]) -> Effort | None:
        """None where the cost of a round is not known."""
        costs = [line.cost for line in lines if line.cost is not None]
        if len(costs) < len(lines):
            return None
        return Effort(
            sum(cost.corrected for cost in costs),
            sum(cost.boundary for cost in costs),
            sum(cost.pixels for cost in costs),
        )


@dataclass(frozen=True)
class Standing:
    """A strategy's results. ``areas`` and ``finals``: seed → value, of the runs that have ended.

    ``curve``: over the ended runs; while there is none, over all, as far as each of them has come.
    ``rank``: mean rank by area over the seeds in `Summary.ranked_seeds`, the best 1; None where a
    run of one of them has not ended. ``mark_share``: the share at `Summary.mark`. ``efforts``,
    ``effort_areas`` (`effort_areas`) and ``effort_rank`` (by these): of the ended runs whose costs
    are known. None stands for what cannot be said yet: no run has ended, `random` has not, or fewer
    than two pairs of seeds.
    """

    strategy: str
    areas: Mapping[int, float]
    finals: Mapping[int, float]
    unfinished: tuple[int, ...]
    curve: tuple[CurvePoint, ...]
    area_to_random: Difference | None = None
    final_to_random: Difference | None = None
    rank: float | None = None
    mark_share: float | None = None
    efforts: Mapping[int, Effort] = field(default_factory=dict)
    effort_areas: Mapping[int, float] = field(default_factory=dict)
    effort_rank: float | None = None

    @property
    def effort_area(self) -> Estimate | None:
        """Mean mIoU along the corrected pixels."""
        return Estimate.of(self.effort_areas.values())

    @property
    def area(self) -> Estimate | None:
        """Area under the curve, a mean mIoU."""
        return Estimate.of(self.areas.values())

    @property
    def final(self) -> Estimate | None:
        """mIoU after the last round."""
        return Estimate.of(self.finals.values())

    @property
    def share(self) -> float | None:
        """Share of full supervision after the last round."""
        return self.curve[-1].share if self.finals else None

    @property
    def iou(self) -> Mapping[str, float | None]:
        """Per class, after the last round that `curve` has."""
        return self.curve[-1].iou

    def reaching(self, share: float) -> CurvePoint | None:
        """The first round whose share of full supervision is at least ``share``."""
        points = (p for p in self.curve if p.share is not None and p.share >= share)
        return next(points, None)


@dataclass(frozen=True)
class Summary:
    """An experiment in numbers. ``standings``: best area first, without an ended run last.

    ``ranked_seeds``: those of `seeds_to_rank`. ``odd_starts``: what is not exactly paired.
    """

    experiment: Experiment
    standings: tuple[Standing, ...]
    full: Standing | None
    ranked_seeds: tuple[int, ...]
    mark: Mark | None
    odd_starts: tuple[OddStart, ...] = ()

    def standing(self, strategy: str) -> Standing:
        """Of one strategy. Raises KeyError."""
        for standing in self.standings:
            if standing.strategy == strategy:
                return standing
        raise KeyError(strategy)

    @property
    def ceiling(self) -> Estimate | None:
        """mIoU of full supervision; None before one such run has ended."""
        return self.full.final if self.full else None

    @property
    def every(self) -> tuple[Standing, ...]:
        """`standings`, then full supervision where it has a round."""
        return (*self.standings, *([self.full] if self.full else []))

    @property
    def rounds(self) -> int:
        """Rounds of a run that has ended; while there is none, those that were asked for."""
        ended = [len(standing.curve) for standing in self.standings if standing.finals]
        return max(ended, default=self.experiment.rounds)

    @property
    def used_up(self) -> bool:
        """Whether a run has annotated the whole pool."""
        pool = len(self.experiment.pool)
        return any(s.curve[-1].labelled == pool for s in self.standings if s.finals)

    @property
    def paired(self) -> bool:
        """Whether any area can be compared with `random`'s, seed by seed."""
        return any(standing.area_to_random for standing in self.standings)

    @property
    def measured(self) -> tuple[str, ...]:
        """The classes that the test slices hold, in their order."""
        points = [point for standing in self.every for point in standing.curve]
        return tuple(
            name
            for name in self.experiment.classes
            if any(point.iou.get(name) is not None for point in points)
        )

    @property
    def unfinished(self) -> tuple[tuple[str, int], ...]:
        """(strategy, seed) of the runs that have begun and not ended."""
        return tuple((s.strategy, seed) for s in self.every for seed in s.unfinished)


def summarise(out: Path) -> Summary:
    """The experiment in ``out``. Raises RecordError, also when no round is whole yet."""
    return summary_of(load_experiment(out), runs_of(out), where=str(out))


def summary_of(experiment: Experiment, runs: Runs, where: str = "the experiment") -> Summary:
    """The same of what has been read already. Raises RecordError, with ``where`` in its words."""
    if not runs:
        raise RecordError(
            f"{where} has no whole round yet, so nothing to report: go on with nextslice simulate "
            f"--out {where} and the options of the first time"
        )
    _check_finite(runs, where)
    by_strategy: dict[str, _BySeed] = {}
    for (strategy, seed), lines in sorted(runs.items()):
        by_strategy.setdefault(strategy, {})[seed] = lines
    ceiling_runs = by_strategy.pop(FULLY_SUPERVISED, {})
    ceiling = Estimate.of(lines[-1].miou for lines in _ended(ceiling_runs).values())
    areas = {
        name: {seed: area(lines) for seed, lines in _ended(by_seed).items()}
        for name, by_seed in by_strategy.items()
    }
    seeds = seeds_to_rank(areas)
    ranks = mean_ranks(areas, seeds)
    mark = _mark(experiment)
    costs = effort_areas({name: _ended(by_seed) for name, by_seed in by_strategy.items()})
    cost_ranks = mean_ranks(costs, seeds_to_rank(costs))
    standings = [
        replace(
            _standing(name, by_seed, ceiling, mark, _ended(by_strategy.get("random", {})), ranks),
            effort_areas=costs.get(name, {}),
            effort_rank=cost_ranks.get(name),
        )
        for name, by_seed in by_strategy.items()
    ]
    standings.sort(key=lambda s: (s.area is None, -s.area.mean if s.area else 0.0, s.strategy))
    full = _standing(FULLY_SUPERVISED, ceiling_runs, ceiling, None, {}, {})
    return Summary(
        experiment,
        tuple(standings),
        full if ceiling_runs else None,
        seeds,
        mark,
        tuple(odd_starts(runs)),
    )


def area(lines: Sequence[RoundLine]) -> float:
    """Trapezoid of mIoU over annotated slices, by the range of labels; one round: its mIoU."""
    labelled = np.array([line.labelled for line in lines], dtype=np.float64)
    miou = np.array([line.miou for line in lines], dtype=np.float64)
    if labelled[-1] == labelled[0]:
        return float(miou.mean())
    return float(np.trapezoid(miou, labelled) / (labelled[-1] - labelled[0]))


def effort_areas(
    runs: Mapping[str, Mapping[int, Sequence[RoundLine]]],
) -> dict[str, dict[int, float]]:
    """Strategy → seed → mean mIoU along the pixels corrected so far, of ended runs by strategy.

    Runs of one seed begin with the same labels, but end at other efforts: each is averaged, by the
    trapezoid rule, up to the effort at which the cheapest of its seed ends. Runs whose costs are
    not known are left out; so are seeds in which nothing was corrected after round 1.
    """
    curves: dict[int, dict[str, tuple[_Curve, _Curve]]] = {}
    for name, by_seed in runs.items():
        for seed, lines in by_seed.items():
            costs = [line.cost.corrected for line in lines if line.cost is not None]
            if len(costs) == len(lines):
                miou = np.array([line.miou for line in lines], dtype=np.float64)
                curves.setdefault(seed, {})[name] = (np.cumsum(costs).astype(np.float64), miou)
    areas: dict[str, dict[int, float]] = {name: {} for name in runs}
    for seed, of_seed in curves.items():
        end = min(float(effort[-1]) for effort, _ in of_seed.values())
        for name, (effort, miou) in of_seed.items():
            if end > effort[0]:
                areas[name][seed] = _mean_up_to(end, effort, miou)
    return areas


def _mean_up_to(end: float, effort: _Curve, miou: _Curve) -> float:
    """Of the polygon through (``effort``, ``miou``), from its first point to ``end``."""
    inside = effort < end
    x = np.append(effort[inside], end)
    y = np.append(miou[inside], np.interp(end, effort, miou))
    return float(np.trapezoid(y, x) / (end - effort[0]))


def paired_difference(
    values: Mapping[int, float], reference: Mapping[int, float]
) -> Difference | None:
    """``values`` − ``reference`` over the seeds in both; None for fewer than two."""
    from scipy.stats import t  # takes as long as all else that the command imports

    shared = sorted(values.keys() & reference.keys())
    if len(shared) < 2:
        return None
    differences = np.array([values[seed] - reference[seed] for seed in shared])
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(shared) - 1))
    half = quantile * float(differences.std(ddof=1)) / sqrt(len(shared))
    mean = float(differences.mean())
    return Difference(mean, mean - half, mean + half, len(shared))


def seeds_to_rank(areas: Mapping[str, Mapping[int, float]]) -> tuple[int, ...]:
    """The seeds that every control with an area has; without a control, every strategy with one.

    So a strategy that lacks a seed drops out of the ranking, and does not shrink it for the others.
    """
    ended = {name: set(values) for name, values in areas.items() if values}
    needed = [seeds for name, seeds in ended.items() if name in CONTROLS] or [*ended.values()]
    return tuple(sorted(set.intersection(*needed))) if needed else ()


def mean_ranks(areas: Mapping[str, Mapping[int, float]], seeds: Sequence[int]) -> dict[str, float]:
    """Strategy → mean rank over ``seeds``, the largest area 1, ties shared.

    Without the strategies that lack one of the seeds, since a rank in a smaller field is another
    thing.
    """
    from scipy.stats import rankdata

    names = [name for name, values in areas.items() if values.keys() >= set(seeds)]
    if not names or not seeds:
        return {}
    table = np.array([[areas[name][seed] for name in names] for seed in seeds])
    ranks = rankdata(-table, axis=1).mean(axis=0)
    return dict(zip(names, ranks.tolist(), strict=True))


def odd_starts(runs: Runs) -> Iterator[OddStart]:
    """The runs whose round 1 is not that of most of their seed; of equal parts, not `random`'s.

    All runs of a seed share one first training, so its numbers are compared exactly. Records that
    were gone on with on another machine without their ``start/`` may differ.
    """
    firsts: dict[int, dict[str, RoundLine]] = {}
    for strategy, seed in sorted(runs):
        if strategy != FULLY_SUPERVISED:
            firsts.setdefault(seed, {})[strategy] = runs[strategy, seed][0]
    for seed in sorted(firsts):
        starts = {strategy: _start(line) for strategy, line in firsts[seed].items()}
        number = Counter(starts.values())
        usual = max(number, key=lambda start: (number[start], start == starts.get("random")))
        for slices in (True, False):
            odd = [
                strategy
                for strategy, start in starts.items()
                if start != usual and (start[0] != usual[0]) == slices
            ]
            if odd:
                yield OddStart(seed, tuple(odd), slices)


def _start(line: RoundLine) -> tuple[frozenset[str], tuple[float | None, ...]]:
    """What round 1 annotated, and what it measured."""
    return frozenset(line.selected), (line.miou, line.accuracy, *line.iou.values())


def _standing(
    strategy: str,
    by_seed: _BySeed,
    ceiling: Estimate | None,
    mark: Mark | None,
    random: _BySeed,
    ranks: Mapping[str, float],
) -> Standing:
    ended = _ended(by_seed)
    areas = {seed: area(lines) for seed, lines in ended.items()}
    finals = {seed: lines[-1].miou for seed, lines in ended.items()}
    is_random = strategy == "random"
    curve = _curve(list((ended or by_seed).values()), ceiling)
    at_mark = next((p for p in curve if mark and p.round == mark.round), None)
    return Standing(
        strategy=strategy,
        areas=areas,
        finals=finals,
        unfinished=tuple(seed for seed in by_seed if seed not in ended),
        curve=curve,
        area_to_random=None
        if is_random
        else paired_difference(areas, {seed: area(lines) for seed, lines in random.items()}),
        final_to_random=None
        if is_random
        else paired_difference(finals, {seed: lines[-1].miou for seed, lines in random.items()}),
        rank=ranks.get(strategy),
        mark_share=at_mark.share if at_mark and ended else None,
        efforts={seed: cost for seed, lines in ended.items() if (cost := Effort.of(lines))},
    )


def _curve(runs: list[Sequence[RoundLine]], ceiling: Estimate | None) -> tuple[CurvePoint, ...]:
    """Of runs with the same labels per round, as far as the shortest of them goes."""
    return tuple(_point(lines, ceiling) for lines in zip(*runs, strict=False))


def _point(lines: Sequence[RoundLine], ceiling: Estimate | None) -> CurvePoint:
    miou = Estimate.of(line.miou for line in lines)
    assert miou is not None
    return CurvePoint(
        round=lines[0].round,
        labelled=lines[0].labelled,
        miou=miou,
        share=miou.mean / ceiling.mean if ceiling and ceiling.mean > 0 else None,
        iou={name: _mean_of([line.iou.get(name) for line in lines]) for name in lines[0].iou},
    )


def _mean_of(values: Sequence[float | None]) -> float | None:
    estimate = Estimate.of(value for value in values if value is not None)
    return estimate.mean if estimate else None


def _ended(by_seed: _BySeed) -> _BySeed:
    return {seed: lines for seed, lines in by_seed.items() if lines[-1].following is None}


def _mark(experiment: Experiment) -> Mark | None:
    """None when the experiment ends below the published share of labels."""
    pool = len(experiment.pool)
    needed = ceil(PUBLISHED_LABELS * pool)
    for number in range(1, experiment.rounds + 1):
        labelled = experiment.labelled(number)
        if labelled >= needed:
            return Mark(needed, number, labelled)
    return None


def _check_finite(runs: Runs, where: str) -> None:
    for (strategy, seed), lines in runs.items():
        for line in lines:
            values = (line.miou, *(value for value in line.iou.values() if value is not None))
            if not all(map(isfinite, values)):
                raise RecordError(
                    f"{where}: round {line.round} of {strategy}, seed {seed}, has an IoU that is "
                    f"not a number: remove runs/{strategy}/seed-{seed}* and run it again"
                )
