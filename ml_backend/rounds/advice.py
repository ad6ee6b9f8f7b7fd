"""What the next round will probably bring: whether to go on labelling.

From what a round leaves: labels, mIoU on the labels held out, corrected pixels. What is left of the
error shrinks with the logarithm of the labels, by a part that recorded experiments have in common;
what a project's own last rounds gained says less, since it is mostly chance. ``python -m
benchmarks.advice`` compares such laws, measures their errors and prints the constants below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from al_strategies.holdout import MINIMUM_JUDGED
from ml_backend.rounds.records import Record

__all__ = [
    "LITTLE",
    "WORTH",
    "Advice",
    "RoundScore",
    "Verdict",
    "advise",
    "expected_gain",
    "gain_interval",
]

Verdict = Literal["unknown", "may pay", "by chance", "little"]
"""Nothing can be said; the gain is `WORTH` at least; it is less; it is below `LITTLE` even if it
turns out large. That a single round pays is never sure: by chance one in ten falls."""

WORTH, LITTLE = 0.01, 0.02
"""Of mIoU."""
SHARE = 0.11
"""Of the error that is left, each time that the labels grow e-fold."""
LOWEST, HIGHEST = -0.11, 0.1
"""By how much a tenth of the gains of recorded curves fall short of, and exceed, what is expected;
of the error that is left, times the root of how much the labels grow."""


@dataclass(frozen=True)
class RoundScore:
    """What a round says of itself.

    ``labels``: slices that people have labelled, of which ``held_out`` judge. ``miou``: on these,
    None where it was not measured. ``served``: whether its weights are, or were. ``corrected``: the
    share of pixels that people changed in what they were shown, of the slices new to the round.
    ``unjudged``: classes that no held-out label has.
    """

    labels: int
    held_out: int
    miou: float | None
    served: bool = True
    corrected: float | None = None
    unjudged: tuple[str, ...] = ()


class Advice(Record):
    """What the next round of ``labels`` will probably change of the mIoU on slices that nobody has
    labelled.

    ``gain``, and ``low`` to ``high``, between which four in five gains of recorded curves lay, and
    fewer where held-out labels were few (docs/results.md); None where too little is known.
    ``corrected``: the share of pixels that people changed, of the slices of the last round that
    were opened with a mask; ``corrected_before``: of the round before."""

    says: str
    verdict: Verdict
    labels: int
    held_out: int
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    corrected: float | None = None
    corrected_before: float | None = None


def expected_gain(miou: float, labels: int, more: int) -> float:
    """Of mIoU, from ``more`` labels on top of ``labels``, at least 1."""
    return SHARE * (1 - miou) * math.log1p(more / labels)


def gain_interval(miou: float, labels: int, more: int) -> tuple[float, float]:
    """Where four in five gains of recorded curves lay."""
    gain, spread = expected_gain(miou, labels, more), (1 - miou) * math.sqrt(more / labels)
    return gain + LOWEST * spread, gain + HIGHEST * spread


def advise(rounds: Sequence[RoundScore], more: int) -> Advice | None:
    """Of the next ``more`` labels, after ``rounds`` in order; None before the first training, and
    where there is nothing left to label."""
    if not rounds or rounds[-1].labels < 1 or more < 1:
        return None
    last = rounds[-1]
    shares = [one.corrected for one in rounds if one.corrected is not None]
    found = Advice(
        says="",
        verdict="unknown",
        labels=more,
        held_out=last.held_out,
        corrected=shares[-1] if shares else None,
        corrected_before=shares[-2] if len(shares) > 1 else None,
    )
    miou = _level(rounds)
    if last.held_out < MINIMUM_JUDGED or miou is None:
        said = (
            f"What the next {_slices(more)} will bring cannot be told: too few held-out labels to "
            f"judge by yet, {last.held_out} of at least {MINIMUM_JUDGED}."
            if last.held_out < MINIMUM_JUDGED
            else f"What the next {_slices(more)} will bring cannot be told: nothing is measured."
        )
    else:
        found.gain = expected_gain(miou, last.labels, more)
        found.low, found.high = gain_interval(miou, last.labels, more)
        found.verdict = _verdict(found.gain, found.high)
        said = (
            f"The next {_slices(more)} will probably change the mIoU of {miou:.3f} by "
            f"{_signed(found.gain)} (roughly {_signed(found.low)} to {_signed(found.high)}). "
            f"{_MEANS[found.verdict]}"
        )
    found.says = " ".join(filter(None, (said, _corrected(found), _unjudged(last))))
    return found


_MEANS = {
    "may pay": "Going on will probably pay.",
    "by chance": "That is within what rounds differ by chance: look at the masks too.",
    "little": "Stopping before them probably loses little.",
}


def _level(rounds: Sequence[RoundScore]) -> float | None:
    """mIoU of what is served, as the last round of it that was measured says."""
    for one in reversed(rounds):
        if one.served and one.miou is not None and math.isfinite(one.miou):
            return one.miou
    return None


def _verdict(gain: float, high: float) -> Verdict:
    if gain >= WORTH:
        return "may pay"
    return "little" if high < LITTLE else "by chance"


def _corrected(found: Advice) -> str:
    """How corrected pixels went; empty where two rounds cannot be compared."""
    now, before = found.corrected, found.corrected_before
    if now is None or before is None:
        return ""
    if f"{now:.1%}" == f"{before:.1%}":
        return f"Corrected pixels stayed at {_percent(now)} of a slice."
    went = "fell" if now < before else "rose"
    return f"Corrected pixels {went} from {_percent(before)} to {_percent(now)} of a slice."


def _unjudged(last: RoundScore) -> str:
    if last.held_out < MINIMUM_JUDGED or not last.unjudged:
        return ""
    return f"Not judged, as no held-out label has it: {', '.join(last.unjudged)}."


def _slices(count: int) -> str:
    return "slice" if count == 1 else f"{count:,} slices"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _signed(value: float) -> str:
    """``+0.004``, ``−0.002``; without a sign where it is 0."""
    text = f"{abs(value):.3f}"
    if float(text) == 0:
        return text
    return f"{'+' if value > 0 else '−'}{text}"
