"""What a strategy is: a query in, a selection out; and the registry of them all.

A new strategy is a frozen dataclass (its fields are its parameters) that says in a `StrategyInfo`
what evidence it needs and implements `Strategy.rank`. Everything that all strategies share stands
here, once: checking evidence, breaking ties by slice id, spacing, deferred slices, the reserve.
"""

from __future__ import annotations

import dataclasses
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from al_strategies.errors import EvidenceError, UnknownStrategyError
from al_strategies.evidence import IOU, Evidence, SliceId, declared_evidence
from al_strategies.plugins import load_plugins
from al_strategies.spacing import Admission, Spacing

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint
    from types import ModuleType

__all__ = [
    "Problem",
    "Query",
    "Ranking",
    "ScoreStrategy",
    "Selection",
    "Strategy",
    "StrategyInfo",
    "UnknownStrategyError",
    "available_strategies",
    "get_strategy",
    "own_modules",
    "register",
]

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StrategyInfo:
    """What a person and a learner need to know of a strategy.

    ``evidence``: the names (`al_strategies.evidence`) it needs of the pool. ``labelled_evidence``:
    those it also needs of the labelled slices. ``needs_ground_truth``: it looks at true masks, as
    whatever needs `IOU` does, and runs in simulations only. ``source``: the paper.
    """

    name: str
    summary: str
    evidence: tuple[str, ...] = ()
    labelled_evidence: tuple[str, ...] = ()
    needs_ground_truth: bool = False
    source: str = ""


