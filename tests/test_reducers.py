"""Each reducer against its formula, written out naively in float64 on small random maps."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from al_strategies import reducers
from al_strategies.reducers import (
    LOGIT_EVIDENCE,
    folded_dropout_weights,
    gradient_embedding,
    mc_entropy,
    mean_iou,
    reduce_logits,
)

B, C, D, H, W = 3, 4, 5, 6, 7
Array = np.ndarray


def softmax(logits: Array) -> Array:
    """Over axis 0."""
    e = np.exp(logits - logits.max(0))
    return e / e.sum(0)


def entropy(p: Array) -> Array:
    return -(p * np.log(p)).sum(0)


def naive(logits: Array, valid: Array) -> dict[str, Array]:
    """The evidence of one image: ``logits`` (C, h, w), ``valid`` (h, w)."""
    p = softmax(logits.astype(np.float64))[:, valid]
    ordered = np.sort(p, axis=0)
    predicted = p.argmax(0)
    return {
        "entropy": entropy(p).mean(),
        "confidence": p.max(0).mean(),
        "margin": (ordered[-1] - ordered[-2]).mean(),
        "foreground": (1 - p[0]).mean(),
        "class_fractions": np.array([(predicted == c).mean() for c in range(len(p))]),
        "class_scores": (p * entropy(p)).mean(1),
    }


def maps(seed: int = 0, classes: int = C) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, classes, H, W) and a valid mask with padding of another size in each image."""
    rng = torch.Generator().manual_seed(seed)
    valid = torch.zeros(B, H, W, dtype=torch.bool)
    for b in range(B):
        valid[b, : H - b, : W - 2 * b] = True
    return torch.randn(B, classes, H, W, generator=rng) * 3, valid


def assert_naive(found: dict[str, torch.Tensor], logits: Array, valid: Array) -> None:
    for b in range(len(logits)):
        for name, expected in naive(logits[b], valid[b]).items():
            np.testing.assert_allclose(
                found[name][b].numpy(), expected, rtol=1e-5, atol=1e-6, err_msg=name
            )


