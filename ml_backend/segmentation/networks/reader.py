"""What reads the filters of a pixel: a small perceptron, on rows of pixels or folded for maps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ml_backend.segmentation.networks.filters import FEATURES_PER_LEVEL

__all__ = ["Folded", "PixelReader", "folded", "second_layer"]

_ROWS = 1 << 16


class PixelReader(nn.Module):
    """Filters (n, F), each about 1 wide → logits (n, classes): two layers of ``width``."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(sum(FEATURES_PER_LEVEL), width, bias=False)
        self.first_norm = nn.BatchNorm1d(width)
        self.second = nn.Linear(width, width, bias=False)
        self.second_norm = nn.BatchNorm1d(width)
        self.last = nn.Linear(width, classes)

    def hidden(self, values: Tensor, context: Tensor | None = None) -> Tensor:
        """(n, width): what the last layer takes. ``context`` (n, width) is added to what the first
        layer makes of ``values``."""
        read = self.first(values)
        if context is not None:
            read = read + context
        read = F.relu(self.first_norm(read))
        return F.relu(self.second_norm(self.second(read)))

    def forward(self, values: Tensor) -> Tensor:
        """Logits (n, classes)."""
        logits: Tensor = self.last(self.hidden(values))
        return logits

    @torch.no_grad()
    def believe(self, values: Tensor) -> Tensor:
        """Probabilities (n, classes)."""
        return torch.cat([self(part).softmax(1) for part in torch.split(values, _ROWS)])


class Folded(NamedTuple):
    """Readers side by side as convolutions, what normalises before and within them inside.

    ``levels``: one kernel for each level of the filters. ``scale`` (widths, 1, 1): of a context.
    ``second``: of each reader (width, width), from row to row, with its bias.
    """

    levels: tuple[Tensor, Tensor, Tensor]
    scale: Tensor
    bias: Tensor
    second: tuple[tuple[Tensor, Tensor], ...]


def folded(middle: Tensor, spread: Tensor, *readers: PixelReader) -> Folded:
    """Of readers in evaluation mode, for filters as they come: around ``middle`` (F,), ``spread``
    (F,) wide."""
    scales, biases = zip(*(_scale_and_bias(reader.first_norm) for reader in readers), strict=True)
    scale = torch.cat(scales)
    first = torch.cat([reader.first.weight for reader in readers]) * scale[:, None] / spread
    full, half, quarter = torch.split(first, list(FEATURES_PER_LEVEL), dim=1)
    return Folded(
        (_kernel(full), _kernel(half), _kernel(quarter)),
        scale[:, None, None],
        torch.cat(biases) - first @ middle,
        tuple(_second(reader) for reader in readers),
    )


def second_layer(hidden: Tensor, weights: Folded) -> Tensor:
    """(B, widths, h, w) → the same shape: each reader's own part of it. Without gradients.

    One convolution with a block for each reader would take three times as long.
    """
    batch, _, height, width = hidden.shape
    rows = hidden.permute(0, 2, 3, 1).reshape(batch * height * width, -1)
    made = torch.empty_like(rows)
    start = 0
    for weight, bias in weights.second:
        part = slice(start, start + len(bias))
        torch.addmm(bias, rows[:, part], weight, out=made[:, part])
        start = part.stop
    return made.relu_().view(batch, height, width, -1).permute(0, 3, 1, 2)


def _second(reader: PixelReader) -> tuple[Tensor, Tensor]:
    scale, bias = _scale_and_bias(reader.second_norm)
    return (reader.second.weight * scale[:, None]).T.contiguous(), bias


def _kernel(weight: Tensor) -> Tensor:
    return weight[:, :, None, None]


def _scale_and_bias(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - norm.running_mean * scale
