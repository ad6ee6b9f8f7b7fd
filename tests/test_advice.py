"""What the next round will probably bring, beside values computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from ml_backend.rounds.advice import Advice, RoundScore, advise, expected_gain, gain_interval


def seen(miou: float | None = 0.75, **changes: Any) -> RoundScore:
    return replace(RoundScore(labels=40, held_out=8, miou=miou), **changes)


def advice(*rounds: RoundScore, more: int = 8) -> Advice:
    found = advise(rounds, more)
    assert found is not None
    return found


def test_a_part_of_the_error_goes_with_the_logarithm_of_the_labels() -> None:
    """0.11 × 0.25 × ln(48 / 40) = 0.0275 × 0.18232; ± 0.25 × √(8 / 40) = 0.11180 × −0.11, 0.1."""
    assert expected_gain(0.75, 40, 8) == pytest.approx(0.0050139, abs=1e-7)
    low, high = gain_interval(0.75, 40, 8)
    assert low == pytest.approx(0.0050139 - 0.0122984, abs=1e-6)
    assert high == pytest.approx(0.0050139 + 0.0111803, abs=1e-6)


def test_it_is_one_sentence_with_an_interval() -> None:
    found = advice(seen())
    assert found.says == (
        "The next 8 slices will probably change the mIoU of 0.750 by +0.005 (roughly −0.007 to "
        "+0.016). Stopping before them probably loses little."
    )
    assert (found.verdict, found.labels, found.held_out) == ("little", 8, 8)
    assert found.gain == pytest.approx(0.0050139, abs=1e-7)


@pytest.mark.parametrize(
    ("miou", "labels", "more", "verdict"),
    [
        (0.3, 8, 8, "may pay"),  # 0.077 × ln 2 = 0.0534
        (0.6, 40, 8, "by chance"),  # 0.044 × ln 1.2 = 0.0080, and 0.4 × √0.2 × 0.1 = 0.0179 above
        (0.9, 80, 8, "little"),  # 0.011 × ln 1.1 = 0.0010, and 0.1 × √0.1 × 0.1 = 0.0032 above
    ],
)
def test_what_it_means(miou: float, labels: int, more: int, verdict: str) -> None:
    found = advice(seen(miou, labels=labels), more=more)
    assert found.verdict == verdict


def test_a_single_round_and_a_single_slice_are_enough() -> None:
    found = advice(seen(0.5, labels=25, held_out=5), more=1)
    assert found.says.startswith("The next slice will probably change")


@pytest.mark.parametrize("held_out", [0, 3])
def test_too_few_held_out_labels_to_judge_by(held_out: int) -> None:
    found = advice(seen(held_out=held_out, unjudged=("bone",)))
    assert found.says == (
        "What the next 8 slices will bring cannot be told: too few held-out labels to judge by "
        f"yet, {held_out} of at least 5."
    )
    assert (found.verdict, found.gain, found.low, found.high) == ("unknown", None, None, None)


@pytest.mark.parametrize("miou", [None, math.nan])
def test_an_miou_that_is_not_known(miou: float | None) -> None:
    found = advice(seen(miou))
    assert found.says == "What the next 8 slices will bring cannot be told: nothing is measured."
    assert found.model_dump_json()


def test_corrected_pixels_are_said_of_the_last_two_rounds_that_have_any() -> None:
    """Also where too few labels are held out: nothing else tells yet."""
    rounds = [seen(corrected=share) for share in (None, 0.2, 0.031, None, 0.012)]
    found = advice(*rounds)
    assert found.says.endswith("Corrected pixels fell from 3.1 % to 1.2 % of a slice.")
    assert (found.corrected_before, found.corrected) == (0.031, 0.012)
    early = advice(seen(held_out=1, corrected=0.1), seen(held_out=2, corrected=0.15))
    assert early.says.endswith("Corrected pixels rose from 10.0 % to 15.0 % of a slice.")
    same = advice(seen(corrected=0.01201), seen(corrected=0.01199))
    assert same.says.endswith("Corrected pixels stayed at 1.2 % of a slice.")


def test_a_class_that_no_held_out_label_has_is_named() -> None:
    found = advice(seen(unjudged=("implant", "degradation layer")))
    assert found.says.endswith(
        "Not judged, as no held-out label has it: implant, degradation layer."
    )


def test_what_is_served_says_how_good_it_is() -> None:
    """A flagged round's labels count, its checkpoint does not."""
    found = advice(seen(0.75, labels=32), seen(0.6, labels=40, served=False))
    plain = advice(seen(0.75, labels=40))
    assert found.says == plain.says


def test_labels_that_were_deleted_count_no_more() -> None:
    """From 80 to 40: the next 8 are a fifth of what is there again."""
    found, plain = advice(seen(labels=80), seen(labels=40)), advice(seen(labels=40))
    assert found.gain == plain.gain
    assert advise([seen(labels=80), seen(labels=0, held_out=0, miou=None)], 8) is None


def test_there_is_nothing_to_say_without_a_training_or_a_slice_left() -> None:
    assert advise([], 8) is None
    assert advise([seen(labels=0)], 8) is None
    assert advise([seen()], 0) is None
