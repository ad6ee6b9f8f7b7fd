"""The contract that every registered strategy holds: one test per strategy and case.

A strategy in a file of its own in `al_strategies` is found without a line here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from al_strategies import (
    Evidence,
    EvidenceError,
    Position,
    Query,
    Selection,
    SliceId,
    Spacing,
    UnknownStrategyError,
    available_strategies,
    get_strategy,
)
from al_strategies.evidence import declared_evidence

CLASSES, WIDTH, VOLUMES = 3, 6, 3


def make_evidence(ids: list[SliceId], seed: int = 0, *, tied: bool = False) -> Evidence:
    """All declared evidence of slices that go round three volumes; random, or all alike."""
    rng = np.random.default_rng(seed)
    n = len(ids)
    widths = {
        "embedding": WIDTH,
        "class_fractions": CLASSES,
        "class_scores": CLASSES,
        "gradient": CLASSES * WIDTH,
    }
    names = declared_evidence()
    scores, features = ([n for n in names if names[n] == kind] for kind in ("score", "feature"))
    make = np.full if tied else (lambda shape, _: rng.random(shape))
    return Evidence(
        ids=tuple(ids),
        positions=tuple(Position(f"v{i % VOLUMES}", i // VOLUMES) for i in range(n)),
        scores={name: make((n,), 0.5) for name in scores},
        features={
            name: make((n, widths.get(name, WIDTH)), 0.5).astype(np.float32) for name in features
        },
    )


def make_query(
    n: int = 60, k: int = 8, *, labelled: int = 9, reserve: int = 10, tied: bool = False
) -> Query:
    everything = make_evidence(list(range(100, 100 + n + labelled)), tied=tied)
    return Query(
        pool=everything.take(range(labelled, n + labelled)),
        labelled=everything.take(range(labelled)),
        k=k,
        reserve=reserve,
        seed=7,
    )


def renamed(query: Query, name: Callable[[SliceId], SliceId]) -> Query:
    def change(evidence: Evidence) -> Evidence:
        return dataclasses.replace(evidence, ids=tuple(name(i) for i in evidence.ids))

    return dataclasses.replace(query, pool=change(query.pool), labelled=change(query.labelled))


def shuffled(query: Query) -> Query:
    order = np.random.default_rng(1).permutation(len(query.pool))
    return dataclasses.replace(query, pool=query.pool.take(order))


def snapshot(evidence: Evidence) -> bytes:
    arrays = [*evidence.scores.values(), *evidence.features.values()]
    return b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)


def queue(selection: Selection) -> tuple[SliceId, ...]:
    return selection.chosen + selection.reserve


def case_k_slices_of_the_pool_and_a_reserve(name: str) -> None:
    query = make_query()
    selection = get_strategy(name).select(query)
    assert len(selection.chosen) == 8
    assert len(selection.reserve) == 10
    assert set(queue(selection)) <= set(query.pool.ids)
    assert selection.strategy == name


def case_no_slice_twice(name: str) -> None:
    selection = get_strategy(name).select(make_query())
    assert len(set(queue(selection))) == 18
    assert len(set(selection.pseudo)) == len(selection.pseudo)
    assert not set(selection.pseudo) & set(selection.chosen)


def case_same_seed_same_selection(name: str) -> None:
    assert get_strategy(name).select(make_query()) == get_strategy(name).select(make_query())


def case_order_of_the_pool_does_not_matter(name: str) -> None:
    query = make_query()
    ours, theirs = (get_strategy(name).select(q) for q in (query, shuffled(query)))
    assert ours == theirs


def case_k_larger_than_the_pool(name: str) -> None:
    query = make_query(n=5, k=8)
    selection = get_strategy(name).select(query)
    assert set(selection.chosen) == set(query.pool.ids)
    assert len(selection.chosen) == 5
    assert selection.reserve == ()
    assert selection.pseudo == ()


def case_reserve_larger_than_the_rest(name: str) -> None:
    query = make_query(n=12, k=8, reserve=10)
    selection = get_strategy(name).select(query)
    assert len(selection.reserve) == 4
    assert set(queue(selection)) == set(query.pool.ids)


def case_nothing_labelled(name: str) -> None:
    selection = get_strategy(name).select(make_query(labelled=0))
    assert len(set(selection.chosen)) == 8


def case_one_slice(name: str) -> None:
    query = make_query(n=1)
    assert get_strategy(name).select(query).chosen == query.pool.ids


def case_empty_pool(name: str) -> None:
    selection = get_strategy(name).select(make_query(n=0))
    assert (selection.chosen, selection.reserve, selection.pseudo) == ((), (), ())


def case_k_zero_fills_the_reserve(name: str) -> None:
    selection = get_strategy(name).select(make_query(k=0, reserve=5))
    assert selection.chosen == ()
    assert len(set(selection.reserve)) == 5


def case_reserve_does_not_change_what_is_chosen(name: str) -> None:
    with_reserve = get_strategy(name).select(make_query(reserve=10))
    without = get_strategy(name).select(make_query(reserve=0))
    assert with_reserve.chosen == without.chosen
    for seed in range(8):
        spaced = dataclasses.replace(make_query(reserve=20), spacing=Spacing(3, 3), seed=seed)
        chosen = get_strategy(name).select(spaced).chosen
        assert chosen == get_strategy(name).select(dataclasses.replace(spaced, reserve=0)).chosen


def case_nan_evidence_names_the_slice(name: str) -> None:
    strategy, query = get_strategy(name), make_query()
    for evidence in strategy.evidence:
        arrays = {**query.pool.scores, **query.pool.features}
        values = np.array(arrays[evidence])
        values[13] = np.nan
        field = "scores" if evidence in query.pool.scores else "features"
        changed = {**getattr(query.pool, field), evidence: values}
        broken = dataclasses.replace(
            query, pool=dataclasses.replace(query.pool, **{field: changed})
        )
        with pytest.raises(EvidenceError, match=rf"{evidence!r} of slice {query.pool.ids[13]} "):
            strategy.select(broken)


def case_missing_evidence_names_both(name: str) -> None:
    strategy, query = get_strategy(name), make_query()
    bare = Evidence(query.pool.ids, query.pool.positions)
    if not strategy.evidence:
        assert len(strategy.select(dataclasses.replace(query, pool=bare)).chosen) == 8
        return
    with pytest.raises(EvidenceError, match=rf"{name!r} declares .*{strategy.evidence[0]}"):
        strategy.select(dataclasses.replace(query, pool=bare))


def case_declared_evidence_is_enough(name: str) -> None:
    strategy, query = get_strategy(name), make_query()

    def only(evidence: Evidence, names: tuple[str, ...]) -> Evidence:
        return Evidence(
            evidence.ids,
            evidence.positions,
            {n: v for n, v in evidence.scores.items() if n in names},
            {n: v for n, v in evidence.features.items() if n in names},
        )

    frugal = dataclasses.replace(
        query,
        pool=only(query.pool, strategy.evidence),
        labelled=only(query.labelled, strategy.labelled_evidence),
    )
    assert strategy.select(frugal) == strategy.select(query)


def case_all_slices_alike(name: str) -> None:
    query = make_query(tied=True)
    selection = get_strategy(name).select(query)
    assert len(set(queue(selection))) == 18
    assert selection == get_strategy(name).select(shuffled(query))


def case_deferred_slices_come_last(name: str) -> None:
    query = make_query(n=20, k=8, reserve=12)
    deferred = frozenset({*query.pool.ids[:10], 99_999})
    selection = get_strategy(name).select(dataclasses.replace(query, deferred=deferred))
    assert not set(queue(selection)[:10]) & deferred
    assert set(queue(selection)[10:]) == set(query.pool.ids[:10])
    assert not set(selection.pseudo) & deferred


def case_spacing_is_kept(name: str) -> None:
    query = dataclasses.replace(make_query(), spacing=Spacing(quota=3, gap=2), k=6, reserve=0)
    where = dict(zip(query.pool.ids, query.pool.positions, strict=True))
    selection = get_strategy(name).select(query)
    chosen = [where[i] for i in selection.chosen]
    others = list(query.labelled.positions)
    for i, position in enumerate(chosen):
        for other in chosen[:i] + others:
            assert position.volume != other.volume or abs(position.z - other.z) >= 2
    volumes = [p.volume for p in chosen]
    assert max(volumes.count(v) for v in volumes) <= 3
    assert selection.spacing == Spacing(quota=3, gap=2)


def case_spacing_is_relaxed_rather_than_fall_short(name: str) -> None:
    query = dataclasses.replace(make_query(), spacing=Spacing(quota=1, gap=1000))
    selection = get_strategy(name).select(query)
    assert len(set(selection.chosen)) == 8
    assert len(set(queue(selection))) == 18
    assert selection.spacing is not None
    assert selection.spacing.gap < 1000


def case_spacing_before_deferred(name: str) -> None:
    query = make_query(n=20, k=8, reserve=2)
    deferred = frozenset(query.pool.ids[:10])
    spaced = dataclasses.replace(query, deferred=deferred, spacing=Spacing(quota=1, gap=5))
    assert not set(queue(get_strategy(name).select(spaced))) & deferred


def case_string_ids_select_the_same_slices(name: str) -> None:
    query = make_query()
    ours = get_strategy(name).select(query)
    theirs = get_strategy(name).select(renamed(query, lambda i: f"z{i:05}.png"))
    assert tuple(f"z{i:05}.png" for i in queue(ours)) == queue(theirs)


def case_json_keeps_both_kinds_of_ids(name: str) -> None:
    for query in (make_query(), renamed(make_query(), str)):
        query = dataclasses.replace(query, spacing=Spacing(quota=2))
        selection = get_strategy(name).select(query)
        assert Selection.from_json(json.loads(json.dumps(selection.to_json()))) == selection


def case_inputs_are_left_alone(name: str) -> None:
    query = make_query()
    for evidence in (query.pool, query.labelled):
        for values in (*evidence.scores.values(), *evidence.features.values()):
            values.flags.writeable = False
    before = snapshot(query.pool) + snapshot(query.labelled)
    get_strategy(name).select(query)
    assert snapshot(query.pool) + snapshot(query.labelled) == before


def case_scores_are_of_the_queue(name: str) -> None:
    selection = get_strategy(name).select(make_query())
    assert not selection.scores or tuple(selection.scores) == queue(selection)
    assert all(type(score) is float and np.isfinite(score) for score in selection.scores.values())


def case_described(name: str) -> None:
    info = next(i for i in available_strategies() if i.name == name)
    assert info.summary.endswith(".")
    assert len(info.summary) <= 100
    assert {*info.evidence, *info.labelled_evidence} <= set(declared_evidence())
    assert set(info.labelled_evidence) <= set(info.evidence)
    assert info.needs_ground_truth == ("iou" in info.evidence)


def case_unknown_parameter_names_those_there_are(name: str) -> None:
    with pytest.raises(UnknownStrategyError, match=rf"{name!r} has no parameter temperature"):
        get_strategy(name, temperature=1)


NAMES = [info.name for info in available_strategies()]
CASES = {n.removeprefix("case_"): f for n, f in sorted(globals().items()) if n[:5] == "case_"}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str, case: Callable[[str], None]) -> None:
    case(name)


def test_the_strategies_there_are() -> None:
    assert set(NAMES) >= {
        *("random", "strided", "foreground_random"),
        *("confidence", "entropy", "margin", "mc_dropout"),
        *("coreset", "coreset_nearest", "max_representation"),
        *("ceal", "ceal_confident", "worst_iou"),
        *("class_power", "badge", "typiclust", "stochastic_batches"),
    }


def test_an_unknown_strategy_is_answered_with_those_there_are() -> None:
    with pytest.raises(UnknownStrategyError, match=r"'entrop'; there are badge, .*entropy"):
        get_strategy("entrop")


def test_seeds_of_random_differ() -> None:
    query = make_query()
    picks = {
        get_strategy("random").select(dataclasses.replace(query, seed=s)).chosen for s in range(9)
    }
    assert len(picks) == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": -1}, "query k is -1"),
        ({"k": 2.0}, "query k is 2.0, expected a whole number"),
        ({"reserve": -2}, "query reserve is -2"),
        ({"seed": -1}, "query seed is -1"),
        ({"rounds": 0}, "query rounds is 0"),
    ],
)
def test_a_query_says_what_is_wrong(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(make_query(), **changes)


def test_a_slice_cannot_be_in_the_pool_and_labelled() -> None:
    query = make_query()
    with pytest.raises(EvidenceError, match="slice 109 is both in the pool and labelled"):
        dataclasses.replace(query, labelled=query.pool.take([0]))


def test_pool_and_labelled_have_one_kind_of_ids() -> None:
    query = make_query()
    strings = renamed(query, partial(str)).labelled
    with pytest.raises(EvidenceError, match="different kinds"):
        dataclasses.replace(query, labelled=strings)


def test_labelled_embeddings_of_another_model_are_refused() -> None:
    query = make_query()
    narrow = {"embedding": query.labelled.features["embedding"][:, :4]}
    other = dataclasses.replace(query.labelled, features=narrow)
    with pytest.raises(EvidenceError, match="6 columns in the pool but 4 for labelled"):
        get_strategy("coreset").select(dataclasses.replace(query, labelled=other))


@pytest.mark.parametrize("strategy", ["coreset", "coreset_nearest", "typiclust", "badge"])
@pytest.mark.parametrize("part", ["pool", "labelled"])
def test_vectors_too_large_to_be_squared_are_refused(strategy: str, part: str) -> None:
    rng = np.random.default_rng(0)
    values = rng.random((8, 4)).astype(np.float32)
    both = {"pool": values[:5].copy(), "labelled": values[5:].copy()}
    both[part][1] *= 1e25
    places = tuple(Position("v", float(z)) for z in range(8))
    pool = Evidence(
        tuple(range(5)), places[:5], features=dict.fromkeys(("embedding", "gradient"), both["pool"])
    )
    labelled = Evidence((5, 6, 7), places[5:], features={"embedding": both["labelled"]})
    chosen = get_strategy(strategy)
    if part == "labelled" and not chosen.labelled_evidence:
        assert len(chosen.select(Query(pool, labelled, k=2)).chosen) == 2
        return
    with pytest.raises(EvidenceError, match=r"too large to be squared in float32 \(up to .*e\+24"):
        chosen.select(Query(pool, labelled, k=2))


def test_numbers_of_numpy_are_whole_numbers_too() -> None:
    pool = Evidence((1, 2), (Position("v", 0.0), Position("v", 1.0)))
    query = Query(pool, Evidence.empty(), k=np.int64(1), seed=np.int64(3))  # type: ignore[arg-type]
    assert json.dumps(get_strategy("random").select(query).to_json())


def test_class_evidence_of_different_widths_is_refused() -> None:
    features = {
        "class_scores": np.ones((2, 3), np.float32),
        "class_fractions": np.ones((2, 2), np.float32),
    }
    pool = Evidence(
        (1, 2), (Position("v", 0.0), Position("v", 1.0)), {"entropy": np.ones(2)}, features
    )
    with pytest.raises(EvidenceError, match="class_scores has 3 columns and class_fractions 2"):
        get_strategy("class_power").select(Query(pool, Evidence.empty(), k=1))


def test_a_parameter_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="expected finite and above 0"):
        get_strategy("class_power", first_beta=float("nan"))
