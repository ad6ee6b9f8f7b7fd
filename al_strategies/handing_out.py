"""What a strategy chooses to learn of, and slices that are held out among it.

Live rounds and simulations hand out alike. `al_strategies.holdout` says which slices are held out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
            # Asked for no slice at all, a strategy names none to pseudo-label either.
            reserve=query.reserve or int(judging == query.k),
            # Of the reserve, as many may be chosen in place of skipped slices that judge.
            pseudo=query.pseudo_labelled + judging,
            taken=len(labelled) - len(done) if blocks else None,
        )
    )
    spread = _spread(
        query,
        _part(pool, held, within=True),
        _part(labelled, done, within=True),
        first=max(judging, 1),
        count=min(wanted, len(held)),
    )
    teach, judge = iter((*chosen.chosen, *chosen.reserve)), iter(spread)
    merged = tuple(_merged(due, teach, judge))
    # What somebody has skipped or begun comes last, of whichever part it is.
    order = tuple(sorted(merged, key=lambda i: i in query.deferred))
    best = order[: query.k]
    return replace(
        chosen,
        chosen=best,
        reserve=order[query.k :],
        pseudo=tuple(i for i in chosen.pseudo if i not in best)[: query.pseudo_labelled],
        scores={i: chosen.scores[i] for i in order if i in chosen.scores},
    )


def _spread(
    query: Query, pool: Evidence, labelled: Evidence, *, first: int, count: int
) -> list[SliceId]:
    """``count`` slices of ``pool``, every beginning of which is spread evenly between those that
    are ``labelled``: ``first`` of them, then as many between these as there are before, and so on.
    """
    places = {i: p for e in (pool, labelled) for i, p in zip(e.ids, e.positions, strict=True)}
    left, known = list(pool.ids), list(labelled.ids)
    spread: list[SliceId] = []

    def part(ids: Sequence[SliceId]) -> Evidence:
        return Evidence(tuple(ids), tuple(places[i] for i in ids))

    while len(spread) < count:
        portion = min(len(spread) or first, count - len(spread))
        asked = replace(
            query, pool=part(left), labelled=part(known), k=portion, reserve=0, spacing=None
        )
        found = get_strategy("strided").select(asked).chosen
        spread += found
        known += found
        taken = set(found)
        left = [i for i in left if i not in taken]
    return spread


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
