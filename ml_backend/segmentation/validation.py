"""Which labelled slices judge a checkpoint, and when a new one is worse than the published one.

Neighbouring slices are near-copies, so slices held out at random would be answered from memory: a
part of each volume's z is held out in one block. The block stays the same from round to round (it
goes into the round's record), so no checkpoint is trained on the slices that judge it; one that
goes on from the weights of the round before may have inherited some of them. It reaches half-way to
the labels around it: labels that come later fall into it in proportion.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from al_strategies.evidence import Position, SliceId
from al_strategies.learner import Metrics

__all__ = ["Split", "ZBlock", "held_back", "inside", "is_worse", "split_validation"]

MINIMUM_LABELLED = 10
FRACTION = 0.2
TOLERANCE = 0.02
MINIMUM_COMPARED = 3


@dataclass(frozen=True)
class ZBlock:
    """Slices of ``volume`` with ``low`` ≤ z ≤ ``high``; to the volume's end where one is None."""

    volume: str
    low: float | None = None
    high: float | None = None

    def __contains__(self, position: object) -> bool:
        return (
            isinstance(position, Position)
            and position.volume == self.volume
            and (self.low is None or position.z >= self.low)
            and (self.high is None or position.z <= self.high)
        )


@dataclass(frozen=True)
class Split:
    """Labelled slices to train on and to validate on, and the blocks that hold the latter.

    ``validation`` and ``blocks`` are empty while there are too few labelled slices.
    """

    train: tuple[SliceId, ...]
    validation: tuple[SliceId, ...]
    blocks: tuple[ZBlock, ...]


def split_validation(
    ids: Sequence[SliceId],
    positions: Mapping[SliceId, Position],
    *,
    blocks: Sequence[ZBlock] = (),
    fraction: float = FRACTION,
    minimum: int = MINIMUM_LABELLED,
    seed: int = 0,
) -> Split:
    """Hold a z-block of the labelled slices ``ids`` out.

    Below ``minimum`` labelled slices everything is trained on. From then on: in each volume with at
    least 5 labelled slices, ``fraction`` of them (at least one), neighbours in z, from a place that
    ``seed`` chooses; if such volumes have less than half of the labels, whole volumes with about
    ``fraction`` of them (at least one).

    ``blocks``: those of the round before; they are kept, and slices labelled inside them since then
    validate too. They are chosen anew when nothing would be left to train on, and when they hold
    less than half of ``fraction`` or more than one and a half of it and others are nearer to it: so
    it is where annotations were deleted, or where most labels came from outside or from inside.
    """
    if len(ids) < minimum:
        return Split(tuple(ids), (), ())

    def off(split: Split) -> float:
        """How far the part that validates is from ``fraction``."""
        return abs(len(split.validation) / len(ids) - fraction)

    kept = _apply(ids, positions, blocks)
    if kept.train and off(kept) <= fraction / 2:
        return kept
    anew = _apply(ids, positions, _choose(ids, positions, fraction, np.random.default_rng(seed)))
    return kept if kept.train and kept.validation and off(kept) <= off(anew) else anew


def inside(
    ids: Iterable[SliceId], positions: Mapping[SliceId, Position], blocks: Collection[ZBlock]
) -> frozenset[SliceId]:
    """Those of ``ids`` that lie in one of ``blocks``."""
    return frozenset(i for i in ids if any(positions[i] in block for block in blocks))


def held_back(
    pool: Iterable[SliceId],
    labelled: Collection[SliceId],
    positions: Mapping[SliceId, Position],
    blocks: Sequence[ZBlock],
    fraction: float = FRACTION,
) -> frozenset[SliceId]:
    """Slices of ``pool`` that are to be labelled last: those inside ``blocks``, once these hold
    ``fraction`` of the ``labelled``. Nothing is learned from them, so they stay uncertain, and a
    strategy that looks for uncertain ones would take more and more of them."""
    enough = len(inside(labelled, positions, blocks)) >= fraction * len(labelled)
    return inside(pool, positions, blocks) if enough else frozenset()


def is_worse(new: Metrics, published: Metrics, *, tolerance: float = TOLERANCE) -> bool:
    """Whether a new checkpoint is flagged: kept, but worse than the published one.

    Both metrics come from the same validation slices. The rule: the mean IoU over the classes that
    both know fell by more than ``tolerance`` = 0.02, about what a second training of the same
    slices with another seed differs by. Fewer than `MINIMUM_COMPARED` slices decide nothing: one
    slice alone differs by more from chance.

    Raises ValueError when the numbers of slices or the classes differ: then they do not compare.
    """
    if new.slices != published.slices or new.iou.keys() != published.iou.keys():
        raise ValueError(
            "Two checkpoints compare only on the same validation slices and classes: found "
            f"{new.slices} slices of {sorted(new.iou)} and {published.slices} of "
            f"{sorted(published.iou)}."
        )
    if new.slices < MINIMUM_COMPARED:
        return False
    both = [n for n in new.iou if not (math.isnan(new.iou[n]) or math.isnan(published.iou[n]))]
    if not both:
        return False
    drop = sum(published.iou[name] - new.iou[name] for name in both) / len(both)
    return drop > tolerance


def _apply(
    ids: Sequence[SliceId], positions: Mapping[SliceId, Position], blocks: Sequence[ZBlock]
) -> Split:
    held = inside(ids, positions, blocks)
    return Split(
        train=tuple(i for i in ids if i not in held),
        validation=tuple(i for i in ids if i in held),
        blocks=tuple(blocks),
    )


def _choose(
    ids: Sequence[SliceId],
    positions: Mapping[SliceId, Position],
    fraction: float,
    rng: np.random.Generator,
) -> list[ZBlock]:
    heights: dict[str, list[float]] = {}
    for slice_id in ids:
        heights.setdefault(positions[slice_id].volume, []).append(positions[slice_id].z)
    volumes = sorted(heights)
    dense = [volume for volume in volumes if len(heights[volume]) >= 5]
    if 2 * sum(len(heights[volume]) for volume in dense) >= len(ids):
        return [_block(volume, sorted(heights[volume]), fraction, rng) for volume in dense]
    held: list[str] = []
    count, wanted = 0, fraction * len(ids)
    for i in rng.permutation(len(volumes)):
        more = count + len(heights[volumes[i]])
        if count < wanted and more <= 1.5 * wanted:
            held, count = [*held, volumes[i]], more
    return [ZBlock(v) for v in sorted(held or [min(volumes, key=lambda v: len(heights[v]))])]


def _block(volume: str, z: list[float], fraction: float, rng: np.random.Generator) -> ZBlock:
    """``fraction`` of the labelled ``z`` (sorted), and half of the way to those around them."""
    length = max(1, round(fraction * len(z)))
    start = int(rng.integers(len(z) - length + 1))
    stop = start + length
    low = (z[start - 1] + z[start]) / 2 if start else None
    high = (z[stop - 1] + z[stop]) / 2 if stop < len(z) else None
    return ZBlock(volume, low, high)
