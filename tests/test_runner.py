"""Runs of an experiment with a real, tiny network: kept round by round, killed, gone on with."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from al_strategies import UnknownStrategyError
from ml_backend.experiment.data import DataSpec, load_data
from ml_backend.experiment.files import RunFiles, RunTaken
from ml_backend.experiment.record import FULLY_SUPERVISED, RecordError, RoundLine, load_experiment
from ml_backend.experiment.runner import (
    Job,
    RunFailed,
    check_ended,
    run_in_processes,
    run_one,
)
from tests.segmentation_phantom import CLASSES
from tests.tiny_experiment import experiment, write_slices


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slices(tmp_path_factory.mktemp("slices"))


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def outcome(line: RoundLine) -> dict[str, Any]:
    """A round without the time it took."""
    return line.model_dump(exclude={"seconds"})


def rounds(out: Path, strategy: str, seed: int = 0) -> list[dict[str, Any]]:
    return [outcome(line) for line in RunFiles(out, strategy, seed).lines()]


def test_a_run_leaves_a_line_a_round_and_nothing_that_no_round_needs(
    slices: Path, tmp_path: Path
) -> None:
    out = experiment(tmp_path, slices)
    run_one(str(out), "ceal", 0)
    lines = RunFiles(out, "ceal", 0).lines()
    assert [line.round for line in lines] == [1, 2, 3]
    assert [line.labelled for line in lines] == [2, 4, 6]
    assert [len(line.pseudo) for line in lines] == [0, 2, 2]
    assert set(lines[0].iou) == set(CLASSES)
    assert lines[-1].following is None
    assert not list((out / "runs" / "ceal" / "seed-0").glob("*.safetensors"))
    assert not list((out / "runs" / "ceal" / "seed-0").glob("*.npz"))


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "fresh"])
def test_a_run_that_is_killed_at_any_moment_goes_on_to_the_same_end(
    slices: Path, tmp_path: Path, warm: bool
) -> None:
    """Killed again and again, each time a little later; some kills hit a file half written."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(
        ["ml_backend.experiment.runner", "ml_backend.segmentation.learner"]
    )
    whole = experiment(tmp_path / "whole", slices, warm_start=warm)
    begin = time.monotonic()
    run_one(str(whole), "ceal", 0)
    duration = time.monotonic() - begin
    out = experiment(tmp_path / "killed", slices, warm_start=warm)
    files = RunFiles(out, "ceal", 0)
    seed = int(np.random.default_rng().integers(1 << 32))
    print(f"moments of seed {seed}")
    moments = np.random.default_rng(seed).uniform(0.05, 0.6, 12) * duration
    kills = 0
    for moment in moments:
        process = server.Process(target=run_one, args=(str(out), "ceal", 0))
        process.start()
        process.join(moment)
        kills += process.exitcode is None
        process.kill()
        process.join()
        before = files.lines_path.read_bytes() if files.lines_path.exists() else b""
        kept = rounds(out, "ceal")
        assert kept == rounds(whole, "ceal")[: len(kept)]

    run_one(str(out), "ceal", 0)

    assert kills, f"it ended before it was killed, in {duration:.1f} s"
    assert rounds(out, "ceal") == rounds(whole, "ceal")
    # What was whole was not computed again: its line, times included, is as it was.
    assert files.lines_path.read_bytes().startswith(before[: before.rfind(b"\n") + 1])


def test_a_line_cut_off_by_a_kill_is_computed_again(slices: Path, tmp_path: Path) -> None:
    out = experiment(tmp_path, slices)
    run_one(str(out), "random", 0)
    whole = rounds(out, "random")
    out = experiment(tmp_path / "cut", slices)
    run_one(str(out), "random", 0)
    files = RunFiles(out, "random", 0)
    first, second = files.lines_path.read_bytes().splitlines(keepends=True)[:2]
    files.lines_path.write_bytes(first + second[:40])
    # The weights of round 1 went when round 2 was whole: as if round 2 had not been.
    assert len(files.lines()) == 1
    (out / "start" / "seed-0.safetensors").rename(files.folder / "weights-001.safetensors")

    run_one(str(out), "random", 0)

    assert rounds(out, "random") == whole


@pytest.mark.parametrize(
    ("strategy", "missing"), [("random", "weights-001.safetensors"), ("ceal", "pseudo-001.npz")]
)
def test_lines_copied_without_what_the_next_round_needs_are_refused(
    slices: Path, tmp_path: Path, strategy: str, missing: str
) -> None:
    out = experiment(tmp_path, slices)
    run_one(str(out), strategy, 0)
    files = RunFiles(out, strategy, 0)
    first = files.lines_path.read_bytes().splitlines(keepends=True)[0]
    files.lines_path.write_bytes(first)
    if missing.startswith("pseudo"):
        (out / "start" / "seed-0.safetensors").rename(files.folder / "weights-001.safetensors")
    with pytest.raises(RecordError, match=f"{missing} is missing, and the next round .* remove"):
        run_one(str(out), strategy, 0)
    assert files.lines_path.read_bytes() == first


def test_the_first_training_of_a_seed_is_done_once(slices: Path, tmp_path: Path) -> None:
    out = experiment(tmp_path, slices, rounds=2)
    run_one(str(out), "random", 0)
    trained = (out / "start" / "seed-0.json").stat().st_mtime_ns
    run_one(str(out), "entropy", 0)
    assert (out / "start" / "seed-0.json").stat().st_mtime_ns == trained
    ours, theirs = (RunFiles(out, s, 0).lines()[0] for s in ("random", "entropy"))
    assert (ours.miou, ours.selected, ours.seconds["train"]) == (
        theirs.miou, theirs.selected, theirs.seconds["train"],
    )  # fmt: skip


