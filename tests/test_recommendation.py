"""What is said to who runs the beamline, and how sure it claims to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_backend.experiment.recommendation import recommendation
from ml_backend.experiment.summary import summarise
from tests.experiment_folder import write_experiment

RANDOM = [[0.2, 0.4, 0.6], [0.2, 0.5, 0.6], [0.2, 0.6, 0.6]]
BETTER = [[0.2, 0.60, 0.9], [0.2, 0.71, 0.91], [0.2, 0.79, 0.92]]
UNEVEN = [[0.2, 0.3, 0.9], [0.2, 0.7, 0.6], [0.2, 0.8, 0.5]]


def said(out: Path, curves: dict[str, list[list[float]]], full: list[float], **options: int) -> str:
    return recommendation(summarise(write_experiment(out, curves, full, **options)))


def test_a_strategy_that_separates_is_recommended_with_what_it_takes(tmp_path: Path) -> None:
    text = said(tmp_path, {"random": RANDOM, "coreset": BETTER}, [0.95], pool=100)
    assert text.startswith("Use coreset (mean test mIoU along the curve 0.6")
    assert "it is better than random, the best simple control, by +0.1" in text
    # Mean final mIoU: 0.91 of 0.95 is 95.8 %.
    assert (
        "Expect to label 12 slices (12.0 % of 100, round 3) for 95 % of full supervision; "
        "12 gave 95.8 %." in text
    )
    assert "This rests on 3 seeds of 3 rounds with 4 slices each, on one data set" in text
    assert text.endswith("tested on 2 slices of 2 volumes.")


def test_a_lead_that_may_be_chance_does_not_win_over_a_control(tmp_path: Path) -> None:
    text = said(tmp_path, {"random": RANDOM, "coreset": UNEVEN}, [1.0], pool=100)
    assert text.startswith("Use random (")
    assert "nothing is clearly better than this simple control" in text
    assert "Of the others, coreset ranks best (" in text
    assert "not told apart" in text
    assert "95 % of full supervision was not reached: 12 labelled slices gave 60.0 %." in text


def test_a_control_is_set_against_random_too(tmp_path: Path) -> None:
    text = said(tmp_path, {"random": RANDOM, "strided": BETTER}, [])
    assert text.startswith("Use strided (")
    assert "strided is better than random (+0.1" in text
    assert "Only controls have been run." in text
    assert "How far that is from full supervision is unknown: no such run has ended." in text


def test_one_seed_is_called_a_first_impression(tmp_path: Path) -> None:
    text = said(tmp_path, {"random": RANDOM[:1], "coreset": BETTER[:1]}, [0.9])
    assert "no difference can be told from chance yet" in text
    assert "±" not in text
    assert text.endswith("one seed says nothing of chance, so take it as a first impression.")


def test_two_seeds_are_called_thin(tmp_path: Path) -> None:
    text = said(tmp_path, {"random": RANDOM[:2], "coreset": BETTER[:2]}, [0.9])
    assert text.endswith("two seeds make very wide intervals.")


def test_many_comparisons_come_with_a_warning(tmp_path: Path) -> None:
    many = ["badge", "ceal", "confidence", "entropy", "margin", "mc_dropout", "typiclust",
            "ceal_confident", "class_power"]  # fmt: skip
    curves = {"random": RANDOM, "coreset": BETTER, **dict.fromkeys(many, RANDOM)}
    text = said(tmp_path, curves, [0.9])
    assert "With 10 strategies compared at 95 %, one may separate by chance alone" in text


def test_an_unfinished_experiment_says_so(tmp_path: Path) -> None:
    curves = {"random": RANDOM, "coreset": [*BETTER[:2], [0.2]]}
    assert said(tmp_path, curves, [0.9]).endswith(
        "1 run not finished, left out here: redraw the report later."
    )


def test_before_any_run_has_ended_nothing_is_recommended(tmp_path: Path) -> None:
    text = said(tmp_path, {"random": [[0.2]], "coreset": [[0.2]]}, [], rounds=3)
    assert text.startswith("Nothing can be recommended yet.")
    assert "2 runs not finished" in text


def test_one_seed_of_one_strategy_changes_nothing_for_the_others(tmp_path: Path) -> None:
    # Areas .422 and .520, of two rounds each; in seed 0 random is ahead.
    controls = {
        "random": [[0.2, 0.70], [0.2, 0.62], [0.2, 0.612]],
        "foreground_random": [[0.2, 0.68], [0.2, 0.92], [0.2, 0.92]],
    }
    before = said(tmp_path / "before", controls, [])
    after = said(tmp_path / "after", {**controls, "entropy": [[0.2, 0.3]]}, [])
    for text in (before, after):
        assert text.startswith("Use foreground_random (")
        assert "This rests on 3 seeds of" in text
    assert "Not ranked" not in before
    assert "Not ranked, for lack of finished runs: entropy (seeds 1, 2)." in after
    assert "Only controls have been run." not in after


def test_the_evidence_is_the_seeds_that_were_ranked(tmp_path: Path) -> None:
    text = said(tmp_path, {"random": RANDOM[:1], "strided": BETTER}, [0.9])
    assert text.startswith("Use strided (")
    assert "This rests on 1 seed of" in text
    assert "one seed says nothing of chance" in text


def test_with_controls_alone_there_is_nothing_to_differ_from(tmp_path: Path) -> None:
    alone = said(tmp_path / "a", {"random": RANDOM}, [])
    assert "): it is the only control that is ranked. Only controls have been run." in alone
    two = said(tmp_path / "b", {"random": RANDOM[:1], "strided": BETTER[:1]}, [])
    assert two.startswith("Use strided (")
    assert "): it ranks best of the controls. Only controls have been run." in two
    oracle = said(tmp_path / "c", {"random": RANDOM, "worst_iou": BETTER}, [])
    assert "Only controls and oracles have been run." in oracle
    for text in (alone, two, oracle):
        assert "told from chance" not in text


@pytest.mark.parametrize(
    ("options", "rounds"),
    [
        ({"pool": 100}, "3 rounds with 4 slices each, on"),
        (
            {"pool": 100, "start": 6},
            "3 rounds with 6 slices in the first and 4 in each later one, on",
        ),
        ({"rounds": 9}, "3 rounds with 4 slices each, until the pool of 10 was used up, on"),
    ],
)
def test_the_rounds_are_those_that_were_run(
    tmp_path: Path, options: dict[str, int], rounds: str
) -> None:
    text = said(tmp_path, {"random": RANDOM, "coreset": BETTER}, [0.9], **options)
    assert f"This rests on 3 seeds of {rounds} one data set" in text


@pytest.mark.parametrize(
    ("curve", "pool"), [([0.2], 100), ([0.2], 4), ([0.2, 0.3], 8), ([0.2, 0.3], 7)]
)
def test_nothing_is_recommended_where_no_strategy_had_a_choice(
    tmp_path: Path, curve: list[float], pool: int
) -> None:
    """Round 1 is the cold start's; a selection of all that is left is no choice."""
    text = said(tmp_path, {"random": [curve], "coreset": [curve]}, [0.9], pool=pool)
    assert text.startswith("Nothing can be recommended yet. No default: on phantom no strategy had")
    assert "Use " not in text


