"""Laws of the next gain, on curves of one's own making whose next gain is known."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.advice import (
    CHOSEN,
    LAWS,
    as_served,
    by_start,
    cases_of,
    foretold,
    interval,
    score,
    spread,
)
from ml_backend.experiment.record import RoundLine, Validation
from ml_backend.rounds.advice import SHARE, expected_gain
from tests.experiment_folder import a_cost, line, write_experiment, write_run

BY_NAME = {law.name: law for law in LAWS}


def lawful(start: float, rounds: int = 6) -> list[float]:
    """A curve on which each round brings what the chosen law says: 4 labels, and 4 more each."""
    miou = [start]
    for number in range(1, rounds):
        miou.append(miou[-1] + SHARE * (1 - miou[-1]) * math.log((number + 1) / number))
    return miou


def held_out(path: Path, validation: list[float], before: list[float], test: list[float]) -> None:
    """A run whose held-out labels say other than its test slices; 5 of them from 25 labels on."""
    lines: list[RoundLine] = []
    for number, (seen, old, true) in enumerate(zip(validation, before, test, strict=True)):
        slices = 4 + number
        lines.append(
            line(
                round=number + 1,
                labelled=20 + 8 * number,
                miou=true,
                cost=a_cost(40 - 10 * number),
                validation=Validation(slices=slices, miou=seen, iou={}),
                before=Validation(slices=slices, miou=old, iou={}) if number else None,
            )
        )
    write_run(path, lines)


def test_without_held_out_labels_the_test_curve_stands_in(tmp_path: Path) -> None:
    curves = {"random": [[0.5, 0.6, 0.65, 0.66]]}
    first, second = cases_of(write_experiment(tmp_path / "a", curves, full=[0.9], pool=20))
    assert first.labels.tolist() == [4, 8]
    assert (first.more, first.judged) == (4, False)
    assert first.gain == pytest.approx(0.05)
    assert first.gained[1:] == pytest.approx([0.1])
    assert second.miou.tolist() == [0.5, 0.6, 0.65]


def test_a_law_sees_held_out_labels_and_the_truth_is_the_tests(tmp_path: Path) -> None:
    """As live: nothing is said below five of them, and a gain is of two models on the same ones."""
    out = write_experiment(tmp_path / "a", {}, rounds=4)
    held_out(out, [0.1, 0.7, 0.8, 0.9], [0, 0.65, 0.79, 0.88], [0.5, 0.55, 0.6, 0.62])
    first, second = cases_of(out)
    assert first.miou.tolist() == [0.1, 0.7]
    assert first.gained[1] == pytest.approx(0.05)
    assert first.gain == pytest.approx(0.05)
    assert second.gained[1:] == pytest.approx([0.05, 0.01])
    assert second.gain == pytest.approx(0.02)
    assert math.isnan(second.corrected[0])
    assert second.corrected[1:] == pytest.approx([0.075, 0.05])
    assert BY_NAME["no change"].foretell(first) == 0
    assert BY_NAME["same as the last gain"].foretell(second) == pytest.approx(0.01)


def test_the_chosen_law_is_that_of_the_advice(tmp_path: Path) -> None:
    (case, *_) = cases_of(write_experiment(tmp_path / "a", {"random": [lawful(0.5)]}, pool=40))
    said = BY_NAME[CHOSEN].foretell(case, SHARE)
    assert said == pytest.approx(expected_gain(case.miou[-1], 8, 4))
    assert said == pytest.approx(0.11 * (1 - case.miou[-1]) * math.log(12 / 8))
    assert spread(case) == pytest.approx((1 - case.miou[-1]) * math.sqrt(4 / 8))


def test_constants_come_from_other_runs(tmp_path: Path) -> None:
    """Those that share a start are left out together: of two starts that go by other shares, each
    is foretold by that of the other."""
    low, high = lawful(0.5), [0.5 + 2 * (value - 0.5) for value in lawful(0.5)]
    cases = cases_of(write_experiment(tmp_path / "a", {"random": [low, high]}, pool=40))
    said = foretold(BY_NAME[CHOSEN], cases, by_start)
    gains = np.array([case.gain for case in cases])
    first = np.array([case.start.endswith("seed 0") for case in cases])
    assert (said[first] > 1.5 * gains[first]).all()
    assert (said[~first] < gains[~first] / 1.5).all()


def test_a_curve_that_goes_by_the_law_is_foretold(tmp_path: Path) -> None:
    cases = cases_of(
        write_experiment(tmp_path / "a", {"random": [lawful(0.4), lawful(0.6)]}, pool=40)
    )
    assert score(BY_NAME[CHOSEN], cases, by_start).error == pytest.approx(0, abs=1e-9)
    none = score(BY_NAME["no change"], cases, by_start)
    assert none.cases == 8
    assert none.error == pytest.approx(np.mean([case.gain for case in cases]))


def test_power_laws_of_short_curves_keep_to_the_prior(tmp_path: Path) -> None:
    """By hand, 1/√n through (4, 0.5) and (16, 0.6): x = 0.5, 0.25, so b = 0.4, and from 16 to 64
    labels it is 0.4 × (0.25 − 0.125) = 0.05. A weight beyond all leaves the prior: b = 0.11 × 0.4 /
    (0.5 × 0.25) = 0.352."""
    (case, *_) = cases_of(write_experiment(tmp_path / "a", {"random": [[0.5, 0.6, 0.7]]}, pool=40))
    made = type(case)(**{**vars(case), "labels": np.array([4.0, 16.0]), "more": 48})
    law = BY_NAME["power law of mIoU"]
    assert law.foretell(made, 0.5, 1e-12, 0.11) == pytest.approx(0.05)
    assert law.foretell(made, 0.5, 1e12, 0.11) == pytest.approx(0.352 * 0.125)


def test_a_single_start_says_nothing_of_laws_with_constants(tmp_path: Path) -> None:
    cases = cases_of(write_experiment(tmp_path / "a", {"random": [lawful(0.4)]}, pool=40))
    assert score(BY_NAME[CHOSEN], cases, by_start).cases == 0
    assert score(BY_NAME["no change"], cases, by_start).cases == 4


def test_the_advice_is_judged_with_the_constants_it_has(tmp_path: Path) -> None:
    """Gains of 0.2 are outside of any interval here, those of the law inside."""
    curves = {"random": [lawful(0.4), [0.1, 0.3, 0.5, 0.7, 0.9, 1.1]]}
    cases = cases_of(write_experiment(tmp_path / "a", curves, pool=40))
    found = as_served(cases)
    assert (found.cases, found.inside) == (8, 0.5)
    assert as_served([case for case in cases if case.start.endswith("seed 0")]).error < 1e-9


def test_four_in_five_lie_inside() -> None:
    assert interval(np.arange(101.0)) == (10.0, 90.0)


def test_the_command_prints_a_table(tmp_path: Path) -> None:
    out = write_experiment(tmp_path / "a", {"random": [lawful(0.4), lawful(0.6)]}, pool=40)
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks.advice", str(out)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "| a share of the error | 8 | 0.0000 |" in said
    assert "corrected" not in said
    assert "SHARE = 0.11" in said
