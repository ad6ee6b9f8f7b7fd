"""The numbers of an experiment, against what one gets by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_backend.experiment.record import RecordError
from ml_backend.experiment.summary import (
    Estimate,
    Mark,
    OddStart,
    area,
    effort_areas,
    mean_ranks,
    paired_difference,
    seeds_to_rank,
    summarise,
)
from ml_backend.experiment.tables import class_table
from tests.experiment_folder import a_cost, line, write_experiment, write_run

T_2 = 4.302652729911275
"""The 97.5 % quantile of Student's t with two degrees of freedom, from a table."""

# Annotated slices are 4, 8 and 10, so an area is (4 · (a + b)/2 + 2 · (b + c)/2) / 6.
CURVES = {
    "random": [[0.2, 0.4, 0.6], [0.2, 0.5, 0.6], [0.2, 0.6, 0.6]],
    "coreset": [[0.2, 0.4, 0.8], [0.2, 0.5, 0.9], [0.2, 0.6, 0.7]],
    "entropy": [[0.2, 0.3, 0.4], [0.2, 0.3, 0.5], [0.2, 0.3, 0.6]],
}
AREAS = {
    "random": [2.2 / 6, 2.5 / 6, 2.8 / 6],
    "coreset": [2.4 / 6, 2.8 / 6, 2.9 / 6],
    "entropy": [1.7 / 6, 1.8 / 6, 1.9 / 6],
}


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    return write_experiment(tmp_path, CURVES, full=[0.8, 1.0, 0.9])


def test_the_area_is_a_trapezoid_over_annotated_slices_divided_by_their_range() -> None:
    rounds = [
        line(labelled=4, miou=0.2),
        line(labelled=8, miou=0.4),
        line(labelled=10, miou=0.8),
    ]
    assert area(rounds) == pytest.approx((4 * 0.3 + 2 * 0.6) / 6)


def test_the_area_of_a_single_round_is_its_miou() -> None:
    assert area([line(miou=0.7)]) == pytest.approx(0.7)


def test_every_strategy_has_its_areas_and_finals_by_seed(experiment: Path) -> None:
    summary = summarise(experiment)
    for strategy, areas in AREAS.items():
        standing = summary.standing(strategy)
        assert standing.areas == pytest.approx(dict(enumerate(areas)))
        assert standing.finals == {seed: miou[-1] for seed, miou in enumerate(CURVES[strategy])}


def test_the_largest_mean_area_comes_first(experiment: Path) -> None:
    assert [s.strategy for s in summarise(experiment).standings] == ["coreset", "random", "entropy"]


def test_the_spread_is_the_sample_standard_deviation(experiment: Path) -> None:
    final = summarise(experiment).standing("coreset").final
    assert final is not None
    assert (final.mean, final.std, final.n) == pytest.approx((0.8, 0.1, 3))
    assert str(final) == "0.800 ± 0.100"


def test_one_seed_has_no_spread() -> None:
    assert Estimate.of([0.5]) == Estimate(0.5, None, 1)
    assert str(Estimate(0.5, None, 1)) == "0.500"
    assert Estimate.of([]) is None


def test_differences_to_random_are_paired_by_seed_with_a_t_interval(experiment: Path) -> None:
    # area: 0.2/6, 0.3/6, 0.1/6 → mean 0.2/6, standard deviation 0.1/6; final: 0.2, 0.3, 0.1
    standing = summarise(experiment).standing("coreset")
    for difference, unit in ((standing.area_to_random, 1 / 6), (standing.final_to_random, 1.0)):
        assert difference is not None
        half = T_2 * 0.1 * unit / 3**0.5
        assert difference.pairs == 3
        assert difference.mean == pytest.approx(0.2 * unit)
        assert difference.low == pytest.approx(0.2 * unit - half)
        assert difference.high == pytest.approx(0.2 * unit + half)
        assert not difference.above
        assert not difference.below


def test_an_interval_on_one_side_of_0_is_above_or_below() -> None:
    reference = {0: 0.5, 1: 0.6, 2: 0.4}
    better = {seed: value + 0.1 + 0.001 * seed for seed, value in reference.items()}
    above, below = paired_difference(better, reference), paired_difference(reference, better)
    assert above is not None
    assert below is not None
    assert (above.above, above.below) == (True, False)
    assert (below.above, below.below) == (False, True)
    assert str(above) == "+0.101 [+0.099, +0.103]"


