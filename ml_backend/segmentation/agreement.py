"""How much HRNet counts in agreement with the pixel expert, from the labels alone.

Where texture says all, HRNet learns in the time there is less than the expert knows of slices that
it has not seen, and an equal share spoils the masks. What HRNet says of the slices that it was
trained on flatters it, so this tells where it deserves less than half, never that it deserves more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from al_strategies.learner import IGNORE
from ml_backend.segmentation.augmentation import Augmentation
from ml_backend.segmentation.dataset import Crops, LabelledSlices
from ml_backend.segmentation.networks.full_resolution import FullResolutionHRNet
from ml_backend.segmentation.networks.reader import PixelReader
from ml_backend.segmentation.training import seeded

__all__ = ["deserved_share"]

_SHARES = (0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
_FLATTERED = 1.15
"""What HRNet says of what it has learned from is worth so much less. Where texture says all, doing
without it cost up to 1.13 of the loss, where it does not, a share of .4 cost 1.2 and more."""
_BATCHES, _CROPS = 4, 16
"""Crops that are looked at: a second of a core."""


@torch.no_grad()
def deserved_share(
    network: FullResolutionHRNet,
    slices: LabelledSlices,
    unseen: Sequence[PixelReader],
    folds: Sequence[int],
    *,
    crop: int,
    seed: int = 0,
) -> float:
    """The least share of the reader with context that is as good as any up to a half, by the
    cross-entropy on ``slices``; a half without ``unseen``.

    ``unseen``: for each of the ``folds`` (one number a slice) a pixel reader that was not shown it;
    they stand for the expert, and are moved to where the network is. ``network``: trained, in
    evaluation mode. ``crop``: side of the crops that it was trained on.
    """
    if not unseen:
        return _SHARES[0]
    device = network.middle.device
    readers = [reader.to(device) for reader in unseen]  # the CPU may have taught them
    crops = Crops(
        slices, crop=crop, batch=_CROPS, augmentation=Augmentation.none(), balance=0.0,
        seed=seed, device=device, located=True,
    )  # fmt: skip
    losses = torch.zeros(len(_SHARES), device=device)
    with seeded(seed, device):
        for _, lesson in zip(range(_BATCHES), crops, strict=False):
            values, reads, targets = network.recall(lesson)
            assert lesson.slices is not None
            expects = [
                readers[folds[of]](rows) for of, rows in zip(lesson.slices, values, strict=True)
            ]
            losses += _losses(reads, torch.stack(expects), targets)
    return min(
        share
        for share, loss in zip(_SHARES, losses.tolist(), strict=True)
        if loss <= _FLATTERED * float(losses.min())
    )


def _losses(reads: Tensor, expects: Tensor, targets: Tensor) -> Tensor:
    """(shares,): the cross-entropy of logits (B, n, classes) in agreement, by share."""
    known = targets != IGNORE
    return torch.stack(
        [
            F.cross_entropy(
                (share * reads + (1 - share) * expects)[known], targets[known], reduction="sum"
            )
            for share in _SHARES
        ]
    )
