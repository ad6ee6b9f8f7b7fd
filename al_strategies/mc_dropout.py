"""Monte Carlo dropout: uncertainty under a network that is not sure of itself."""

from __future__ import annotations

from dataclasses import dataclass

from al_strategies.base import Floats, Problem, ScoreStrategy, StrategyInfo, register
from al_strategies.evidence import MC_ENTROPY

__all__ = ["MCDropout"]


@register(
    StrategyInfo(
        name="mc_dropout",
        summary="The K of highest entropy of the mean prediction over dropout passes.",
        evidence=(MC_ENTROPY,),
        source="Gal & Ghahramani 2016; Gal et al. 2017",
    )
)
@dataclass(frozen=True)
class MCDropout(ScoreStrategy):
    """Entropy of the mean p over T stochastic passes, mean over pixels: the K highest."""

    def score(self, problem: Problem) -> Floats:
        return problem.score(MC_ENTROPY)
