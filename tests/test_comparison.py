"""The rule that chooses the default strategy, case by case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from ml_backend.experiment.comparison import Comparison, compare
from ml_backend.experiment.summary import Summary, summarise
from tests.experiment_folder import write_experiment

NOISE = (0.00, 0.02, 0.01)
"""What the seeds of a strategy have added to the mIoU of its runs."""


def summary(
    out: Path, areas: Mapping[str, float | Sequence[float]], seeds: int = 3, data: str = "phantom"
) -> Summary:
    """An experiment with these areas: seeds that vary alike, or the area of every seed."""
    curves = {}
    for name, value in areas.items():
        each = [value + n for n in NOISE[:seeds]] if isinstance(value, float) else value
        # In two rounds, m − 0.1 and m + 0.1: the area is m. The last digits differ, so that no
        # interval is a point.
        curves[name] = [[m - 0.1, m + 0.1 + i * 1e-4] for i, m in enumerate(each)]
    return summarise(write_experiment(out, curves, data=data))


def comparison(out: Path, *data_sets: Mapping[str, float | Sequence[float]]) -> Comparison:
    return compare([summary(out / str(i), a, data=f"data {i}") for i, a in enumerate(data_sets)])


def test_the_best_ranked_strategy_that_separates_from_the_best_control_is_the_default(
    tmp_path: Path,
) -> None:
    found = comparison(
        tmp_path, {"random": 0.5, "strided": 0.55, "coreset": 0.65, "entropy": 0.6, "margin": 0.4}
    )
    assert found.control == "strided"
    assert found.separated == ("coreset", "entropy")
    assert found.default == "coreset"
    assert list(found.mean_ranks.items()) == [
        ("coreset", 1.0),
        ("entropy", 2.0),
        ("strided", 3.0),
        ("random", 4.0),
        ("margin", 5.0),
    ]
    assert found.reason == (
        "The default is coreset, mean rank 1.0 among 5: it separates from strided, the best "
        "control."
    )


def test_when_nothing_separates_the_best_control_is_the_default(tmp_path: Path) -> None:
    found = comparison(tmp_path, {"random": 0.5, "strided": 0.4, "coreset": (0.8, 0.45, 0.7)})
    (difference,) = found.to_control["coreset"]
    assert difference is not None
    assert difference.mean > 0 > difference.low
    assert found.default == "random"
    assert "nothing separates from it" in found.reason


def test_a_better_rank_that_does_not_separate_gives_way_to_one_that_does(tmp_path: Path) -> None:
    found = comparison(tmp_path, {"random": 0.5, "coreset": (0.9, 0.60, 0.6), "entropy": 0.55})
    assert list(found.mean_ranks) == ["coreset", "entropy", "random"]
    assert found.separated == ("entropy",)
    assert found.default == "entropy"
    assert "coreset ranks better, but does not separate" in found.reason


def test_the_oracle_is_ranked_but_never_the_default(tmp_path: Path) -> None:
    found = comparison(tmp_path, {"random": 0.5, "worst_iou": 0.9, "coreset": 0.6})
    assert found.mean_ranks["worst_iou"] == 1.0
    assert "worst_iou" not in found.separated
    assert found.default == "coreset"


def test_separating_on_one_data_set_is_enough_when_it_is_below_on_none(tmp_path: Path) -> None:
    first = {"random": 0.5, "coreset": 0.6}
    undecided = {"random": 0.5, "coreset": (0.4, 0.62, 0.53)}
    worse = {"random": 0.5, "coreset": 0.4}
    assert comparison(tmp_path / "a", first, undecided).default == "coreset"
    assert comparison(tmp_path / "b", first, worse).default == "random"


def test_ranks_are_means_over_data_sets_among_the_strategies_that_all_have(tmp_path: Path) -> None:
    found = comparison(
        tmp_path,
        {"random": 0.5, "coreset": 0.6, "entropy": 0.55, "badge": 0.9},
        {"random": 0.5, "coreset": 0.4, "entropy": 0.6, "margin": 0.45},
    )
    assert found.data == ("data 0", "data 1")
    assert found.ranks == {"random": (3.0, 2.0), "coreset": (1.0, 3.0), "entropy": (2.0, 1.0)}
    assert found.mean_ranks == {"entropy": 1.5, "coreset": 2.0, "random": 2.5}


def test_with_one_seed_nothing_separates(tmp_path: Path) -> None:
    found = compare([summary(tmp_path, {"random": 0.5, "coreset": 0.9}, seeds=1)])
    assert found.to_control["coreset"] == (None,)
    assert found.default == "random"


def test_a_control_that_ranks_better_than_what_separates_stays_the_default(tmp_path: Path) -> None:
    first = {"random": 0.5, "coreset": 0.6, "entropy": 0.4}
    # Here coreset is mostly last, but so uneven that it is not below random for certain.
    uneven = {"random": 0.5, "coreset": (0.3, 0.4, 0.9), "entropy": 0.45}
    found = comparison(tmp_path, first, uneven, uneven)
    assert next(iter(found.mean_ranks)) == "random"
    assert found.separated == ("coreset",)
    assert found.default == "random"
    assert "ranks better than what separates from it (coreset)" in found.reason


def test_without_a_control_there_is_no_default(tmp_path: Path) -> None:
    found = comparison(tmp_path, {"coreset": 0.6, "entropy": 0.5})
    assert found.default is None
    assert "none of the controls" in found.reason
    assert found.mean_ranks == {"coreset": 1.0, "entropy": 2.0}


def test_data_sets_without_a_strategy_in_common_have_no_default(tmp_path: Path) -> None:
    found = comparison(tmp_path, {"random": 0.6}, {"coreset": 0.5})
    assert (found.default, found.mean_ranks) == (None, {})
    assert "no strategy has a run that has ended on every data set" in found.reason


def test_an_experiment_in_which_no_run_has_ended_has_no_default(tmp_path: Path) -> None:
    out = write_experiment(tmp_path, {"random": [[0.5]]}, rounds=2)
    assert compare([summarise(out)]).default is None


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one experiment"):
        compare([])


def test_a_strategy_with_one_seed_is_not_ranked_and_shrinks_nothing(tmp_path: Path) -> None:
    # Seed 0 alone would have random first.
    controls = {"random": (0.45, 0.40, 0.41), "foreground_random": (0.44, 0.55, 0.56)}
    found = comparison(tmp_path, {**controls, "entropy": (0.3,)})
    assert found.default == found.control == "foreground_random"
    assert list(found.mean_ranks) == ["foreground_random", "random"]
    assert found.not_ranked == "Not ranked, for lack of finished runs: entropy (seeds 1, 2)."
    assert found.reason.endswith(found.not_ranked)


def test_what_lacks_a_seed_on_one_data_set_is_not_ranked_on_any(tmp_path: Path) -> None:
    found = comparison(
        tmp_path,
        {"random": 0.5, "coreset": 0.6, "entropy": 0.7, "margin": 0.55},
        {"random": 0.5, "coreset": 0.6, "entropy": (0.7, 0.7)},
    )
    assert found.ranks == {"random": (2.0, 2.0), "coreset": (1.0, 1.0)}
    assert found.default == "coreset"
    assert found.not_ranked == (
        "Not ranked, for lack of finished runs: entropy (seed 2 of data 1); "
        "margin (seeds 0, 1, 2 of data 1)."
    )


def test_strategies_that_lack_the_same_seeds_are_named_together(tmp_path: Path) -> None:
    few = dict.fromkeys(("badge", "ceal", "margin"), (0.5, 0.5))
    found = comparison(tmp_path, {"random": 0.5, **few})
    assert found.not_ranked.endswith(": badge, ceal and margin (seed 2).")


def test_differences_to_the_control_are_over_the_ranked_seeds(tmp_path: Path) -> None:
    found = comparison(tmp_path, {"random": 0.5, "strided": (0.4, 0.4), "coreset": 0.6})
    (difference,) = found.to_control["coreset"]
    assert difference is not None
    assert difference.pairs == 2


def test_controls_without_a_seed_in_common_have_no_default(tmp_path: Path) -> None:
    out = write_experiment(tmp_path, {"random": [[0.5] * 2], "strided": [[0.5] * 2] * 2})
    (out / "runs/strided/seed-0.jsonl").unlink()
    assert "the controls have no seed in common" in compare([summarise(out)]).reason


def test_controls_that_have_not_ended_are_not_called_missing(tmp_path: Path) -> None:
    curves = {"coreset": [[0.2, 0.4]], "random": [[0.2]], "strided": [[0.2]]}
    found = compare([summarise(write_experiment(tmp_path, curves, pool=100))])
    assert found.default is None
    assert found.reason == (
        "No default yet: no control has a finished run in every experiment; unfinished: random, "
        "strided. Not ranked, for lack of finished runs: random and strided (seed 0)."
    )
