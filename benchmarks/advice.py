"""What the next round will bring, foretold by several laws and compared with what it brought.

    nextslice simulate --judged … --out RECORDS
    python -m benchmarks.advice RECORDS …

Every round of every run is a case: a law sees labels, mIoU on held-out labels and corrected pixels
up to it, and says what the mIoU on the test slices will gain in the next. The test slices are the
truth alone. Where a record has no held-out labels, its test mIoU stands in for theirs, so that
these cases tell the shape of curves, not the luck of few held-out labels; they are counted apart.

A law's constants are those with the smallest error on other cases: on all but the runs that share a
start with the one foretold, and on all but its whole experiment, as for data never seen before.
The constants on all cases are what `ml_backend.rounds.advice` has.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from al_strategies.holdout import MINIMUM_JUDGED
from ml_backend.experiment.record import FULLY_SUPERVISED, RoundLine, runs_of
from ml_backend.rounds.advice import LITTLE, WORTH, RoundScore, advise, expected_gain, gain_interval

__all__ = ["LAWS", "Case", "Law", "Score", "cases_of", "foretold", "interval", "score"]

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """What is known at the end of a round, oldest first, and what the next one brought.

    ``labels``, ``miou``: after each round; ``gained``: of the weights over those of the round
    before, on the same held-out labels, NaN for the first; ``corrected``: the share of pixels
    corrected in the slices new to each, NaN where nobody knows and in the first, opened blank.
    ``more`` labels brought ``gain``. ``start``: of runs that begin alike.
    """

    experiment: str
    start: str
    labels: Values
    miou: Values
    gained: Values
    corrected: Values
    more: int
    gain: float
    judged: bool


def cases_of(folder: Path) -> list[Case]:
    """Those of an experiment that a live round would speak in, and all where nothing is held out;
    from the second round on, where every law has something to go by."""
    runs = {run: lines for run, lines in runs_of(folder).items() if run[0] != FULLY_SUPERVISED}
    judged = any(line.validation for lines in runs.values() for line in lines)
    return [
        case
        for (_, seed), lines in runs.items()
        for end in range(2, len(lines))
        if (case := _case(folder.name, seed, lines[: end + 1], judged)) is not None
    ]


def _case(experiment: str, seed: int, lines: Sequence[RoundLine], judged: bool) -> Case | None:
    seen, following = lines[:-1], lines[-1]
    last = seen[-1].validation
    if judged and (last is None or last.slices < MINIMUM_JUDGED):
        return None
    miou = np.array([_level(line, judged) for line in seen])
    gained = np.diff(miou, prepend=math.nan)
    if judged:
        gained = np.array([_gained(line) for line in seen])
        if math.isnan(gained[-1]):
            return None
    return Case(
        experiment=experiment,
        start=f"{experiment}, seed {seed}",
        labels=np.array([line.labelled for line in seen], float),
        miou=miou,
        gained=gained,
        corrected=np.array([_corrected(line) for line in seen]),
        more=following.labelled - seen[-1].labelled,
        gain=following.miou - seen[-1].miou,
        judged=judged,
    )


def _level(line: RoundLine, judged: bool) -> float:
    if not judged:
        return line.miou
    return line.validation.miou if line.validation else math.nan


def _gained(line: RoundLine) -> float:
    return line.validation.miou - line.before.miou if line.validation and line.before else math.nan


def _corrected(line: RoundLine) -> float:
    known = line.cost is not None and line.round > 1
    return line.cost.corrected / line.cost.pixels if known and line.cost else math.nan


# -- laws


@dataclass(frozen=True)
class Law:
    """``foretell(case, *constants)``, NaN where it cannot; ``choices``: of each constant."""

    name: str
    foretell: Callable[..., float]
    choices: tuple[tuple[float, ...], ...] = ()

    @property
    def grid(self) -> list[tuple[float, ...]]:
        return list(itertools.product(*self.choices))


_EXPONENTS = (0.1, 0.2, 0.3, 0.5, 0.8, 1.2)


def _nothing(case: Case) -> float:
    return 0.0


def _last(case: Case, part: float = 1.0) -> float:
    return part * float(case.gained[-1])


def _of_error(case: Case, share: float) -> float:
    """A share of what is left of the error, each time that the labels grow e-fold."""
    return float(share * (1 - case.miou[-1]) * math.log1p(case.more / case.labels[-1]))


def _power(case: Case, exponent: float, weight: float, share: float) -> float:
    """a − b n^−c through the project's own curve; ``weight`` pulls b to that of `_of_error`."""
    known = ~np.isnan(case.miou)
    x, y = case.labels[known] ** -exponent, case.miou[known]
    now, then = (n**-exponent for n in (case.labels[-1], case.labels[-1] + case.more))
    prior = share * (1 - y[-1]) / (exponent * now)
    pull = weight * now**2
    across = ((x - x.mean()) ** 2).sum() + pull
    slope = (pull * prior - ((x - x.mean()) * (y - y.mean())).sum()) / across
    return float(slope * (now - then))


