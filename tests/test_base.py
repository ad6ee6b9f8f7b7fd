from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest

import al_strategies
from al_strategies import Evidence, EvidenceError, Position, Query, Strategy, StrategyInfo, register
from al_strategies import base as registry
from al_strategies import evidence as evidence_names
from al_strategies.base import (
    Floats,
    Problem,
    Ranking,
    ScoreStrategy,
    available_strategies,
    get_strategy,
)
from al_strategies.evidence import STANDARD, declare_evidence, declared_evidence


@pytest.fixture
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


@pytest.mark.usefixtures("clean_registry")
def test_a_new_strategy_is_a_class_with_an_info_and_a_rank() -> None:
    @register(StrategyInfo(name="last_first", summary="The highest ids."))
    @dataclass(frozen=True)
    class LastFirst(Strategy):
        skip: int = 0

        def rank(self, problem: Problem) -> Ranking:
            order = np.roll(np.arange(len(problem))[::-1], -self.skip)
            return Ranking(problem.admission.pick_in_order(order, problem.count))

    pool = Evidence((4, 2, 9), tuple(Position("v", z) for z in range(3)))
    query = Query(pool, Evidence.empty(), 2, reserve=1)

    assert "last_first" in {info.name for info in available_strategies()}
    assert get_strategy("last_first").select(query).chosen == (9, 4)
    skipping = get_strategy("last_first", skip=1).select(query)
    assert skipping.chosen + skipping.reserve == (4, 2, 9)
    assert skipping.params == {"skip": 1}


@pytest.mark.usefixtures("clean_registry")
def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="'random' is registered twice"):
        register(StrategyInfo(name="random", summary="Another."))(type(get_strategy("margin")))


@pytest.mark.usefixtures("clean_registry")
def test_a_class_may_be_defined_again_as_a_notebook_does() -> None:
    for favourite in (1, 2):

        @register(StrategyInfo(name="mine", summary="Mine."))
        @dataclass(frozen=True)
        class Mine(Strategy):
            first: int = favourite

            def rank(self, problem: Problem) -> Ranking:
                return Ranking(problem.admission.pick_in_order(np.array([self.first]), 1))

    pool = Evidence((1, 2, 3), tuple(Position("v", z) for z in range(3)))
    assert get_strategy("mine").select(Query(pool, Evidence.empty(), k=1)).chosen == (3,)


@pytest.mark.usefixtures("clean_registry")
def test_evidence_that_a_strategy_does_not_declare_is_named() -> None:
    @register(StrategyInfo(name="mine", summary="Mine."))
    class Mine(ScoreStrategy):
        def score(self, problem: Problem) -> Floats:
            return problem.score("entropy")

    pool = Evidence((1, 2), tuple(Position("v", z) for z in range(2)))
    with pytest.raises(EvidenceError, match=r"no evidence 'entropy': name it in the strategy's"):
        get_strategy("mine").select(Query(pool, Evidence.empty(), k=1))


def described(**changes: object) -> StrategyInfo:
    return StrategyInfo(name="mine", summary="Mine.", **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("where", ["evidence", "labelled_evidence"])
def test_evidence_that_nobody_computes_is_refused_where_it_is_registered(where: str) -> None:
    with pytest.raises(EvidenceError, match=r"'mine' declares the evidence entropi, which nobody"):
        register(described(**{where: ("entropy", "entropi")}))


def test_what_looks_at_the_truth_says_so() -> None:
    with pytest.raises(EvidenceError, match=r"evidence iou, .* say needs_ground_truth=True"):
        register(described(evidence=("iou",)))


@pytest.mark.usefixtures("clean_registry")
def test_who_computes_other_evidence_declares_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_names, "_KINDS", declared_evidence())
    declare_evidence("loss", "score")
    declare_evidence("loss", "score")

    @register(described(evidence=("loss",)))
    @dataclass(frozen=True)
    class Mine(ScoreStrategy):
        def score(self, problem: Problem) -> Floats:
            return problem.score("loss")

    pool = Evidence((1, 2), (Position("v", 0), Position("v", 1)), {"loss": np.array([0.1, 0.2])})
    assert get_strategy("mine").select(Query(pool, Evidence.empty(), k=1)).chosen == (2,)
    assert get_strategy("mine").beyond(STANDARD) == ("loss",)
    assert get_strategy("mine").beyond(STANDARD | {"loss"}) == ()
    with pytest.raises(EvidenceError, match="'loss' is declared as a score, not as a feature"):
        declare_evidence("loss", "feature")
    with pytest.raises(EvidenceError, match="expected score or feature"):
        declare_evidence("other", "vector")  # type: ignore[arg-type]


def test_strategies_are_listed_by_name() -> None:
    names = [info.name for info in available_strategies()]
    assert names == sorted(names)


def test_evidence_too_large_for_float32_is_not_called_infinite() -> None:
    embeddings = np.full((3, 4), 1e38, dtype=np.float32)
    pool = Evidence(
        (1, 2, 3),
        tuple(Position("v", z) for z in range(3)),
        scores={"mc_entropy": np.arange(3.0)},
        features={"embedding": embeddings},
    )
    with pytest.raises(EvidenceError, match=r"too large to be squared in float32 \(up to 1e\+38"):
        registry._check_declared("max_representation", "pool", pool, ("mc_entropy", "embedding"))


def test_several_broken_slices_are_counted() -> None:
    pool = Evidence(
        (5, 1, 3),
        tuple(Position("v", z) for z in range(3)),
        scores={"entropy": np.array([np.nan, 0.1, np.inf])},
    )
    with pytest.raises(ValueError, match="'entropy' of slice 3 and 1 more in the pool"):
        get_strategy("entropy").select(Query(pool, Evidence.empty(), 1))


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.strip()


@pytest.mark.parametrize("package", ["al_strategies", "al_strategies.base"])
def test_every_strategy_is_found_from_whichever_module_asks_first(package: str) -> None:
    names = [info.name for info in al_strategies.available_strategies()]
    listed = f"from {package} import available_strategies as a; print([i.name for i in a()])"
    assert run(listed) == str(names)
    assert run(f"from {package} import get_strategy; print(get_strategy('entropy'))") == "Entropy()"


def test_a_name_is_taken_whichever_module_asks_first() -> None:
    with_another = (
        "from al_strategies import ScoreStrategy, StrategyInfo, register\n"
        "try: register(StrategyInfo('entropy', 'x'))(type('Mine', (ScoreStrategy,), {}))\n"
        "except ValueError as error: print(error)"
    )
    assert run(with_another).startswith("strategy 'entropy' is registered twice")


def test_the_package_gives_its_names_when_they_are_asked_for_and_no_others() -> None:
    assert run("import sys, al_strategies.errors; print('numpy' in sys.modules)") == "False"
    asked = "from al_strategies import *; import al_strategies as a"
    assert run(f"{asked}; print([n for n in a.__all__ if n not in globals()])") == "[]"
    assert not hasattr(al_strategies, "nosuch")
