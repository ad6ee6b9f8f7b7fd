"""The protocol, with a learner that is a formula: what is labelled, measured and chosen when."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from al_strategies import get_strategy
from al_strategies.evidence import Evidence, Position, SliceId
from al_strategies.holdout import fixed_blocks, inside
from al_strategies.learner import FitReport, Metrics, Prediction, Progress, SliceSource, Surrounded
from al_strategies.simulation import (
    Protocol,
    SimulatedRound,
    begin,
    fully_supervised,
    learn,
    simulate,
)


class Column:
    """Forty one-pixel slices of one volume; the grey value and the class are z and z // 20."""

    ids: Sequence[SliceId] = tuple(f"z{z:02d}" for z in range(40))

    def image(self, slice_id: SliceId) -> npt.NDArray[Any]:
        return np.full((1, 1), self.ids.index(slice_id))

    def mask(self, slice_id: SliceId) -> npt.NDArray[np.uint8]:
        return np.full((1, 1), self.ids.index(slice_id) // 20, np.uint8)

    def position(self, slice_id: SliceId) -> Position:
        return Position("column", float(self.ids.index(slice_id)))


class Ledger:
    """A learner that writes down what it is asked, and whose entropy falls with z."""

    classes = ("a", "b")

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def fit(
        self,
        source: SliceSource,
        labelled: Sequence[SliceId],
        *,
        pseudo: dict[SliceId, npt.NDArray[np.uint8]] | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> FitReport:
        self.calls.append(("fit", tuple(labelled), tuple(pseudo or {}), seed, tuple(source.ids)))
        return FitReport(steps=1, slices=len(labelled), seconds=0.0)

    def evidence(
        self,
        source: SliceSource,
        ids: Sequence[SliceId],
        names: frozenset[str],
        *,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Evidence:
        self.calls.append(("evidence", tuple(ids), names))
        places = tuple(source.position(i) for i in ids)
        falling = np.array([100 - place.z for place in places])
        scores = {name: falling if name == "entropy" else -falling for name in names}
        return Evidence(tuple(ids), places, scores)

    def predict(
        self, source: SliceSource, ids: Sequence[SliceId], *, progress: Progress | None = None
    ) -> Iterator[tuple[SliceId, Prediction]]:
        for i in ids:
            yield i, Prediction(np.full((1, 1), 7, np.uint8), 0.5)

    def evaluate(
        self, source: SliceSource, ids: Sequence[SliceId], *, progress: Progress | None = None
    ) -> Metrics:
        self.calls.append(("evaluate", tuple(ids)))
        return Metrics(0.1 * len(self.calls), {"a": 0.5}, 0.5, len(ids))

    def all(self, kind: str) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[0] == kind]


POOL, TEST = Column.ids[:30], Column.ids[35:]


def protocol(**changes: Any) -> Protocol:
    return Protocol(
        pool=tuple(POOL), test=tuple(TEST), **{"k": 4, "rounds": 3, "spaced": False, **changes}
    )


def run(strategy: str, **changes: Any) -> tuple[Ledger, list[SimulatedRound]]:
    learner = Ledger()
    rounds = list(simulate(get_strategy(strategy), learner, Column(), protocol(**changes)))
    return learner, rounds


def test_k_more_slices_are_annotated_every_round_and_none_twice() -> None:
    learner, rounds = run("random")
    assert [len(r.start.training) for r in rounds] == [4, 8, 12]
    assert len(set(rounds[-1].start.training)) == 12
    assert [call[1] for call in learner.all("fit")] == [r.start.training for r in rounds]
    assert rounds[-1].following is None


def test_what_labels_cost_is_counted_against_the_model_before() -> None:
    """Blank is class 0, and the model always finds class 7; half of the column is class 1."""
    _, rounds = run("entropy")
    for number, done in enumerate(rounds):
        masks = [int(Column().mask(i)[0, 0]) for i in done.start.selection.chosen]
        expected = sum(masks) if number == 0 else len(masks)
        assert done.start.cost is not None
        assert (done.start.cost.corrected, done.start.cost.pixels) == (expected, 4)
    assert fully_supervised(protocol(), "all").cost is None


def test_the_first_slices_are_the_cold_starts() -> None:
    _, rounds = run("entropy", start=3)
    assert rounds[0].start.selection.strategy == "strided"
    assert len(rounds[0].start.training) == 3


def test_later_slices_are_what_the_strategy_finds_best_in_the_pool() -> None:
    _, rounds = run("entropy")
    first = set(rounds[0].start.training)
    highest = [i for i in POOL if i not in first][:4]
    assert list(rounds[1].start.selection.chosen) == highest


def test_the_test_slices_are_measured_once_a_round_and_shown_to_no_training() -> None:
    learner, rounds = run("entropy")
    assert [call[1] for call in learner.all("evaluate")] == [tuple(TEST)] * len(rounds)
    seen = {i for call in learner.all("fit") for i in (*call[1], *call[4])}
    seen |= {i for call in learner.all("evidence") for i in call[1]}
    assert not seen & set(TEST)


def test_trainings_see_the_neighbours_that_tests_see() -> None:
    class Stack(Column):
        def around(self, slice_id: SliceId, neighbours: int) -> npt.NDArray[Any]:
            z = self.ids.index(slice_id)
            return np.arange(z - neighbours, z + neighbours + 1).reshape(1, 1, -1)

    class Watchful(Ledger):
        def fit(self, source: SliceSource, labelled: Sequence[SliceId], **_: Any) -> FitReport:
            self.calls.append(("fit", source))
            return FitReport(steps=1, slices=len(labelled), seconds=0.0)

    def given(source: SliceSource) -> SliceSource:
        learner = Watchful()
        learn(learner, source, protocol(), begin(source, protocol(), learner.classes))
        ((_, found),) = learner.all("fit")
        assert isinstance(found, SliceSource)
        assert tuple(found.ids) == tuple(POOL)
        return found

    stack = given(Stack())
    assert isinstance(stack, Surrounded)
    assert stack.around("z07", 2).ravel().tolist() == [5, 6, 7, 8, 9]
    assert not isinstance(given(Column()), Surrounded)


def test_only_the_evidence_that_the_strategy_needs_is_gathered() -> None:
    learner, _ = run("entropy")
    assert {call[2] for call in learner.all("evidence")} == {frozenset({"entropy"})}
    learner, _ = run("random")
    assert not learner.all("evidence")


def test_pseudo_labels_are_for_the_next_training_and_are_not_annotations() -> None:
    learner, rounds = run("ceal")
    for before, after in pairwise(rounds):
        assert before.following is not None
        assert tuple(after.start.pseudo) == before.following.selection.pseudo
        assert len(after.start.pseudo) == 4
        assert not set(after.start.pseudo) & set(after.start.training)
    assert [len(call[2]) for call in learner.all("fit")] == [0, 4, 4]
    assert [len(r.start.training) for r in rounds] == [4, 8, 12]


def test_runs_of_one_seed_start_alike_and_others_do_not() -> None:
    starts = {
        (strategy, seed): run(strategy, seed=seed)[1][0].start.training
        for strategy in ("random", "entropy")
        for seed in range(4)
    }
    assert all(starts["random", s] == starts["entropy", s] for s in range(4))
    assert len({starts["random", s] for s in range(4)}) > 1


def test_every_training_has_a_seed_of_its_own_that_strategies_share() -> None:
    seeds = {
        strategy: [call[3] for seed in range(3) for call in run(strategy, seed=seed)[0].all("fit")]
        for strategy in ("random", "entropy")
    }
    assert seeds["random"] == seeds["entropy"]
    assert len(set(seeds["random"])) == 9


@pytest.mark.parametrize("strategy", ["random", "ceal", "stochastic_batches"])
@pytest.mark.parametrize("kept", [1, 2])
def test_going_on_from_a_round_gives_the_rounds_of_an_unbroken_run(
    strategy: str, kept: int
) -> None:
    _, whole = run(strategy, rounds=4)
    again = list(
        simulate(
            get_strategy(strategy),
            Ledger(),
            Column(),
            protocol(rounds=4),
            start=whole[kept - 1].following,
        )
    )
    assert [r.start for r in again] == [r.start for r in whole[kept:]]


def test_a_training_that_is_done_is_not_done_again() -> None:
    learner = Ledger()
    start = begin(Column(), protocol(), ("a", "b"))
    learned = learn(learner, Column(), protocol(), start)
    done = dataclasses.replace(start, learned=learned)
    first = next(simulate(get_strategy("random"), learner, Column(), protocol(), start=done))
    assert first.learned is learned
    assert len(learner.all("fit")) == len(learner.all("evaluate")) == 1


def test_it_ends_when_everything_is_annotated() -> None:
    _, rounds = run("random", k=20, rounds=5)
    assert [len(r.start.training) for r in rounds] == [20, 30]


def test_the_ceiling_is_one_training_on_the_whole_pool() -> None:
    learner, one = Ledger(), protocol(rounds=1)
    start = fully_supervised(one, "fully_supervised")
    rounds = list(simulate(get_strategy("random"), learner, Column(), one, start=start))
    assert [call[1] for call in learner.all("fit")] == [tuple(POOL)]
    assert len(rounds) == 1


def test_spacing_keeps_slices_apart() -> None:
    _, rounds = run("entropy", spaced=True)
    chosen = sorted(POOL.index(i) for i in rounds[1].start.training)
    assert min(np.diff(chosen)) >= 2  # an even spread of four is 7 apart, a quarter of that


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"rounds": 0}, "rounds is 0"),
        ({"start": 0}, "start is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"test": ()}, "0 to test on"),
        ({"test": ("z03",)}, "slice 'z03' is in the pool and in the test slices"),
    ],
)
def test_a_protocol_says_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(protocol(), **changes)


