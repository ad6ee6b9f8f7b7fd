"""The people who correct masks in the benchmark: what they go for, and what is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from al_strategies.learner import IGNORE, Beliefs
from benchmarks.corrections import CORRECTIONS, PEOPLE, box_around, corrected, main, wrong_place
from tests.tiny_experiment import write_slices

SIDE = 48
Y, X = np.mgrid[:SIDE, :SIDE]
TRUTH = np.zeros((SIDE, SIDE), np.uint8)
TRUTH[10:30, 10:30] = 1
TRUTH[36:40, 36:40] = 2
TRUTH[:, 45:] = IGNORE


def believed() -> Beliefs:
    """All background, and in the square that was missed nearly bone."""
    bone, implant = (np.where(i == TRUTH, 1.0, -4.5) for i in (1, 2))
    scores = np.stack([np.full(TRUTH.shape, 2.0), bone, implant])
    log = scores - np.log(np.exp(scores).sum(0))
    return Beliefs(np.zeros_like(TRUTH), log.astype(np.float16))


def test_the_largest_wrong_place_is_gone_for_first() -> None:
    place = wrong_place((TRUTH == 1) | (TRUTH == 2))
    assert place is not None
    assert (place == (TRUTH == 1)).all()
    assert wrong_place(np.zeros((4, 4), bool)) is None


def test_a_box_holds_what_is_wrong_and_one_pixel_more() -> None:
    box = box_around(TRUTH == 1)
    assert (box.top, box.left, box.bottom, box.right) == (9, 9, 31, 31)


def test_a_box_over_a_hook_leaves_its_thin_end_out() -> None:
    hook = TRUTH == 1
    hook[10, 30:44] = True
    assert box_around(hook).right == 31


@pytest.mark.parametrize("who", PEOPLE)
def test_what_is_left_falls_and_nobody_said_is_not_counted(who: str) -> None:
    left = corrected(PEOPLE[who], believed(), TRUTH)
    assert left.shape == (CORRECTIONS + 1,)
    assert left[0] == 1
    assert (np.diff(left) <= 0).all()
    assert left[-1] < 0.3


def test_two_drags_repair_two_places() -> None:
    assert corrected(PEOPLE["drag"], believed(), TRUTH)[2] < 0.05


def test_a_drag_with_the_label_picked_is_not_led_astray_by_what_is_believed() -> None:
    place, background = TRUTH == 1, np.zeros_like(TRUTH)
    scores = np.stack([np.full(TRUTH.shape, value) for value in (2.0, -4.5, 1.0)])
    beliefs = Beliefs(background, (scores - np.log(np.exp(scores).sum(0))).astype(np.float16))
    first = {
        who: next(PEOPLE[who](beliefs, background, TRUTH, place, set()))
        for who in ("drag", "drag, label picked")
    }
    assert {*np.unique(first["drag"][place])} == {2}
    assert {*np.unique(first["drag, label picked"][place])} == {1}


def test_what_was_not_better_in_one_place_is_not_tried_first_in_the_next() -> None:
    truth = np.zeros((SIDE, SIDE), np.uint8)
    truth[8:20, 8:20] = truth[30:40, 30:40] = 1
    scores = np.stack([np.full(truth.shape, value) for value in (2.0, 0.9, 1.0)])
    beliefs = Beliefs(
        np.zeros_like(truth), (scores - np.log(np.exp(scores).sum(0))).astype(np.float16)
    )
    left = {who: corrected(PEOPLE[who], beliefs, truth) for who in PEOPLE}
    repaired = {who: np.flatnonzero(np.diff(left[who])) + 1 for who in left}
    assert [*repaired["drag"][:2]] == [2, 3]
    assert [*repaired["drag, nothing learned"][:2]] == [2, 4]


def test_labels_that_a_pool_has_not_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_slices(tmp_path)
    main(["--data", f"tiny={tmp_path}", "--sets", "tiny", "--labels", "100"])
    assert "tiny" not in capsys.readouterr().out


def test_a_place_that_cannot_be_repaired_costs_three_drags_and_is_left() -> None:
    log = np.full((3, *TRUTH.shape), -9, np.float16)
    log[0] = 0
    sure = Beliefs(np.zeros_like(TRUTH), log)
    truth = np.zeros_like(TRUTH)
    truth[::7, ::7] = 1
    truth[20, 20:24] = 2
    left = corrected(PEOPLE["drag"], sure, truth)
    assert (left[:4] == 1).all()
