from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from al_strategies import Evidence, EvidenceError, Position


def at(*zs: float) -> tuple[Position, ...]:
    return tuple(Position("v", z) for z in zs)


def make(ids: tuple[int, ...] = (3, 1, 2)) -> Evidence:
    return Evidence(
        ids,
        at(*range(len(ids))),
        scores={"entropy": np.arange(len(ids)) / 10},
        features={"embedding": np.array([[i, i] for i in ids], dtype=np.float32)},
    )


def test_take_gives_rows_in_the_order_asked_for() -> None:
    taken = make().take([2, 0])
    assert taken.ids == (2, 3)
    assert taken.positions == at(2, 0)
    assert taken.scores["entropy"].tolist() == [0.2, 0.0]
    assert taken.features["embedding"].tolist() == [[2, 2], [3, 3]]


def test_lists_are_taken_as_arrays() -> None:
    evidence = Evidence((1, 2), at(0, 1), scores={"entropy": [0.1, 0.2]})  # type: ignore[dict-item]
    assert evidence.take([1]).scores["entropy"].tolist() == [0.2]


def test_a_position_that_is_none_is_named() -> None:
    with pytest.raises(EvidenceError, match=r"a position is \('v', 0\), expected Position"):
        Evidence((1,), (("v", 0),))  # type: ignore[arg-type]


def test_take_refuses_a_row_twice() -> None:
    with pytest.raises(EvidenceError, match="slice id 3 is there more than once"):
        make().take([0, 0])


def test_concat_joins_the_shards_of_a_pool() -> None:
    whole = Evidence.concat([make((3, 1)), Evidence.empty(), make((2,))])
    assert whole.ids == (3, 1, 2)
    assert whole.scores["entropy"].tolist() == [0.0, 0.1, 0.0]
    assert whole.features["embedding"].tolist() == [[3, 3], [1, 1], [2, 2]]


def test_concat_of_nothing_is_empty() -> None:
    assert len(Evidence.concat([])) == 0


def test_concat_refuses_shards_of_different_evidence() -> None:
    with pytest.raises(EvidenceError, match="different evidence"):
        Evidence.concat([make((3,)), Evidence((4,), at(0))])


def test_concat_refuses_overlapping_shards() -> None:
    with pytest.raises(EvidenceError, match="slice id 1 is there more than once"):
        Evidence.concat([make((3, 1)), make((1,))])


@pytest.mark.parametrize("ids", [(1, "2"), (True, False), (1.0, 2.0), (np.int64(1), np.int64(2))])
def test_ids_are_all_int_or_all_str(ids: tuple[int, ...]) -> None:
    with pytest.raises(EvidenceError, match="all int or all str, found"):
        Evidence(ids, at(0, 1))


def test_ids_are_unique() -> None:
    with pytest.raises(EvidenceError, match="'b' is there more than once"):
        Evidence(("a", "b", "b"), at(0, 1, 2))


def test_one_position_per_slice() -> None:
    with pytest.raises(EvidenceError, match="2 ids but 1 positions"):
        Evidence((1, 2), at(0))


@pytest.mark.parametrize("z", [float("nan"), float("inf"), None, "3"])
def test_z_is_a_finite_number(z: Any) -> None:
    with pytest.raises(EvidenceError, match="volume 'v' has z ="):
        Position("v", z)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(3), r"score 'entropy' has shape \(3,\), expected \(2,\)"),
        (np.zeros((2, 1)), r"score 'entropy' has shape \(2, 1\), expected \(2,\)"),
        (np.array(["a", "b"]), "expected real numbers"),
        (np.zeros(2, dtype=complex), "expected real numbers"),
    ],
)
def test_scores_are_one_real_number_per_slice(values: np.ndarray, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        Evidence((1, 2), at(0, 1), scores={"entropy": values})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((3, 4), dtype=np.float32), r"has shape \(3, 4\), expected \(2, D\)"),
        (np.zeros(2, dtype=np.float32), r"has shape \(2,\), expected \(2, D\)"),
        (np.zeros((2, 0), dtype=np.float32), r"has shape \(2, 0\)"),
        (np.zeros((2, 4)), "has dtype float64, expected float32"),
    ],
)
def test_features_are_one_float32_vector_per_slice(values: np.ndarray, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        Evidence((1, 2), at(0, 1), features={"embedding": values})
