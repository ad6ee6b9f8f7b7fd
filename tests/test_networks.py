"""The networks share one interface, each of the map; padding stays out of the embedding.

The contract at the top runs over every name of `NETWORKS`: a new network needs no other test.
"""

from __future__ import annotations

import logging
import socket
from typing import Any

import pytest
import torch
from torch import nn

from al_strategies.reducers import folded_dropout_weights
from ml_backend.segmentation import checkpoints
from ml_backend.segmentation import networks as module
from ml_backend.segmentation.inference import optimised
from ml_backend.segmentation.model import Model
from ml_backend.segmentation.networks import (
    MULTIPLE,
    NETWORKS,
    SegmentationNetwork,
    UnknownArchitecture,
    architecture_names,
    at_scoring_resolution,
    build_network,
    default_architecture,
    hrnet,
    masked_mean,
    smp,
)
from ml_backend.segmentation.networks.hrnet import HRNetV2
from ml_backend.segmentation.networks.smp import SMPNetwork
from ml_backend.segmentation.preprocessing import Preprocessing

# -- the contract of every network

CLASSES = ("background", "bone", "implant")


def seeded(architecture: str, seed: int = 0) -> SegmentationNetwork:
    torch.manual_seed(seed)
    return build_network(architecture, len(CLASSES)).eval()


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> SegmentationNetwork:
    return seeded(request.param)