def _shrunk(case: Case, share: float, weight: float) -> float:
    """`_of_error`, times what the project's own rounds gained over what it would have said of
    them; ``weight``: in points of mIoU, how much of such gains it takes to be believed."""
    known = ~np.isnan(case.gained[1:]) & ~np.isnan(case.miou[:-1])
    growth = np.log(case.labels[1:] / case.labels[:-1])
    typical = (share * (1 - case.miou[:-1]) * growth)[known].sum()
    own = case.gained[1:][known].sum()
    return float((own + weight / 100) / (typical + weight / 100) * _of_error(case, share))


def _of_corrected(case: Case, worth: float, exponent: float, weight: float) -> float:
    """The share of corrected pixels as s n^−d, d pulled to ``exponent``; ``worth``: mIoU of it."""
    known = ~np.isnan(case.corrected) & (case.corrected > 0)
    if not known.any():
        return math.nan
    x, y = np.log(case.labels[known]), np.log(case.corrected[known])
    across = ((x - x.mean()) ** 2).sum() + weight
    power = (weight * exponent - ((x - x.mean()) * (y - y.mean())).sum()) / across
    fall = 1 - (case.labels[-1] / (case.labels[-1] + case.more)) ** power
    return float(worth * np.exp(y[-1]) * fall)


_WORTHS = (0.3, 1, 2, 3, 5)
_SHARES = tuple(np.round(np.arange(0.02, 0.3, 0.01), 2).tolist())

LAWS = (
    Law("no change", _nothing),
    Law("same as the last gain", _last),
    Law("a part of the last gain", _last, (tuple(np.round(np.arange(0, 1, 0.05), 2).tolist()),)),
    Law("power law of mIoU", _power, (_EXPONENTS, (0.01, 0.1, 1, 10), (0.05, 0.08, 0.12, 0.2))),
    Law("power law of corrected pixels", _of_corrected, (_WORTHS, _EXPONENTS, (0.1, 1, 10))),
    Law("a share of the error", _of_error, (_SHARES,)),
    Law("the same, by the own gains", _shrunk, (_SHARES[::2], (0.3, 1, 3, 10, 30))),
)  # fmt: skip
CHOSEN = "a share of the error"


# -- how they do


@dataclass(frozen=True)
class Score:
    """``error``: mean absolute, of mIoU, the mean over experiments; ``inside``: of the intervals
    that are to hold four in five."""

    cases: int
    error: float
    inside: float


def foretold(law: Law, cases: Sequence[Case], leave: Callable[[Case], str]) -> Values:
    """What ``law`` says of each of ``cases``, with the constants of those that ``leave`` names
    otherwise; NaN where it has constants and there are no others."""
    table = np.array([[law.foretell(case, *constants) for case in cases] for constants in law.grid])
    folds = np.array([leave(case) for case in cases])
    found = np.full(len(cases), math.nan)
    for fold in np.unique(folds):
        if len(table) == 1 or (folds != fold).any():
            found[folds == fold] = table[_best(table, cases, folds != fold)][folds == fold]
    return found


def constants(law: Law, cases: Sequence[Case]) -> tuple[float, ...]:
    """Those of the smallest error on all of ``cases``."""
    table = np.array([[law.foretell(case, *one) for case in cases] for one in law.grid])
    return law.grid[_best(table, cases, np.ones(len(cases), bool))]


def _best(table: Values, cases: Sequence[Case], taken: npt.NDArray[np.bool_]) -> int:
    if len(table) == 1:
        return 0
    errors = [_error(row, cases, taken) for row in table]
    return int(np.nanargmin(errors)) if not np.isnan(errors).all() else 0


def _error(said: Values, cases: Sequence[Case], taken: npt.NDArray[np.bool_]) -> float:
    """Every experiment counts alike, however many runs it has."""
    off = np.abs(said - np.array([case.gain for case in cases]))
    taken = taken & ~np.isnan(off)
    names = np.array([case.experiment for case in cases])
    each = [off[taken & (names == name)].mean() for name in np.unique(names[taken])]
    return float(np.mean(each)) if each else math.nan


def interval(off: Values) -> tuple[float, float]:
    """Between which four in five of ``off`` lie."""
    low, high = np.quantile(off, (0.1, 0.9))
    return float(low), float(high)


