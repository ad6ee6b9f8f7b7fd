"""The pictures of a report: drawn for every state that an experiment can be in."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ml_backend.experiment import plots
from ml_backend.experiment.canvas import BLUE, CONTROL, VERMILLION, colour_of, panels_of
from ml_backend.experiment.plots import (
    class_curves,
    final_dots,
    learning_curves,
    picks,
    picks_seed,
)
from ml_backend.experiment.record import runs_of
from ml_backend.experiment.summary import summarise
from tests.experiment_folder import write_experiment

EXPERIMENTS = {
    "whole": ({"random": [[0.2, 0.5], [0.3, 0.6]], "coreset": [[0.2, 0.7], [0.3, 0.7]]}, [0.8]),
    "unfinished": ({"random": [[0.2, 0.5]], "coreset": [[0.2]]}, []),
    "one round, one strategy": ({"strided": [[0.2]]}, []),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_picture_is_drawn(tmp_path: Path, name: str) -> None:
    curves, full = EXPERIMENTS[name]
    out = write_experiment(tmp_path, curves, full)
    summary = summarise(out)
    order = [s.strategy for s in summary.standings]
    for png in (
        learning_curves(summary),
        final_dots(summary),
        picks(summary.experiment, runs_of(out), order),
        class_curves(summary, None),
    ):
        with Image.open(io.BytesIO(png)) as image:
            image.load()
            assert image.format == "PNG"
            assert image.width == 1650
            assert len(image.convert("RGB").getcolors(1 << 20)) > 5


def test_the_same_record_gives_the_same_file_and_another_record_another(tmp_path: Path) -> None:
    curves, full = EXPERIMENTS["whole"]
    summary = summarise(write_experiment(tmp_path / "a", curves, full))
    other = summarise(write_experiment(tmp_path / "b", curves, [0.9]))
    assert final_dots(summary) == final_dots(summary)
    assert final_dots(summary) != final_dots(other)


def test_a_dot_for_each_annotated_slice_in_the_colour_of_its_round(tmp_path: Path) -> None:
    out = write_experiment(tmp_path, {"random": [[0.2, 0.5]]})
    experiment, lines = summarise(out).experiment, runs_of(out)["random", 0]
    axes, colours = Figure().subplots(), np.array([[1, 0, 0, 1], [0, 0, 1, 1]])
    plots._picked(axes, experiment, ["volume 0", "volume 1"], lines, colours)
    first, second = axes.collections
    # s0000 … s0003: z 0, 0, 1, 1 of volume 0, 1, 0, 1; round 1 in the upper lane of its volume.
    assert first.get_offsets().tolist() == [[0, -0.35], [0, 0.65], [1, -0.35], [1, 0.65]]
    assert second.get_offsets().tolist() == [[2, 0.35], [2, 1.35], [3, 0.35], [3, 1.35]]
    assert first.get_facecolor().tolist() == [[1, 0, 0, 1]]


def test_the_pool_is_drawn_without_the_block_that_was_held_out() -> None:
    assert plots._spans(iter([0.0, 1.0, 2.0, 7.0, 8.0])) == [(-0.5, 2.5), (6.5, 8.5)]
    assert plots._spans(iter([4.0])) == [(3.5, 4.5)]


def test_picks_are_of_the_seed_that_most_strategies_have(tmp_path: Path) -> None:
    curves = {"random": [[0.2], [0.2]], "coreset": [[0.2], [0.2]]}
    out = write_experiment(tmp_path, curves, full=[0.8])
    assert picks_seed(runs_of(out)) == 0
    (out / "runs/coreset/seed-0.jsonl").unlink()
    assert picks_seed(runs_of(out)) == 1


def test_controls_are_grey_and_the_oracle_stands_apart() -> None:
    assert colour_of("foreground_random") == CONTROL
    assert colour_of("worst_iou") == VERMILLION
    assert colour_of("coreset") == BLUE


def test_panels_come_in_rows_and_spare_places_stay_empty() -> None:
    figure, panels = panels_of(7, columns=5, height=2.0, sharex=True, sharey=True)
    assert len(panels) == 7
    assert [axes.axison for axes in figure.axes] == [True] * 7 + [False] * 3


def test_a_legend_names_only_lines_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[list[str]] = []
    monkeypatch.setattr(
        plots, "legend", lambda _, handles: named.append([str(h.get_label()) for h in handles])
    )

    def drawn(name: str, curves: dict[str, list[list[float]]], *full: float) -> list[list[str]]:
        summary = summarise(write_experiment(tmp_path / name, curves, full))
        named.clear()
        learning_curves(summary)
        class_curves(summary, None)
        return [[text.partition(",")[0] for text in each] for each in named]

    assert drawn("a", {"random": [[0.2, 0.5]]}) == [["control"], ["random (control)"]]
    two = {"coreset": [[0.2, 0.6]], "margin": [[0.2, 0.5]]}
    assert drawn("b", two) == [["strategy", "all others"], ["coreset", "margin"]]
    five = {**two, **{name: [[0.2, 0.4]] for name in ("badge", "entropy", "random")}}
    assert drawn("c", five, 0.9) == [
        ["strategy", "control", "random", "all others", "fully supervised"],
        ["coreset", "margin", "badge", "random (control)", "all others", "fully supervised"],
    ]
