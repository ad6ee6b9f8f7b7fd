"""Which strategy to use, by a rule that was fixed before the results were known.

The default is the strategy of the best mean rank by area over all data sets that is either the best
control or separates from it: the paired 95 % interval of its area difference to the best control is
above 0 on at least one data set and below 0 on none. What needs the ground truth can be ranked,
never chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from al_strategies import available_strategies
from ml_backend.experiment.summary import (
    Difference,
    Summary,
    mean_ranks,
    paired_difference,
)

__all__ = ["CONTROLS", "Comparison", "compare", "needs_truth"]

CONTROLS = ("random", "strided", "foreground_random")
"""What a strategy has to beat (Lüth et al. 2025, nnActive)."""


@dataclass(frozen=True)
class Comparison:
    """The strategies that have ended runs on every one of ``data``, and the default among them.

    ``ranks``: strategy → its mean rank on each data set, among these strategies alone.
    ``mean_ranks``: the mean of those, the best first. ``to_control``: strategy → the area
    difference to ``control``, the best control, on each data set; None for fewer than two pairs of
    seeds. ``separated``: what separates from it, the best first. ``default`` is None when no
    control is among the strategies. ``reason``: one sentence.
    """

    data: tuple[str, ...]
    ranks: Mapping[str, tuple[float, ...]]
    mean_ranks: Mapping[str, float]
    control: str | None
    to_control: Mapping[str, tuple[Difference | None, ...]]
    separated: tuple[str, ...]
    default: str | None
    reason: str


def needs_truth() -> frozenset[str]:
    """The strategies that only a simulation can run."""
    return frozenset(info.name for info in available_strategies() if info.needs_ground_truth)


def compare(summaries: Sequence[Summary]) -> Comparison:
    """Rank the strategies over data sets, and apply the rule. Raises ValueError without any."""
    if not summaries:
        raise ValueError("nothing to compare: give the summary of at least one experiment")
    data = tuple(summary.experiment.data for summary in summaries)
    areas = [{s.strategy: s.areas for s in summary.standings if s.areas} for summary in summaries]
    common = sorted(set.intersection(*(set(each) for each in areas)))
    each_ranks = [mean_ranks({name: each[name] for name in common})[0] for each in areas]
    if not common or not all(each_ranks):
        reason = (
            "No default: the strategies have no seed in common whose runs have all ended."
            if common
            else "No default: no strategy has a run that has ended on every data set."
        )
        return Comparison(data, {}, {}, None, {}, (), None, reason)
    ranks = {name: tuple(each[name] for each in each_ranks) for name in common}
    means = {name: float(np.mean(values)) for name, values in ranks.items()}
    order = sorted(common, key=lambda name: (means[name], name))
    control = next((name for name in order if name in CONTROLS), None)
    to_control = {
        name: tuple(paired_difference(each[name], each[control]) for each in areas)
        for name in order
        if control and name != control
    }
    usable = [name for name in order if name not in needs_truth()]
    separated = tuple(n for n in usable if n not in CONTROLS and _separates(to_control.get(n, ())))
    default = next((n for n in usable if n == control or n in separated), None) if control else None
    return Comparison(
        data=data,
        ranks=ranks,
        mean_ranks={name: means[name] for name in order},
        control=control,
        to_control=to_control,
        separated=separated,
        default=default,
        reason=_reason(usable, means, control, separated, default),
    )


def _separates(differences: Sequence[Difference | None]) -> bool:
    known = [d for d in differences if d is not None]
    return any(d.above for d in known) and not any(d.below for d in known)


def _reason(
    usable: Sequence[str],
    means: Mapping[str, float],
    control: str | None,
    separated: Sequence[str],
    default: str | None,
) -> str:
    if control is None or default is None:
        return f"No default: none of the controls ({', '.join(CONTROLS)}) is in every experiment."
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
