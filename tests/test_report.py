"""The files of a report: whole, self-contained, and of what is there."""

from __future__ import annotations

import base64
import html
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ml_backend.experiment.record import RecordError, RoundLine, load_experiment
from ml_backend.experiment.report import Report, write_report
from tests.experiment_folder import line, write_experiment, write_run

CURVES = {
    "random": [[0.2, 0.4, 0.6], [0.2, 0.5, 0.6], [0.2, 0.6, 0.6]],
    "coreset": [[0.2, 0.60, 0.9], [0.2, 0.71, 0.91], [0.2, 0.79, 0.92]],
    "margin": [[0.2, 0.3, 0.4], [0.2, 0.3, 0.5], [0.2, 0.3]],
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    out = tmp_path_factory.mktemp("experiment") / "a b"
    write_experiment(out, CURVES, full=[0.95, 0.96], data="<explant> & co")
    return write_report(out)


def test_the_page_needs_nothing_but_itself(report: Report) -> None:
    page = report.page.read_text()
    assert "<script" not in page
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "url(" not in page


def test_the_page_shows_the_plots_that_lie_beside_it(report: Report) -> None:
    page = report.page.read_text()
    shown = {base64.b64decode(data) for data in re.findall(r"base64,([^\"]+)", page)}
    assert shown == {path.read_bytes() for path in report.plots}


def test_the_page_says_what_to_use_what_was_left_out_and_how_to_draw_it_again(
    report: Report,
) -> None:
    page = report.page.read_text()
    assert "Use coreset (" in page
    assert "Left out, since not finished: margin seed 2." in page
    assert "Right: the area's difference to random" in html.unescape(page)
    assert f"nextslice simulate --report &#x27;{report.page.parent}&#x27;" in page
    for word in ("hrnet_w18", "cold start", "data hash", "97.1 % of full supervision from 1.16 %"):
        assert word in page


def test_names_are_escaped_and_no_number_is_nan(report: Report) -> None:
    page = report.page.read_text()
    assert "<title>&lt;explant&gt; &amp; co" in page
    assert "<explant>" not in page
    for text in (re.sub(r"base64,[^\"]+", "", page), report.markdown.read_text()):
        assert not re.search(r"\bnan\b|\bNone\b|\binf\b", text)


def test_all_rounds_are_merged_in_order(report: Report) -> None:
    lines = [RoundLine.model_validate_json(r) for r in report.rounds.read_text().splitlines()]
    keys = [(line.strategy, line.seed, line.round) for line in lines]
    assert len(keys) == 3 * 3 * 3 - 1 + 2
    assert keys == sorted(keys)


def test_the_markdown_has_the_tables_the_page_has(report: Report) -> None:
    text = report.markdown.read_text()
    assert "| **coreset** | 3 | 0.910 ± 0.010 |" in text
    assert "| strategy | 4 | 8 | 10 |" in text
    assert report.recommendation in text


def test_a_mark_in_round_1_is_not_held_for_a_result(report: Report) -> None:
    text = report.markdown.read_text()
    assert (
        "Here that is 1 slice of 10; the first round with as many is round 1, with 4 (40.00 %)"
        in text
    )
    assert "the same start for every strategy" in text


def test_a_class_that_is_not_measured_is_named(tmp_path: Path) -> None:
    write_experiment(tmp_path, {"random": [[0.5]]})
    write_run(tmp_path, [line(miou=0.6, iou={"background": 0.6, "bone": None})])
    written = write_report(tmp_path)
    assert "Right: the area" not in written.page.read_text(), "one seed has no interval"
    for text in (written.page.read_text(), written.markdown.read_text()):
        assert "The test slices hold no bone: not measured." in text


def test_a_report_of_an_experiment_that_goes_on_replaces_the_one_before(tmp_path: Path) -> None:
    write_experiment(tmp_path, {"random": [[0.2]]}, rounds=2, k=1, start=1, pool=150)
    first = write_report(tmp_path)
    assert "Nothing can be recommended yet" in first.page.read_text()
    assert "final.png" not in {path.name for path in first.plots}
    write_experiment(tmp_path, {"random": [[0.2, 0.6]]}, [0.8], k=1, start=1, pool=150)
    page = write_report(tmp_path).page.read_text()
    assert "Use random (" in page
    assert "round 2, with 2 (1.33 %): 75.0 % by random, the best there." in page
    left = {path.name for path in tmp_path.iterdir()} - {"runs", "experiment.json"}
    assert left == {"report.html", "results.md", "rounds.jsonl", "final.png", "picks.png",
                    "learning_curves.png", "class_iou.png"}  # fmt: skip


def test_without_a_round_nothing_is_written(tmp_path: Path) -> None:
    write_experiment(tmp_path, {"random": [[0.2]]})
    (tmp_path / "runs/random/seed-0.jsonl").unlink()
    with pytest.raises(RecordError, match="no whole round yet"):
        write_report(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"experiment.json", "runs"}


def test_one_draws_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_experiment(tmp_path, {"random": [[0.2]]})
    drawing: list[int] = []
    most: list[int] = []

    def plots(*_: Any) -> tuple[()]:
        drawing.append(1)
        most.append(len(drawing))
        time.sleep(0.1)
        drawing.pop()
        return ()

    monkeypatch.setattr("ml_backend.experiment.report._plots", plots)
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(write_report, tmp_path) for _ in range(3)]:
            done.result()
    assert most == [1, 1, 1]


def test_a_folder_that_is_no_experiment_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no experiment\.json"):
        write_report(tmp_path / "elsewhere")


