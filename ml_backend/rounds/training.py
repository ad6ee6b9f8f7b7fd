"""The training step of a round: fit, validate, compare with what is published. Imports torch."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from al_strategies.evidence import SliceId
from al_strategies.learner import InvalidMask, Learner, Metrics, Progress
from ml_backend.rounds.artefacts import LABELS, SELECTION
from ml_backend.rounds.coverage import Coverage
from ml_backend.rounds.effort import new_effort
from ml_backend.rounds.further import served_metrics
from ml_backend.rounds.learners import device_of, learner_config, new_learner, stored_learner
from ml_backend.rounds.pseudo import Mask, pseudo_labels, pseudo_slices
from ml_backend.rounds.records import DatasetRecord, MetricsRecord, Published
from ml_backend.rounds.source import ProjectSource, positions
from ml_backend.rounds.store import ProjectStore
from ml_backend.rounds.unreadable import UnreadableSlices
from ml_backend.segmentation.checkpoints import CheckpointError
from ml_backend.segmentation.validation import Split, ZBlock, compare, split_labelled
from ml_backend.settings import Settings

__all__ = ["Outcome", "UnreadableSlices", "train"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """Weights as safetensors bytes, what is known of them, and the pseudo-labels they learned from:
    slice → (H, W) uint8 mask."""

    weights: bytes
    metrics: MetricsRecord
    pseudo: dict[SliceId, Mask] = field(default_factory=dict)


def train(
    settings: Settings,
    project: ProjectStore,
    dataset: DatasetRecord,
    published: Published,
    source: ProjectSource,
    blocks: Sequence[ZBlock],
    seed: int,
    progress: Progress | None = None,
) -> Outcome:
    """Train on the dataset's labels outside of ``blocks``, validate on those inside, and compare.

    What the published round's selection wants pseudo-labelled is trained on too (`pseudo_slices`),
    as the published checkpoint segments it now. Whatever strategy is set today: the selection that
    was published decides.

    A checkpoint that is worse than the published one on the same validation slices (`compare`) is
    flagged: kept in its round, not served. They are compared only on slices that neither has
    trained on: in projects from before blocks were fixed at adoption, the first held-out block was
    training data of the checkpoints before it. What the published checkpoint has trained on says
    the round that made it, an older one after a flag. Slices without a labelled pixel judge
    nothing. A published checkpoint that cannot be loaded any more (``not_loaded``), as after an
    upgrade, is neither started from nor compared with, and labels nothing.

    A slice that cannot be read any more, or whose image has another size than its mask, is neither
    trained nor validated on; it is named in the log and in ``left_out``. Raises UnreadableSlices
    when more than a tenth, and two at least, cannot be read.
    """
    earlier = project.round(published.round).load(LABELS) if published.round else None
    served = served_metrics(project, published)
    labelled = [label.task for label in dataset.labels]
    places = positions(dataset)
    split = split_labelled(labelled, places, blocks)  # type: ignore[arg-type]  # int is a SliceId
    device = device_of(settings.train_device)
    config = learner_config(settings, device, brief=dataset.early)
    learner = new_learner(tuple(dataset.classes), config, device)
    old, not_loaded = _published_learner(settings, project, dataset, published)
    if settings.warm_start and old is not None:
        learner.start_from(old)
    pseudo, unread = _pseudo_labels(old, project, dataset, published, source, split, progress)
    left_out = _LeftOut(dataset, len(pseudo))
    report = learner.fit(
        source, split.train, pseudo=pseudo, seed=seed, progress=progress, unusable=left_out
    )
    validation = learner.usable(source, split.validation, left_out)
    unread += [i for i in pseudo if i in left_out.ids]
    pseudo = {i: mask for i, mask in pseudo.items() if i not in left_out.ids}
    record = MetricsRecord(
        training={**report.settings, "seconds": round(report.seconds, 2), "steps": report.steps},
        losses=list(report.losses),
        trained=[int(i) for i in split.train if i not in left_out.ids],
        pseudo=[int(i) for i in pseudo],
        pseudo_unread=sorted(int(i) for i in unread),
        inherited=sorted(served.learned) if served and report.warm_started else [],
        validation=[int(i) for i in validation],
        left_out=[i for i in labelled if i in left_out.ids],
        blocks=list(split.blocks),
        published_weights=published.weights if old is not None else None,
        not_loaded=not_loaded,
        effort=new_effort(dataset.labels, earlier.labels if earlier else ()),
    )
    unseen = [i for i in validation if served is not None and i not in served.learned]
    if validation:
        metrics = learner.evaluate(source, validation, progress=progress)
        record.miou, record.iou = metrics.miou, _finite(metrics)
        if old is not None and unseen:
            new = metrics if unseen == validation else learner.evaluate(source, unseen)
            _compare(record, new, old.evaluate(source, unseen), published)
    if record.flagged is not None:
        logger.warning("round %d is flagged: %s", dataset.round, record.flagged)
    return Outcome(learner.to_bytes(), record, pseudo)


class _LeftOut:
    """Is told of the slices that the training goes on without: ``ids``."""

    def __init__(self, dataset: DatasetRecord, pseudo: int) -> None:
        self.ids: set[SliceId] = set()
        self._round = dataset.round
        self._labelled = {label.task for label in dataset.labels}
        self._totals = {"labelled": len(self._labelled), "pseudo-labelled": pseudo}
        self._unreadable = dict.fromkeys(self._totals, 0)

    def __call__(self, slice_id: SliceId, error: Exception) -> None:
        self.ids.add(slice_id)
        kind = "labelled" if slice_id in self._labelled else "pseudo-labelled"
        if kind == "labelled":
            logger.warning(
                "round %d: slice %s is left out of training and validation; look at its image, the "
                "next round renders its mask anew: %s", self._round, slice_id, error,
            )  # fmt: skip
        else:
            logger.warning("not pseudo-labelled: slice %s: %s", slice_id, error)
        if isinstance(error, InvalidMask):
            return
        self._unreadable[kind] += 1
        if self._unreadable[kind] > max(1, self._totals[kind] // 10):
            raise UnreadableSlices(
                f"{self._unreadable[kind]} of the {self._totals[kind]} {kind} slices cannot be "
                "read, expected a tenth at most. Are Label Studio, its storage and the volumes in "
                "reach of this machine? The next attempt reads them again. Delete the tasks of "
                f"images that are gone for good. The last: {error}"
            ) from error


def _compare(record: MetricsRecord, new: Metrics, old: Metrics, published: Published) -> None:
    """Flag ``record`` when the checkpoint is worse than the published one on unseen slices."""
    verdict = compare(new, old)
    record.published_miou, record.compared, record.p = old.miou, verdict.slices, verdict.p
    if verdict.worse:
        record.flagged = (
            f"mIoU {new.miou:.3f} on {new.slices} validation slices, the published checkpoint of "
            f"round {published.weights_round} has {old.miou:.3f} (p = {verdict.p:.3f}): the "
            "published one goes on"
        )


def _pseudo_labels(
    old: Learner | None,
    project: ProjectStore,
    dataset: DatasetRecord,
    published: Published,
    source: ProjectSource,
    split: Split,
    progress: Progress | None,
) -> tuple[dict[SliceId, Mask], list[SliceId]]:
    """What the published round wants pseudo-labelled, by its checkpoint ``old``, and what of it
    cannot be read.

    Empty without one: before round 1, after the classes changed, where it cannot be loaded. Raises
    UnreadableSlices.
    """
    selection = project.round(published.round).load(SELECTION)
    if old is None or selection is None or not selection.pseudo:
        return {}, []
    ids = pseudo_slices(selection.pseudo, dataset, positions(dataset), split.blocks)
    coverage = Coverage(
        len(ids),
        "the {} slices that are to be pseudo-labelled",
        "the training would go on without what the strategy chose",
        "the pseudo-labels",
    )
    found: dict[SliceId, Mask] = {}
    for asked in coverage.passes(ids):
        found |= pseudo_labels(old, source, asked, progress, coverage.note)
    masks: dict[SliceId, Mask] = {i: found[i] for i in ids if i in found}
    logger.info("round %d: %d of the %d slices that %s chose are pseudo-labelled", dataset.round,
                len(masks), len(selection.pseudo), selection.strategy)  # fmt: skip
    return masks, list(coverage.failures)


def _published_learner(
    settings: Settings, project: ProjectStore, dataset: DatasetRecord, published: Published
) -> tuple[Learner | None, str | None]:
    """The published checkpoint, if it is of the same classes, and why it cannot be loaded."""
    if published.weights is None or published.fingerprint != dataset.fingerprint:
        return None, None
    try:
        return stored_learner(settings, project, published.weights), None
    except CheckpointError as error:
        not_loaded = f"{published.weights}: {error}"
    logger.warning(
        "round %d: the published checkpoint cannot be loaded, the training begins afresh and is "
        "compared with nothing: %s", dataset.round, not_loaded,
    )  # fmt: skip
    return None, not_loaded


def _finite(metrics: Metrics) -> dict[str, float | None]:
    return {name: None if math.isnan(iou) else iou for name, iou in metrics.iou.items()}
