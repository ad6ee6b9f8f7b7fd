"""What a strategy chooses to learn of, and slices that are held out among it.

Live rounds and simulations hand out alike. `al_strategies.holdout` says which slices are held out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from al_strategies.base import Query, Selection, Strategy, get_strategy
from al_strategies.evidence import Evidence, SliceId
from al_strategies.holdout import ZBlock, held_out_places, inside

__all__ = ["hand_out"]


def hand_out(strategy: Strategy, query: Query, blocks: tuple[ZBlock, ...]) -> Selection:
    """What ``strategy`` selects outside of ``blocks``, and slices inside of them at the places that
    `held_out_places` gives them, which are the next of an even spread.

    They teach nothing, so no strategy chooses among them: what is uncertain there stays uncertain.
    The last slices of a project are whatever is left.
    """
    pool, labelled = query.pool, query.labelled
    places = dict(zip(pool.ids, pool.positions, strict=True))
    held = inside(pool.ids, places, blocks)
    done = inside(labelled.ids, dict(zip(labelled.ids, labelled.positions, strict=True)), blocks)
    wanted = query.k + query.reserve
    due = held_out_places(wanted, len(labelled), len(done)) if held else (False,) * wanted
    judging = min(sum(due[: query.k]), len(held))
    chosen = strategy.select(
        replace(
            query,
            pool=_part(pool, held, within=False),
            k=query.k - judging,
            taken=len(labelled) - len(done) if blocks else None,
        )
    )
    spread = get_strategy("strided").select(
        replace(
            query,
            pool=_part(pool, held, within=True),
            labelled=_part(labelled, done, within=True),
            k=min(wanted, len(held)),
            reserve=0,
            spacing=None,
        )
    )
    teach, judge = iter((*chosen.chosen, *chosen.reserve)), iter(spread.chosen)
    merged = tuple(_merged(due, teach, judge))
    # What somebody has skipped or begun comes last, of whichever part it is.
    order = tuple(sorted(merged, key=lambda i: i in query.deferred))
    return replace(
        chosen,
        chosen=order[: query.k],
        reserve=order[query.k :],
        pseudo=tuple(i for i in chosen.pseudo if i not in order[: query.k]),
        scores={i: chosen.scores[i] for i in order if i in chosen.scores},
    )


def _part(evidence: Evidence, ids: frozenset[SliceId], *, within: bool) -> Evidence:
    return evidence.take([row for row, i in enumerate(evidence.ids) if (i in ids) == within])


def _merged(
    due: tuple[bool, ...], teach: Iterator[SliceId], judge: Iterator[SliceId]
) -> Iterator[SliceId]:
    """A slice for each place, from ``judge`` where it is ``due``; from the other where one has no
    more."""
    for place in due:
        first, second = (judge, teach) if place else (teach, judge)
        found = next(first, None)
        if found is None:
            found = next(second, None)
        if found is None:
            return
        yield found
