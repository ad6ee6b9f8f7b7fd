"""Class-stratified, noised uncertainty: no class is forgotten, early rounds stay diverse."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from al_strategies.base import Floats, Problem, Query, Ranking, Strategy, StrategyInfo, register
from al_strategies.evidence import CLASS_FRACTIONS, CLASS_SCORES, ENTROPY, EvidenceError

__all__ = ["ClassPower"]

_LEAST = 1e-12


@register(
    StrategyInfo(
        name="class_power",
        summary="Entropy with noise that fades over the rounds, two in three class by class.",
        evidence=(ENTROPY, CLASS_SCORES, CLASS_FRACTIONS),
        source="Lüth et al. 2026 (ClaSP PE), `class_power_pe66_exp` of nnActive",
    )
)
@dataclass(frozen=True)
class ClassPower(Strategy):
    """``stratified`` of the slices by the entropy weighted with one class's probability, the
    classes in turn, rarest first, without the background (class 0); the rest by the entropy over
    all pixels. Ranked by log(score) + Gumbel(0, 1 / beta): sampling in proportion to
    score ** beta, close to random at ``first_beta``, close to the top at ``last_beta``. Reports
    the entropy.

    Beta grows geometrically from round 1 to the last. Scores, noise, schedule and shares are those
    of the authors' code, which draws at random which classes get one slice more; here turns go on
    where the round before stopped, so a small K gets to every class. A slice counts for a class
    only where ``least_fraction`` of its pixels are predicted as it; theirs all do.
    """

    stratified: float = 0.66
    first_beta: float = 1.0
    last_beta: float = 100.0
    least_fraction: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.stratified <= 1:
            raise ValueError(f"stratified is {self.stratified}, expected a number in [0, 1]")
        if not (0 < self.first_beta < np.inf and 0 < self.last_beta < np.inf):  # NaN neither
            raise ValueError(
                f"betas are {self.first_beta} and {self.last_beta}, expected finite and above 0"
            )

    def beta(self, query: Query) -> float:
        """Inverse noise of the query's round."""
        if query.rounds == 1:
            return self.last_beta
        done = (min(max(query.round, 1), query.rounds) - 1) / (query.rounds - 1)
        return float(self.first_beta * (self.last_beta / self.first_beta) ** done)

    def rank(self, problem: Problem) -> Ranking:
        entropy = problem.score(ENTROPY)
        overall, by_class = self._utilities(problem, entropy)
        before = problem.query.chosen_before
        turn = self._stratified_before(before)
        rows = np.empty(problem.count, dtype=np.int64)
        for slot in range(problem.count):
            allowed = problem.admission.allowed()
            utility = overall
            if by_class and self._stratified_before(before + slot + 1) > turn:
                utility = by_class[turn % len(by_class)]
                turn += 1
            if not np.isfinite(utility[allowed]).any():
                utility = overall  # no slice that may be picked has this class
            rows[slot] = np.argmax(np.where(allowed, utility, -np.inf))
            problem.admission.pick(int(rows[slot]))
        return Ranking(rows, entropy[rows])

    def _stratified_before(self, slot: int) -> int:
        """How many of the first ``slot`` slices of all rounds are taken class by class."""
        return round(slot * self.stratified)

    def _utilities(self, problem: Problem, entropy: Floats) -> tuple[Floats, list[Floats]]:
        """The noised log scores over all pixels, and of each class that is predicted anywhere."""
        fractions = problem.feature(CLASS_FRACTIONS)
        scores = problem.feature(CLASS_SCORES).astype(np.float64)
        if scores.shape != fractions.shape:
            raise EvidenceError(
                f"{CLASS_SCORES} has {scores.shape[1]} columns and {CLASS_FRACTIONS} "
                f"{fractions.shape[1]}: expected one for each class in both"
            )
        scale = 1 / self.beta(problem.query)
        noise = problem.rng.gumbel(scale=scale, size=(1 + scores.shape[1], len(problem)))
        overall = np.log(np.maximum(entropy, _LEAST)) + noise[0]
        by_class = []
        for c in 1 + np.argsort(fractions[:, 1:].sum(axis=0), kind="stable"):
            there = (fractions[:, c] >= self.least_fraction) & (scores[:, c] > 0)
            if there.any():
                noised = np.log(np.maximum(scores[:, c], _LEAST)) + noise[1 + c]
                by_class.append(np.where(there, noised, -np.inf))
        return overall, by_class
