"""Softmax uncertainty: how hard a slice is for the model, pixel by pixel, averaged.

Scores are means over pixels, not sums: the same ranking for slices of one size, and a right one for
slices of several.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from al_strategies.base import Floats, Problem, ScoreStrategy, StrategyInfo, register
from al_strategies.evidence import CONFIDENCE, ENTROPY, MARGIN

__all__ = ["Confidence", "Entropy", "Margin"]


@register(
    StrategyInfo(
        name="entropy",
        summary="The K of highest softmax entropy.",
        evidence=(ENTROPY,),
        source="Shannon 1948; Settles 2009, Active Learning Literature Survey",
    )
)
@dataclass(frozen=True)
class Entropy(ScoreStrategy):
    """-Σ_c p log p, mean over pixels: the K highest."""

    def score(self, problem: Problem) -> Floats:
        return problem.score(ENTROPY)


@register(
    StrategyInfo(
        name="confidence",
        summary="The K of lowest softmax confidence.",
        evidence=(CONFIDENCE,),
        source="Lewis & Gale 1994; Settles 2009, least confident",
    )
)
@dataclass(frozen=True)
class Confidence(ScoreStrategy):
    """max_c p, mean over pixels: the K lowest."""

    lowest: ClassVar[bool] = True

    def score(self, problem: Problem) -> Floats:
        return problem.score(CONFIDENCE)


@register(
    StrategyInfo(
        name="margin",
        summary="The K of smallest difference between the two largest class probabilities.",
        evidence=(MARGIN,),
        source="Scheffer et al. 2001; Settles 2009, margin sampling",
    )
)
@dataclass(frozen=True)
class Margin(ScoreStrategy):
    """Largest p - second largest p, mean over pixels: the K lowest."""

    lowest: ClassVar[bool] = True

    def score(self, problem: Problem) -> Floats:
        return problem.score(MARGIN)
