"""Whether the training goes on after a round is published, and what is known of what is served."""

from __future__ import annotations

import time

from ml_backend.rounds.artefacts import FURTHER, FURTHER_WEIGHTS, LABELS, METRICS
from ml_backend.rounds.claim import last_holder
from ml_backend.rounds.pauses import next_job_at
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import FurtherRecord, MetricsRecord, Published
from ml_backend.rounds.store import ProjectStore, RoundFolder

__all__ = [
    "FAILURES",
    "JUDGES",
    "TRIES",
    "judges",
    "known_further",
    "may_go_on",
    "next_round_is_on",
    "served_metrics",
    "shown_metrics",
]

JUDGES = 5
"""Fewer slices that nothing was trained on cannot tell better weights from lucky ones."""
TRIES = 3
"""After so many that were no better, there is nothing more to gain from these labels."""
FAILURES = 8
"""After so many jobs that failed, some two hours with their pauses, it is given up until there are
other labels."""


def judges(metrics: MetricsRecord) -> list[int]:
    """The labelled slices that the weights of ``metrics`` have never seen."""
    return [task for task in metrics.validation if task not in metrics.learned]


def known_further(folder: RoundFolder) -> FurtherRecord:
    """`further.json` of the round; a fresh one where none is."""
    return folder.load(FURTHER) or FurtherRecord()


def may_go_on(project: ConnectedProject, published: Published) -> bool:
    """Whether the published round may be trained on: somebody wants it, the round's own weights are
    served, enough labelled slices judge them, there is time and hope left, no pause after a job
    that failed, and the next round has not begun."""
    settings = project.settings
    folder = project.folder.round(published.round)
    if not settings.further_minutes or settings.pause or not published.round:
        return False
    if published.weights is None or published.weights_round != published.round:
        return False
    further = known_further(folder)
    if further.ended or further.failures >= FAILURES or time.time() < next_job_at(further):
        return False
    if next_round_is_on(project, published):
        return False
    if further.model_version is not None:  # all that is left is to serve it
        return True
    if further.tries >= TRIES:
        return False
    if further.seconds >= 60 * settings.further_minutes:
        return False
    metrics = folder.load(METRICS)
    if metrics is None or len(judges(metrics)) < JUDGES:
        return False
    labels = folder.load(LABELS)
    return labels is not None and not labels.early


def next_round_is_on(project: ConnectedProject, published: Published) -> bool:
    """Whether a worker holds the round after the ``published`` one, or its weights were compared
    with those that are served: others in their place would be replaced unseen."""
    following = project.folder.round(published.round + 1)
    if following.has(METRICS):
        return True
    holder = last_holder(following)
    return holder is not None and holder.alive(project.settings.claim_ttl_s)


def shown_metrics(
    project: ProjectStore, number: int, published: Published | None
) -> MetricsRecord | None:
    """What is known of round ``number``'s weights: where it made those that are served, of these,
    though the training that went on after it did."""
    if published is not None and published.weights_round == number:
        return served_metrics(project, published)
    return project.round(number).load(METRICS)


def served_metrics(project: ProjectStore, published: Published) -> MetricsRecord | None:
    """What is known of the weights that are served: from the round that made them, or the training
    that went on after it. None without weights."""
    number = published.weights_round
    if number is None:
        return None
    folder = project.round(number)
    if published.weights == folder.relative(FURTHER_WEIGHTS):
        return folder.need(FURTHER).metrics
    return folder.load(METRICS)
