"""Random crops, turned, scaled, warped and re-lit: what training sees instead of slices.

Crop, flip, quarter turn, scale and elastic warp are one resampling of the slice
(`Augmentation.grid`, then `resample`), so a crop costs one interpolation whatever is switched on.
Masks are resampled to the nearest pixel, and what lies outside the slice is `IGNORE`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from al_strategies.learner import IGNORE

__all__ = ["Augmentation", "resample"]

_COARSE = 5  # control points a side of the elastic field


@dataclass(frozen=True)
class Augmentation:
    """How strongly crops are varied; `Augmentation.none()` leaves them as they are.

    ``flips``: mirror and quarter turns, all eight equally likely. ``warped``: the part of the crops
    that is scaled and warped; the others are exact pixels, because interpolation takes noise away
    that is there when the network is used. ``scale``: such a crop shows up to this factor more or
    less of the slice. ``elastic``: standard deviation of the warp, in pixels for a crop of 192 (it
    grows with the crop). Grey levels are in units of the preprocessing, where
    the window is 2 wide: ``gain``, ``gamma`` (standard deviations of their logarithms), ``offset``
    (standard deviation), ``noise`` (largest standard deviation), ``blur`` (the part of the crops
    that is blurred). ``context``: networks with filters warp what HRNet is shown, and leave the
    filters the exact pixels.
    """

    flips: bool = True
    warped: float = 0.5
    scale: float = 1.25
    elastic: float = 3.0
    gain: float = 0.1
    gamma: float = 0.1
    offset: float = 0.1
    noise: float = 0.1
    blur: float = 0.15
    context: bool = False

    def __post_init__(self) -> None:
        if self.scale < 1:
            raise ValueError(f"scale is a factor of at least 1, found {self.scale}.")
        for name in ("warped", "elastic", "gain", "gamma", "offset", "noise", "blur"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}.")

    @classmethod
    def faint(cls) -> Augmentation:
        """For scans of one grey scale, whose grey values and textures mean something: hardly
        another light, and no warp but of the context."""
        return cls(
            warped=0.0, gain=0.02, gamma=0.02, offset=0.02, noise=0.05, blur=0.05, context=True
        )

    @classmethod
    def none(cls) -> Augmentation:
        """Plain crops."""
        return cls(False, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)

    def grid(
        self, crop: int, generator: torch.Generator, device: torch.device | None = None
    ) -> Tensor:
        """Where a crop is taken, relative to its centre: (crop, crop, 2) float32 pixels, (x, y).

        Made on ``device`` from a few numbers that ``generator``, one of the CPU, draws.
        """
        axis = torch.arange(crop, dtype=torch.float32, device=device) - (crop - 1) / 2
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        if self.flips:
            mirror_x, mirror_y, transpose = torch.randint(2, (3,), generator=generator).tolist()
            x, y = (y, x) if transpose else (x, y)
            x, y = (-x if mirror_x else x), (-y if mirror_y else y)
        grid = torch.stack([x, y], dim=-1)
        if torch.rand((), generator=generator) >= self.warped:
            return grid
        exponent = torch.rand((), generator=generator) * 2 - 1
        coarse = torch.randn((1, 2, _COARSE, _COARSE), generator=generator).to(device)
        warp = F.interpolate(coarse, size=(crop, crop), mode="bicubic", align_corners=True)
        shift = warp[0].permute(1, 2, 0) * (self.elastic * crop / 192)
        return grid * self.scale**exponent + shift

    def relight(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Grey levels of each of ``images`` (B, channels, H, W), on the generator's device."""
        parameters = torch.randn(
            (4, len(images), 1, 1, 1), generator=generator, device=generator.device
        )
        gain, gamma, offset, level = parameters
        # The window [−1, 1] as [0, 1]; what lies outside keeps its sign under the power.
        unit = (images + 1) / 2
        unit = unit.sign() * unit.abs().clamp_min(1e-6) ** (gamma * self.gamma).exp()
        images = (unit * 2 - 1) * (gain * self.gain).exp() + offset * self.offset
        if self.blur > 0:
            images = self._blur(images, generator)
        if self.noise > 0:
            noise = torch.randn(images.shape, generator=generator, device=generator.device)
            # |N(0, 1)| / 2 is below 1 for 95 % of the crops: many are nearly clean.
            images = images + noise * (level.abs() / 2).clamp_max(1) * self.noise
        return images

    def _blur(self, images: Tensor, generator: torch.Generator) -> Tensor:
        chosen = torch.rand((len(images), 1, 1, 1), generator=generator, device=generator.device)
        kernel = torch.tensor([1.0, 2.0, 1.0], device=images.device) / 4
        channels = images.shape[1]
        square = (kernel[:, None] * kernel).expand(channels, 1, 3, 3)
        padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
        return torch.where(chosen < self.blur, F.conv2d(padded, square, groups=channels), images)


def resample(image: Tensor, mask: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """``image`` (channels, H, W) bilinear and ``mask`` (H, W) uint8 nearest at ``points``.

    ``points`` (h, w, 2): positions (x, y) in pixels of ``image``, 0 the centre of the first.
    Outside, the image is mirrored and the mask is `IGNORE`. Returns (channels, h, w) float32 and
    (h, w) int64.
    """
    height, width = mask.shape
    size = torch.tensor([width, height], dtype=torch.float32, device=points.device)
    grid = ((2 * points + 1) / size - 1).unsqueeze(0)
    crop = F.grid_sample(
        image.unsqueeze(0), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    # grid_sample pads with zeros only: shifted, zero is IGNORE.
    shifted = (mask.float() - IGNORE)[None, None]
    labels = F.grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return crop[0], (labels[0, 0] + IGNORE).round().long()
