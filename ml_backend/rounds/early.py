"""The first rounds of a project: short ones at a few labels, so that the next slice has a mask.

They train briefly, score nothing and leave the order of the queue as it is. From K labels on every
round is a whole one, and one that still trains on fewer is left for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ml_backend.rounds.records import DatasetRecord, Published, SelectionRecord
from ml_backend.settings import Settings

__all__ = ["is_early", "next_round_at", "same_order", "wanted_labels"]


def next_round_at(learned: int, k: int, early: Sequence[int]) -> int:
    """How many labels, changed ones counted once more, begin the next round.

    ``learned``: labels that the published round has learned from. ``early``: numbers of labels that
    begin a short round, ascending. From ``k`` labels on, and where none of ``early`` is asked for,
    it is K more.
    """
    if not early or learned >= k:
        return learned + k
    return next((number for number in early if learned < number < k), k)


def wanted_labels(published: Published, labelled: int, settings: Settings) -> int:
    """How many labels that the published round has not learned from begin the next one.

    ``labelled``: those that it has; round 0 has learned from none of those that were there.
    """
    learned = labelled if published.round else 0
    return next_round_at(learned, settings.k, settings.early_labels) - learned


def is_early(labels: int, k: int, early: Sequence[int]) -> bool:
    """Whether a round on so many ``labels`` that nobody asked for is a short one."""
    return bool(early) and 0 < labels < k


def same_order(before: SelectionRecord, dataset: DatasetRecord, k: int) -> SelectionRecord:
    """The selection ``before``, without what was labelled or is gone since; what people skipped or
    have begun stands last."""
    state = {task.id: task.state for task in dataset.tasks}
    ranked = [*before.chosen, *before.reserve, *before.backlog]
    open_ = [task for task in ranked if state.get(task, "labelled") != "labelled"]
    order = sorted(open_, key=lambda task: state[task] != "pool")
    reserve = k + len(before.reserve)
    return before.model_copy(
        update={
            "chosen": order[:k],
            "reserve": order[k:reserve],
            "backlog": order[reserve:],
            "pseudo": [],
        }
    )
