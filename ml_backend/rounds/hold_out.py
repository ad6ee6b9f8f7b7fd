"""Which slices judge checkpoints: chosen at adoption, and handed out among the others.

Round 0 chooses the blocks (`al_strategies.holdout.fixed_blocks`), before anybody has labelled a
slice; each round after it takes those of the round that is published.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from al_strategies import Query, Selection, get_strategy
from al_strategies.evidence import Evidence, SliceId
from al_strategies.holdout import ZBlock, fixed_blocks, held_out_places, inside
from ml_backend.rounds.artefacts import METRICS, SELECTION
from ml_backend.rounds.records import DatasetRecord, Published
from ml_backend.rounds.source import positions
from ml_backend.rounds.store import ProjectStore

__all__ = ["blocks_of", "select"]


def blocks_of(
    project: ProjectStore, dataset: DatasetRecord, published: Published | None, seed: int
) -> tuple[ZBlock, ...]:
    """The blocks of the published round, and those of volumes that came since.

    In a project from before blocks were fixed at adoption they are those that it has, so that the
    slices that validate go on validating.
    """
    blocks: tuple[ZBlock, ...] = ()
    learned: set[int] = set()
    if published is not None:
        before = project.round(published.round)
        metrics, selection = before.load(METRICS), before.load(SELECTION)
        found = metrics.blocks if metrics else selection.blocks if selection else ()
        blocks, learned = tuple(found), metrics.learned if metrics else set()
    return fixed_blocks(
        positions(dataset),  # type: ignore[arg-type]  # int is a SliceId
        blocks=blocks,
        labelled={label.task for label in dataset.labels},
        learned=learned,
        seed=seed,
    )


def select(strategy: str, query: Query, blocks: tuple[ZBlock, ...]) -> Selection:
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
    judging = sum(due[: query.k])
    chosen = get_strategy(strategy).select(
        replace(query, pool=_part(pool, held, within=False), k=query.k - judging)
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
