"""What a drag makes of a class map, on believed scenes whose right answer can be seen."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from ml_backend.segmentation.repair import Box, Change, InvalidBox, alternatives, repair

SIDE = 64
Y, X = np.mgrid[:SIDE, :SIDE]
DISC = np.hypot(Y - 32, X - 32) < 12
BOX = Box(20, 20, 45, 45)


def believed(*scores: npt.NDArray[np.float64] | float) -> npt.NDArray[np.float16]:
    """Log probabilities of classes with these scores, each (SIDE, SIDE) or one for all pixels."""
    logits = np.stack([np.broadcast_to(score, (SIDE, SIDE)) for score in scores])
    return (logits - np.log(np.exp(logits).sum(0))).astype(np.float16)


def missed_disc() -> npt.NDArray[np.float16]:
    """Background everywhere; class 1 nearly so in the disc, class 2 less, and neither beyond."""
    return believed(3.0, np.where(DISC, 2.0, -3.0), np.where(DISC, 0.0, -4.0))


NOTHING = np.zeros((SIDE, SIDE), np.uint8)


def test_a_drag_over_what_was_missed_finds_its_outline() -> None:
    found = repair(missed_disc(), NOTHING, BOX)
    wrong = found != DISC
    assert wrong.sum() < 0.12 * DISC.sum()  # a box is no disc, its corners are not in it
    assert not found[~ndimage.binary_dilation(DISC, iterations=2)].any()


def test_the_second_most_likely_class_comes_first_and_repeated_drags_go_through_the_others() -> (
    None
):
    found = [set(np.unique(repair(missed_disc(), NOTHING, BOX, turn))) for turn in range(4)]
    assert found == [{0, 1}, {0, 2}, {0}, {0, 1}]


def test_all_that_stands_in_the_box_gives_way_to_the_class_that_is_picked() -> None:
    """Then, dragged again, one class after the other, and then what stood there."""
    left = X < 32
    standing = np.where(DISC, np.where(left, 1, 2), 0).astype(np.uint8)
    scores = believed(
        np.where(DISC, -9.0, 9.0),
        np.where(DISC & left, 1.0, -1.0),
        np.where(DISC & ~left, 1.0, -1.0),
        np.where(DISC, 0.5, -9.0),
    )
    box = Box(24, 24, 41, 41)  # inside the disc
    found = [repair(scores, standing, box, turn, 3)[box.window] for turn in range(5)]
    classes = [set(np.unique(one)) for one in found]
    assert classes[0] == {3}
    assert sorted(classes[1:3], key=min) == [{1, 3}, {2, 3}]
    assert classes[3] == {1, 2}
    assert (found[4] == found[0]).all()


def test_what_is_wrongly_drawn_is_taken_away() -> None:
    standing = DISC.astype(np.uint8)
    found = repair(believed(0.0, np.where(DISC, 1.0, -5.0), -6.0), standing, BOX)
    assert not found.any()


def test_a_class_that_the_network_never_chose_gives_way_to_the_one_it_chose() -> None:
    """A person may have painted what the network is sure is something else."""
    standing = np.where(DISC, 2, 0).astype(np.uint8)
    found = repair(
        believed(np.where(DISC, -2.0, 3.0), np.where(DISC, 3.0, -2.0), -8.0), standing, BOX
    )
    assert set(np.unique(found[DISC])) == {1}


def test_a_drag_over_an_edge_moves_the_edge() -> None:
    standing = (X >= 32).astype(np.uint8)
    truth = X >= 26  # where the network is less sure of the background
    scores = np.where(truth, np.where(X < 32, -1.0, 6.0), -6.0)
    found = repair(believed(0.0, scores), standing, Box(25, 25, 41, 33))
    assert found[25:41, 27:32].all()
    assert not found[:, :25].any()
    assert (found[:, 33:] == 1).all()
    assert (found[[*range(15), *range(51, SIDE)]] == standing[0]).all()


@pytest.mark.parametrize("seed", range(20))
def test_what_is_far_from_the_box_stays_bit_for_bit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = ndimage.gaussian_filter(rng.normal(0, 40, (5, SIDE, SIDE)), (0, 3, 3))
    standing = rng.integers(0, 5, (SIDE, SIDE)).astype(np.uint8)
    before = standing.copy()
    top, left = rng.integers(0, SIDE - 8, 2)
    box = Box(int(top), int(left), int(top + rng.integers(1, 20)), int(left + rng.integers(1, 20)))
    around = box.on((SIDE, SIDE)).grown(11, 11, (SIDE, SIDE))

    found = repair(believed(*scores), standing, box, int(rng.integers(6)))

    assert (standing == before).all()
    outside = np.ones((SIDE, SIDE), bool)
    outside[around.window] = False
    assert (found[outside] == before[outside]).all()
    changed = (found != before) & ~outside
    labels, _ = ndimage.label(changed, np.ones((3, 3)))
    touching = np.unique(labels[box.on((SIDE, SIDE)).window])
    assert set(np.unique(labels)) - {0} <= set(touching)
    assert len(np.unique(found[changed])) <= 1


def test_alternatives_name_every_pair_of_what_stands_there_once() -> None:
    standing = np.where(X < 32, 0, 1).astype(np.uint8)
    found = alternatives(believed(0.0, 0.0, 0.0), standing, Box(0, 22, SIDE, 42))
    assert sorted(found) == [Change(0, 1), Change(0, 2), Change(1, 0), Change(1, 2)]


def test_what_was_rejected_elsewhere_comes_after_what_is_nearly_as_likely() -> None:
    """And before what is much less likely."""
    nearly = believed(3.0, np.where(DISC, 0.5, -9.0), np.where(DISC, 0.0, -9.0))
    rejected = {Change(0, 1)}
    assert alternatives(nearly, NOTHING, BOX) == [Change(0, 1), Change(0, 2)]
    assert alternatives(nearly, NOTHING, BOX, rejected) == [Change(0, 2), Change(0, 1)]
    assert alternatives(missed_disc(), NOTHING, BOX, rejected) == [Change(0, 1), Change(0, 2)]
    assert (repair(nearly, NOTHING, BOX, 0, None, rejected)[DISC] != 1).all()


@pytest.mark.parametrize(
    ("box", "on"),
    [
        (Box(-5, 60, 2, 99), Box(0, 60, 3, 64)),
        (Box(10, 10, 10, 11), Box(9, 9, 12, 12)),
        (Box(63, 63, 64, 64), Box(61, 61, 64, 64)),
        (Box(0, 0, 1, 1), Box(0, 0, 3, 3)),
    ],
)
def test_a_box_is_cut_to_the_slice_and_a_click_is_three_pixels_wide(box: Box, on: Box) -> None:
    assert box.on((SIDE, SIDE)) == on


@pytest.mark.parametrize("box", [Box(-9, 0, 0, 5), Box(0, 64, 5, 70), Box(5, 0, 1, 5)])
def test_a_box_beside_the_slice_is_refused(box: Box) -> None:
    with pytest.raises(InvalidBox, match="expected a box on a slice of 64 pixels"):
        repair(missed_disc(), NOTHING, box)


def test_a_slice_of_one_pixel_can_be_dragged_over() -> None:
    one = np.array([[[-0.1]], [[-2.3]]], np.float16)
    assert repair(one, np.zeros((1, 1), np.uint8), Box(0, 0, 1, 1)).tolist() == [[1]]


def test_probabilities_of_another_slice_are_refused() -> None:
    with pytest.raises(ValueError, match="expected the probabilities of a slice of"):
        repair(missed_disc(), NOTHING[:-1], BOX)
