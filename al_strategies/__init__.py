"""Acquisition functions for slice-wise segmentation: evidence in, slices out.

NumPy only. `get_strategy` makes a strategy, `Query` asks it, `Selection` is its answer;
`available_strategies` lists them. `al_strategies.reducers` turns logits into evidence and is the
one module that imports torch: import it by name.

Every other module of the package is imported here, so a strategy in a file of its own is found
without a line elsewhere; those of other distributions come in through entry points.
"""

from importlib import import_module
from pkgutil import iter_modules

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

for _module in iter_modules(__path__):
    if _module.name != "reducers":
        import_module(f"{__name__}.{_module.name}")
