"""What a parallel-beam synchrotron scan does to the attenuation it measures.

`Scan` turns one slice of true attenuation into reconstructed grey values: detector blur,
propagation fringes, streaks, grey drift and stitching seams between height steps, rings that drift
along z, photon noise and small movements. Every slice depends on the seed and its z alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ml_backend.volumes.noise import LineNoise, norm, rounded

__all__ = ["GREY_OFFSET", "GREY_PER_ATTENUATION", "Scan", "to_grey"]

Floats = npt.NDArray[np.float32]

GREY_PER_ATTENUATION = 2000.0
"""Grey values per 1/cm of attenuation in a 16-bit slice."""

GREY_OFFSET = 8000.0
"""Grey value of zero attenuation: noise and fringes go below zero."""

_RINGS, _STREAKS, _NOISE, _STEPS, _MOVES, _SHIFTS = range(11, 17)  # places in the seed


def to_grey(attenuation: Floats) -> npt.NDArray[np.uint16]:
    """Attenuation in 1/cm as the 16-bit grey values of a slice."""
    grey = np.rint(attenuation * GREY_PER_ATTENUATION + GREY_OFFSET)
    return np.asarray(np.clip(grey, 0, 65535), np.uint16)


@dataclass(frozen=True)
class Scan:
    """One scan of a sample of ``height`` mm.

    ``photons``: counts per pixel where nothing absorbs. ``blur``: detector blur, σ in pixels.
    ``fringe``: overshoot at edges. ``rings``: amplitude in 1/cm. ``streaks``: of the metal, 0 to 1.
    ``step``: mm between stitched height steps. ``drift``: relative grey change between them.
    """

    seed: int
    height: float
    photons: float = 3000.0
    blur: float = 0.8
    fringe: float = 0.35
    rings: float = 0.12
    streaks: float = 0.0
    step: float = 1.6
    drift: float = 0.05

    def shift(self, z: float) -> tuple[float, float]:
        """How far (y, x), in mm, the height step at ``z`` lies beside the first one."""
        dy, dx = self._rng(_SHIFTS, int(self._at_step(z))).normal(0, 0.012, 2)
        return float(dy), float(dx)

    def reconstruct(
        self, attenuation: Floats, z: float, y: Floats, x: Floats, metal: tuple[float, float, float]
    ) -> Floats:
        """Reconstructed attenuation (H, W) of the slice at ``z`` with true ``attenuation`` in 1/cm.

        ``y`` (H,) and ``x`` (W,): positions in mm from the rotation axis. ``metal``: y, x and
        radius of the implant in mm, for the streaks; radius 0: none.
        """
        image = self._optics(self._movement(attenuation, z))
        if self.streaks and metal[2] > 0:
            image += self._streaks(z, y, x, metal)
        radius = norm(y[:, None], x[None, :])
        image *= np.float32(self._gain(z))
        image += np.float32(self._offset(z)) * (1 - (radius / 3) ** 2)
        return self._photon_noise(image, z, radius) + self._rings(z, radius, x)

    def _optics(self, image: Floats) -> Floats:
        sharp = ndimage.gaussian_filter(image, self.blur, truncate=3)
        # propagation contrast: a bright line inside an edge, a dark one outside
        edges = sharp - ndimage.gaussian_filter(sharp, 1.6, truncate=3)
        return np.asarray(sharp + np.float32(self.fringe) * edges, np.float32)

    def _movement(self, image: Floats, z: float) -> Floats:
        for centre, extent, dy, dx in self._moves:
            share = 0.45 * float(np.exp(-(((z - centre) / extent) ** 2)))
            if share > 0.02:
                ghost = ndimage.shift(image, (dy, dx), order=1, mode="nearest")
                image = np.asarray((1 - share) * image + share * ghost, np.float32)
        return image

    @cached_property
    def _moves(self) -> list[tuple[float, float, float, float]]:
        rng = self._rng(_MOVES)
        return [
            (
                rng.uniform(0.1, 0.9) * self.height,
                rng.uniform(0.05, 0.15),
                *rng.uniform(-2.5, 2.5, 2),
            )
            for _ in range(2)
        ]

    def _streaks(self, z: float, y: Floats, x: Floats, metal: tuple[float, float, float]) -> Floats:
        dy, dx = y[:, None] - np.float32(metal[0]), x[None, :] - np.float32(metal[1])
        angles = np.linspace(-np.pi, np.pi, 1441, dtype=np.float32)
        line = LineNoise((self.seed, _STREAKS), (0.12, 0.045), 2 * np.pi, wrap=True)
        profile = line.line(z, angles + np.float32(np.pi))
        # starvation makes few strong bands, not a fine fan
        bands = np.sign(profile) * rounded(np.power, np.maximum(np.abs(profile) - 0.6, 0), 1.2)
        distance = norm(dy, dx)
        fall = rounded(np.exp, -np.maximum(distance - metal[2], 0) / 1.1)
        fall *= np.clip(distance / metal[2], 0, 1) ** 2
        streaks = self.streaks * fall * np.interp(rounded(np.arctan2, dy, dx), angles, bands)
        return np.asarray(streaks, np.float32)

    def _at_step(self, z: float) -> float:
        return z / self.step + 0.35

    def _steps(self, z: float) -> tuple[tuple[float, float], float]:
        """Gain and offset of the height step at ``z``, and how far across it ``z`` lies, 0 to 1."""
        step, across = divmod(self._at_step(z), 1.0)
        here = self._rng(_STEPS, int(step)).normal(0, 1, 2)
        seam = 0.02 / self.step
        if across < seam and step > 0:  # overlapping projections are blended
            before = self._rng(_STEPS, int(step) - 1).normal(0, 1, 2)
            here = before + (here - before) * across / seam
        return (float(here[0]), float(here[1])), across

    def _gain(self, z: float) -> float:
        (gain, _), across = self._steps(z)
        return 1 + self.drift * (0.6 * gain + 0.5 * (across - 0.5))

    def _offset(self, z: float) -> float:
        """Cupping, in 1/cm."""
        (_, offset), across = self._steps(z)
        return self.drift * (1.5 * offset + 2.0 * (across - 0.5))

    def _photon_noise(self, image: Floats, z: float, radius: Floats) -> Floats:
        rng = self._rng(_NOISE, round(z * 1e4))
        # the path that a pixel's rays take through the sample is longest in the middle
        depth = 0.05 + 0.30 * np.clip(1 - (radius / 3.5) ** 2, 0, 1)
        expected = self.photons * rounded(np.exp, -np.maximum(image, -2) * 0.02 - depth)
        counts = rng.poisson(expected).astype(np.float32)
        relative = counts / expected - 1
        # ramp filter: reconstruction noise has little power at low frequencies
        relative -= 0.7 * ndimage.gaussian_filter(relative, 2.0, truncate=2)
        noise = 14 * ndimage.gaussian_filter(relative, 0.45, truncate=3)
        return np.asarray(image + noise, np.float32)

    def _rings(self, z: float, radius: Floats, x: Floats) -> Floats:
        # a ring is about one detector pixel wide
        pixel = float(np.ptp(x)) / max(len(x) - 1, 1) or 0.01
        t = np.arange(0, 8.0, pixel / 2, dtype=np.float32)
        line = LineNoise((self.seed, _RINGS), (0.5, 1.3 * pixel), 8.0).line(z, t)
        # many faint ones and a few from bad pixels, strongest near the axis
        bad = np.sign(line) * np.maximum(np.abs(line) - 1.9, 0)
        profile = np.float32(self.rings) * (0.35 * line + 1.5 * bad) / (0.5 + t)
        nearest = np.minimum((radius * (2 / pixel) + 0.5).astype(np.int32), len(t) - 1)
        return np.take(np.asarray(profile, np.float32), nearest)

    def _rng(self, *place: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *place])