def test_only_seeds_that_both_have_are_paired() -> None:
    difference = paired_difference({0: 0.3, 1: 0.5, 7: 9.0}, {0: 0.2, 1: 0.4, 8: 9.0})
    assert difference is not None
    assert difference.pairs == 2
    assert difference.mean == pytest.approx(0.1)


def test_there_is_no_difference_without_two_pairs_and_none_of_random_to_itself(
    experiment: Path,
) -> None:
    assert paired_difference({0: 0.3, 1: 0.5}, {1: 0.4, 2: 0.4}) is None
    assert summarise(experiment).standing("random").area_to_random is None


def test_without_random_there_are_no_differences(tmp_path: Path) -> None:
    write_experiment(tmp_path, {"coreset": CURVES["coreset"]})
    assert summarise(tmp_path).standing("coreset").area_to_random is None


def test_shares_are_of_the_mean_fully_supervised_miou(experiment: Path) -> None:
    summary = summarise(experiment)
    assert summary.ceiling is not None
    assert summary.ceiling.mean == pytest.approx(0.9)
    standing = summary.standing("coreset")
    assert [p.labelled for p in standing.curve] == [4, 8, 10]
    assert [p.share for p in standing.curve] == pytest.approx([0.2 / 0.9, 0.5 / 0.9, 0.8 / 0.9])
    assert standing.share == pytest.approx(0.8 / 0.9)


def test_without_full_supervision_there_are_no_shares(tmp_path: Path) -> None:
    summary = summarise(write_experiment(tmp_path, CURVES))
    assert summary.full is None
    assert [p.share for p in summary.standing("random").curve] == [None, None, None]
    assert summary.standing("random").reaching(0.1) is None


def test_the_first_round_that_reaches_a_share(tmp_path: Path) -> None:
    write_experiment(tmp_path, {"random": [[0.5, 0.96, 0.94, 0.97]]}, full=[1.0], pool=100)
    standing = summarise(tmp_path).standing("random")
    reached = standing.reaching(0.95)
    assert reached is not None
    assert (reached.round, reached.labelled) == (2, 8)
    assert standing.reaching(0.99) is None


def test_the_iou_of_a_class_is_over_the_seeds_that_have_it(tmp_path: Path) -> None:
    write_experiment(tmp_path, {"random": [[0.5], [0.5]]})
    write_run(tmp_path, [line(seed=1, miou=0.7, iou={"background": 0.8, "bone": None})])
    assert summarise(tmp_path).standing("random").iou == pytest.approx(
        {"background": (0.6 + 0.8) / 2, "bone": 0.4}
    )


def test_a_class_that_the_test_slices_do_not_hold_is_not_measured(tmp_path: Path) -> None:
    write_experiment(tmp_path, {"random": [[0.5], [0.5]]})
    assert summarise(tmp_path).measured == ("background", "bone")
    for seed in (0, 1):
        write_run(tmp_path, [line(seed=seed, miou=0.6, iou={"background": 0.6, "bone": None})])
    summary = summarise(tmp_path)
    assert summary.measured == ("background",)
    assert class_table(summary, None).head == ("strategy", "background")


def test_an_unfinished_run_is_left_out_and_named(tmp_path: Path) -> None:
    write_experiment(tmp_path, {**CURVES, "margin": [[0.2, 0.4, 0.6], [0.9, 0.9]]}, full=[0.9])
    summary = summarise(tmp_path)
    margin = summary.standing("margin")
    assert set(margin.areas) == {0}
    assert margin.unfinished == (1,)
    assert [p.miou.mean for p in margin.curve] == [0.2, 0.4, 0.6]
    assert summary.unfinished == (("margin", 1),)


def test_before_any_run_has_ended_the_curve_goes_as_far_as_all_have_come(tmp_path: Path) -> None:
    write_experiment(tmp_path, {"random": [[0.2, 0.4], [0.4]]}, rounds=3, full=[0.9])
    (standing,) = summarise(tmp_path).standings
    assert [p.miou.mean for p in standing.curve] == pytest.approx([0.3])
    assert (standing.area, standing.final, standing.share, standing.rank) == (None,) * 4


def test_ranks_are_means_over_seeds_and_ties_share_theirs() -> None:
    areas = {"a": {0: 0.9, 1: 0.5}, "b": {0: 0.9, 1: 0.7}, "c": {0: 0.1, 1: 0.6}}
    assert mean_ranks(areas, (0, 1)) == {"a": 2.25, "b": 1.25, "c": 2.5}


