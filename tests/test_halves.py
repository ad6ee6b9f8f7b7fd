"""What is learned from one half of the labels can be asked of the other."""

from __future__ import annotations

import numpy as np
import pytest

from al_strategies.learner import IGNORE
from ml_backend.segmentation.halves import CutInTwo, halves
from tests.segmentation_phantom import Phantom

SOURCE = Phantom(4, size=(48, 64))


def test_what_is_next_to_each_other_is_in_one_half() -> None:
    assert halves(SOURCE, ["z003", "z000", "z001", "z002"]) == [1, 0, 0, 1]


@pytest.mark.parametrize("height", [48, 100])
def test_each_label_of_a_single_slice_is_in_one_half_and_half_of_them_in_each(height: int) -> None:
    source = Phantom(1, size=(height, 64))
    whole = source.mask("z000").copy()
    whole[:, :20] = IGNORE

    cut = CutInTwo(source, "z000", whole)
    first, second = (cut.mask(i) for i in cut.ids)

    labelled = [int((mask != IGNORE).sum()) for mask in (first, second)]
    assert sum(labelled) == (whole != IGNORE).sum()
    assert min(labelled) > 0.45 * sum(labelled)
    assert np.array_equal(np.where(first == IGNORE, second, first), whole)
    lines = 1 if height > 64 else 0  # across the longer side, whose lines are each of one half
    assert not ((first != IGNORE).any(lines) & (second != IGNORE).any(lines)).any()
    assert np.array_equal(cut.image("second"), source.image("z000"))
