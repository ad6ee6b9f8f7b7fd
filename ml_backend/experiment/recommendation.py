"""What an experiment means to who runs the beamline, in one paragraph of plain words."""

from __future__ import annotations

from ml_backend.experiment.comparison import CONTROLS, Comparison, compare, needs_truth
from ml_backend.experiment.notation import count, percent
from ml_backend.experiment.record import Experiment
from ml_backend.experiment.summary import Summary

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
            *_evidence(summary, comparison.default),
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
    if not any(each[0] for each in comparison.to_control.values()):
        why = "no difference can be told from chance yet, so the best simple control stands"
    elif comparison.separated:
        separated = ", ".join(comparison.separated)
        why = f"what separates from this simple control ({separated}) ranks worse"
    else:
        why = "nothing is clearly better than this simple control"
    return [
        f"Use {control} ({area}): {why}.",
        *_random(summary, default, control),
        *_runner_up(summary, comparison),
    ]


def _runner_up(summary: Summary, comparison: Comparison) -> list[str]:
    """How the best of the others fared, where a control is recommended."""
    excluded = {*CONTROLS, *needs_truth()}
    best = next((name for name in comparison.mean_ranks if name not in excluded), None)
    if best is None:
        return ["Only controls have been run."]
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


def _evidence(summary: Summary, default: str | None) -> list[str]:
    experiment, unfinished = summary.experiment, summary.unfinished
    left_out = (
        [f"{count(len(unfinished), 'run')} not finished, left out here: redraw the report later."]
        if unfinished
        else []
    )
    if default is None:
        return left_out
    seeds = len(summary.standing(default).areas)
    thin = {
        1: ": one seed says nothing of chance, so take it as a first impression",
        2: ": two seeds make very wide intervals",
    }
    return [
        f"This rests on {count(seeds, 'seed')} of {count(experiment.rounds, 'round')} with "
        f"{count(experiment.k, 'slice')} each, on one data set, {_tested(experiment)}"
        f"{thin.get(seeds, '')}.",
        *left_out,
    ]


def _tested(experiment: Experiment) -> str:
    volumes = {volume for volume, _ in experiment.test.values()}
    return f"tested on {count(len(experiment.test), 'slice')} of {count(len(volumes), 'volume')}"
