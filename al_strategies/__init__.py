"""Acquisition functions for slice-wise segmentation: evidence in, slices out.

NumPy only. `get_strategy` makes a strategy, `Query` asks it, `Selection` is its answer;
`available_strategies` lists them. `al_strategies.reducers` turns logits into evidence and is the
one module that imports torch: import it by name.

Every other module of the package is imported when the first of these names is asked for, or the
first strategy, so one in a file of its own is found without a line elsewhere; those of other
distributions come in through entry points. `al_strategies.errors` alone costs no NumPy.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from al_strategies.badge import Badge
    from al_strategies.base import (
        Problem,
        Query,
        Ranking,
        ScoreStrategy,
        Selection,
        Strategy,
        StrategyInfo,
        UnknownStrategyError,
        available_strategies,
        get_strategy,
        register,
    )
    from al_strategies.ceal import CEAL, CEALConfident
    from al_strategies.class_power import ClassPower
    from al_strategies.controls import ForegroundRandom, Random, Strided
    from al_strategies.coreset import Coreset, CoresetNearest, k_center_greedy
    from al_strategies.evidence import (
        Evidence,
        EvidenceError,
        Position,
        SliceId,
        declare_evidence,
    )
    from al_strategies.mc_dropout import MCDropout
    from al_strategies.oracle import WorstIoU
    from al_strategies.representation import MaxRepresentation
    from al_strategies.spacing import Spacing, even_spacing
    from al_strategies.stochastic import StochasticBatches
    from al_strategies.typicality import TypiClust
    from al_strategies.uncertainty import Confidence, Entropy, Margin
else:

    def __getattr__(name: str) -> object:
        """One of `__all__`, from the module that it stands in."""
        if name in __all__:
            from al_strategies.base import own_modules

            for module in own_modules():
                if name in getattr(module, "__all__", ()):  # not yet in one that asks itself
                    return globals().setdefault(name, getattr(module, name))
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "CEAL",
    "Badge",
    "CEALConfident",
    "ClassPower",
    "Confidence",
    "Coreset",
    "CoresetNearest",
    "Entropy",
    "Evidence",
    "EvidenceError",
    "ForegroundRandom",
    "MCDropout",
    "Margin",
    "MaxRepresentation",
    "Position",
    "Problem",
    "Query",
    "Random",
    "Ranking",
    "ScoreStrategy",
    "Selection",
    "SliceId",
    "Spacing",
    "StochasticBatches",
    "Strategy",
    "StrategyInfo",
    "Strided",
    "TypiClust",
    "UnknownStrategyError",
    "WorstIoU",
    "available_strategies",
    "declare_evidence",
    "even_spacing",
    "get_strategy",
    "k_center_greedy",
    "register",
]
