"""From logits to evidence: every score of a batch from one forward, memory bounded by design.

The only module here that imports torch; it is imported only by whoever has logits in hand, never by
`al_strategies` itself.

One scoring resolution for every score: that of the logits as the head makes them (a quarter of the
input for HRNet), before they are upsampled. So ``entropy`` and ``mc_entropy`` can be compared, and
a score costs a sixteenth of what it would at full resolution.

Every reducer takes ``valid``, the pixels that are not padding, and averages over those alone. An
image without a valid pixel has NaN scores, which no strategy accepts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from al_strategies.evidence import (
    CLASS_FRACTIONS,
    CLASS_SCORES,
    CONFIDENCE,
    ENTROPY,
    FOREGROUND,
    MARGIN,
)

__all__ = [
    "LOGIT_EVIDENCE",
    "dropout_masks",
    "fold_masks",
    "folded_dropout_weights",
    "gradient_embedding",
    "mc_entropy",
    "mean_iou",
    "reduce_logits",
]

LOGIT_EVIDENCE = frozenset({ENTROPY, CONFIDENCE, MARGIN, FOREGROUND, CLASS_FRACTIONS, CLASS_SCORES})
"""The evidence that `reduce_logits` computes."""

_CPU_CHUNK = 4_096
_GPU_CHUNK = 1 << 18


def reduce_logits(
    logits: Tensor, valid: Tensor, names: frozenset[str], *, compiled: bool = False
) -> dict[str, Tensor]:
    """Scores and class statistics of each image from its logits.

    ``logits`` (B, C, h, w) floating, C at least 2; ``valid`` (B, h, w) bool; ``names`` a subset of
    `LOGIT_EVIDENCE`. Returns name → (B,) float32 for scores and (B, C) float32 for class
    statistics, on the device of ``logits``, whatever their dtype.

    Everything comes from one log-sum-exp taken relative to the largest logit, so logits of any size
    are safe. A pixel whose two largest logits are equal belongs to the class of lower index.

    ``compiled`` runs the same arithmetic under `torch.compile`, which takes 10 to 40 seconds for
    each new shape or set of names. On a CPU it was twice as fast for three scores and no faster for
    all of them, so it is off unless asked for: measure with ``benchmarks/evidence.py --compiled``.

    Raises ValueError on unknown names, wrong shapes or a ``valid`` that is not bool.
    """
    _check_logits(logits, valid, names)
    if not names:
        return {}
    reduce = _compiled_reduce() if compiled else _reduce_planes
    wanted = tuple(sorted(names))
    if logits.device.type != "cpu" or compiled:
        values = reduce(logits, valid, wanted)
    else:
        # One image at a time stays in the cache: 1.7 times as fast as the whole batch.
        rows = [reduce(logits[b : b + 1], valid[b : b + 1], wanted) for b in range(len(logits))]
        values = [torch.cat(column) for column in zip(*rows, strict=True)]
    return dict(zip(wanted, values, strict=True))


def gradient_embedding(features: Tensor, logits: Tensor, valid: Tensor) -> Tensor:
    """The BADGE embedding of a segmentation: (B, C * D) float32.

    Mean over valid pixels of (p - onehot(argmax p)) ⊗ features, which is the gradient of the
    cross-entropy at the model's own prediction with respect to the weights of the last 1×1
    convolution. ``features`` (B, D, h, w) are what that convolution takes, ``logits`` (B, C, h, w)
    what it gives. Ash et al. 2020, "Deep Batch Active Learning by Diverse, Uncertain Gradient
    Lower Bounds", carried over from one label an image to one a pixel.
    """
    errors = logits.float().softmax(1)
    largest = errors.argmax(1, keepdim=True)
    errors.scatter_add_(1, largest, torch.full_like(largest, -1, dtype=errors.dtype))
    kept = valid.unsqueeze(1)
    # where, not a product: whatever stands in the padding, NaN included, is left out
    errors, features = torch.where(kept, errors, 0), torch.where(kept, features, 0)
    products = torch.bmm(errors.flatten(2), features.flatten(2).transpose(1, 2).float())
    return products.flatten(1) / valid.flatten(1).sum(1, keepdim=True)


def mean_iou(prediction: Tensor, truth: Tensor, valid: Tensor, classes: int) -> Tensor:
    """IoU of each image with its true mask, the mean over the classes in the mask: (B,) float32.

    ``prediction`` and ``truth`` (B, h, w) class indices below ``classes`` where ``valid``; leave
    pixels that nobody labelled out of ``valid``. NaN for an image without a valid pixel. A class
    that is not in the mask counts through the pixels that it takes from others, as in `Metrics`: a
    single stray pixel would else halve the score of an empty slice.
    """
    ious = []
    for c in range(classes):
        ours, theirs = (prediction == c) & valid, (truth == c) & valid
        union = (ours | theirs).flatten(1).sum(1)
        iou = (ours & theirs).flatten(1).sum(1) / union
        ious.append(iou.masked_fill(~theirs.flatten(1).any(1), torch.nan))
    return torch.stack(ious, 1).nanmean(1)


def dropout_masks(channels: int, p: float, passes: int, generator: torch.Generator) -> Tensor:
    """``passes`` channel-dropout masks: (passes, channels) float32, 0 or 1 / (1 - p).

    Drawn as `torch.nn.Dropout2d` draws them for a batch of one: the same seed gives the masks of
    that many explicit passes on the CPU. ``p`` in [0, 1).
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout p must be in [0, 1), found {p}")
    if passes < 1:
        raise ValueError(f"at least one dropout pass is needed, found passes={passes}")
    keep = torch.empty(passes, channels, device=generator.device)
    for row in keep:
        row.bernoulli_(1 - p, generator=generator)
    return keep.div_(1 - p)