class Judge(Ledger):
    """Knows which slices it was trained on last, and is the better the more they are."""

    trained = 0

    def fit(self, source: SliceSource, labelled: Sequence[SliceId], **given: Any) -> FitReport:
        self.trained = len(labelled)
        return super().fit(source, labelled, **given)

    def evaluate(
        self, source: SliceSource, ids: Sequence[SliceId], *, progress: Progress | None = None
    ) -> Metrics:
        super().evaluate(source, ids)
        return Metrics(self.trained / 100, {"a": 0.5}, 0.5, len(ids))


def judged(**changes: Any) -> tuple[Judge, list[SimulatedRound]]:
    learner, asked = Judge(), protocol(judged=True, k=5, rounds=4, **changes)
    return learner, list(simulate(get_strategy("entropy"), learner, Column(), asked))


def test_a_fifth_of_what_is_annotated_judges_and_is_never_trained_on() -> None:
    learner, rounds = judged()
    assert [len(r.start.training) for r in rounds] == [5, 10, 15, 20]
    places = {i: Column().position(i) for i in POOL}
    blocks = fixed_blocks(places)  # type: ignore[arg-type]  # str is a SliceId
    held = inside(POOL, places, blocks)  # type: ignore[arg-type]
    assert len(held) == 6
    for done, fitted in zip(rounds, learner.all("fit"), strict=True):
        assert fitted[1] == tuple(i for i in done.start.training if i not in held)
    validated = [r.learned.validation for r in rounds]
    assert [found and found.slices for found in validated] == [1, 2, 3, 4]
    assert [found and found.miou for found in validated] == [0.04, 0.08, 0.12, 0.16]


def test_the_model_before_is_measured_on_the_same_held_out_slices() -> None:
    learner, rounds = judged()
    before = [r.start.before for r in rounds]
    assert before[0] is None
    assert [(m.miou, m.slices) for m in before[1:] if m] == [(0.04, 2), (0.08, 3), (0.12, 4)]
    asked = [set(call[1]) for call in learner.all("evaluate")]
    for number in (1, 2, 3):  # test, held out; then the next round's, by the model before
        assert asked[3 * number - 1] == asked[3 * number + 1]


def test_without_judges_every_annotated_slice_teaches() -> None:
    _, rounds = run("entropy")
    assert [r.learned.validation for r in rounds] == [None] * 3
    assert [r.start.before for r in rounds] == [None] * 3
