"""Slices that are held out, in blocks along z: to test on, or to judge a checkpoint by.

Neighbouring slices are near-copies, so slices held out at random would be answered from memory.
`held_out_block` splits slices whose labels are known, once, for testing. `split_validation` holds
out of those that are labelled so far, round after round: its blocks stay the same (they go into the
round's record), so no checkpoint is trained on the slices that judge it; one that goes on from the
weights of the round before may have inherited some of them. They reach half-way to the labels
around them: labels that come later fall into them in proportion.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from al_strategies.errors import NextsliceError
from al_strategies.evidence import Position, SliceId

__all__ = [
    "FRACTION",
    "MINIMUM_LABELLED",
    "HoldOutError",
    "Split",
    "ZBlock",
    "held_back",
    "held_out_block",
    "inside",
    "split_validation",
]

MINIMUM_LABELLED = 10
FRACTION = 0.2


class HoldOutError(NextsliceError, ValueError):
    """Slices that cannot be split so that some are trained on and some are held out."""


def held_out_block(
    positions: Mapping[SliceId, Position],
    *,
    fraction: float = 0.2,
    gap: float = 5.0,
    centre: float = 0.5,
) -> tuple[tuple[SliceId, ...], tuple[SliceId, ...]]:
    """Split slices into (to train on, held out): a contiguous block along z of every volume.

    The block is ``fraction`` of the volume's slices, at least one, around the relative place
    ``centre``. Neighbouring slices are near-copies, so those within ``gap`` of the block, **in z
    units**, are in neither part: with consecutive slices that is ``gap`` slices on each side (of
    112, 22 are held out, 10 dropped and 80 left); with every 50th slice nothing is dropped, and
    nothing needs to be. Both parts keep the order of ``positions``. Volumes of fewer than three
    slices are trained on. Raises HoldOutError when a number is out of range, or when nothing would
    be left to train on or to hold out.
    """
    if not 0 < fraction < 1 or gap < 0 or not 0 <= centre <= 1:
        raise HoldOutError(
            f"fraction {fraction}, gap {gap}, centre {centre}: expected 0 < fraction < 1,"
            " gap ≥ 0, 0 ≤ centre ≤ 1"
        )
    volumes = _along_z(positions, positions)
    held: set[SliceId] = set()
    dropped: set[SliceId] = set()
    for members in volumes.values():
        if len(members) < 3:
            continue
        block = _central(members, fraction, centre)
        low, high = positions[block[0]].z - gap, positions[block[-1]].z + gap
        held.update(block)
        dropped.update(i for i in members if low <= positions[i].z <= high)
    train = tuple(i for i in positions if i not in held | dropped)
    if not train or not held:
        raise HoldOutError(
            f"{len(positions)} slices in {len(volumes)} volumes, held out {len(held)}, left"
            f" {len(train)} with fraction {fraction} and gap {gap}: expected some of both"
        )
    return train, tuple(i for i in positions if i in held)


def _central(ordered: Sequence[SliceId], fraction: float, centre: float) -> Sequence[SliceId]:
    """``fraction`` of the slices in a row, at least one and not all, around its ``centre``."""
    count = min(_part(fraction, len(ordered)), len(ordered) - 1)
    start = round(centre * len(ordered) - count / 2)
    start = min(max(start, 0), len(ordered) - count)
    return ordered[start : start + count]


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
    heights = {
        volume: [positions[i].z for i in members]
        for volume, members in _along_z(ids, positions).items()
    }
    volumes = sorted(heights)
    dense = [volume for volume in volumes if len(heights[volume]) >= 5]
    if 2 * sum(len(heights[volume]) for volume in dense) >= len(ids):
        return [_drawn(volume, heights[volume], fraction, rng) for volume in dense]
    held: list[str] = []
    count, wanted = 0, fraction * len(ids)
    for i in rng.permutation(len(volumes)):
        more = count + len(heights[volumes[i]])
        if count < wanted and more <= 1.5 * wanted:
            held, count = [*held, volumes[i]], more
    return [ZBlock(v) for v in sorted(held or [min(volumes, key=lambda v: len(heights[v]))])]


def _drawn(volume: str, z: list[float], fraction: float, rng: np.random.Generator) -> ZBlock:
    """``fraction`` of the labelled ``z`` (sorted), and half of the way to those around them."""
    length = _part(fraction, len(z))
    start = int(rng.integers(len(z) - length + 1))
    stop = start + length
    low = (z[start - 1] + z[start]) / 2 if start else None
    high = (z[stop - 1] + z[stop]) / 2 if stop < len(z) else None
    return ZBlock(volume, low, high)


def _along_z(
    ids: Iterable[SliceId], positions: Mapping[SliceId, Position]
) -> dict[str, list[SliceId]]:
    """Volume → its slices of ``ids``, by z."""
    volumes: dict[str, list[SliceId]] = {}
    for slice_id in ids:
        volumes.setdefault(positions[slice_id].volume, []).append(slice_id)
    for members in volumes.values():
        members.sort(key=lambda i: positions[i].z)
    return volumes


def _part(fraction: float, slices: int) -> int:
    """How many of ``slices`` are ``fraction`` of them, at least one."""
    return max(1, round(fraction * slices))