def test_a_run_that_has_ended_is_left_alone(slices: Path, tmp_path: Path) -> None:
    out = experiment(tmp_path, slices, rounds=1)
    run_one(str(out), "random", 0)
    before = RunFiles(out, "random", 0).lines_path.read_bytes()
    run_one(str(out), "random", 0)
    assert RunFiles(out, "random", 0).lines_path.read_bytes() == before


def test_a_run_is_one_process_at_a_time(slices: Path, tmp_path: Path) -> None:
    out = experiment(tmp_path, slices)
    with RunFiles(out, "random", 0).lock(), pytest.raises(RunTaken, match=r"runs/random/seed-0"):
        run_one(str(out), "random", 0)


def test_runs_side_by_side_end_and_a_failure_stops_no_other(slices: Path, tmp_path: Path) -> None:
    out = experiment(tmp_path, slices, rounds=1)
    jobs = [Job("no_such_strategy", 0), Job(FULLY_SUPERVISED, 0)]
    with pytest.raises(RunFailed, match=r"no_such_strategy, seed 0: Unknown.*log\.txt"):
        run_in_processes(out, jobs, 2, lambda running: None)
    (line,) = RunFiles(out, FULLY_SUPERVISED, 0).lines()
    assert line.labelled == len(load_data(DataSpec(str(slices), gap=1.0)).pool)


def test_a_run_that_another_process_is_on_is_said_to_be_so(slices: Path, tmp_path: Path) -> None:
    out = experiment(tmp_path, slices, rounds=1)
    files, jobs = RunFiles(out, "random", 0), [Job("random", 0)]
    with files.lock(), pytest.raises(RunTaken, match=r"^random, seed 0: another process is on it"):
        run_in_processes(out, jobs, 1, lambda running: None)
    assert files.log_path.read_text() == ""  # the other's: nothing of ours belongs in it
    run_in_processes(out, jobs, 1, lambda running: None)
    assert files.ended()


def test_failed_runs_are_told_from_taken_ones_and_a_log_is_named_where_there_is_one(
    slices: Path, tmp_path: Path
) -> None:
    out = experiment(tmp_path, slices)
    with pytest.raises(UnknownStrategyError):
        run_one(str(out), "no_such_strategy", 0)
    jobs = [Job("no_such_strategy", 0), Job("random", 0), Job("entropy", 0)]
    with RunFiles(out, "random", 0).lock(), pytest.raises(RunFailed) as failure:
        check_ended(out, jobs)
    failed, taken, killed = str(failure.value).splitlines()
    assert failed.startswith("no_such_strategy, seed 0: UnknownStrategyError: no strategy is")
    assert taken == "random, seed 0: another process is on it"
    assert killed == "entropy, seed 0: it was killed"
    assert "log" not in failed


def test_without_a_recorded_number_a_run_takes_the_threads_that_torch_has(
    slices: Path, tmp_path: Path
) -> None:
    out = experiment(tmp_path, slices, rounds=1, processes=None)
    torch.set_num_threads(3)
    run_one(str(out), "random", 0)
    settings = json.loads((out / "start" / "seed-0.json").read_text())["settings"]
    assert settings["threads"] == 3


def test_what_held_out_labels_say_is_kept_and_goes_on(slices: Path, tmp_path: Path) -> None:
    """Also of the model before a round that is computed again."""
    out = experiment(tmp_path, slices, judged=True, k=5, rounds=2, warm_start=False)
    run_one(str(out), "entropy", 0)
    first, second = RunFiles(out, "entropy", 0).lines()
    assert first.validation is not None
    assert second.validation is not None
    assert second.before is not None
    assert (first.validation.slices, second.validation.slices, second.before.slices) == (1, 2, 2)
    assert first.following_before == second.before
    whole = rounds(out, "entropy")
    path = out / "runs" / "entropy" / "seed-0.jsonl"
    path.write_text(first.to_line())
    run_one(str(out), "entropy", 0)
    assert rounds(out, "entropy") == whole


def test_another_experiment_is_never_mixed_in(slices: Path, tmp_path: Path) -> None:
    out = experiment(tmp_path, slices)
    with pytest.raises(RecordError, match=r"k is 2 there, 3 now.*another --out"):
        experiment(out, slices, k=3)
    assert experiment(out, slices, processes=1) == out  # how many at a time may change


def test_slices_that_moved_are_found_again(slices: Path, tmp_path: Path) -> None:
    out = experiment(tmp_path / "out", slices)
    moved = Path(shutil.copytree(slices, tmp_path / "moved" / slices.name))
    experiment(out, moved)
    assert load_experiment(out).source["path"] == str(moved)
    run_one(str(out), "random", 0)


def test_other_slices_are_another_experiment(slices: Path, tmp_path: Path) -> None:
    spec = DataSpec(str(slices), gap=1.0)
    data = load_data(spec)
    digest = data.read().digest
    assert digest == load_data(spec).read().digest
    path = slices / "masks" / "z000.png"
    original = path.read_bytes()
    try:
        mask = np.asarray(Image.open(path)).copy()
        mask[0, 0] = 1
        Image.fromarray(mask).save(path)
        assert load_data(spec).read().digest != digest
    finally:
        path.write_bytes(original)
