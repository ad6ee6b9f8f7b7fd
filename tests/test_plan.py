"""From what is asked for to what is recorded: device and network, threads, steps, versions."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ml_backend.experiment.data import DataSpec, load_data
from ml_backend.experiment.files import RunFiles
from ml_backend.experiment.plan import check_device, keep, other_versions
from ml_backend.experiment.record import RecordError, load_experiment
from ml_backend.experiment.runner import run_one
from ml_backend.segmentation.checks import check_architecture
from ml_backend.segmentation.dataset import LabelledSlices
from ml_backend.segmentation.learner import LearnerConfig, NetworkLearner
from ml_backend.segmentation.preprocessing import Preprocessing
from tests.tiny_experiment import experiment, write_slices


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slices(tmp_path_factory.mktemp("slices"))


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:one", "cuda 1", "CPU", "auto", ""])
def test_a_device_that_nothing_is_called_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match=f"--device is '{device}', expected cpu, cuda"):
        check_device(device, here=False)


def test_a_device_must_be_there_unless_workers_have_it() -> None:
    missing = f"cuda:{torch.cuda.device_count()}"
    check_device("cpu", here=True)
    check_device(missing, here=False)
    with pytest.raises(ValueError, match=rf"'{missing}', and torch .* finds \d+ CUDA GPUs here"):
        check_device(missing, here=True)


@pytest.mark.parametrize("architecture", ["hrnet_18", "unet:resnet999", "unet:tu-nothing"])
def test_an_architecture_that_cannot_be_built_is_refused(architecture: str) -> None:
    with pytest.raises(ValueError, match=r"hrnet_w18|unet:resnet34"):
        check_architecture(architecture, "--architecture")


def test_an_encoder_that_is_described_elsewhere_is_refused_when_it_is_set(tmp_path: Path) -> None:
    """It would be trained, and its weights never read back."""
    described = {"architecture": "resnet18", "num_features": 512, "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"described elsewhere.*unet:resnet34"):
        check_architecture(f"unet:tu-local-dir:{tmp_path}", "--architecture")
    with pytest.raises(ValueError, match="described elsewhere"):
        check_architecture("fpn:tu-hf-hub:timm/resnet18.a1_in1k", "--architecture")


def test_a_folder_of_other_things_is_no_place_for_an_experiment(
    slices: Path, tmp_path: Path
) -> None:
    out = tmp_path / "project"
    out.mkdir()
    (out / "results.md").write_bytes(b"mine")
    (out / ".hidden").touch()

    with pytest.raises(RecordError, match=r"project holds something else \(results\.md\)"):
        experiment(out, slices)

    assert sorted(path.name for path in out.iterdir()) == [".hidden", "results.md"]
    assert (out / "results.md").read_bytes() == b"mine"
    with pytest.raises(RecordError, match=r"results\.md is a file, expected a folder"):
        experiment(out / "results.md", slices)
    (out / "results.md").unlink()
    experiment(out, slices)
    (out / "notes.txt").touch()  # beside an experiment it may lie
    experiment(out, slices)


def test_runs_of_this_machine_share_its_cores(slices: Path, tmp_path: Path) -> None:
    cores = os.cpu_count() or 1
    one = load_experiment(experiment(tmp_path / "one", slices, processes=1))
    all_ = load_experiment(experiment(tmp_path / "all", slices, processes=cores))
    assert (one.threads, all_.threads) == (cores, 1)


def test_runs_on_workers_take_nothing_from_this_machine(slices: Path, tmp_path: Path) -> None:
    recorded = load_experiment(experiment(tmp_path, slices, device="cuda", processes=None))
    assert (recorded.device, recorded.architecture, recorded.threads) == (
        "cuda",
        "hrnet_w18+filters",
        0,
    )


@pytest.mark.parametrize("steps", [2, None], ids=["the same", "by the labels"])
def test_the_ceiling_has_the_steps_of_the_rounds_that_a_pool_has_slices_for(
    slices: Path, tmp_path: Path, steps: int | None
) -> None:
    options = {"k": 6, "steps": steps, "full_steps": None}
    short, exact, long = (
        load_experiment(experiment(tmp_path / str(rounds), slices, rounds=rounds, **options))
        for rounds in (2, 3, 9)
    )
    assert 12 < len(exact.pool) <= 18
    assert exact.full_steps == long.full_steps > short.full_steps
    if steps is not None:
        assert (short.full_steps, exact.full_steps) == (2 * 2, 3 * 2)
        run_one(str(tmp_path / "9"), "random", 0)
        lines = RunFiles(tmp_path / "9", "random", 0).lines()
        assert sum(line.steps for line in lines) == long.full_steps


@pytest.mark.parametrize("architecture", ["hrnet_w18_small", "hrnet_w18_small+filters", None])
def test_the_ceiling_has_the_steps_that_its_network_takes(
    slices: Path, tmp_path: Path, architecture: str | None
) -> None:
    options: dict[str, Any] = {"steps": None, "full_steps": None, "architecture": architecture}
    planned = load_experiment(experiment(tmp_path, slices, rounds=2, k=6, **options))
    data = load_data(DataSpec(**planned.source))
    learner = NetworkLearner(data.classes, LearnerConfig(architecture=architecture))
    taken = 0
    for labelled in (6, 12):
        held = LabelledSlices(
            data.source, data.pool[:labelled],
            Preprocessing.fit([data.source.image(data.pool[0])], channels=1, neighbours=0),
            len(data.classes),
        )  # fmt: skip
        assert len(held.present()) == len(data.classes)
        taken += learner._training(held, labelled).steps
    assert planned.full_steps == taken


def test_other_versions_are_named_and_the_record_stays(slices: Path, tmp_path: Path) -> None:
    wanted = load_experiment(experiment(tmp_path, slices))
    assert not list(other_versions(wanted))
    before = wanted.model_copy(update={"versions": {**wanted.versions, "timm": "0.1"}})
    (tmp_path / "experiment.json").write_text(before.model_dump_json())

    kept = keep(tmp_path, wanted)

    (sentence,) = other_versions(kept)
    assert sentence.startswith("timm was 0.1 when this experiment began and is 1.")
    assert load_experiment(tmp_path) == before


@pytest.mark.parametrize(
    ("architecture", "amx", "precision"),
    [
        ("hrnet_w18_small+filters", True, "bfloat16"),
        ("hrnet_w18_small+filters", False, "float32"),
        ("hrnet_w18_small", True, "float32"),
    ],
)
def test_the_precision_that_auto_comes_to_is_recorded(
    monkeypatch: pytest.MonkeyPatch,
    slices: Path,
    tmp_path: Path,
    architecture: str,
    amx: bool,
    precision: str,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    wanted = load_experiment(experiment(tmp_path, slices, architecture=architecture))
    assert wanted.versions["precision"] == precision
    assert not list(other_versions(wanted))

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: not amx)
    said = list(other_versions(wanted))
    assert len(said) == architecture.endswith("+filters")
    assert all(s.startswith(f"precision was {precision} when") for s in said)


def test_a_precision_that_was_asked_for_is_recorded_once(slices: Path, tmp_path: Path) -> None:
    asked = experiment(tmp_path / "a", slices, training={"precision": "bfloat16"})
    assert "precision" not in load_experiment(asked).versions
    for_workers = experiment(tmp_path / "b", slices, processes=None)
    assert "precision" not in load_experiment(for_workers).versions, "nobody knows of their CPUs"


def test_a_precision_is_not_compared_where_the_device_is_not(slices: Path, tmp_path: Path) -> None:
    here = load_experiment(experiment(tmp_path, slices))
    missing = f"cuda:{torch.cuda.device_count()}"
    assert not list(other_versions(here.model_copy(update={"device": missing})))
