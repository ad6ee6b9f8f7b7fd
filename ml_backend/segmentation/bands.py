"""Masks, beliefs and maps at a slice's own size, made of logits in bands that bound the memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from al_strategies.evidence import SliceId
from al_strategies.learner import Beliefs, Maps, Votes
from ml_backend.segmentation.networks import upsample
from ml_backend.segmentation.tiles import padded_size

__all__ = ["beliefs_of", "maps_of", "mask_of"]

_BAND = 1 << 20
"""Floats of full-resolution logits held at once: a cache's worth on a CPU."""
_GPU_BAND = 1 << 26


@torch.inference_mode()
def mask_of(logits: Tensor, shape: Sequence[int]) -> npt.NDArray[np.uint8]:
    """(H, W) uint8 class indices from ``logits`` (C, h, w), in bands that bound the memory."""
    mask = np.empty(shape, dtype=np.uint8)
    for rows, band in _bands(logits, shape):
        mask[rows] = _winners(band).cpu().numpy()
    return mask


@torch.inference_mode()
def beliefs_of(logits: Tensor, shape: Sequence[int]) -> Beliefs:
    """All that is believed of a slice with ``logits`` (C, h, w), in the same bands as `mask_of`."""
    mask = np.empty(shape, dtype=np.uint8)
    log_probabilities = np.empty((len(logits), *shape), dtype=np.float16)
    for rows, band in _bands(logits, shape):
        mask[rows] = _winners(band).cpu().numpy()
        log_probabilities[:, rows] = band.log_softmax(0).half().cpu().numpy()
    return Beliefs(mask, log_probabilities)


@torch.inference_mode()
def maps_of(
    slice_id: SliceId,
    logits: Tensor,
    shape: Sequence[int],
    probability: bool,
    uncertainty: bool,
    votes: Votes | None,
) -> Maps:
    """All that is asked of a slice with ``logits`` (C, h, w), in the same bands as `mask_of`."""
    classes, shape = len(logits), tuple(shape)
    mask = np.empty(shape, dtype=np.uint8)
    probabilities = np.empty((classes, *shape), dtype=np.uint8) if probability else None
    entropy = np.empty(shape, dtype=np.uint8) if uncertainty else None
    for rows, band in _bands(logits, shape):
        winners = band
        p = band.softmax(0)
        if votes is not None:
            p += torch.from_numpy(votes(slice_id, rows)).to(p.device)
            p /= 1 + votes.voters
            winners = p
        mask[rows] = _winners(winners).cpu().numpy()
        if probabilities is not None:
            probabilities[:, rows] = _as_bytes(p)
        if entropy is not None:
            entropy[rows] = _as_bytes(torch.special.entr(p).sum(0) / math.log(classes))
    return Maps(mask, probabilities, entropy)


def _as_bytes(values: Tensor) -> npt.NDArray[np.uint8]:
    """Values in [0, 1] as 0 … 255, to the nearest."""
    # Clamped: the mean of votes that were rounded may lie outside by a rounding.
    return (values * 255).round_().clamp_(0, 255).byte().cpu().numpy()


def _bands(logits: Tensor, shape: Sequence[int]) -> Iterator[tuple[slice, Tensor]]:
    """Logits (C, rows, W) at the slice's own size from ``logits`` (C, h, w), from top to bottom,
    each with the rows of the slice that it covers."""
    height, width = shape
    padded_width = padded_size(shape)[1]
    stride = padded_width // logits.shape[2]
    band_size = _BAND if logits.device.type == "cpu" else _GPU_BAND
    rows = max(1, band_size // (len(logits) * padded_width * stride))
    logits = logits.contiguous()
    for top in range(0, -(-height // stride), rows):
        # One row more on each side makes the band what a whole upsampling gives there.
        first, last = max(0, top - 1), min(logits.shape[1], top + rows + 1)
        band = logits[None, :, first:last]
        band = upsample(band, ((last - first) * stride, padded_width))[0]
        skip, start = (top - first) * stride, top * stride
        stop = min(height, (top + rows) * stride)
        yield slice(start, stop), band[:, skip : skip + stop - start, :width]


def _winners(logits: Tensor) -> Tensor:
    """Argmax (H, W) uint8 over the classes of ``logits`` (C, H, W), the lowest of equals.

    Class by class: torch's own argmax over the first axis takes three times as long on a CPU.
    """
    best = logits[0].clone()
    labels = torch.zeros(best.shape, dtype=torch.uint8, device=best.device)
    for label, plane in enumerate(logits[1:], start=1):
        labels.masked_fill_(plane > best, label)
        torch.maximum(best, plane, out=best)
    return labels