@pytest.mark.parametrize("size", [(2 * MULTIPLE, 2 * MULTIPLE), (2 * MULTIPLE, 3 * MULTIPLE)])
def test_logits_features_and_embedding_have_their_shapes(
    network: SegmentationNetwork, size: tuple[int, int]
) -> None:
    images = torch.randn(2, 1, *size)

    with torch.inference_mode():
        encoded = network.encode(images)
        logits = network.classify(encoded.features)
        full = network(images)

    stride = size[0] // encoded.features.shape[-2]
    assert MULTIPLE % stride == 0
    small = (size[0] // stride, size[1] // stride)
    assert encoded.features.shape == (2, network.classifier.in_channels, *small)
    assert logits.shape == (2, len(CLASSES), *small)
    assert encoded.embedding.shape == (2, network.embedding_size)
    assert encoded.embedding.dtype == torch.float32
    assert full.shape == (2, len(CLASSES), *size)
    assert full.dtype == torch.float32


def test_it_has_the_name_and_the_channels_that_it_was_asked_for(
    network: SegmentationNetwork,
) -> None:
    colour = build_network(network.architecture, 2, channels=3).eval()

    assert network.architecture in NETWORKS
    assert (network.classes, network.channels) == (len(CLASSES), 1)
    assert (colour.classes, colour.channels) == (2, 3)
    with torch.inference_mode():
        assert colour(torch.randn(1, 3, 64, 64)).shape == (1, 2, 64, 64)


def test_the_seed_decides_its_weights(network: SegmentationNetwork) -> None:
    same, other = (seeded(network.architecture, seed).state_dict() for seed in (0, 1))

    assert all(torch.equal(same[name], value) for name, value in network.state_dict().items())
    assert any(not torch.equal(other[n], value) for n, value in network.state_dict().items())


def test_a_checkpoint_gives_the_same_network_back(network: SegmentationNetwork) -> None:
    data = checkpoints.to_bytes(Model(network, Preprocessing(0.0, 1000.0), CLASSES, seed=7))

    back = checkpoints.from_bytes(data)

    assert type(back.network) is type(network)
    assert back.architecture == network.architecture
    assert checkpoints.to_bytes(back) == data
    expected = network.state_dict()
    assert all(torch.equal(v, expected[name]) for name, v in back.network.state_dict().items())


def test_a_pass_with_dropout_is_its_last_convolution_with_other_weights(
    network: SegmentationNetwork,
) -> None:
    """So Monte Carlo dropout costs one forward, whatever the number of passes."""
    features = torch.randn(1, network.classifier.in_channels, 4, 6)
    weight, p = network.classifier.weight.flatten(1), network.dropout.p

    with torch.inference_mode():
        network.dropout.train()
        torch.manual_seed(5)
        dropped = network.classify(features)
        network.dropout.eval()
        folded = folded_dropout_weights(weight, p, 1, torch.Generator().manual_seed(5))
        at_once = nn.functional.conv2d(features, folded[..., None, None], network.classifier.bias)

    assert not torch.allclose(dropped, network.classify(features), atol=1e-3)
    assert torch.allclose(dropped, at_once, atol=1e-5)


def test_made_fast_for_inference_it_says_the_same(network: SegmentationNetwork) -> None:
    model = Model(network, Preprocessing(0.0, 1000.0), CLASSES)
    images = torch.randn(1, 1, 64, 64)

    with torch.inference_mode():
        plain, fast = (m.network.features(images) for m in (model, optimised(model)))

    assert (fast - plain).abs().max() <= 1e-3 * plain.abs().max()


# -- particular networks


@pytest.mark.parametrize(
    ("architecture", "stride", "embedding"),
    [
        ("hrnet_w18_small", 4, 16 + 32 + 64 + 128),
        ("hrnet_w18_small_v2", 4, 270),
        ("unet", 1, 512),
        ("fpn:resnet18", 4, 512),
        ("deeplabv3", 8, 512),
    ],
)
def test_every_network_has_the_same_interface(
    architecture: str, stride: int, embedding: int
) -> None:
    network = build_network(architecture, 3).eval()
    images = torch.randn(2, 1, 64, 96)

    with torch.inference_mode():
        encoded = network.encode(images)
        logits = network.classify(encoded.features)
        full = network(images)

    assert encoded.features.shape[-2:] == (64 // stride, 96 // stride)
    assert logits.shape == (2, 3, 64 // stride, 96 // stride)
    assert encoded.embedding.shape == (2, network.embedding_size) == (2, embedding)
    assert full.shape == (2, 3, 64, 96)
    assert full.dtype == torch.float32
    assert torch.equal(network.features(images), encoded.features)


def test_w18_is_hrnet_v2_with_270_channels_and_a_channel_dropout_before_the_last_convolution() -> (
    None
):
    network = build_network("hrnet_w18", 4)

    assert network.embedding_size == 270
    assert network.classifier.kernel_size == (1, 1)
    assert network.classifier.in_channels == 270
    assert isinstance(network.dropout, nn.Dropout2d)
    network.train()
    dropped = network.dropout(torch.ones(1, 270, 4, 4))
    per_channel = dropped.flatten(2)
    assert (per_channel == per_channel[..., :1]).all()
    assert 0 < (per_channel[0, :, 0] == 0).sum() < 270


def test_scoring_logits_are_the_same_before_and_after_the_classifier() -> None:
    # Averaging over blocks commutes with a 1×1 convolution: so scores may start from features.
    network = build_network("unet", 3).eval()
    with torch.inference_mode():
        features = network.features(torch.randn(1, 1, 64, 64))
        from_features = network.classify(at_scoring_resolution(features, (16, 16)))
        from_logits = at_scoring_resolution(network.classify(features), (16, 16))

    assert torch.allclose(from_features, from_logits, atol=1e-5)


def test_masked_mean_is_the_mean_over_the_valid_part() -> None:
    maps = torch.randn(2, 5, 4, 6)
    valid = torch.zeros(2, 8, 12, dtype=torch.bool)
    valid[:, :6, :8] = True

    mean = masked_mean(maps, valid)

    assert torch.allclose(mean, maps[:, :, :3, :4].mean(dim=(2, 3)), atol=1e-6)
    assert torch.allclose(masked_mean(maps, None), maps.mean(dim=(2, 3)))


def test_embedding_leaves_padding_out() -> None:
    network = build_network("hrnet_w18_small", 2).eval()
    images = torch.randn(1, 1, 64, 64)
    valid = torch.ones(1, 16, 16, dtype=torch.bool)
    valid[:, :, 8:] = False

    with torch.inference_mode():
        maps = network._encode(images)[1]
        embedding = network.encode(images, valid).embedding

    # The right half is padding: each branch is averaged over its left half.
    expected = torch.cat([m[..., : m.shape[-1] // 2].mean(dim=(2, 3)) for m in maps], dim=1)
    assert torch.allclose(embedding, expected, atol=1e-5)


def test_every_listed_architecture_is_known() -> None:
    assert architecture_names() == tuple(NETWORKS)
    assert {*hrnet.BUILDERS, *smp.BUILDERS} <= {*architecture_names()}
    for name in (*hrnet.BUILDERS, *smp.BUILDERS):
        assert NETWORKS[name].build in (HRNetV2, SMPNetwork)


def test_default_is_small_on_a_cpu_and_w18_on_a_gpu() -> None:
    assert default_architecture("cpu") == "hrnet_w18_small+filters"
    assert default_architecture("cuda:1") == "hrnet_w18+filters"


@pytest.mark.parametrize("name", ["hrnet_w99", "unet:no_such_encoder", ""])
def test_an_unknown_architecture_is_told_what_there_is(name: str) -> None:
    with pytest.raises(UnknownArchitecture, match="resnet34"):
        build_network(name, 3)


def test_fewer_than_two_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 classes, found 1"):
        build_network("hrnet_w18_small", 1)


class _Unreachable:
    """timm's factory as it behaves where the hub cannot be reached."""

    def __init__(self) -> None:
        self.real = hrnet.timm.create_model

    def __call__(self, *args: Any, pretrained: bool, **kwargs: Any) -> Any:
        if pretrained:
            raise ConnectionError("Name or service not known")
        return self.real(*args, pretrained=False, **kwargs)


@pytest.fixture
def closed_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's address is one of this machine where nobody listens, and nothing is cached. There
    is no proxy, only, as our commands set it, who is asked without one."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    monkeypatch.setattr(module.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(module, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(module, "getproxies", lambda: {"no": "127.0.0.1,localhost"})


@pytest.mark.usefixtures("closed_port")
def test_missing_pretrained_weights_are_a_warning_when_optional(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        network = build_network("hrnet_w18_small", 3, pretrained="auto")

    assert network.classes == 3
    assert "hrnet_w18_small" in caplog.text
    assert "refused" in caplog.text
    assert "random weights" in caplog.text


def test_missing_pretrained_weights_are_an_error_when_demanded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The one replaced part: a real unreachable hub takes 50 s of the client's own retries.
    monkeypatch.setattr(hrnet.timm, "create_model", _Unreachable())

    with pytest.raises(OSError, match="pretrained to 'auto' or False"):
        build_network("hrnet_w18_small", 3, pretrained=True)
