"""Which slices judge checkpoints: chosen at adoption, and handed out among the others.

Round 0 chooses the blocks (`al_strategies.holdout.fixed_blocks`), before anybody has labelled a
slice; each round after it takes those of the round that is published.
"""

from __future__ import annotations

from collections.abc import Sequence

from al_strategies import Query, Selection, get_strategy
from al_strategies.handing_out import hand_out
from al_strategies.holdout import ZBlock, closed, fixed_blocks
from ml_backend.rounds.artefacts import DATASET, METRICS, SELECTION
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
        blocks = _closed(project, found, dataset)
        learned = metrics.learned if metrics else set()
    return fixed_blocks(
        positions(dataset),  # type: ignore[arg-type]  # int is a SliceId
        blocks=blocks,
        labelled={label.task for label in dataset.labels},
        learned=learned,
        seed=seed,
    )


def _closed(
    project: ProjectStore, blocks: Sequence[ZBlock], dataset: DatasetRecord
) -> tuple[ZBlock, ...]:
    """``blocks``; the ends that records of old leave open are those of the volumes as the first
    round had them that held the block out, or as ``dataset`` has them where that is gone."""
    for number in project.rounds():
        if not any(block.open for block in blocks):
            break
        folder = project.round(number)
        records = (folder.load(SELECTION), folder.load(METRICS))
        held = {block for record in records if record for block in record.blocks if block.open}
        seen = folder.load(DATASET) if held.intersection(blocks) else None
        if seen is not None:
            places = positions(seen).values()
            blocks = [closed(block, places) if block in held else block for block in blocks]
    if any(block.open for block in blocks):
        places = positions(dataset).values()
        blocks = [closed(block, places) for block in blocks]
    return tuple(blocks)


def select(strategy: str, query: Query, blocks: tuple[ZBlock, ...]) -> Selection:
    """`hand_out` by the name of the strategy."""
    return hand_out(get_strategy(strategy), query, blocks)
