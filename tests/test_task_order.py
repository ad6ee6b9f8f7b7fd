"""The queue's scores, and what it refuses; its requests are held by the integration tests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_backend.studio.task_order import (
    LIVE_SCORE,
    queue_score,
    remove_predictions,
    round_version,
)


def test_the_first_places_read_as_their_number() -> None:
    assert [queue_score(place) for place in range(3)] == [0.0001, 0.0002, 0.0003]


@given(st.integers(0, 2_000_000))
def test_scores_ascend_inside_the_unit_interval_and_before_live_ones(place: int) -> None:
    assert 0 < queue_score(place) < queue_score(place + 1) < LIVE_SCORE < 1


def test_a_negative_place_is_refused() -> None:
    with pytest.raises(ValueError, match="place -1"):
        queue_score(-1)


def test_a_version_names_its_round() -> None:
    assert round_version(7, "3fa9c1deadbeef") == "nextslice-r007-3fa9c1"


def test_predictions_of_others_are_never_deleted() -> None:
    with pytest.raises(ValueError, match="'my-sam-model' is not a nextslice version"):
        remove_predictions(None, 1, "my-sam-model")  # type: ignore[arg-type]
