from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skactiveml.pool import CoreSet

import al_strategies.coreset as coreset
from al_strategies import (
    Evidence,
    EvidenceError,
    Position,
    Query,
    Spacing,
    get_strategy,
    k_center_greedy,
)
from al_strategies.coreset import Cover

Array = np.ndarray


def reference(embeddings: Array, labelled: Array, k: int) -> list[int]:
    """K-center greedy as in the paper, with all N × N distances, in float64."""
    x, c = embeddings.astype(np.float64), labelled.astype(np.float64)
    between = ((x[:, None] - x[None]) ** 2).sum(-1)
    if len(c):
        nearest = ((x[:, None] - c[None]) ** 2).sum(-1).min(1)
    else:
        nearest = -((x - x.mean(0)) ** 2).sum(-1)
    picks: list[int] = []
    for _ in range(min(k, len(x))):
        utility = nearest.copy()
        utility[picks] = -np.inf
        picks.append(int(np.argmax(utility)))
        row = between[picks[-1]]
        nearest = row if len(picks) == 1 and not len(c) else np.minimum(nearest, row)
    return picks


def clouds(n: int, width: int, seed: int, offset: float = 0.0) -> Array:
    """Clusters of unequal spread; with a large ``offset``, as averages after a ReLU have."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(7, width)) * 3
    which = rng.integers(7, size=n)
    x = centres[which] + rng.normal(size=(n, width)) * (0.1 + which[:, None] / 7)
    return (x + offset).astype(np.float32)


@pytest.fixture
def small_working_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lazy path, as with 100,000 slices, on a pool that a reference can follow."""
    monkeypatch.setattr(coreset, "_WORKING_SET_BYTES", 0)
    monkeypatch.setattr(coreset, "_LEAST_WORKING_SET", 16)
    monkeypatch.setattr(coreset, "_BLOCK_BYTES", 0)
    monkeypatch.setattr(coreset, "_CENTRE_CHUNK", 5)
    monkeypatch.setattr(coreset, "_LEAST_EAGER", 3)


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("labelled", [0, 1, 23])
def test_picks_are_those_of_the_quadratic_reference(labelled: int, offset: float) -> None:
    x = clouds(700, 33, seed=labelled, offset=offset)
    assert k_center_greedy(x[labelled:], x[:labelled], 60).tolist() == reference(
        x[labelled:], x[:labelled], 60
    )


def test_the_first_is_the_nearest_to_the_mean_though_float32_hardly_tells() -> None:
    rows = [[-1 - 2.0**-20, 0], [1, 0], [0, 5], [0, -5]]
    x = np.array(rows, np.float32)
    assert k_center_greedy(x, x[:0], 1).tolist() == reference(x, x[:0], 1) == [1]


@pytest.mark.usefixtures("small_working_set")
@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("labelled", [0, 1, 23])
def test_the_lazy_path_picks_the_same(labelled: int, offset: float) -> None:
    x = clouds(700, 33, seed=labelled, offset=offset)
    assert k_center_greedy(x[labelled:], x[:labelled], 200).tolist() == reference(
        x[labelled:], x[:labelled], 200
    )


def test_picks_are_those_of_scikit_activeml() -> None:
    x, labelled = clouds(1_500, 40, seed=3), clouds(20, 40, seed=4)
    y = np.r_[np.full(len(x), np.nan), np.zeros(len(labelled))]

    theirs = CoreSet(random_state=0).query(np.concatenate([x, labelled]), y, batch_size=50)

    assert k_center_greedy(x, labelled, 50).tolist() == theirs.tolist()


grids = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 40), st.just(2)), elements=st.integers(-3, 3).map(float)
)


@settings(max_examples=100, deadline=None)
@given(x=grids, labelled=grids | st.just(np.empty((0, 2), np.float32)), k=st.integers(0, 45))
def test_ties_and_duplicates_go_to_the_lowest_row(x: Array, labelled: Array, k: int) -> None:
    assert k_center_greedy(x, labelled, k).tolist() == reference(x, labelled, k)


def test_first_pick_without_labels_is_the_row_nearest_to_the_mean() -> None:
    x = np.array([[0, 0], [10, 0], [5, 1], [0, 10], [10, 10], [5, 6]], dtype=np.float32)
    assert k_center_greedy(x, x[:0], 1).tolist() == [5]  # the mean is (5, 4.5)


def test_k_larger_than_the_pool_gives_every_row_once() -> None:
    x = clouds(9, 3, seed=0)
    assert sorted(k_center_greedy(x, x[:0], 20).tolist()) == list(range(9))


def test_an_empty_pool_gives_nothing() -> None:
    x = clouds(3, 3, seed=0)
    picks = k_center_greedy(x[:0], x, 4)
    assert picks.shape == (0,)
    assert picks.dtype == np.int64


def test_views_that_are_not_contiguous_are_read_as_they_are() -> None:
    x = clouds(400, 16, seed=1)
    strided, labelled = x[::2, ::3], x[1:40:2, ::3]
    expected = k_center_greedy(strided.copy(), labelled.copy(), 10)
    assert k_center_greedy(strided, labelled, 10).tolist() == expected.tolist()


def test_what_cannot_be_squared_or_counted_is_refused() -> None:
    x = np.ones((4, 2), np.float32)
    with pytest.raises(EvidenceError, match="the labelled embeddings are too large to be squared"):
        k_center_greedy(x, x * 1e25, 1)
    with pytest.raises(EvidenceError, match="the embeddings are too large to be squared"):
        k_center_greedy(x * np.float32([[1e25], [1], [1], [1]]), x, 1)
    with pytest.raises(ValueError, match="k is -1, expected at least 0"):
        k_center_greedy(x, x, -1)


