"""What is said to who runs the beamline, and how sure it claims to be."""

from __future__ import annotations

from pathlib import Path

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