def spread(case: Case) -> float:
    """What the width of an interval goes by."""
    return float((1 - case.miou[-1]) * math.sqrt(case.more / case.labels[-1]))


def score(law: Law, cases: Sequence[Case], leave: Callable[[Case], str]) -> Score:
    """How ``law`` does on ``cases``, none of which it has learned from."""
    said = foretold(law, cases, leave)
    known = ~np.isnan(said)
    off = np.array([case.gain for case in cases]) - said
    wide, folds = np.array([spread(c) for c in cases]), np.array([leave(c) for c in cases])
    inside = []
    for fold in np.unique(folds[known]):
        here, others = known & (folds == fold), known & (folds != fold)
        if others.any():
            low, high = interval(off[others] / wide[others])
            inside += ((off[here] >= low * wide[here]) & (off[here] <= high * wide[here])).tolist()
    return Score(
        int(known.sum()), _error(said, cases, known), float(np.mean(inside)) if inside else math.nan
    )


def by_start(case: Case) -> str:
    return case.start


def by_experiment(case: Case) -> str:
    return case.experiment


def rows(cases: Sequence[Case]) -> Iterator[str]:
    """A table: each law, its error on a run and on an experiment that it has not seen."""
    yield "| law | cases | error, run left out | inside | error, experiment left out | inside |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    several = len({case.experiment for case in cases}) > 1
    for law in LAWS:
        run = score(law, cases, by_start)
        if not run.cases:
            continue
        whole = score(law, cases, by_experiment) if several else None
        yield f"| {law.name} | {run.cases} | {_cells(run)} | {_cells(whole)} |"


def _cells(found: Score | None) -> str:
    if found is None:
        return "– | –"
    return f"{found.error:.4f} | {'–' if math.isnan(found.inside) else f'{found.inside:.0%}'}"


def as_served(cases: Sequence[Case]) -> Score:
    """How the advice itself does, with the constants that `ml_backend.rounds.advice` has."""
    gains = np.array([case.gain for case in cases])
    known = [(float(c.miou[-1]), int(c.labels[-1]), c.more) for c in cases]
    low, high = np.array([gain_interval(*one) for one in known]).T
    said = np.array([expected_gain(*one) for one in known])
    inside = (gains >= low) & (gains <= high)
    return Score(len(cases), _error(said, cases, np.ones(len(cases), bool)), float(inside.mean()))


def each(cases: Sequence[Case]) -> Iterator[str]:
    """A table: the advice as it is served in each experiment, beside the laws that know nothing."""
    yield "| experiment | cases | no change | same as the last gain | as served | inside |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for name in sorted({case.experiment for case in cases}):
        here = [case for case in cases if case.experiment == name]
        nothing, last = (score(law, here, by_start).error for law in LAWS[:2])
        yield f"| {name} | {len(here)} | {nothing:.4f} | {last:.4f} | {_cells(as_served(here))} |"


def verdicts(cases: Sequence[Case]) -> Iterator[str]:
    """A table: what came of the cases in which the advice said what it said."""
    yield f"| said | cases | mean gain | {WORTH:g} or more | {LITTLE:g} or more |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    found: dict[str, list[float]] = {}
    for case in cases:
        seen = RoundScore(int(case.labels[-1]), MINIMUM_JUDGED, float(case.miou[-1]))
        advice = advise([seen], case.more)
        if advice is not None:
            found.setdefault(advice.verdict, []).append(case.gain)
    for verdict in ("may pay", "by chance", "little"):
        if gains := found.get(verdict):
            parts = [np.mean([gain >= least for gain in gains]) for least in (WORTH, LITTLE)]
            shares = " | ".join(f"{part:.0%}" for part in parts)
            yield f"| {verdict} | {len(gains)} | {np.mean(gains):+.4f} | {shares} |"


def _law(name: str) -> Law:
    return next(law for law in LAWS if law.name == name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", nargs="+", type=Path)
    every = [case for folder in parser.parse_args().records for case in cases_of(folder)]
    for judged in (True, False):
        cases = [case for case in every if case.judged is judged]
        if cases:
            stands = "held-out labels" if judged else "test mIoU in place of held-out labels"
            print(f"{stands}: {', '.join(sorted({c.experiment for c in cases}))}\n")
            for table in (rows(cases), each(cases), verdicts(cases)):
                print("\n".join(table), end="\n\n")
            (share,) = constants(_law(CHOSEN), cases)
            off = np.array([(c.gain - _of_error(c, share)) / spread(c) for c in cases])
            low, high = interval(off)
            print(f"SHARE = {share:g}, LOWEST, HIGHEST = {low:.3f}, {high:.3f}\n")


if __name__ == "__main__":
    main()
