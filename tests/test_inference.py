"""One forward gives masks, scores and embeddings; size, batching and tiling do not show."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from al_strategies.evidence import (
    CLASS_FRACTIONS,
    EMBEDDING,
    FEATURES,
    SCORES,
    STANDARD,
    Position,
)
from al_strategies.learner import IGNORE, UnreadableSlice
from ml_backend.segmentation.inference import (
    EVIDENCE_NAMES,
    InferenceConfig,
    evaluate,
    fold_batch_norm,
    gather_evidence,
    optimised,
    segment,
    segment_image,
    segment_maps,
)
from ml_backend.segmentation.model import Model
from ml_backend.segmentation.networks import build_network
from ml_backend.segmentation.networks.hrnet import HRNetV2
from ml_backend.segmentation.preprocessing import Preprocessing
from ml_backend.segmentation.tiles import spans
from tests.segmentation_phantom import CLASSES, Phantom

EVERYTHING = frozenset(EVIDENCE_NAMES)
CONFIG = InferenceConfig(passes=4)


def make_model(architecture: str = "hrnet_w18_small", seed: int = 0) -> Model:
    torch.manual_seed(seed)
    network = build_network(architecture, 3).eval()
    # Random weights predict one class everywhere: larger ones give the tests something to see.
    torch.nn.init.normal_(network.classifier.weight, std=1.0)
    return Model(network, Preprocessing(0, 1000), CLASSES)


class Mixed(Phantom):
    """Slices of three sizes, none of them a multiple of 32."""

    def __init__(self) -> None:
        super().__init__(6)
        self._parts = [Phantom(6, size=size) for size in ((61, 83), (61, 83), (100, 70))]

    def _part(self, slice_id: str) -> Phantom:
        return self._parts[self.ids.index(slice_id) % 3]

    def image(self, slice_id: str) -> Any:
        return self._part(slice_id).image(slice_id)

    def mask(self, slice_id: str) -> Any:
        return self._part(slice_id).mask(slice_id)


def test_the_standard_evidence_is_what_the_network_leaves() -> None:
    source = Phantom(1)

    evidence = gather_evidence(make_model(), source, source.ids, STANDARD, CONFIG)

    assert STANDARD == EVIDENCE_NAMES
    assert set(evidence.scores) == SCORES
    assert set(evidence.features) == FEATURES


@pytest.mark.parametrize("architecture", ["hrnet_w18_small", "unet"])
def test_one_pass_gives_every_evidence(architecture: str) -> None:
    source, model = Phantom(3), make_model(architecture)

    evidence = gather_evidence(model, source, source.ids, EVERYTHING, CONFIG)

    assert evidence.ids == ("z000", "z001", "z002")
    assert evidence.positions[2] == Position("phantom", 2.0)
    assert set(evidence.scores) | set(evidence.features) == EVERYTHING
    assert evidence.features[EMBEDDING].shape == (3, model.network.embedding_size)
    assert all(np.isfinite(v).all() for v in evidence.scores.values())
    assert evidence.features[CLASS_FRACTIONS].sum(1) == pytest.approx(1.0)


def test_scores_are_those_of_their_formulas() -> None:
    source, model = Phantom(1, size=(64, 96)), make_model()

    evidence = gather_evidence(model, source, source.ids, EVERYTHING, CONFIG)

    x = torch.from_numpy(model.preprocessing(source.image("z000")))[None]
    with torch.inference_mode():
        p = model.network.classify(model.network.features(x)).softmax(1)[0]
    top = p.sort(dim=0, descending=True).values
    assert evidence.scores["entropy"][0] == pytest.approx(
        float(-(p * p.log()).sum(0).mean()), rel=1e-4
    )
    assert evidence.scores["confidence"][0] == pytest.approx(float(top[0].mean()), rel=1e-4)
    assert evidence.scores["margin"][0] == pytest.approx(float((top[0] - top[1]).mean()), rel=1e-4)


def test_mc_entropy_is_that_of_explicit_dropout_passes() -> None:
    source, model = Phantom(1, size=(64, 64)), make_model()

    folded = gather_evidence(model, source, source.ids, frozenset({"mc_entropy"}), CONFIG, seed=7)

    x = torch.from_numpy(model.preprocessing(source.image("z000")))[None]
    with torch.inference_mode():
        features = model.network.features(x)
        model.network.dropout.train()
        torch.manual_seed(7)
        passes = [model.network.classify(features).softmax(1) for _ in range(CONFIG.passes)]
    mean = torch.stack(passes).mean(0)
    expected = float(-(mean * mean.log()).sum(1).mean())
    assert folded.scores["mc_entropy"][0] == pytest.approx(expected, rel=1e-4)


def test_evidence_does_not_depend_on_batches_or_shards() -> None:
    source, model = Mixed(), make_model()

    alone = gather_evidence(model, source, source.ids, EVERYTHING, InferenceConfig(1, passes=4))
    together = gather_evidence(
        model, source, source.ids, EVERYTHING, InferenceConfig(1 << 20, passes=4, threads=3)
    )
    shard = gather_evidence(model, source, source.ids[3:], EVERYTHING, CONFIG)

    for name, values in {**alone.scores, **alone.features}.items():
        other = {**together.scores, **together.features}[name]
        assert np.allclose(values, other, atol=1e-4), name
        part = {**shard.scores, **shard.features}[name]
        assert np.allclose(values[3:], part, atol=1e-4), name


@pytest.mark.parametrize("size", [(61, 83), (64, 64), (17, 200), (5, 3)])
def test_masks_have_the_size_of_their_slice(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 1000, size)

    prediction = segment_image(make_model(), image, CONFIG)

    assert prediction.mask.shape == size
    assert prediction.mask.dtype == np.uint8
    assert prediction.mask.max() < 3
    assert 1 / 3 <= prediction.confidence <= 1


def test_padding_stays_out_of_every_score() -> None:
    # The padding of the left slice is a mirror image, that of the right one would be its own rest:
    # blanking what lies in the padding must not change a score.
    model = make_model()
    source = Phantom(1, size=(64, 64))
    short = Phantom(1, size=(64, 64))
    whole = source.image("z000")
    short.image = lambda _: whole[:48]  # type: ignore[method-assign]
    short.mask = lambda _: source.mask("z000")[:48]  # type: ignore[method-assign]

    evidence = gather_evidence(model, short, short.ids, frozenset({"entropy", EMBEDDING}), CONFIG)

    x = np.pad(model.preprocessing(whole[:48]), ((0, 0), (0, 16), (0, 0)), mode="symmetric")
    with torch.inference_mode():
        features, maps = model.network._encode(torch.from_numpy(x)[None])
        p = model.network.classify(features).softmax(1)[:, :, :12]
    expected = float(-(p * p.log()).sum(1).mean())
    assert evidence.scores["entropy"][0] == pytest.approx(expected, rel=1e-4)
    finest = maps[0][:, :, :12].mean(dim=(2, 3))[0]
    assert np.allclose(evidence.features[EMBEDDING][0, :16], finest, atol=1e-5)


def test_segment_and_serving_give_the_same_masks() -> None:
    source, model = Mixed(), make_model()

    streamed = dict(segment(model, source, source.ids, CONFIG))

    assert list(streamed) == source.ids
    for slice_id in source.ids:
        served = segment_image(model, source.image(slice_id), CONFIG)
        assert np.array_equal(streamed[slice_id].mask, served.mask)
        assert streamed[slice_id].confidence == pytest.approx(served.confidence, rel=1e-5)


def test_masks_are_the_argmax_of_the_networks_own_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    source, model = Phantom(1, size=(96, 64)), make_model()
    x = torch.from_numpy(model.preprocessing(source.image("z000")))[None]
    with torch.inference_mode():
        expected = model.network(x).argmax(1)[0].numpy()

    whole = segment_image(model, source.image("z000"), CONFIG).mask
    # Bands of a few rows, as they come about in a very large slice.
    monkeypatch.setattr("ml_backend.segmentation.bands._BAND", 64 * 4 * 3 * 5)
    banded = segment_image(model, source.image("z000"), CONFIG).mask

    assert np.array_equal(whole, expected)
    assert np.array_equal(banded, expected)


def test_training_scoring_serving_and_volume_segmentation_share_one_preprocessing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ml_backend.segmentation.augmentation import Augmentation
    from ml_backend.segmentation.dataset import Crops, LabelledSlices

    source, model = Phantom(1, size=(64, 64)), make_model()
    image = source.image("z000")
    expected = torch.from_numpy(model.preprocessing(image))[None]
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(
        model.network,
        "_encode",
        lambda x, encode=model.network._encode: (seen.append(x.clone()), encode(x))[1],
    )

    slices = LabelledSlices(source, source.ids, model.preprocessing, 3)
    crops = Crops(slices, crop=64, batch=1, augmentation=Augmentation.none())
    training = next(iter(crops)).images
    gather_evidence(model, source, source.ids, frozenset({"entropy"}), CONFIG)
    segment_image(model, image, CONFIG)
    list(segment(model, source, source.ids, CONFIG))

    assert len(seen) == 3
    assert all(torch.equal(x, expected) for x in seen)
    assert torch.allclose(training, expected, atol=1e-4)  # through a resampling


def test_a_slice_that_fits_is_not_tiled() -> None:
    source, model = Phantom(1, size=(128, 96)), make_model()
    image = source.image("z000")

    fits = segment_image(model, image, InferenceConfig(tile=128, overlap=32))
    limitless = segment_image(model, image, InferenceConfig())

    assert np.array_equal(fits.mask, limitless.mask)
    assert fits.confidence == limitless.confidence


def test_tiles_agree_with_the_whole_slice() -> None:
    source, model = Phantom(1, size=(300, 260)), make_model()
    tiled, whole = InferenceConfig(tile=192, overlap=96, passes=4), CONFIG

    of_tiles = gather_evidence(model, source, source.ids, EVERYTHING, tiled)
    of_whole = gather_evidence(model, source, source.ids, EVERYTHING, whole)
    masks = [segment_image(model, source.image("z000"), c).mask for c in (tiled, whole)]

    assert (masks[0] == masks[1]).mean() > 0.95
    for name in ("entropy", "confidence", "mc_entropy", "margin"):
        assert of_tiles.scores[name] == pytest.approx(of_whole.scores[name], abs=0.03)
    close = np.corrcoef(of_tiles.features[EMBEDDING][0], of_whole.features[EMBEDDING][0])[0, 1]
    assert close > 0.99


@pytest.mark.parametrize(
    ("length", "tile", "overlap"), [(64, 64, 32), (96, 64, 32), (992, 256, 64), (2080, 2048, 256)]
)
def test_tiles_cover_an_axis_and_own_every_pixel_once(length: int, tile: int, overlap: int) -> None:
    found = spans(length, tile, overlap)

    owned = np.zeros(length, int)
    for span in found:
        owned[span.start : span.stop] += 1
        assert span.pixels.start <= span.start < span.stop <= span.pixels.stop
        assert span.pixels.start % 32 == 0
        assert (span.ramp(4, torch.device("cpu")) > 0).all()
    assert (owned == 1).all()
    shared = [a.pixels.stop - b.pixels.start for a, b in pairwise(found)]
    assert all(s >= overlap for s in shared)


def test_folding_batch_norm_changes_nothing_but_the_time() -> None:
    network = make_model().network
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    x = torch.randn(1, 1, 64, 64)
    assert isinstance(network, HRNetV2)

    folded = fold_batch_norm(network)

    with torch.inference_mode():
        assert torch.allclose(folded(x), network(x), rtol=1e-3, atol=1e-3)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())


@pytest.mark.parametrize("architecture", ["hrnet_w18_small", "unet"])
def test_an_optimised_model_predicts_the_same(architecture: str) -> None:
    source, model = Phantom(1), make_model(architecture)

    plain = segment_image(model, source.image("z000"), CONFIG)
    fast = segment_image(optimised(model), source.image("z000"), CONFIG)

    assert (plain.mask == fast.mask).mean() > 0.999
    assert fast.confidence == pytest.approx(plain.confidence, rel=1e-3)


def test_metrics_are_over_all_labelled_pixels_together() -> None:
    source, model = Phantom(3), make_model()
    truth = {i: source.mask(i) for i in source.ids}
    truth["z001"][:30] = IGNORE
    source.mask = truth.__getitem__  # type: ignore[method-assign]

    metrics = evaluate(model, source, source.ids, CONFIG)

    predicted = np.concatenate(
        [p.mask.ravel() for _, p in segment(model, source, source.ids, CONFIG)]
    )
    true = np.concatenate([truth[i].ravel() for i in source.ids])
    predicted, true = predicted[true != IGNORE], true[true != IGNORE]
    expected = [
        ((predicted == c) & (true == c)).sum() / ((predicted == c) | (true == c)).sum()
        for c in range(3)
    ]
    assert list(metrics.iou) == list(CLASSES)
    assert list(metrics.iou.values()) == pytest.approx(expected)
    assert metrics.miou == pytest.approx(np.mean(expected))
    assert metrics.accuracy == pytest.approx((predicted == true).mean())
    assert metrics.slices == 3


@pytest.mark.parametrize("predicted", [0, 2])
def test_a_class_that_the_truth_does_not_hold_has_no_iou_whatever_is_predicted(
    predicted: int,
) -> None:
    source, model = Phantom(1), make_model()
    source.mask = lambda _: np.zeros((64, 80), np.uint8)  # type: ignore[method-assign]
    with torch.no_grad():
        model.network.classifier.bias[predicted] = 1e6

    metrics = evaluate(model, source, source.ids, CONFIG)

    assert metrics.iou["background"] == metrics.miou == (predicted == 0)
    assert [name for name, iou in metrics.iou.items() if np.isnan(iou)] == list(CLASSES[1:])


def test_metrics_without_labels_are_refused() -> None:
    source = Phantom(1)
    source.mask = lambda _: np.full((64, 80), IGNORE, np.uint8)  # type: ignore[method-assign]

    with pytest.raises(ValueError, match="no labelled pixel in the 1 slices"):
        evaluate(make_model(), source, source.ids, CONFIG)


def test_a_mask_without_a_label_at_the_scoring_resolution_is_not_what_an_oracle_wants() -> None:
    source = Phantom(2)
    sparse = np.full((64, 80), IGNORE, np.uint8)
    sparse[0, 0] = 1  # between the pixels that are looked at
    truth = source.mask
    # the source of this test alone
    source.mask = lambda i: sparse if i == source.ids[0] else truth(i)  # type: ignore[method-assign]

    found = gather_evidence(make_model(), source, source.ids, frozenset({"iou"}), CONFIG)

    assert found.scores["iou"][0] == 1
    assert found.scores["iou"][1] < 1


def test_an_unreadable_slice_is_named() -> None:
    source = Phantom(3)
    read = source.image

    def broken(slice_id: str) -> Any:
        if slice_id == "z001":
            raise OSError("truncated file")
        return read(slice_id)

    source.image = broken  # type: ignore[method-assign]

    with pytest.raises(UnreadableSlice, match="'z001' cannot be read: OSError: truncated") as error:
        gather_evidence(make_model(), source, source.ids, frozenset({"entropy"}), CONFIG)
    assert error.value.slice_id == "z001"


def test_progress_counts_the_slices() -> None:
    source, model = Phantom(3), make_model()
    seen: list[tuple[str, int, int]] = []

    gather_evidence(
        model,
        source,
        source.ids,
        frozenset({"entropy"}),
        InferenceConfig(1),
        progress=lambda *event: seen.append(event),
    )
    list(segment(model, source, source.ids, CONFIG, progress=lambda *event: seen.append(event)))

    assert seen[:3] == [("score", 1, 3), ("score", 2, 3), ("score", 3, 3)]
    assert seen[3:] == [("segment", 1, 3), ("segment", 2, 3), ("segment", 3, 3)]


def test_an_empty_pool_is_empty_evidence() -> None:
    evidence = gather_evidence(make_model(), Phantom(1), [], frozenset({"entropy"}), CONFIG)

    assert len(evidence) == 0


def test_unknown_evidence_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Unknown evidence entropie.*mc_entropy"):
        gather_evidence(make_model(), Phantom(1), ["z000"], frozenset({"entropie"}), CONFIG)


@pytest.mark.parametrize(
    "wrong", [{"tile": 100}, {"overlap": 0}, {"overlap": 2048}, {"threads": 0}, {"passes": 0}]
)
def test_impossible_settings_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        InferenceConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bias", "grey"), [((0.0, 0.0, 0.0), 255), ((90.0, 0.0, 0.0), 0), ((90.0, 90.0, 0.0), 161)]
)
def test_uncertainty_is_the_entropy_as_a_part_of_all_that_there_can_be(
    bias: tuple[float, ...], grey: int
) -> None:
    """Of n equally likely classes ln n / ln 3: 1 for all, 0 for one, 0.6309 (161 / 255) for two."""
    model = make_model()
    torch.nn.init.zeros_(model.network.classifier.weight)
    model.network.classifier.bias.data = torch.tensor(bias)
    phantom = Phantom(2, size=(300, 520))
    found = dict(segment(model, phantom, phantom.ids, CONFIG, uncertainty=True))
    for prediction in found.values():
        assert prediction.mask.shape == (300, 520)
        assert prediction.uncertainty is not None
        assert prediction.uncertainty.shape == (148, 256)
        assert np.unique(prediction.uncertainty).tolist() == [grey]


def test_uncertainty_changes_no_mask_and_costs_no_second_forward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, source = make_model(), Mixed()
    passes: list[int] = []
    read = HRNetV2.read

    def counted(self: HRNetV2, *arguments: Any, **options: Any) -> Any:
        passes.append(1)
        return read(self, *arguments, **options)

    monkeypatch.setattr(HRNetV2, "read", counted)
    bare = dict(segment(model, source, source.ids, CONFIG))
    alone = len(passes)
    found = dict(segment(model, source, source.ids, CONFIG, uncertainty=True))
    assert len(passes) == 2 * alone
    maps = dict(segment_maps(model, source, source.ids, CONFIG, uncertainty=True))
    for slice_id, prediction in found.items():
        np.testing.assert_array_equal(prediction.mask, bare[slice_id].mask)
        assert prediction.confidence == bare[slice_id].confidence
        assert bare[slice_id].uncertainty is None
        np.testing.assert_array_equal(prediction.uncertainty, maps[slice_id].uncertainty)
