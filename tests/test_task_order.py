"""The queue's scores, and what it refuses; its requests are held by the integration tests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ml_backend.studio.client import Project
from ml_backend.studio.label_config import bitmask_config
from ml_backend.studio.task_order import (
    LIVE_SCORE,
    place_behind,
    queue_score,
    remove_predictions,
    round_version,
    switch,
)
from tests.memory_studio import MemoryStudio


def test_the_first_places_read_as_their_number() -> None:
    assert [queue_score(place) for place in range(3)] == [0.0001, 0.0002, 0.0003]


@given(st.integers(0, 2_000_000))
@example(8_999)  # the last of the even steps
def test_scores_ascend_inside_the_unit_interval_and_before_live_ones(place: int) -> None:
    assert 0 < queue_score(place) < queue_score(place + 1) < LIVE_SCORE < 1


@given(st.integers(0, 2_000_000))
@example(8_999)
def test_what_stands_behind_a_place_has_the_next_one(place: int) -> None:
    assert place_behind(queue_score(place)) == place + 1


def test_behind_a_score_in_between_is_the_next_place() -> None:
    assert (place_behind(0.0), place_behind(0.0007001), place_behind(LIVE_SCORE)) == (0, 7, 10**7)


def test_a_negative_place_is_refused() -> None:
    with pytest.raises(ValueError, match="place -1"):
        queue_score(-1)


def test_a_version_names_its_round() -> None:
    assert round_version(7, "3fa9c1deadbeef") == "nextslice-r007-3fa9c1"


def test_predictions_of_others_are_never_deleted() -> None:
    with pytest.raises(ValueError, match="'my-sam-model' is not a nextslice version"):
        remove_predictions(None, 1, "my-sam-model")  # type: ignore[arg-type]


OLD, NEW = round_version(1, "abcdef"), round_version(2, "abcdef")


class PutBack(MemoryStudio):
    """Between the first look and the second an opened task's backend is saved as it was before."""

    looks = 0

    def project(self, project_id: int) -> Project:
        self.looks += 1
        if self.looks == 2:
            self.fields["model_version"] = OLD
        return super().project(project_id)


def test_a_switch_that_is_put_back_after_it_was_seen_is_made_again() -> None:
    studio = PutBack(bitmask_config(["bone"]), 2, lambda _: np.zeros((8, 9)))
    studio.imported.append({"task": 1, "model_version": NEW, "score": 0.1, "result": []})
    studio.fields["model_version"] = NEW

    switch(studio, 1, None, NEW)  # type: ignore[arg-type]  # a studio in memory

    assert studio.project(1).model_version == NEW
