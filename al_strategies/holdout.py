"""Slices that are held out, in blocks along z: to test on, or to judge a checkpoint by.

Neighbouring slices are near-copies, so slices held out at random would be answered from memory.
`held_out_block` splits slices whose labels are known, once, for testing. `fixed_blocks` are chosen
when a project is adopted, before anything is labelled, and stay (they go into every round's
record): so nothing was ever trained on the slices that judge a checkpoint, whatever weights it went
on from. `held_out_places` says where in the queue slices of them stand.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from al_strategies.errors import NextsliceError
from al_strategies.positions import Position, SliceId, ZBlock

__all__ = [
    "FRACTION",
    "MINIMUM_JUDGED",
    "MINIMUM_SLICES",
    "HoldOutError",
    "Split",
    "ZBlock",
    "closed",
    "fixed_blocks",
    "held_out_block",
    "held_out_places",
    "inside",
    "split_labelled",
]

FRACTION = 0.2
MINIMUM_JUDGED = 5
"""Held-out slices with which two checkpoints can be told apart. If each of n falls, that has a
probability of 1 / 2ⁿ where neither is worse: fewer can say nothing at 0.05."""
MINIMUM_SLICES = 10
"""Of a project that holds any out."""
_LEAST = 5
"""Slices of a volume that is not held out whole."""
_LEAST_BLOCK = 3
"""Slices of a block where a volume has several."""
_BLOCKS = 3
"""Of a volume, at most."""
_SLACK = 1e-9


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
    if not 0 < fraction < 1 or not gap >= 0 or not 0 <= centre <= 1:
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
class Split:
    """Labelled slices to train on and to validate on, and the blocks that hold the latter."""

    train: tuple[SliceId, ...]
    validation: tuple[SliceId, ...]
    blocks: tuple[ZBlock, ...]


def fixed_blocks(
    positions: Mapping[SliceId, Position],
    *,
    blocks: Sequence[ZBlock] = (),
    labelled: Collection[SliceId] = (),
    learned: Collection[SliceId] = (),
    fraction: float = FRACTION,
    seed: int = 0,
) -> tuple[ZBlock, ...]:
    """The blocks to hold out of all slices, ``positions``, before anything is learned of them.

    ``blocks``: those that were chosen before; they stay, and only volumes that none of them is of
    get some: at first all, later those that were added. ``labelled``: slices that have a label
    already, of which ``learned`` were trained on.

    A volume of at least 5 slices has up to three blocks along z, evenly spread over it, that hold
    ``fraction`` of its slices together; ``seed`` says where in its part each lies. If at least 5 of
    its slices are labelled and none is learned, they hold ``fraction`` of these instead. Of several
    places those are taken that hold the fewest ``learned`` slices. Smaller volumes are held out
    whole, as long as that is at most ``fraction`` of their slices. Fewer than `MINIMUM_SLICES` in
    all: nothing is held out. A block ends half a step beyond its outermost slices, so what a volume
    gains beyond its ends is in none.
    """
    if len(positions) < MINIMUM_SLICES:
        return tuple(blocks)
    held = list(blocks)
    named = {block.volume for block in blocks}
    volumes = _along_z(positions, positions)
    rng = np.random.default_rng(seed)
    for volume in sorted(volumes):
        members = volumes[volume]
        # Drawn for every volume, so that one does not depend on which others are held out already.
        draws = rng.random(_BLOCKS).tolist()
        if volume not in named and len(members) >= _LEAST:
            known = [i for i in members if i in labelled]
            fresh = len(known) >= _LEAST and not any(i in learned for i in known)
            rows = known if fresh else members
            taught = [i in learned for i in rows]
            held += _spread(volume, [positions[i].z for i in rows], taught, fraction, draws)
    return (*held, *_whole(volumes, positions, named, learned, fraction, rng))


def _spread(
    volume: str, z: list[float], taught: list[bool], fraction: float, draws: Sequence[float]
) -> Iterator[ZBlock]:
    """Blocks of ``volume``, one in each of its equal parts; ``z`` is sorted, ``draws`` in [0, 1)
    say where in its part each lies."""
    edges = _edges(z)
    count = min(max(round(fraction * len(z)) // _LEAST_BLOCK, 1), _BLOCKS)
    for part, draw in zip(np.array_split(np.arange(len(z)), count), draws, strict=False):
        length = _part(fraction, len(part))
        starts = np.arange(part[0], part[-1] + 2 - length)
        known = np.array([sum(taught[start : start + length]) for start in starts])
        best = starts[known == known.min()]
        start = int(best[int(draw * len(best))])
        yield ZBlock(volume, edges[start], edges[start + length])


def closed(block: ZBlock, positions: Collection[Position]) -> ZBlock:
    """``block``, whose open ends are those of its volume in ``positions``; open as before where
    these hold none of it."""
    z = sorted(place.z for place in positions if place.volume == block.volume)
    if not z:
        return block
    first, *_, last = _edges(z)
    return ZBlock(
        block.volume,
        first if block.low is None else block.low,
        last if block.high is None else block.high,
    )


def _edges(z: Sequence[float]) -> list[float]:
    """What lies in the middle between each two of ``z``, which is sorted, and half a step beyond
    the first and the last."""
    between = [(low + high) / 2 for low, high in pairwise(z)]
    first, last = (between[0], between[-1]) if between else (z[0], z[0])
    return [2 * z[0] - first, *between, 2 * z[-1] - last]


def _whole(
    volumes: Mapping[str, Sequence[SliceId]],
    positions: Mapping[SliceId, Position],
    named: Collection[str],
    learned: Collection[SliceId],
    fraction: float,
    rng: np.random.Generator,
) -> list[ZBlock]:
    """Small volumes to hold out besides those in ``named``, all of whose slices are left to learn
    of."""
    small = [volume for volume in sorted(volumes) if len(volumes[volume]) < _LEAST]
    room = fraction * sum(len(volumes[volume]) for volume in small)
    room -= sum(len(volumes[volume]) for volume in small if volume in named)
    chosen = []
    for place in rng.permutation(len(small)):
        members = volumes[small[place]]
        fresh = small[place] not in named and not any(i in learned for i in members)
        if fresh and len(members) <= room:
            edges = _edges([positions[i].z for i in members])
            chosen.append(ZBlock(small[place], edges[0], edges[-1]))
            room -= len(members)
    return chosen


def split_labelled(
    ids: Sequence[SliceId],
    positions: Mapping[SliceId, Position],
    blocks: Sequence[ZBlock],
) -> Split:
    """The labelled slices ``ids`` outside of ``blocks``, to train on, and inside, to validate on.

    Where all of them are inside, the blocks that hold them give way, for good: somebody has
    labelled what was not handed out, and a model is worth more than its measure.
    """
    held = inside(ids, positions, blocks)
    if ids and len(held) == len(set(ids)):
        blocks = [block for block in blocks if not any(positions[i] in block for i in ids)]
        held = frozenset()
    return Split(
        train=tuple(i for i in ids if i not in held),
        validation=tuple(i for i in ids if i in held),
        blocks=tuple(blocks),
    )


def held_out_places(
    count: int, labelled: int, held: int, fraction: float = FRACTION
) -> tuple[bool, ...]:
    """Whether a slice of a held-out block belongs at each of the next ``count`` places of a queue.

    ``labelled``: slices that have a label, ``held`` of them inside a block. So that these are
    ``fraction`` of all, and no more, from the first ones on; where too few are held, one place in
    1 / ``fraction`` makes up for it, and not more, since nothing is learned from them. That place
    is told by the number of labels, so that short queues that follow each other agree on it.
    """
    every = round(1 / fraction)
    places = []
    for number in range(labelled + 1, labelled + count + 1):
        due = number % every == 0 and held + 1 <= fraction * number + _SLACK
        held += due
        places.append(due)
    return tuple(places)


def inside(
    ids: Iterable[SliceId], positions: Mapping[SliceId, Position], blocks: Collection[ZBlock]
) -> frozenset[SliceId]:
    """Those of ``ids`` that lie in one of ``blocks``."""
    return frozenset(i for i in ids if any(positions[i] in block for block in blocks))


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