def test_what_lacks_a_seed_is_not_ranked() -> None:
    areas = {"a": {0: 0.9, 1: 0.1}, "b": {0: 0.5}, "c": {0: 0.8, 1: 0.2, 2: 0.1}}
    assert mean_ranks(areas, (0, 1)) == {"a": 1.5, "c": 1.5}
    assert mean_ranks(areas, (0,)) == {"a": 1.0, "b": 3.0, "c": 2.0}
    assert mean_ranks(areas, ()) == {}


def test_the_seeds_to_rank_are_those_that_the_finished_controls_share() -> None:
    controls = {"random": {0: 0.5, 1: 0.5, 2: 0.5}, "strided": {1: 0.5, 2: 0.5}}
    others = {"coreset": {1: 0.9}, "entropy": {0: 0.9, 1: 0.9, 2: 0.9, 3: 0.9}}
    assert seeds_to_rank({**controls, **others}) == (1, 2)
    assert seeds_to_rank({**controls, **others, "foreground_random": {}}) == (1, 2)
    assert seeds_to_rank({"random": {0: 0.5}, "strided": {1: 0.5}, **others}) == ()


def test_without_a_control_the_seeds_to_rank_are_those_that_all_share() -> None:
    assert seeds_to_rank({"coreset": {0: 0.9, 1: 0.1}, "entropy": {0: 0.5}, "margin": {}}) == (0,)
    assert seeds_to_rank({"coreset": {0: 0.9}, "entropy": {1: 0.5}}) == ()
    assert seeds_to_rank({}) == ()


def test_one_seed_of_a_strategy_does_not_shrink_the_ranking_of_the_others(tmp_path: Path) -> None:
    write_experiment(tmp_path, {**CURVES, "margin": [[0.2, 0.9, 0.9]]})
    summary = summarise(tmp_path)
    assert summary.ranked_seeds == (0, 1, 2)
    assert [summary.standing(name).rank for name in CURVES] == [2.0, 1.0, 3.0]
    assert summary.standing("margin").rank is None


def test_a_strategy_without_an_ended_run_does_not_hinder_the_ranks(tmp_path: Path) -> None:
    summary = summarise(write_experiment(tmp_path, {**CURVES, "margin": [[0.2]]}))
    assert [summary.standing(name).rank for name in CURVES] == [2.0, 1.0, 3.0]
    assert summary.standing("margin").rank is None
    assert summary.standings[-1].strategy == "margin"


@pytest.mark.parametrize(
    ("pool", "mark"),
    [
        (1000, Mark(needed=12, round=3, labelled=12)),  # 11.6
        (1300, None),  # 15.1, which three rounds do not reach
        (5, Mark(needed=1, round=1, labelled=4)),
        (10, Mark(needed=1, round=1, labelled=4)),
    ],
)
def test_the_published_mark_is_the_first_round_with_as_large_a_share_of_the_pool(
    tmp_path: Path, pool: int, mark: Mark | None
) -> None:
    write_experiment(tmp_path, {"random": [[0.2, 0.4, 0.6]]}, full=[0.8], pool=pool)
    summary = summarise(tmp_path)
    assert summary.mark == mark
    share = summary.standing("random").mark_share
    assert share == (None if mark is None else pytest.approx([0.25, 0.5, 0.75][mark.round - 1]))


def test_an_experiment_without_a_round_says_what_to_do(tmp_path: Path) -> None:
    write_experiment(tmp_path, {"random": [[0.5]]})
    (tmp_path / "runs/random/seed-0.jsonl").write_text("")
    with pytest.raises(RecordError, match=r"no whole round yet.* nextslice simulate --out"):
        summarise(tmp_path)


def test_an_iou_that_is_not_a_number_is_refused_with_its_run(tmp_path: Path) -> None:
    write_experiment(tmp_path, {"random": [[0.5]]})
    path = tmp_path / "runs/random/seed-0.jsonl"
    path.write_text(path.read_text().replace('"miou":0.5', '"miou":NaN'))
    with pytest.raises(RecordError, match="round 1 of random, seed 0"):
        summarise(tmp_path)


