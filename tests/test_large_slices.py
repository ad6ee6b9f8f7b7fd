"""Slices far larger than a tile: served, learned from, scored and segmented, in bounded memory."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ml_backend.pictures import encode_png
from ml_backend.segmentation.learner import LearnerConfig, NetworkLearner
from ml_backend.segmentation.networks import build_network, full_resolution
from ml_backend.segmentation.networks.full_resolution import FullResolutionHRNet
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