def test_one_choice_is_enough_to_recommend(tmp_path: Path) -> None:
    curves = {"random": [[0.2, 0.3]], "coreset": [[0.2, 0.3]]}
    assert said(tmp_path, curves, [0.9], pool=9).startswith("Use random (")


def test_a_mean_over_more_seeds_than_the_controls_have_is_named(tmp_path: Path) -> None:
    text = said(tmp_path, {"random": RANDOM[:2], "coreset": [*BETTER[:2], [0.2, 0.9, 0.9]]}, [0.9])
    assert text.startswith("Use coreset (")
    assert "This rests on 2 seeds of" in text
    assert text.endswith(
        "The means of coreset are over 3 seeds, its differences over the 2 that the controls have "
        "too."
    )


def test_runs_that_are_not_paired_exactly_are_named(tmp_path: Path) -> None:
    curves = dict.fromkeys(("random", "strided", "coreset", "entropy", "margin"), RANDOM)
    other = [[0.21, 0.4, 0.6], *RANDOM[1:]]
    assert "paired" not in said(tmp_path / "a", curves, [])
    two = said(tmp_path / "b", {**curves, "badge": other, "ceal": other}, [])
    assert two.endswith(
        "Seed 0: badge and ceal started from other weights than the rest, so their differences "
        "are not paired exactly."
    )
    one = said(tmp_path / "c", {**curves, "badge": other}, [])
    assert "Seed 0: badge started from other weights than the rest, so its differences" in one
