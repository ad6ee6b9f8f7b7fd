"""What `nextslice simulate` says of data before it trains."""

from __future__ import annotations

from ml_backend.cli.experiment import missing
from ml_backend.experiment.data import Contents


def test_a_stray_grey_value_in_a_mask_is_suspected_and_not_listed_class_by_class() -> None:
    """A 200 among 0, 1 and 2 makes 201 classes, each of which lengthens the trainings."""
    classes = tuple(f"class {i}" for i in range(3, 200))
    (no_test, no_pool, asked) = missing(
        Contents(
            digest="",
            missing_in_pool=classes,
            missing_in_test=(*classes, "class 200"),
            unlabelled=(),
        )
    )
    assert "hold no class 3, class 4, class 5, class 6, class 7, … (198 in all)" in no_test
    assert "class 8" not in no_test + no_pool
    assert asked.startswith("197 classes are in no slice")
    assert "is that grey value a class?" in asked


def test_few_that_are_missing_are_named() -> None:
    found = Contents(digest="", missing_in_pool=(), missing_in_test=("lung",), unlabelled=())
    (only,) = missing(found)
    assert only.startswith("the test slices hold no lung: not measured")