def fold_masks(weight: Tensor, masks: Tensor) -> Tensor:
    """Fold ``masks`` (T, D) into a linear layer's ``weight`` (C, D): (T * C, D), pass by pass."""
    stacked = masks.to(weight).unsqueeze(1) * weight.unsqueeze(0)
    return stacked.flatten(0, 1)


def folded_dropout_weights(
    weight: Tensor, p: float, passes: int, generator: torch.Generator
) -> Tensor:
    """The classifier's weight (C, D) under ``passes`` channel-dropout masks: (passes * C, D).

    Channel dropout right before the last 1×1 convolution is linear from there on, so T stochastic
    passes are one convolution with T * C outputs. Draw once and use for the whole pool: all slices
    are then judged under the same masks. Channel dropout only: element-wise dropout does not fold.
    """
    return fold_masks(weight, dropout_masks(weight.shape[1], p, passes, generator))


def mc_entropy(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    valid: Tensor,
    *,
    passes: int,
    chunk: int | None = None,
) -> Tensor:
    """Entropy of the mean prediction over the dropout passes, averaged over valid pixels: (B,).

    ``features`` (B, D, h, w): what the last 1×1 convolution takes, dropout off. ``weight``
    (passes * C, D) from `folded_dropout_weights`; ``bias`` (C,) or None. In nats, float32, which is
    also what features in half precision are computed in.

    Memory is a few times ``passes * C * chunk`` floats whatever the batch and its size: ``chunk``
    pixels are worked on at a time (by default 4,096 on a CPU, 262,144 on a GPU).
    """
    _check_folded(features, weight, bias, valid, passes)
    step = chunk or (_CPU_CHUNK if features.device.type == "cpu" else _GPU_CHUNK)
    weight = weight.to(features.device, torch.float32)
    offset = None if bias is None else bias.to(weight).repeat(passes)
    totals = []
    for pixels, kept in zip(features.flatten(2), valid.flatten(1), strict=True):
        total = torch.zeros((), device=features.device)
        for start in range(0, pixels.shape[1], step):
            part = pixels[:, start : start + step].float()
            entropy = _entropy_of_mean(part, weight, offset, passes)
            total += torch.where(kept[start : start + step], entropy, 0).sum()
        totals.append(total / kept.sum())
    return torch.stack(totals)