@pytest.mark.parametrize("classes", [2, 3, 9])
def test_scores_follow_their_formulas(classes: int) -> None:
    logits, valid = maps(classes=classes)
    found = reduce_logits(logits, valid, LOGIT_EVIDENCE)
    assert found.keys() == LOGIT_EVIDENCE
    assert_naive(found, logits.numpy(), valid.numpy())


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(0, 1e3), offset=st.floats(-1e4, 1e4), seed=st.integers(0, 99))
def test_scores_stay_finite_and_in_range(scale: float, offset: float, seed: int) -> None:
    logits, valid = maps(seed)
    found = reduce_logits(logits * scale + offset, valid, LOGIT_EVIDENCE)
    assert all(torch.isfinite(values).all() for values in found.values())
    eps = 1e-5
    assert ((found["entropy"] >= -eps) & (found["entropy"] <= np.log(C) + eps)).all()
    assert ((found["confidence"] >= 1 / C - eps) & (found["confidence"] <= 1 + eps)).all()
    assert ((found["margin"] >= -eps) & (found["margin"] <= found["confidence"] + eps)).all()
    np.testing.assert_allclose(found["class_fractions"].sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize("content", [0.0, 1e30, float("nan"), float("inf")])
def test_whatever_stands_in_the_padding_is_left_out(content: float) -> None:
    logits, valid = maps()
    padded = torch.where(valid.unsqueeze(1), logits, content)
    expected = reduce_logits(logits, valid, LOGIT_EVIDENCE)
    for name, values in reduce_logits(padded, valid, LOGIT_EVIDENCE).items():
        assert torch.equal(values, expected[name]), name


def test_a_pixel_between_two_classes_belongs_to_the_lower() -> None:
    logits = torch.tensor([0.0, 2.0, 2.0, 1.0]).view(1, 4, 1, 1)
    valid = torch.ones(1, 1, 1, dtype=torch.bool)
    found = reduce_logits(logits, valid, frozenset({"class_fractions", "margin"}))
    assert found["class_fractions"].tolist() == [[0, 1, 0, 0]]
    assert found["margin"].item() == 0


def test_only_what_is_asked_for_is_given() -> None:
    logits, valid = maps()
    assert reduce_logits(logits, valid, frozenset({"margin"})).keys() == {"margin"}
    assert reduce_logits(logits, valid, frozenset()) == {}


def test_half_precision_logits_are_reduced_in_float32() -> None:
    logits, valid = maps()
    half = logits.bfloat16()
    found = reduce_logits(half, valid, LOGIT_EVIDENCE)
    assert {values.dtype for values in found.values()} == {torch.float32}
    assert_naive(found, half.float().numpy(), valid.numpy())


def test_channels_last_logits_give_the_same() -> None:
    logits, valid = maps()
    found = reduce_logits(
        logits.contiguous(memory_format=torch.channels_last), valid, LOGIT_EVIDENCE
    )
    assert_naive(found, logits.numpy(), valid.numpy())


def test_whole_batch_and_image_by_image_agree() -> None:
    # the first is what runs on a GPU
    logits, valid = maps()
    names = sorted(LOGIT_EVIDENCE)
    batch = reducers._reduce_planes(logits, valid, names)
    single = reduce_logits(logits, valid, LOGIT_EVIDENCE)
    for name, values in zip(names, batch, strict=True):
        torch.testing.assert_close(values, single[name], rtol=1e-6, atol=1e-6)


def test_an_image_that_is_all_padding_has_no_score() -> None:
    logits, valid = maps()
    valid[1] = False
    found = reduce_logits(logits, valid, frozenset({"entropy"}))["entropy"]
    assert torch.isnan(found).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": frozenset({"mc_entropy"})}, r"cannot compute \['mc_entropy'\]"),
        ({"logits": torch.zeros(B, 1, H, W)}, r"expected \(B, C >= 2, h, w\)"),
        ({"logits": torch.zeros(B, C, H, W + 1)}, "valid is torch.bool of shape"),
        ({"valid": torch.ones(B, H, W)}, "valid is torch.float32"),
    ],
)
def test_reduce_logits_says_what_is_wrong(change: dict[str, object], message: str) -> None:
    logits, valid = maps()
    arguments = {"logits": logits, "valid": valid, "names": frozenset({"entropy"}), **change}
    with pytest.raises(ValueError, match=message):
        reduce_logits(**arguments)  # type: ignore[arg-type]


def test_gradient_embedding_is_the_gradient_at_the_models_own_prediction() -> None:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(B, D, H, W, generator=generator)
    weight = torch.randn(C, D, generator=generator, requires_grad=True)
    bias = torch.randn(C, generator=generator)
    _, valid = maps()
    logits = torch.einsum("cd,bdhw->bchw", weight, features) + bias[:, None, None]

    inside, within = (
        torch.where(valid.unsqueeze(1), x, torch.nan) for x in (features, logits.detach())
    )
    found = gradient_embedding(inside, within, valid)

    for b in range(B):
        pixels = logits[b : b + 1].flatten(2)[..., valid[b].flatten()]
        loss = torch.nn.functional.cross_entropy(pixels, pixels.argmax(1))
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        torch.testing.assert_close(found[b], gradient.flatten(), rtol=1e-4, atol=1e-6)


def test_mean_iou_is_over_the_classes_of_the_truth() -> None:
    truth = torch.tensor([[[0, 0, 1, 1]], [[2, 2, 2, 2]], [[0, 0, 0, 0]]])
    prediction = torch.tensor([[[0, 1, 1, 1]], [[2, 2, 2, 2]], [[1, 1, 1, 0]]])
    valid = torch.ones(3, 1, 4, dtype=torch.bool)
    valid[2, 0, :3] = False
    found = mean_iou(prediction, truth, valid, classes=4)
    torch.testing.assert_close(found, torch.tensor([(1 / 2 + 2 / 3) / 2, 1.0, 1.0]))


def test_a_stray_pixel_of_another_class_costs_no_more_than_a_pixel() -> None:
    truth = torch.zeros(2, 4, 8, dtype=torch.long)
    truth[1] = 2
    prediction = truth.clone()
    prediction[:, 0, 0] = 1
    found = mean_iou(prediction, truth, torch.ones(2, 4, 8, dtype=torch.bool), classes=3)
    torch.testing.assert_close(found, torch.tensor([31 / 32, 31 / 32]))


