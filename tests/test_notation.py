"""Numbers as a report writes them."""

from __future__ import annotations

import pytest

from ml_backend.experiment.notation import count, listed, percent, signed


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123, "+0.012"), (-0.0031, "−0.003"), (0.0, "0.000"), (-0.0004, "0.000")],
)
def test_a_signed_number_has_a_true_minus_and_0_no_sign(value: float, text: str) -> None:
    assert signed(value) == text


@pytest.mark.parametrize(("share", "text"), [(0.9712, "97.1 %"), (1.0, "100.0 %"), (None, "–")])
def test_a_share_is_in_percent(share: float | None, text: str) -> None:
    assert percent(share) == text


def test_a_number_agrees_with_its_noun() -> None:
    assert [count(n, "seed") for n in (0, 1, 2)] == ["0 seeds", "1 seed", "2 seeds"]


def test_names_are_listed_as_one_says_them() -> None:
    assert [listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == [
        "a",
        "a and b",
        "a, b and c",
    ]
