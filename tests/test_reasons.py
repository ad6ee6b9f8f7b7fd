"""Why a slice was selected: sentences that hold for the evidence they are made of."""

from __future__ import annotations

import numpy as np
import pytest

from al_strategies import Query, get_strategy
from al_strategies.evidence import CLASS_FRACTIONS, CLASS_SCORES, ENTROPY, Evidence, Position
from ml_backend.rounds.reasons import reasons
from ml_backend.rounds.source import PROJECT_VOLUME

CLASSES = ["background", "bone", "degradation layer"]
ENTROPIES = [0.1, 0.4, 0.2, 0.3]


def pool(volume: str = "scan.tif", *, by_class: bool = True, name: str = ENTROPY) -> Evidence:
    shares = np.array([[0.1, 0, 0], [0.25, 0.15, 0], [0.1, 0.05, 0.05], [0, 0, 0]], np.float32)
    fractions = np.array([[1, 0, 0], [0.7, 0.3, 0], [0.7, 0.25, 0.05], [1, 0, 0]], np.float32)
    features = {CLASS_SCORES: shares, CLASS_FRACTIONS: fractions}
    return Evidence(
        ids=(10, 11, 12, 13),
        positions=tuple(Position(volume, float(10 * z)) for z in range(4)),
        scores={name: np.array(ENTROPIES)},
        features=features if by_class else {},
    )


def without_evidence(volume: str) -> Evidence:
    known = pool(volume)
    return Evidence(ids=known.ids, positions=known.positions)


def told(strategy: str, evidence: Evidence, **asked: object) -> dict[object, str]:
    query = Query(pool=evidence, labelled=evidence.take([]), k=2, reserve=1, **asked)  # type: ignore[arg-type]
    return dict(reasons(get_strategy(strategy).select(query), query, CLASSES))


def test_uncertain_slices_are_told_by_rank_and_class() -> None:
    assert told("entropy", pool()) == {
        11: "Least certain of 4 slices, most where it sees bone.",
        13: "2nd least certain of 4 slices.",
        12: "3rd least certain of 4 slices, most where it sees degradation layer.",
    }


def test_without_evidence_by_class_the_rank_stands_alone() -> None:
    assert told("entropy", pool(by_class=False))[11] == "Least certain of 4 slices."


@pytest.mark.parametrize("name", ["margin", "confidence"])
def test_where_less_is_more_uncertain_the_least_comes_first(name: str) -> None:
    found = told(name, pool(by_class=False, name=name))
    assert found[10] == "Least certain of 4 slices."
    assert found[12] == "2nd least certain of 4 slices."


def test_a_strategy_that_looks_at_more_says_both() -> None:
    found = told("class_power", pool())
    assert all(said.startswith("class_power: entropy with noise") for said in found.values())
    assert all("least certain of 4 slices" in said for said in found.values())


def test_the_cold_start_says_where_a_slice_lies() -> None:
    bare = without_evidence("scan.tif")
    said = set(told("strided", bare).values())
    assert said <= {
        f"Evenly spaced between what is labelled: slice {10 * z} of scan.tif." for z in range(4)
    }
    assert len(said) == 3
    alone = told("strided", without_evidence(PROJECT_VOLUME))
    assert not any(PROJECT_VOLUME in one for one in alone.values())
    assert set(told("random", bare).values()) == {"Drawn at random from 4 slices."}


def test_a_deferred_slice_says_why_it_comes_last() -> None:
    found = told("entropy", pool(), deferred=frozenset({11, 10}))
    assert list(found) == [13, 12, 11]
    assert "put last, as somebody has skipped or begun it" in found[11]
    assert "put last" not in found[13]


def test_a_slice_that_is_held_out_says_what_it_is_for() -> None:
    query = Query(pool=pool(), labelled=Evidence.empty(), k=2, reserve=1)
    selection = get_strategy("entropy").select(query)
    judge, other = selection.chosen

    found = reasons(selection, query, CLASSES, {judge})

    assert found[judge] == (
        "One of the slices that judge the network, evenly spread: it is never trained on."
    )
    assert "certain of" in found[other]


@pytest.mark.parametrize(
    ("rank", "said"), [(11, "11th "), (12, "12th "), (21, "21st "), (103, "103rd ")]
)
def test_ordinals(rank: int, said: str) -> None:
    scores = np.linspace(1, 0, 120)
    many = Evidence(
        ids=tuple(range(120)),
        positions=tuple(Position("v", float(z)) for z in range(120)),
        scores={ENTROPY: scores},
    )
    query = Query(pool=many, labelled=many.take([]), k=120)
    found = reasons(get_strategy("entropy").select(query), query, CLASSES)
    assert found[rank - 1] == f"{said}least certain of 120 slices.".capitalize()
