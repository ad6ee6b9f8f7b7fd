"""What `benchmarks.training` lets a learner see."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from al_strategies.learner import IGNORE
from benchmarks import training


def test_a_learner_sees_nothing_of_the_slices_that_it_is_scored_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = np.array([[0, 2], [IGNORE, 0]], np.uint8)
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        for name in "abc":
            Image.fromarray(mask).save(tmp_path / kind / f"{name}.png")
    seen: list[Any] = []

    class Learner:
        def __init__(self, classes: tuple[str, ...], *_: object) -> None:
            assert classes == ("class 0", "class 1", "class 2")

        def fit(self, source: Any, labelled: list[str], *, seed: int) -> SimpleNamespace:
            seen.extend(source.ids)
            with pytest.raises(KeyError):
                source.mask("c")
            return SimpleNamespace(slices=1, steps=1, seconds=1.0)

        def evaluate(self, source: Any, held_out: list[str]) -> SimpleNamespace:
            assert held_out == ["b", "c"]
            return SimpleNamespace(miou=1.0, iou={})

    monkeypatch.setattr(training, "NetworkLearner", Learner)
    training.train_on(
        Namespace(data=tmp_path, train=["a"], seeds=1, architecture="any", device="cpu")
    )
    assert seen == ["a"]
