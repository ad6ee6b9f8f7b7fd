"""Strategies that look at the truth: for simulations, where it is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from al_strategies.base import Floats, Problem, ScoreStrategy, StrategyInfo, register
from al_strategies.evidence import IOU

__all__ = ["WorstIoU"]


@register(
    StrategyInfo(
        name="worst_iou",
        summary="The K that the model segments worst, by their true masks: simulation only.",
        evidence=(IOU,),
        needs_ground_truth=True,
        source="Kazimi et al. 2022, oracle",
    )
)
@dataclass(frozen=True)
class WorstIoU(ScoreStrategy):
    """True IoU of the model's prediction: the K lowest."""

    lowest: ClassVar[bool] = True

    def score(self, problem: Problem) -> Floats:
        return problem.score(IOU)
