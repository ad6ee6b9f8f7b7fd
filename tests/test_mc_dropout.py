from __future__ import annotations

import numpy as np

from al_strategies import Evidence, Position, Query, get_strategy


def test_the_k_of_highest_entropy_of_the_mean_over_passes() -> None:
    values = np.array([0.3, 0.9, 0.1, 0.9, 0.5])
    places = tuple(Position("v", z) for z in range(5))
    # entropy of a single pass says the opposite, and is not looked at
    pool = Evidence((1, 2, 3, 4, 5), places, scores={"mc_entropy": values, "entropy": -values})
    selection = get_strategy("mc_dropout").select(Query(pool, Evidence.empty(), 2, reserve=1))
    assert selection.chosen == (2, 4)
    assert selection.reserve == (5,)
    assert selection.scores == {2: 0.9, 4: 0.9, 5: 0.5}