def head(seed: int = 3) -> tuple[torch.Tensor, torch.nn.Conv2d]:
    torch.manual_seed(seed)
    return torch.randn(1, D, H, W) * 2, torch.nn.Conv2d(D, C, 1)


def weight_of(layer: torch.nn.Conv2d) -> torch.Tensor:
    return layer.weight.detach().flatten(1)


@pytest.mark.parametrize("chunk", [None, 1, 10])
@pytest.mark.parametrize("p", [0.0, 0.3, 0.5])
def test_folded_dropout_is_that_many_explicit_passes(p: float, chunk: int | None) -> None:
    features, classifier = head()
    valid = torch.ones(1, H, W, dtype=torch.bool)
    valid[0, -2:] = False
    passes = 20
    with torch.no_grad():
        torch.manual_seed(11)  # Dropout2d draws from the global generator
        dropout = torch.nn.Dropout2d(p).train()
        maps = torch.stack([classifier(dropout(features)).softmax(1) for _ in range(passes)])
        mean = maps.mean(0)
        expected = -(mean * mean.log()).sum(1)[valid].mean()

        masks = torch.Generator().manual_seed(11)  # and so the same masks come out of this one
        folded = folded_dropout_weights(weight_of(classifier), p, passes, masks)
        found = mc_entropy(features, folded, classifier.bias, valid, passes=passes, chunk=chunk)

    assert folded.shape == (passes * C, D)
    torch.testing.assert_close(found, expected.view(1), rtol=2e-6, atol=2e-6)


def test_mc_entropy_without_dropout_is_the_entropy() -> None:
    features, classifier = head()
    _, valid = maps()
    with torch.no_grad():
        logits = classifier(features.expand(B, -1, -1, -1))
        folded = folded_dropout_weights(weight_of(classifier), 0.0, 3, torch.Generator())
        batch = features.expand(B, -1, -1, -1)
        found = mc_entropy(batch, folded, classifier.bias, valid, passes=3)
    torch.testing.assert_close(
        found, reduce_logits(logits, valid, frozenset({"entropy"}))["entropy"]
    )


def test_mc_entropy_reads_channels_last_and_a_head_without_bias() -> None:
    features, classifier = head()
    valid = torch.ones(1, H, W, dtype=torch.bool)
    folded = folded_dropout_weights(weight_of(classifier), 0.5, 4, torch.Generator().manual_seed(0))
    zero = torch.zeros(C)
    plain = mc_entropy(features, folded, zero, valid, passes=4)
    last = features.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(mc_entropy(last, folded, None, valid, passes=4), plain)


def test_mc_entropy_of_half_precision_features_is_computed_in_float32() -> None:
    features, classifier = head()
    valid = torch.ones(1, H, W, dtype=torch.bool)
    folded = folded_dropout_weights(weight_of(classifier), 0.5, 4, torch.Generator().manual_seed(0))
    bias, half = classifier.bias.detach(), features.bfloat16()
    expected = mc_entropy(half.float(), folded, bias, valid, passes=4)
    assert torch.equal(mc_entropy(half, folded, bias, valid, passes=4), expected)


def test_masks_follow_the_seed() -> None:
    def draw(seed: int) -> torch.Tensor:
        return reducers.dropout_masks(64, 0.5, 3, torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert set(draw(1).flatten().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize(
    ("p", "passes", "message"),
    [(1.0, 3, "p must be in"), (-0.1, 3, "p must"), (0.5, 0, "passes=0")],
)
def test_dropout_that_cannot_be_is_refused(p: float, passes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        folded_dropout_weights(torch.zeros(C, D), p, passes, torch.Generator())


def test_a_weight_that_is_not_folded_is_refused() -> None:
    features, classifier = head()
    valid = torch.ones(1, H, W, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"folded weight has shape \(4, 5\), expected \(20 \* C"):
        mc_entropy(features, weight_of(classifier), classifier.bias, valid, passes=20)
    with pytest.raises(ValueError, match=r"bias has shape \(4,\), expected \(2,\)"):
        mc_entropy(features, weight_of(classifier), classifier.bias, valid, passes=2)


def test_the_package_itself_does_not_import_torch() -> None:
    code = "import al_strategies, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