def written(out: Path, curves: dict[str, list[list[float]]], *full: float, **options: Any) -> str:
    """What the page says, without its pictures."""
    page = write_report(write_experiment(out, curves, full, **options)).page.read_text()
    return html.unescape(re.sub(r'"data:[^"]+"', "", page))


def test_the_published_mark_credits_nothing_that_is_unfinished_or_needs_the_truth(
    tmp_path: Path,
) -> None:
    curves = {
        "random": [[0.2, 0.4, 0.6]] * 2,
        "entropy": [[0.2, 0.5, 0.6]] * 2,
        "margin": [[0.2, 0.9]] * 2,
        "coreset": [[0.2, 0.9, 0.9]],
        "worst_iou": [[0.2, 0.9, 0.9]] * 2,
    }
    text = written(tmp_path, curves, 0.8, pool=500)
    assert "round 2, with 8 (1.60 %): 62.5 % by entropy, the best there." in text


def test_the_published_mark_waits_for_a_run_that_can_be_credited(tmp_path: Path) -> None:
    curves = {"margin": [[0.2, 0.9]], "worst_iou": [[0.2, 0.9, 0.9]]}
    assert "no share can be given yet." in written(tmp_path, curves, 0.8, pool=500)


def test_the_protocol_has_the_rounds_that_were_run(tmp_path: Path) -> None:
    text = written(tmp_path / "a", CURVES, rounds=10)
    assert "3 rounds until the pool was used up (10 were asked for): the first annotates" in text
    assert "3 rounds: the first annotates 4 slices" in written(tmp_path / "b", CURVES, pool=100)


def test_the_protocol_says_what_was_trained_on(tmp_path: Path) -> None:
    taught = written(tmp_path / "a", CURVES, pool=100)
    assert "is trained afresh on all annotated slices and measured once" in taught
    assert "A fifth" not in taught

    judged = written(tmp_path / "b", CURVES, pool=100, judged=True)
    assert "is trained afresh on all other annotated slices and measured once" in judged
    assert "A fifth of what is annotated is of blocks that no training sees" in judged


def test_the_protocol_names_the_precision_that_auto_came_to(tmp_path: Path) -> None:
    out = write_experiment(tmp_path, CURVES)
    path = out / "experiment.json"
    experiment = load_experiment(out)
    experiment = experiment.model_copy(update={"versions": {"precision": "bfloat16"}})
    path.write_text(experiment.model_dump_json())
    assert "is trained afresh in bfloat16 on all" in write_report(out).markdown.read_text()


def test_full_supervision_is_spoken_of_only_where_it_was_run(tmp_path: Path) -> None:
    sentences = (
        "dashed: full supervision",
        "Fully supervised is one training",
        "Full: the mean mIoU of the fully supervised runs",
    )
    without, with_it = written(tmp_path / "a", CURVES), written(tmp_path / "b", CURVES, 0.9)
    for sentence in sentences:
        assert sentence not in without
        assert sentence in with_it
    assert "with its band" not in with_it, "one run has no spread"
    assert "dashed, with its band: full" in written(tmp_path / "c", CURVES, 0.9, 0.8)


def test_captions_name_only_lines_that_are_there(tmp_path: Path) -> None:
    others, random, rest = "in light grey all the others", "dotted: random", "all others light grey"
    alone = written(tmp_path / "a", {"random": [[0.2, 0.4]]})
    assert others not in alone
    assert random not in alone
    assert "each class on its own scale. Controls dark grey." in alone
    without_random = written(tmp_path / "b", {"coreset": [[0.2, 0.4]], "margin": [[0.2, 0.3]]})
    assert others in without_random
    assert random not in without_random
    assert "In colour the strategies of the largest area." in without_random
    many = {**CURVES, "badge": [[0.2, 0.3, 0.4]], "entropy": [[0.2, 0.3, 0.4]]}
    every = written(tmp_path / "c", many)
    for words in (others, random, rest, ", controls dark grey"):
        assert words in every


def test_gaps_of_the_pool_are_explained_only_where_it_has_them(tmp_path: Path) -> None:
    gaps = "its gaps are held out for testing"
    curves = {"random": [[0.2, 0.4]]}
    assert gaps in written(tmp_path / "a", curves, test={"t": ("volume 0", 1.5)})
    assert gaps not in written(tmp_path / "b", curves, test={"t": ("volume 0", 900.0)})
    assert gaps not in written(tmp_path / "c", curves, test={"t": ("volume 7", 1.5)})


def test_the_rank_says_which_seeds_it_is_over(tmp_path: Path) -> None:
    text = written(tmp_path / "a", {**CURVES, "badge": [[0.2, 0.3, 0.4]]})
    assert "mean over the seeds (0, 1, 2) that every control with a finished run has" in text
    none = written(tmp_path / "b", {"coreset": [[0.2, 0.4]], "margin": [[0.2, 0.3]]})
    assert "mean over the seeds (0) that every strategy with a finished run has" in none


def test_runs_that_start_otherwise_are_named_on_the_page_and_in_the_markdown(
    tmp_path: Path,
) -> None:
    write_experiment(tmp_path, {**CURVES, "margin": [[0.3, 0.4, 0.5]]})
    sentence = (
        "Seed 0: margin started from other weights than the rest, so its differences are not "
        "paired exactly."
    )
    report = write_report(tmp_path)
    for text in (report.page.read_text(), report.markdown.read_text()):
        assert text.count(sentence) == 1
    assert "Round 1 is the same for all." in report.page.read_text()
    write_run(tmp_path, [line(strategy="margin", selected=["s0009"], miou=0.2)])
    assert "Round 1 is the same for all." not in write_report(tmp_path).page.read_text()