def test_an_unfinished_run_has_no_share_at_the_published_mark(tmp_path: Path) -> None:
    curves = {"random": [[0.2, 0.4, 0.6]], "margin": [[0.2, 0.9]]}
    write_experiment(tmp_path, curves, full=[0.8], pool=500)
    summary = summarise(tmp_path)
    assert summary.mark == Mark(needed=6, round=2, labelled=8)
    assert summary.standing("random").mark_share == pytest.approx(0.5)
    assert summary.standing("margin").mark_share is None


def test_the_rounds_are_those_that_were_run(tmp_path: Path) -> None:
    used_up = summarise(write_experiment(tmp_path / "a", CURVES, rounds=10))
    assert (used_up.rounds, used_up.used_up) == (3, True)
    assert used_up.unfinished == ()
    whole = summarise(write_experiment(tmp_path / "b", CURVES, pool=100))
    assert (whole.rounds, whole.used_up) == (3, False)
    begun = summarise(write_experiment(tmp_path / "c", CURVES, rounds=10, pool=100))
    assert (begun.rounds, begun.used_up) == (10, False)


FOUR = {name: [[0.2, 0.4], [0.3, 0.4]] for name in ("badge", "ceal", "random", "strided")}


def test_runs_of_a_seed_that_start_alike_are_paired(tmp_path: Path) -> None:
    # Full supervision starts from the whole pool, so it is another thing.
    assert summarise(write_experiment(tmp_path, FOUR, full=[0.8, 0.9])).odd_starts == ()


def test_another_result_of_round_1_is_from_other_weights(tmp_path: Path) -> None:
    other = [[0.2, 0.4], [0.3 + 1e-12, 0.4]]
    summary = summarise(write_experiment(tmp_path, {**FOUR, "ceal": other}))
    assert summary.odd_starts == (OddStart(1, ("ceal",), slices=False),)


def test_other_slices_in_round_1_are_told_from_other_weights(tmp_path: Path) -> None:
    write_experiment(tmp_path, {**FOUR, "coreset": [[0.21]], "entropy": [[0.2]]})
    ids = [f"s{i:04d}" for i in range(4)]
    for strategy, selected in (("badge", ids[::-1]), ("ceal", ["s0005", *ids[1:]])):
        write_run(tmp_path, [line(strategy=strategy, selected=selected, miou=0.2)])
    assert summarise(tmp_path).odd_starts == (
        OddStart(0, ("ceal",), slices=True),
        OddStart(0, ("coreset",), slices=False),
    )


def test_of_two_equal_parts_the_rest_is_that_of_random(tmp_path: Path) -> None:
    other = [[0.25, 0.4], [0.3, 0.4]]
    write_experiment(tmp_path, {**FOUR, "badge": other, "ceal": other})
    assert summarise(tmp_path).odd_starts == (OddStart(0, ("badge", "ceal"), slices=False),)


# -- effort


def test_the_area_by_effort_ends_where_the_cheapest_run_of_the_seed_does() -> None:
    cheap = [line(miou=0.2, cost=a_cost(100)), line(miou=0.4, cost=a_cost(50))]
    dear = [line(miou=0.2, cost=a_cost(100)), line(miou=0.6, cost=a_cost(200))]

    areas = effort_areas({"cheap": {0: cheap}, "dear": {0: dear}})

    # From 100 to 150 corrected pixels: 0.2 to 0.4, and 0.2 to a quarter of the way to 0.6.
    assert areas["cheap"][0] == pytest.approx(0.3)
    assert areas["dear"][0] == pytest.approx((0.2 + 0.3) / 2)


def test_runs_of_unknown_cost_have_no_area_by_effort() -> None:
    known = [line(miou=0.2, cost=a_cost(100)), line(miou=0.4, cost=a_cost(50))]
    half = [line(miou=0.2, cost=a_cost(100)), line(miou=0.4)]

    assert effort_areas({"known": {0: known}, "half": {0: half}}) == {
        "known": {0: pytest.approx(0.3)},
        "half": {},
    }


def test_strategies_are_ranked_by_effort_beside_labels(tmp_path: Path) -> None:
    """The one that reaches more with as many labels has them corrected four times as much."""
    curves = {"random": [[0.2, 0.4], [0.2, 0.4]], "coreset": [[0.2, 0.5], [0.2, 0.5]]}
    costs = {"random": [100, 50], "coreset": [100, 200]}

    summary = summarise(write_experiment(tmp_path, curves, costs=costs, pool=100))

    ranks = {s.strategy: (s.rank, s.effort_rank) for s in summary.standings}
    assert ranks == {"coreset": (1.0, 2.0), "random": (2.0, 1.0)}