def _entropy_of_mean(pixels: Tensor, weight: Tensor, offset: Tensor | None, passes: int) -> Tensor:
    """Entropy (n,) of the mean over passes of the softmax at ``pixels`` (D, n)."""
    # Pixel by pixel, as channels_last features lie in memory: 1.3 to 1.7 times as fast on a CPU.
    stacked = functional.linear(pixels.t(), weight, offset)
    per_pass = stacked.t().reshape(passes, -1, len(stacked))
    mean = per_pass.softmax(1).mean(0)
    entropy: Tensor = torch.special.entr(mean).sum(0)
    return entropy


def _reduce_planes(logits: Tensor, valid: Tensor, names: Sequence[str]) -> list[Tensor]:
    """``names`` from ``logits`` (b, C, h, w), class by class: no sort, no (b, C, h, w) copy."""
    planes = [plane.float() for plane in logits.unbind(1)]
    first = torch.maximum(planes[0], planes[1])
    second = torch.minimum(planes[0], planes[1])
    for plane in planes[2:]:
        second = torch.maximum(second, torch.minimum(first, plane))
        first = torch.maximum(first, plane)
    shifted = [plane - first for plane in planes]
    exponentials = [x.exp() for x in shifted]
    total = sum(exponentials[1:], start=exponentials[0])
    count = valid.flatten(1).sum(1)

    def mean(values: Tensor) -> Tensor:
        # where, not a product: whatever stands in the padding, NaN included, is left out
        return torch.where(valid, values, 0).flatten(1).sum(1) / count

    entropy = total
    if ENTROPY in names or CLASS_SCORES in names:
        weighted = exponentials[0] * shifted[0]
        for e, x in zip(exponentials[1:], shifted[1:], strict=True):
            weighted = torch.addcmul(weighted, e, x)
        entropy = total.log() - weighted / total
    winners = list[Tensor]()
    if CLASS_FRACTIONS in names:
        taken = ~valid
        for x in shifted:
            winners.append((x == 0) & ~taken)
            taken = taken | (x == 0)
    compute: dict[str, Callable[[], Tensor]] = {
        ENTROPY: lambda: mean(entropy),
        CONFIDENCE: lambda: mean(total.reciprocal()),
        MARGIN: lambda: mean((1 - (second - first).exp()) / total),
        FOREGROUND: lambda: mean(sum(exponentials[2:], start=exponentials[1]) / total),
        CLASS_FRACTIONS: lambda: torch.stack([w.flatten(1).sum(1) / count for w in winners], 1),
        CLASS_SCORES: lambda: torch.stack([mean(entropy * e / total) for e in exponentials], 1),
    }
    return [compute[name]() for name in names]


@functools.cache
def _compiled_reduce() -> Callable[[Tensor, Tensor, Sequence[str]], list[Tensor]]:
    return torch.compile(_reduce_planes, dynamic=False)


def _check_logits(logits: Tensor, valid: Tensor, names: frozenset[str]) -> None:
    unknown = sorted(names - LOGIT_EVIDENCE)
    if unknown:
        raise ValueError(
            f"reduce_logits cannot compute {unknown} from logits; it computes "
            f"{sorted(LOGIT_EVIDENCE)}"
        )
    if logits.ndim != 4 or logits.shape[1] < 2:
        raise ValueError(f"logits have shape {tuple(logits.shape)}, expected (B, C >= 2, h, w)")
    _check_valid(logits, valid)


def _check_valid(maps: Tensor, valid: Tensor) -> None:
    expected = (maps.shape[0], *maps.shape[2:])
    if tuple(valid.shape) != expected or valid.dtype != torch.bool:
        raise ValueError(
            f"valid is {valid.dtype} of shape {tuple(valid.shape)}, expected bool of {expected}"
        )


def _check_folded(
    features: Tensor, weight: Tensor, bias: Tensor | None, valid: Tensor, passes: int
) -> None:
    _check_valid(features, valid)
    if weight.ndim != 2 or weight.shape[1] != features.shape[1] or weight.shape[0] % passes:
        raise ValueError(
            f"folded weight has shape {tuple(weight.shape)}, expected ({passes} * C, "
            f"{features.shape[1]}) for {passes} passes over features of shape "
            f"{tuple(features.shape)}"
        )
    if bias is not None and bias.shape != (weight.shape[0] // passes,):
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}, expected ({weight.shape[0] // passes},)"
        )
