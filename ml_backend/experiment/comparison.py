"""Which strategy to use, by a rule that was fixed before the results were known.

The default is the strategy of the best mean rank by area over all data sets that is either the best
control or separates from it: the paired 95 % interval of its area difference to the best control is
above 0 on at least one data set and below 0 on none. What needs the ground truth can be ranked,
never chosen. Ranks and differences are over the seeds that the controls share on each data set;
what lacks one of them is not ranked, and named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from al_strategies import available_strategies
from ml_backend.experiment.notation import listed
from ml_backend.experiment.summary import (
    CONTROLS,
    Difference,
    Summary,
    mean_ranks,
    paired_difference,
    seeds_to_rank,
)

__all__ = ["CONTROLS", "Comparison", "compare", "needs_truth"]


@dataclass(frozen=True)
class Comparison:
    """The strategies with the ended runs that a rank needs on every one of ``data``.

    ``ranks``: strategy → its mean rank on each data set, among these strategies alone.
    ``mean_ranks``: the mean of those, the best first. ``to_control``: strategy → the area
    difference to ``control``, the best control, on each data set; None for fewer than two pairs of
    seeds. ``separated``: what separates from it, the best first. ``default`` is None when no
    control is among the strategies. ``not_ranked``: one sentence that names what has begun and
    lacks a seed; empty for none. ``reason``: of the default, with ``not_ranked``.
    """

    data: tuple[str, ...]
    ranks: Mapping[str, tuple[float, ...]]
    mean_ranks: Mapping[str, float]
    control: str | None
    to_control: Mapping[str, tuple[Difference | None, ...]]
    separated: tuple[str, ...]
    default: str | None
    not_ranked: str
    reason: str


_Areas = Mapping[str, Mapping[int, float]]
"""Strategy → seed → area, of one data set; without a seed while no run has ended."""


def needs_truth() -> frozenset[str]:
    """The strategies that only a simulation can run."""
    return frozenset(info.name for info in available_strategies() if info.needs_ground_truth)


def compare(summaries: Sequence[Summary]) -> Comparison:
    """Rank the strategies over data sets, and apply the rule. Raises ValueError without any."""
    if not summaries:
        raise ValueError("nothing to compare: give the summary of at least one experiment")
    data = tuple(summary.experiment.data for summary in summaries)
    without = [s.experiment.data for s in summaries if not s.experiment.choices]
    if without:
        return Comparison(data, {}, {}, None, {}, (), None, "", _no_choice(without))
    areas = [{s.strategy: s.areas for s in summary.standings} for summary in summaries]
    common = sorted(set.intersection(*({n for n in each if each[n]} for each in areas)))
    seeds = [seeds_to_rank({name: each[name] for name in common}) for each in areas]
    if not all(seeds):
        return Comparison(data, {}, {}, None, {}, (), None, "", _no_ranks(common))
    lacking = _lacking(data, areas, seeds)
    ranked = [name for name in common if name not in lacking]
    each_ranks = [
        mean_ranks({name: each[name] for name in ranked}, shared)
        for each, shared in zip(areas, seeds, strict=True)
    ]
    ranks = {name: tuple(each[name] for each in each_ranks) for name in ranked}
    means = {name: float(np.mean(values)) for name, values in ranks.items()}
    order = sorted(ranked, key=lambda name: (means[name], name))
    control = next((name for name in order if name in CONTROLS), None)
    to_control = {
        name: tuple(
            paired_difference(each[name], {seed: each[control][seed] for seed in shared})
            for each, shared in zip(areas, seeds, strict=True)
        )
        for name in order
        if control and name != control
    }
    usable = [name for name in order if name not in needs_truth()]
    separated = tuple(n for n in usable if n not in CONTROLS and _separates(to_control.get(n, ())))
    default = next((n for n in usable if n == control or n in separated), None) if control else None
    reason = (
        _no_control(areas)
        if control is None or default is None
        else _reason(usable, means, control, separated, default)
    )
    not_ranked = _not_ranked(lacking)
    return Comparison(
        data=data,
        ranks=ranks,
        mean_ranks={name: means[name] for name in order},
        control=control,
        to_control=to_control,
        separated=separated,
        default=default,
        not_ranked=not_ranked,
        reason=f"{reason} {not_ranked}".rstrip(),
    )


def _lacking(
    data: Sequence[str], areas: Sequence[_Areas], seeds: Sequence[Sequence[int]]
) -> dict[str, str]:
    """Strategy → the seeds that it has no ended run of, in words; only of those that lack one."""
    lacking: dict[str, str] = {}
    for strategy in sorted(set().union(*areas)):
        places = []
        for name, each, shared in zip(data, areas, seeds, strict=True):
            missing = [seed for seed in shared if seed not in each.get(strategy, {})]
            if missing:
                text = f"seed{'' if len(missing) == 1 else 's'} {', '.join(map(str, missing))}"
                places.append(text if len(data) == 1 else f"{text} of {name}")
        if places:
            lacking[strategy] = ", ".join(places)
    return lacking


def _not_ranked(lacking: Mapping[str, str]) -> str:
    if not lacking:
        return ""
    by_reason: dict[str, list[str]] = {}
    for strategy, reason in lacking.items():
        by_reason.setdefault(reason, []).append(strategy)
    groups = (f"{listed(names)} ({reason})" for reason, names in by_reason.items())
    return f"Not ranked, for lack of finished runs: {'; '.join(groups)}."


def _separates(differences: Sequence[Difference | None]) -> bool:
    known = [d for d in differences if d is not None]
    return any(d.above for d in known) and not any(d.below for d in known)


def _no_choice(data: Sequence[str]) -> str:
    return (
        f"No default: on {listed(data)} no strategy had a choice, since the first selection by a "
        "strategy took all that was left of the pool, or there was none. Give a smaller --k or "
        "more --rounds."
    )


def _no_ranks(common: Sequence[str]) -> str:
    if not common:
        return "No default: no strategy has a run that has ended on every data set."
    who = "controls" if set(common).intersection(CONTROLS) else "strategies"
    return f"No default: the {who} have no seed in common whose runs have all ended."


def _no_control(areas: Sequence[_Areas]) -> str:
    begun = [name for name in CONTROLS if all(name in each for each in areas)]
    if begun:
        return (
            "No default yet: no control has a finished run in every experiment; unfinished: "
            f"{', '.join(begun)}."
        )
    return f"No default: none of the controls ({', '.join(CONTROLS)}) is in every experiment."


def _reason(
    usable: Sequence[str],
    means: Mapping[str, float],
    control: str,
    separated: Sequence[str],
    default: str,
) -> str:
    best = usable[0]
    ranked = f"mean rank {means[default]:.1f} among {len(means)}"
    if default != control:
        behind = "" if best == default else f" ({best} ranks better, but does not separate)"
        return (
            f"The default is {default}, {ranked}: it separates from {control}, the best "
            f"control{behind}."
        )
    if separated:
        return (
            f"The default is {control}, {ranked}: it is a control and ranks better than what "
            f"separates from it ({', '.join(separated)})."
        )
    behind = "" if best == control else f" ({best} has the best mean rank, {means[best]:.1f})"
    return (
        f"The default is {control}, {ranked}: nothing separates from it, the best control{behind}."
    )