@dataclass(frozen=True)
class Query:
    """What a strategy is asked.

    ``pool``: the candidates. ``labelled``: the labelled slices, none of them in the pool; may be
    empty. ``k``: how many slices to choose. ``reserve``: how many more to give after those, in
    queue order. ``round`` of ``rounds``, from 1 (0: before there is a model), for strategies with a
    schedule; a round past the last counts as the last. ``taken``: how many slices the strategy was
    given to choose in all rounds before; None: K in each. ``pseudo``: how many slices to give for
    pseudo-labels, of a strategy that wants some; None: K. ``seed``: at least 0. ``spacing`` and
    ``deferred`` hold under every strategy, see `Admission`; deferred ids that are not in the pool
    are passed over.

    Raises `EvidenceError` when pool and labelled share a slice or differ in the kind of their ids,
    ValueError on negative numbers.
    """

    pool: Evidence
    labelled: Evidence
    k: int
    reserve: int = 0
    round: int = 1
    rounds: int = 10
    seed: int = 0
    taken: int | None = None
    spacing: Spacing | None = None
    deferred: frozenset[SliceId] = frozenset()
    pseudo: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("k", 0), ("reserve", 0), ("round", 0), ("rounds", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < least:
                raise ValueError(
                    f"query {name} is {value!r}, expected a whole number, at least {least}"
                )
            object.__setattr__(self, name, int(value))  # a NumPy one cannot be written as JSON
        if len({type(i) for i in (*self.pool.ids[:1], *self.labelled.ids[:1])}) > 1:
            raise EvidenceError("pool and labelled slices have ids of different kinds")
        both = set(self.pool.ids).intersection(self.labelled.ids)
        if both:
            raise EvidenceError(f"slice {min(both)!r} is both in the pool and labelled")

    @property
    def chosen_before(self) -> int:
        """How many slices the strategy chose in the rounds before this one."""
        return max(self.round - 1, 0) * self.k if self.taken is None else self.taken

    @property
    def pseudo_labelled(self) -> int:
        """How many slices are to be pseudo-labelled, of a strategy that wants some."""
        return self.k if self.pseudo is None else self.pseudo


@dataclass(frozen=True)
class Selection:
    """What a strategy answers.

    ``chosen``: min(k, N) slices, best first. ``reserve``: those that follow, in order. ``pseudo``:
    slices to be pseudo-labelled by the model for the next training (CEAL only); they may be in the
    reserve, never in ``chosen``. ``scores``: the raw acquisition score of what is chosen and in
    reserve, in the strategy's own unit and direction; empty where it has none.

    ``strategy`` with ``params``, asked the same query, ``seed`` and round included, gives it again.
    ``spacing`` is the one that held for the chosen slices: other than the one asked for when that
    had to be relaxed.
    """

    chosen: tuple[SliceId, ...]
    reserve: tuple[SliceId, ...] = ()
    pseudo: tuple[SliceId, ...] = ()
    scores: Mapping[SliceId, float] = field(default_factory=dict)
    strategy: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    evidence: tuple[str, ...] = ()
    seed: int = 0
    spacing: Spacing | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain lists, numbers and strings. Scores are (id, score) pairs: JSON keys are strings."""
        return {
            "strategy": self.strategy,
            "params": dict(self.params),
            "evidence": list(self.evidence),
            "seed": self.seed,
            "spacing": None if self.spacing is None else dataclasses.asdict(self.spacing),
            "chosen": list(self.chosen),
            "reserve": list(self.reserve),
            "pseudo": list(self.pseudo),
            "scores": [[slice_id, score] for slice_id, score in self.scores.items()],
        }

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Selection:
        """The selection that `to_json` wrote."""
        spacing = record["spacing"]
        return Selection(
            chosen=tuple(record["chosen"]),
            reserve=tuple(record["reserve"]),
            pseudo=tuple(record["pseudo"]),
            scores=dict(record["scores"]),
            strategy=record["strategy"],
            params=dict(record["params"]),
            evidence=tuple(record["evidence"]),
            seed=record["seed"],
            spacing=None if spacing is None else Spacing(**spacing),
        )


@dataclass(frozen=True)
class Ranking:
    """``rows``: pool rows, best first, unique. ``scores``: the raw score of each of ``rows``.
    ``pseudo``: pool rows to be pseudo-labelled."""

    rows: Rows
    scores: Floats | None = None
    pseudo: Rows = field(default_factory=lambda: np.empty(0, dtype=np.int64))


@dataclass(frozen=True)
class Problem:
    """A checked `Query` whose pool is sorted by slice id, so the lowest row wins a tie.

    ``count``: how many rows to rank, chosen and reserve together. ``admission``: what may be picked
    next; a strategy goes through it for every row that it ranks.
    """

    query: Query
    pool: Evidence
    k: int
    count: int
    admission: Admission
    rng: np.random.Generator

    def __len__(self) -> int:
        return len(self.pool)

    def score(self, name: str) -> Floats:
        """The pool's score ``name``, (N,) float64."""
        return np.asarray(_declared(self.pool.scores, name), dtype=np.float64)

    def feature(self, name: str) -> Features:
        """The pool's feature ``name``, (N, D)."""
        return _declared(self.pool.features, name)

    def labelled_feature(self, name: str) -> Features:
        """The labelled slices' feature ``name``, (L, D), L = 0 before the first round."""
        labelled, width = self.query.labelled, self.feature(name).shape[1]
        if not len(labelled):
            return np.empty((0, width), dtype=np.float32)
        if labelled.features[name].shape[1] != width:
            raise EvidenceError(
                f"feature {name!r} has {width} columns in the pool but "
                f"{labelled.features[name].shape[1]} for labelled slices: score both with one model"
            )
        return labelled.features[name]

    def deferred(self) -> npt.NDArray[np.bool_]:
        """(N,) bool: the pool's deferred slices."""
        return _deferred_rows(self.pool, self.query.deferred)

    def new_admission(self) -> Admission:
        """An admission with nothing picked yet, for a shortlist."""
        return _admission(self.query, self.pool)


@dataclass(frozen=True)
class Strategy(ABC):
    """An acquisition function: evidence in, K slices out.

    Subclasses are frozen dataclasses; every field has a default and a JSON value.
    """

    info: ClassVar[StrategyInfo]

    @property
    def needs_ground_truth(self) -> bool:
        """Whether it can run in simulations only."""
        return self.info.needs_ground_truth

    @property
    def evidence(self) -> tuple[str, ...]:
        """The evidence needed of the pool; a wrapper needs that of what it wraps."""
        return self.info.evidence

    @property
    def labelled_evidence(self) -> tuple[str, ...]:
        """The evidence needed of the labelled slices."""
        return self.info.labelled_evidence

    @abstractmethod
    def rank(self, problem: Problem) -> Ranking:
        """The best ``problem.count`` rows of the pool, in order, taken through its admission."""

    def select(self, query: Query) -> Selection:
        """Choose min(k, N) slices and a reserve. The same query gives the same selection.

        Ties are broken by slice id, the lower first; the order of the pool does not matter.

        Raises `EvidenceError` when declared evidence is missing or not finite.
        """
        problem = _prepare(self, query)
        if problem.count == 0:
            return self._selection(query, problem, Ranking(np.empty(0, dtype=np.int64)))
        return self._selection(query, problem, self.rank(problem))

    def beyond(self, computed: frozenset[str]) -> tuple[str, ...]:
        """The evidence that it needs and that a learner which leaves ``computed`` does not."""
        needed = {*self.evidence, *self.labelled_evidence}
        return tuple(sorted(needed - computed))

    def params(self) -> dict[str, Any]:
        """The parameters it was made with, as JSON values."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def _selection(self, query: Query, problem: Problem, ranking: Ranking) -> Selection:
        ids = tuple(problem.pool.ids[row] for row in ranking.rows)
        scores = {} if ranking.scores is None else dict(zip(ids, ranking.scores, strict=True))
        return Selection(
            chosen=ids[: problem.k],
            reserve=ids[problem.k :],
            pseudo=tuple(problem.pool.ids[row] for row in ranking.pseudo),
            scores={slice_id: float(score) for slice_id, score in scores.items()},
            strategy=self.info.name,
            params=self.params(),
            evidence=self.evidence,
            seed=query.seed,
            spacing=None if query.spacing is None else problem.admission.spacing_of(problem.k),
        )


@dataclass(frozen=True)
class ScoreStrategy(Strategy):
    """A strategy that gives each slice a score by itself and takes the highest or the lowest."""

    lowest: ClassVar[bool] = False

    @abstractmethod
    def score(self, problem: Problem) -> Floats:
        """The raw acquisition score of each pool row, (N,) float64."""

    def rank(self, problem: Problem) -> Ranking:
        scores = self.score(problem)
        rows = problem.admission.pick_in_order(self.order(scores), problem.count)
        return Ranking(rows, scores[rows])

    def order(self, scores: Floats) -> Rows:
        """All rows, best first, ties by slice id."""
        return np.argsort(scores if self.lowest else -scores, kind="stable")


_REGISTRY: dict[str, type[Strategy]] = {}
_S = TypeVar("_S", bound=type[Strategy])


def register(info: StrategyInfo) -> Callable[[_S], _S]:
    """Class decorator: make the strategy available by ``info.name``, which must be new; the same
    class may be defined again, as when a notebook's cell is run twice.

    Raises `EvidenceError` for evidence that nobody computes (see `declare_evidence`) and for the
    true IoU of a strategy that does not say that it needs ground truth; ValueError for a name that
    another strategy has.
    """
    _check_computed(info)

    def decorate(cls: _S) -> _S:
        before = _REGISTRY.get(info.name)
        if before and _full_name(before) != _full_name(cls):
            raise ValueError(
                f"strategy {info.name!r} is registered twice: {_full_name(before)} and "
                f"{_full_name(cls)}"
            )
        cls.info = info
        _REGISTRY[info.name] = cls
        return cls

    return decorate


def _check_computed(info: StrategyInfo) -> None:
    names, known = {*info.evidence, *info.labelled_evidence}, declared_evidence()
    if unknown := sorted(names - set(known)):
        raise EvidenceError(
            f"strategy {info.name!r} declares the evidence {', '.join(unknown)}, which nobody "
            f"computes, expected some of {', '.join(sorted(known))}: mend the name, or call "
            "declare_evidence where the learner that computes it is defined"
        )
    if IOU in names and not info.needs_ground_truth:
        raise EvidenceError(
            f"strategy {info.name!r} declares the evidence {IOU}, which is measured on true masks: "
            "say needs_ground_truth=True in its StrategyInfo"
        )


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def get_strategy(name: str, **params: Any) -> Strategy:
    """The strategy registered as ``name``, with ``params`` in place of its defaults.

    Raises `UnknownStrategyError` on an unknown name or parameter, with those that exist.
    """
    own_modules()
    if name not in _REGISTRY:
        _load_plugins()
    if name not in _REGISTRY:
        raise UnknownStrategyError(
            f"no strategy is called {name!r}; there are {', '.join(sorted(_REGISTRY))}"
        )
    cls = _REGISTRY[name]
    known = [f.name for f in dataclasses.fields(cls)]
    unknown = sorted(set(params) - set(known))
    if unknown:
        takes = ", ".join(known) or "no parameters"
        raise UnknownStrategyError(
            f"strategy {name!r} has no parameter {', '.join(unknown)}; it takes {takes}"
        )
    return cls(**params)


def available_strategies() -> list[StrategyInfo]:
    """Every registered strategy, by name."""
    own_modules()
    _load_plugins()
    return [_REGISTRY[name].info for name in sorted(_REGISTRY)]


@cache
def own_modules() -> tuple[ModuleType, ...]:
    """The modules of this package, whose strategies are registered then; without `reducers`, which
    imports torch."""
    names = [module.name for module in iter_modules([str(Path(__file__).parent)])]
    return tuple(import_module(f"al_strategies.{name}") for name in names if name != "reducers")


GROUP = "nextslice.strategies"
"""Entry points of this group lead to a registered strategy's class, or to a module of some."""
_plugins_loaded = False
_loading = threading.RLock()


def _load_plugins() -> None:
    """Import the strategies of other distributions, once; what is broken is left out with a
    warning, and whatever it had registered is forgotten."""
    global _plugins_loaded
    with _loading:
        if not _plugins_loaded:
            _plugins_loaded = True  # before they are imported: they may ask for strategies
            load_plugins(GROUP, _load_plugin)


def _load_plugin(point: EntryPoint) -> None:
    before = dict(_REGISTRY)
    try:
        found = point.load()
        if not any(cls is found or cls.__module__ == point.module for cls in _REGISTRY.values()):
            raise TypeError(f"it is {found!r}, expected a strategy's class, or a module of some")
    except BaseException:
        _REGISTRY.clear()
        _REGISTRY.update(before)
        raise


def _prepare(strategy: Strategy, query: Query) -> Problem:
    name = strategy.info.name
    _check_declared(name, "pool", query.pool, strategy.evidence)
    _check_declared(name, "labelled slices", query.labelled, strategy.labelled_evidence)
    pool = _sorted_by_id(query.pool)
    return Problem(
        query=query,
        pool=pool,
        k=min(query.k, len(pool)),
        count=min(query.k + query.reserve, len(pool)),
        admission=_admission(query, pool),
        rng=np.random.default_rng([query.seed, query.round]),
    )


_Values = TypeVar("_Values")


def _declared(held: Mapping[str, _Values], name: str) -> _Values:
    if name not in held:
        raise EvidenceError(
            f"the pool has no evidence {name!r}: name it in the strategy's StrategyInfo, so that "
            "the learner is asked for it and it is checked"
        )
    return held[name]


def _admission(query: Query, pool: Evidence) -> Admission:
    return Admission(
        pool.positions,
        labelled=query.labelled.positions,
        spacing=query.spacing,
        deferred=_deferred_rows(pool, query.deferred),
    )


def _check_declared(strategy: str, part: str, evidence: Evidence, names: tuple[str, ...]) -> None:
    """Raise `EvidenceError` unless ``evidence`` holds ``names`` and nothing there but numbers."""
    if not len(evidence):
        return
    held = {**evidence.scores, **evidence.features}
    missing = [name for name in names if name not in held]
    if missing:
        raise EvidenceError(
            f"strategy {strategy!r} declares the evidence {missing}, which the {part} lack; they "
            f"have {sorted(held) or 'none'}: ask the learner for it"
        )
    for name in names:
        _check_finite(name, part, evidence, held[name])


def _check_finite(name: str, part: str, evidence: Evidence, values: npt.NDArray[Any]) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        rows = values if values.ndim == 1 else np.einsum("ij,ij->i", values, values)
    suspects = np.flatnonzero(~np.isfinite(rows))
    bad = [i for i in suspects if not np.isfinite(values[i]).all()]
    if len(suspects) and not bad:
        raise EvidenceError(
            f"evidence {name!r} of slice {evidence.ids[suspects[0]]!r} in the {part} is too large "
            f"to be squared in float32 (up to {np.abs(values[suspects[0]]).max():.3g}): scale it"
        )
    if bad:
        ids = sorted(evidence.ids[i] for i in bad)
        more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
        raise EvidenceError(
            f"evidence {name!r} of slice {ids[0]!r}{more} in the {part} is not a finite number: "
            "the model's output or the slice's grey values are broken"
        )


def _sorted_by_id(evidence: Evidence) -> Evidence:
    ids = evidence.ids
    order = sorted(range(len(ids)), key=ids.__getitem__)
    if all(order[i] == i for i in range(len(order))):
        return evidence  # as Label Studio's tasks come: no copy of a large pool
    return evidence.take(order)


def _deferred_rows(pool: Evidence, deferred: frozenset[SliceId]) -> npt.NDArray[np.bool_]:
    if not deferred:
        return np.zeros(len(pool), dtype=bool)
    return np.fromiter((i in deferred for i in pool.ids), dtype=bool, count=len(pool))
