"""A pixel classifier as ilastik builds it: a random forest on filters at several scales."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from sklearn.ensemble import RandomForestClassifier

from al_strategies.evidence import SliceId
from al_strategies.learner import IGNORE, SliceSource
from benchmarks.peers.protocol import Mask, Task

__all__ = ["SIGMAS", "PixelForest", "features"]

SIGMAS = (0.7, 1.0, 1.6, 3.5, 5.0, 10.0)
"""The scales that ilastik offers, in pixels, but 0.3, which it offers for smoothing alone."""

_TREES = 100
_PIXELS = 200_000
_CHUNK = 1 << 18

Floats = npt.NDArray[np.float32]


def features(image: npt.NDArray[Any]) -> Floats:
    """(H, W) → (H, W, 42): for each of `SIGMAS` the smoothed image, the Laplacian of Gaussian, the
    gradient magnitude, and the two eigenvalues each of the Hessian and of the structure tensor,
    whose outer scale is half the inner one. Edges are mirrored."""
    image = image.astype(np.float32)
    return np.stack([plane for sigma in SIGMAS for plane in _at(image, sigma)], axis=-1)


def _at(image: Floats, sigma: float) -> list[Floats]:
    def derivative(*order: int) -> Floats:
        found: Floats = ndimage.gaussian_filter(image, sigma, order=order)
        return found

    dy, dx = derivative(1, 0), derivative(0, 1)
    smooth, offset = derivative(0, 0), _response_to_one(sigma)
    yy, yx, xx = (
        derivative(2, 0) - offset * smooth,
        derivative(1, 1),
        derivative(0, 2) - offset * smooth,
    )
    tensor = [ndimage.gaussian_filter(p, sigma / 2) for p in (dy * dy, dy * dx, dx * dx)]
    return [
        smooth,
        yy + xx,
        np.hypot(dy, dx),
        *_eigenvalues(yy, yx, xx),
        *_eigenvalues(*tensor),
    ]


def _response_to_one(sigma: float) -> float:
    """What SciPy's second derivative makes of a flat image of ones: not 0 at small scales, so that
    grey value leaks in. ilastik's kernels are normalised."""
    return float(ndimage.gaussian_filter1d(np.ones(3), sigma, order=2)[1])


def _eigenvalues(yy: Floats, yx: Floats, xx: Floats) -> tuple[Floats, Floats]:
    """Of the symmetric 2 × 2 matrices [[yy, yx], [yx, xx]], the larger first."""
    mean, half = (yy + xx) / 2, np.hypot((yy - xx) / 2, yx)
    return mean + half, mean - half


class PixelForest:
    """100 unpruned trees, as ilastik's default; every labelled pixel, or 200,000 drawn at random.

    Trees are indifferent to the grey scale, so nothing is normalised.
    """

    def __init__(self, trees: int = _TREES, pixels: int = _PIXELS) -> None:
        self.idle_s = 0.0
        self.steps: int | None = None
        self._trees, self._pixels = trees, pixels
        self._forest: RandomForestClassifier | None = None

    def fit(self, task: Task) -> None:
        rng = np.random.default_rng(task.seed)
        masks = task.masks
        labelled = sum(int((mask != IGNORE).sum()) for mask in masks)
        share = min(1.0, self._pixels / max(labelled, 1))
        rows, truth = [], []
        for image, mask in zip(task.images, masks, strict=True):
            # Slice by slice, so that the features of all slices are never in memory at once.
            found = np.flatnonzero(mask.ravel() != IGNORE)
            kept = rng.choice(found, round(share * len(found)), replace=False)
            rows.append(features(image).reshape(-1, 7 * len(SIGMAS))[kept])
            truth.append(mask.ravel()[kept])
        self._forest = RandomForestClassifier(self._trees, n_jobs=1, random_state=task.seed)
        self._forest.fit(np.concatenate(rows), np.concatenate(truth))

    def predict(self, source: SliceSource, ids: Sequence[SliceId]) -> Iterator[Mask]:
        assert self._forest is not None, "fit() comes first"
        for slice_id in ids:
            image = source.image(slice_id)
            rows = features(image).reshape(-1, 7 * len(SIGMAS))
            parts = [
                self._forest.predict(rows[i : i + _CHUNK]) for i in range(0, len(rows), _CHUNK)
            ]
            yield np.concatenate(parts).astype(np.uint8).reshape(image.shape)
