"""Slices far larger than a tile: served, learned from, scored and segmented, in bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import torch

from al_strategies.evidence import Position, SliceId
from ml_backend.pictures import encode_png
from ml_backend.segmentation import inference
from ml_backend.segmentation.inference import InferenceConfig
from ml_backend.segmentation.learner import LearnerConfig, NetworkLearner
from ml_backend.segmentation.model import Model
from ml_backend.segmentation.networks import build_network, full_resolution
from ml_backend.segmentation.networks.full_resolution import FullResolutionHRNet
from ml_backend.segmentation.preprocessing import Preprocessing
from ml_backend.studio.images import decode_image
from ml_backend.volumes.opening import open_volume
from ml_backend.volumes.pair import VolumePair
from ml_backend.volumes.window import fit_window, render

LONG = (3, 64, 4608)


@pytest.fixture
def pair(tmp_path: Path) -> VolumePair:
    """Stripes that can be told by their grey."""
    rng = np.random.default_rng(0)
    labels = np.broadcast_to(np.arange(LONG[2]) // 500 % 2, LONG).astype(np.uint8)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["data"] = (20_000 + 8000.0 * labels + rng.normal(0, 400, LONG)).astype(np.uint16)
    np.save(tmp_path / "labels.npy", labels)
    return VolumePair(tmp_path / "scan.h5", tmp_path / "labels.npy")


def test_they_go_all_the_way(pair: VolumePair) -> None:
    with open_volume(pair.path) as volume:
        shown = decode_image(encode_png(render(volume[1], fit_window(volume))), "1")
    assert shown.shape[:2] == LONG[1:]
    learner = NetworkLearner(pair.classes, LearnerConfig(training={"steps": 2}))
    learner.fit(pair, pair.ids[:2])
    told: list[tuple[int, int]] = []
    found = learner.predict_image(
        pair.image(pair.ids[2]), progress=lambda _, done, total: told.append((done, total))
    )
    assert told == [(tile, 3) for tile in range(1, 4)]
    assert (found.mask == pair.mask(pair.ids[2])).mean() > 0.9
    evidence = learner.evidence(pair, pair.ids[2:], frozenset({"entropy"}))
    assert 0 <= evidence.scores["entropy"][0] < 1


class Counted(VolumePair):
    """Counts what is read; a batch has ended when the slice after it is there."""

    asked = 0

    def image(self, slice_id: SliceId) -> npt.NDArray[Any]:
        self.asked += 1
        return super().image(slice_id)


@pytest.mark.parametrize(("bytes_", "most"), [(1, 3), (3 * 64 * 64 * 4, 5), (1 << 30, 9)])
def test_no_more_of_them_are_read_ahead_than_memory_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_: int, most: int
) -> None:
    np.save(tmp_path / "scan.npy", np.random.default_rng(0).integers(0, 999, (9, 64, 64), "u2"))
    np.save(tmp_path / "labels.npy", np.ones((9, 64, 64), "u1"))
    source = Counted(tmp_path / "scan.npy", tmp_path / "labels.npy")
    network = build_network("hrnet_w18_small", 2, channels=1, pretrained=False)
    model = Model(network, Preprocessing(0, 1000), source.classes, 0)
    monkeypatch.setattr(inference, "_AHEAD", bytes_)
    ahead = []
    config = InferenceConfig(batch_pixels=1, threads=8)
    for done, _ in enumerate(inference.segment(model, source, source.ids, config)):
        ahead.append(source.asked - done)
    assert len(ahead) == 9
    assert max(ahead) <= most


class Mixed:
    """Every other slice is large. What was read of them and has not been taken is counted."""

    ids = tuple(range(16))
    classes = ("background", "bone")

    def __init__(self) -> None:
        self.read = 0

    def image(self, slice_id: SliceId) -> npt.NDArray[Any]:
        large = int(slice_id) % 2 == 0
        self.read += large
        return np.full((128, 128) if large else (32, 32), 7, "u2")

    def position(self, slice_id: SliceId) -> Position:
        return Position("scan", float(slice_id))


def test_small_slices_between_large_ones_let_no_more_of_them_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = build_network("hrnet_w18_small", 2, channels=1, pretrained=False)
    source: Any = Mixed()
    model = Model(network, Preprocessing(0, 1000), source.classes, 0)
    monkeypatch.setattr(inference, "_AHEAD", 2 * 128 * 128 * 4)
    config, ahead = InferenceConfig(batch_pixels=1, threads=8), []
    for done, _ in enumerate(inference.segment(model, source, source.ids, config)):
        ahead.append(source.read - (done + 1) // 2)
    assert len(ahead) == 16
    assert max(ahead) <= 3


class TestFiltersOfSinglePixels:
    @pytest.fixture
    def network(self) -> FullResolutionHRNet:
        made = build_network("hrnet_w18_small+filters", 2, channels=1, pretrained=False)
        assert isinstance(made, FullResolutionHRNet)
        return made

    @torch.no_grad()
    def test_they_are_the_same_band_by_band(
        self, network: FullResolutionHRNet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torch.manual_seed(0)
        image, pixels = torch.randn(1, 401, 70), torch.randint(401 * 70, (2000,))
        pixels[:4] = torch.tensor([0, 69, 400 * 70, 401 * 70 - 1])
        whole = network.filters_at(image, pixels)
        monkeypatch.setattr(full_resolution, "_FILTERED", 40 * 70)
        torch.testing.assert_close(network.filters_at(image, pixels), whole, rtol=0, atol=1e-3)

    @torch.no_grad()
    def test_no_more_are_held_than_a_band(
        self, network: FullResolutionHRNet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All filters of a slice of 8,192² would take sixteen gigabytes."""
        held = []
        plain = full_resolution._plain_filters

        def noted(images: torch.Tensor) -> full_resolution.Levels:
            held.append(images[0].numel())
            return plain(images)

        monkeypatch.setattr(full_resolution, "_plain_filters", noted)
        monkeypatch.setattr(full_resolution, "_FILTERED", 1 << 16)
        network.fit_filters([torch.randn(1, 2048, 128)])
        assert len(held) == 4
        assert max(held) <= (1 << 16) + 2 * 64 * 128
