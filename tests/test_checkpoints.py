"""A checkpoint comes back as the same model, and what is not one is refused with a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
import safetensors.torch
import torch

from ml_backend.errors import TimeUp
from ml_backend.segmentation import checkpoints, checks
from ml_backend.segmentation.checkpoints import (
    FORMAT,
    CheckpointError,
    from_bytes,
    read_metadata,
    to_bytes,
)
from ml_backend.segmentation.checks import check_architecture
from ml_backend.segmentation.model import Model
from ml_backend.segmentation.networks import build_network
from ml_backend.segmentation.preprocessing import Preprocessing
from tests.segmentation_phantom import CLASSES


@pytest.fixture(scope="module")
def model() -> Model:
    network = build_network("hrnet_w18_small", 3).to(memory_format=torch.channels_last).eval()
    return Model(network, Preprocessing(-3.5, 1e6), CLASSES, seed=11)


@pytest.fixture(scope="module")
def data(model: Model) -> bytes:
    return to_bytes(model)


def rewritten(data: bytes, **changes: str | None) -> bytes:
    """The same weights under other metadata."""
    metadata = {k: v for k, v in {**read_metadata(data), **changes}.items() if v is not None}
    return safetensors.torch.save(safetensors.torch.load(data), metadata)


def test_a_checkpoint_comes_back_as_the_same_model(model: Model, data: bytes) -> None:
    back = from_bytes(data)

    assert (back.classes, back.preprocessing, back.seed) == (CLASSES, Preprocessing(-3.5, 1e6), 11)
    assert back.architecture == "hrnet_w18_small"
    assert not back.network.training
    x = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        assert torch.equal(back.network(x), model.network(x))


def test_equal_models_give_equal_bytes(data: bytes) -> None:
    assert to_bytes(from_bytes(data)) == data


def test_the_metadata_says_what_made_it(data: bytes) -> None:
    metadata = read_metadata(data)

    assert metadata["format"] == FORMAT
    assert json.loads(metadata["classes"]) == list(CLASSES)
    assert metadata["version.torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_other_architectures_and_colour_come_back_too() -> None:
    network = build_network("unet:resnet18", 2, channels=3).eval()

    back = from_bytes(to_bytes(Model(network, Preprocessing(0, 1, 3), ("a", "b"))))

    assert back.architecture == "unet:resnet18"
    assert back.network.channels == 3


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 10_000, -1])
def test_a_file_that_is_cut_off_is_refused(data: bytes, kept: int) -> None:
    with pytest.raises(CheckpointError, match=r"cut off|Expected a safetensors file"):
        from_bytes(data[:kept])


@pytest.mark.parametrize("foreign", [b"\x89PNG\r\n\x1a\n" + bytes(64), b"PK\x03\x04" + bytes(99)])
def test_a_foreign_file_is_refused(foreign: bytes) -> None:
    with pytest.raises(CheckpointError):
        from_bytes(foreign)


def test_somebody_elses_safetensors_are_refused() -> None:
    other = safetensors.torch.save({"weight": torch.zeros(3)}, {"format": "pt"})

    with pytest.raises(CheckpointError, match=r"format 'pt'\. Was it written by nextslice"):
        from_bytes(other)
    with pytest.raises(CheckpointError, match="format None"):
        from_bytes(safetensors.torch.save({"weight": torch.zeros(3)}))


def test_weights_of_another_architecture_say_what_does_not_fit(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"do not fit 'hrnet_w18'.*missing.*torch"):
        from_bytes(rewritten(data, architecture="hrnet_w18"))


def test_weights_of_other_classes_say_what_does_not_fit(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"classifier.bias \(3,\) instead of \(2,\)"):
        from_bytes(rewritten(data, classes='["a", "b"]'))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "hrnet_w99"}, "cannot be built here"),
        ({"architecture": "unet:tu-not_there"}, "cannot be built here"),
        ({"architecture": "unet:tu-hf-hub:a/b"}, "nothing is fetched for a file"),
        ({"channels": "1000000000"}, "channels: expected 1 to 64"),
        ({"channels": "0"}, "channels: expected 1 to 64"),
        ({"classes": "[[1], [2], [3]]"}, "classes: expected names"),
        ({"classes": '"abc"'}, "classes: expected names"),
        ({"classes": "bone"}, "metadata is damaged"),
        ({"preprocessing": "{}"}, "metadata is damaged"),
        ({"seed": None}, "metadata is damaged"),
    ],
)
def test_damaged_metadata_is_refused(
    data: bytes, change: dict[str, str | None], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        from_bytes(rewritten(data, **change))


@pytest.mark.parametrize("error", [TimeUp("86400 s"), MemoryError()])
def test_what_says_nothing_of_the_checkpoint_is_not_put_down_to_it(
    data: bytes, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(checkpoints, "build_network", fail)
    monkeypatch.setattr(checks, "build_network", fail)
    for build in (lambda: from_bytes(data), lambda: check_architecture("unet", "architecture")):
        with pytest.raises(type(error)):
            build()


def test_a_model_must_agree_with_its_network(model: Model) -> None:
    with pytest.raises(ValueError, match="3 classes, but 2 names"):
        Model(model.network, model.preprocessing, ("a", "b"))
    with pytest.raises(ValueError, match="must differ"):
        Model(model.network, model.preprocessing, ("a", "b", "a"))
    with pytest.raises(ValueError, match="3 channels, the network takes 1"):
        Model(model.network, Preprocessing(0, 1, channels=3), CLASSES)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("classifier.weight", torch.nan),
        ("spread", 0.0),
        ("spread", torch.inf),
        ("reader.first_norm.running_var", -1.0),
    ],
)
def test_weights_that_no_training_gives_are_refused_by_name(name: str, value: float) -> None:
    network = build_network("hrnet_w18_small+filters", 3).eval()
    network.state_dict()[name].view(-1)[-1] = value

    with pytest.raises(CheckpointError, match=f"with values that no training gives.*{name}"):
        from_bytes(to_bytes(Model(network, Preprocessing(0.0, 1.0), CLASSES)))


def test_weights_of_another_type_are_refused(data: bytes) -> None:
    tensors = safetensors.torch.load(data)
    tensors["classifier.weight"] = tensors["classifier.weight"].long()

    with pytest.raises(CheckpointError, match=r"classifier\.weight"):
        from_bytes(safetensors.torch.save(tensors, read_metadata(data)))