def test_a_row_that_is_not_finite_is_named() -> None:
    x = clouds(30, 4, seed=0)
    x[17, 2] = np.nan
    with pytest.raises(EvidenceError, match="row 17"):
        k_center_greedy(x, x[:3], 2)
    with pytest.raises(EvidenceError, match="row 7 of the labelled"):
        k_center_greedy(x[:10], x[10:], 2)
    with pytest.raises(EvidenceError, match="too large"):
        k_center_greedy(clouds(9, 2, seed=0) * np.float32(1e30), x[:0, :2], 2)


@pytest.mark.parametrize(
    ("x", "labelled", "message"),
    [
        (np.zeros((3, 2)), np.zeros((1, 2), np.float32), "float64, expected float32"),
        (np.zeros(3, np.float32), np.zeros((1, 2), np.float32), r"shape \(3,\)"),
        (np.zeros((3, 2), np.float32), np.zeros((1, 4), np.float32), "2 columns .* 4"),
    ],
)
def test_bad_shapes_are_explained(x: Array, labelled: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        k_center_greedy(x, labelled, 1)


def test_distance_is_to_the_nearest_centre() -> None:
    x = np.array([[0, 0], [3, 4], [6, 8]], dtype=np.float32)
    cover = Cover(x, x[:0])
    assert cover.distance(0) == pytest.approx(5)  # no centre yet: to the mean
    cover.add(0)
    assert [cover.distance(1), cover.distance(2)] == pytest.approx([5, 10])
    assert cover.farthest() == 2
    cover.add(2)
    assert cover.distance(1) == pytest.approx(5)


def test_only_allowed_rows_are_returned() -> None:
    x = np.arange(10, dtype=np.float32)[:, None]
    cover = Cover(x, x[:1])
    allowed = np.zeros(10, dtype=bool)
    allowed[[2, 5]] = True
    assert cover.farthest(allowed) == 5


@pytest.mark.usefixtures("small_working_set")
def test_allowed_rows_are_found_outside_the_working_set() -> None:
    x = clouds(300, 8, seed=5)
    cover, slow = Cover(x, x[:3]), ((x[:, None] - x[None, :3]) ** 2).sum(-1).min(1)
    allowed = np.zeros(300, dtype=bool)
    allowed[np.argsort(slow)[40:60]] = True
    assert cover.farthest(allowed) == int(np.argsort(slow)[59])


def test_farthest_says_when_nothing_is_left() -> None:
    x = clouds(3, 2, seed=0)
    cover = Cover(x, x[:0])
    with pytest.raises(ValueError, match="no row is left"):
        cover.farthest(np.zeros(3, dtype=bool))
    for _ in range(3):
        cover.add(cover.farthest())
    with pytest.raises(ValueError, match="no row is left"):
        cover.farthest()


@pytest.mark.usefixtures("small_working_set")
def test_distances_are_those_of_the_textbook() -> None:
    x, labelled = clouds(200, 9, seed=2), clouds(12, 9, seed=8)
    cover = Cover(x, labelled)
    cover.add(7)
    centres = np.concatenate([labelled, x[7:8]]).astype(np.float64)
    expected = np.sqrt(((x[:, None] - centres[None]) ** 2).sum(-1).min(1))
    expected[7] = 0
    np.testing.assert_allclose(cover.distances(), expected, rtol=1e-4, atol=1e-4)


def query(x: Array, labelled: int, k: int, **options: object) -> Query:
    """The first rows labelled, the others the pool; ids are rows of ``x``, z goes with them."""
    everything = Evidence(
        tuple(range(len(x))),
        tuple(Position("v", z) for z in range(len(x))),
        features={"embedding": x},
    )
    pool, known = range(labelled, len(x)), range(labelled)
    return Query(everything.take(pool), everything.take(known), k, **options)  # type: ignore[arg-type]


def test_coreset_is_k_center_greedy_and_reports_the_distance_of_each_pick() -> None:
    x = clouds(80, 4, seed=1)
    selection = get_strategy("coreset").select(query(x, 5, 6, reserve=4))

    picks = [5 + row for row in reference(x[5:], x[:5], 10)]
    assert list(selection.chosen + selection.reserve) == picks
    for i, pick in enumerate(picks):
        centres = x[[*range(5), *picks[:i]]]
        nearest = np.linalg.norm(centres - x[pick], axis=1).min()
        assert selection.scores[pick] == pytest.approx(nearest, rel=1e-4)


def test_coreset_keeps_to_the_spacing_while_it_picks() -> None:
    x = clouds(80, 4, seed=2)
    chosen = get_strategy("coreset").select(query(x, 5, 8, spacing=Spacing(gap=6))).chosen

    picks: list[int] = []
    for _ in range(8):  # the farthest of those that are far enough along z, picked ones included
        taken = [*range(5), *picks]
        nearest = np.linalg.norm(x[:, None] - x[None, taken], axis=2).min(1)
        near = np.abs(np.arange(80)[:, None] - np.array(taken)).min(1) < 6
        picks.append(int(np.argmax(np.where(near, -1, nearest))))
    assert list(chosen) == picks


def test_coreset_nearest_takes_the_smallest_distances() -> None:
    x = clouds(80, 4, seed=3)
    selection = get_strategy("coreset_nearest").select(query(x, 5, 6))
    nearest = np.linalg.norm(x[5:, None] - x[None, :5], axis=2).min(1)
    assert list(selection.chosen) == (5 + np.argsort(nearest)[:6]).tolist()


def test_coreset_nearest_without_labels_takes_those_nearest_to_the_mean() -> None:
    x = clouds(80, 4, seed=4)
    selection = get_strategy("coreset_nearest").select(query(x, 0, 6))
    assert list(selection.chosen) == np.argsort(np.linalg.norm(x - x.mean(0), axis=1))[:6].tolist()
