"""What an experiment means to who runs the beamline, in one paragraph of plain words."""

from __future__ import annotations

from collections.abc import Sequence

from ml_backend.experiment.comparison import CONTROLS, Comparison, compare, needs_truth
from ml_backend.experiment.notation import count, listed, percent
from ml_backend.experiment.record import Experiment
from ml_backend.experiment.summary import OddStart, Summary

__all__ = ["recommendation"]

_MANY = 10
"""From so many comparisons at 95 % on, one that separates by chance has to be reckoned with."""


def recommendation(summary: Summary) -> str:
    """What to use, how sure that is, how much to label, and how much evidence there is."""
    comparison = compare([summary])
    return " ".join(
        [
            *_choice(summary, comparison),
            *_labels(summary, comparison.default),
            *_evidence(summary, comparison),
        ]
    )


def _choice(summary: Summary, comparison: Comparison) -> list[str]:
    control, default = comparison.control, comparison.default
    if control is None or default is None:
        return [f"Nothing can be recommended yet. {comparison.reason}"]
    area = f"mean test mIoU along the curve {summary.standing(default).area}"
    if default != control:
        return [
            f"Use {default} ({area}): it is better than {control}, the best simple control, by "
            f"{comparison.to_control[default][0]} (mean and 95 % interval over seeds).",
            *_random(summary, default, control),
            *_chance(comparison),
        ]
    others = [n for n in comparison.mean_ranks if n not in {*CONTROLS, *needs_truth()}]
    return [
        f"Use {control} ({area}): {_why(comparison, others)}.",
        *_random(summary, default, control),
        *(_runner_up(summary, comparison, others[0]) if others else _nothing_else(summary)),
    ]


def _why(comparison: Comparison, others: Sequence[str]) -> str:
    """Why the best control is recommended; ``others``: what else is ranked and could have been."""
    if not others:
        controls = comparison.mean_ranks.keys() & set(CONTROLS)
        if len(controls) == 1:
            return "it is the only control that is ranked"
        return "it ranks best of the controls"
    if not any(comparison.to_control[name][0] for name in others):
        return "no difference can be told from chance yet, so the best simple control stands"
    if comparison.separated:
        separated = ", ".join(comparison.separated)
        return f"what separates from this simple control ({separated}) ranks worse"
    return "nothing is clearly better than this simple control"


def _nothing_else(summary: Summary) -> list[str]:
    """Why only controls could be recommended; nothing where the others are not ranked."""
    begun = {standing.strategy for standing in summary.standings}
    if begun <= set(CONTROLS):
        return ["Only controls have been run."]
    if begun <= {*CONTROLS, *needs_truth()}:
        return ["Only controls and oracles have been run."]
    return []


def _runner_up(summary: Summary, comparison: Comparison, best: str) -> list[str]:
    """How ``best``, the best of the others, fared, where a control is recommended."""
    fared = f"Of the others, {best} ranks best ({summary.standing(best).area}"
    difference = comparison.to_control[best][0]
    if difference is None:
        return [f"{fared})."]
    verdict = "above" if difference.above else "below" if difference.below else "not told apart"
    return [f"{fared}; {difference} to {comparison.control}: {verdict})."]


def _random(summary: Summary, chosen: str, control: str) -> list[str]:
    """Whether it is told apart from random, where that is not the control spoken of."""
    difference = summary.standing(chosen).area_to_random
    if difference is None or control == "random":
        return []
    verdict = (
        "better than"
        if difference.above
        else "worse than"
        if difference.below
        else "not told apart from"
    )
    return [f"{chosen} is {verdict} random ({difference})."]


def _chance(comparison: Comparison) -> list[str]:
    compared = comparison.to_control.keys() - {*CONTROLS, *needs_truth()}
    if len(compared) < _MANY:
        return []
    return [
        f"With {len(compared)} strategies compared at 95 %, one may separate by chance alone: "
        "confirm a small difference with other seeds or data."
    ]


def _labels(summary: Summary, default: str | None) -> list[str]:
    if default is None:
        return []
    standing, pool = summary.standing(default), len(summary.experiment.pool)
    last = standing.curve[-1]
    if last.share is None:
        return ["How far that is from full supervision is unknown: no such run has ended."]
    reached = standing.reaching(0.95)
    if reached is None:
        return [
            f"95 % of full supervision was not reached: {count(last.labelled, 'labelled slice')} "
            f"gave {percent(last.share)}."
        ]
    return [
        f"Expect to label {count(reached.labelled, 'slice')} ({percent(reached.labelled / pool)} "
        f"of {pool}, round {reached.round}) for 95 % of full supervision; "
        f"{last.labelled} gave {percent(last.share)}."
    ]


def _evidence(summary: Summary, comparison: Comparison) -> list[str]:
    unfinished = summary.unfinished
    doubts = [*map(_unpaired, summary.odd_starts)]
    if unfinished:
        doubts.append(
            f"{count(len(unfinished), 'run')} not finished, left out here: redraw the report later."
        )
    if comparison.default is None:
        return doubts
    seeds = len(summary.ranked_seeds)
    thin = {
        1: ": one seed says nothing of chance, so take it as a first impression",
        2: ": two seeds make very wide intervals",
    }
    mine, ranked = summary.standing(comparison.default).areas, summary.ranked_seeds
    if set(mine) != set(ranked):
        doubts.insert(
            0,
            f"The means of {comparison.default} are over {count(len(mine), 'seed')}, its "
            f"differences over the {len(ranked)} that the controls have too.",
        )
    return [
        f"This rests on {count(seeds, 'seed')} of {_rounds(summary)}, on one data set, "
        f"{_tested(summary.experiment)}{thin.get(seeds, '')}.",
        *([comparison.not_ranked] if comparison.not_ranked else []),
        *doubts,
    ]


def _rounds(summary: Summary) -> str:
    """``3 rounds with 4 slices each``, of the rounds that were run."""
    experiment, rounds = summary.experiment, summary.rounds
    pool = len(experiment.pool)
    start = experiment.labelled(1)
    text = f"{count(rounds, 'round')} with {count(start, 'slice')}"
    same = start == experiment.k
    text += " each" if same else f" in the first and {experiment.k} in each later one"
    return text + (f", until the pool of {pool} was used up" if summary.used_up else "")


def _unpaired(odd: OddStart) -> str:
    what = "slices" if odd.slices else "weights"
    whose = "its" if len(odd.strategies) == 1 else "their"
    return (
        f"Seed {odd.seed}: {listed(odd.strategies)} started from other {what} than the rest, so "
        f"{whose} differences are not paired exactly."
    )


def _tested(experiment: Experiment) -> str:
    volumes = {volume for volume, _ in experiment.test.values()}
    return f"tested on {count(len(experiment.test), 'slice')} of {count(len(volumes), 'volume')}"
