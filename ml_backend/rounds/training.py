"""The training step of a round: fit, validate, compare with what is published. Imports torch."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

from al_strategies.evidence import SliceId
from al_strategies.learner import InvalidMask, Learner, Metrics, Progress
from ml_backend.rounds.artefacts import METRICS, SELECTION
from ml_backend.rounds.learners import device_of, learner_config, load_learner, new_learner
from ml_backend.rounds.pseudo import Mask, pseudo_labels, pseudo_slices
from ml_backend.rounds.records import DatasetRecord, MetricsRecord, Published
from ml_backend.rounds.slices import UnreadableSlices
from ml_backend.rounds.source import ProjectSource, positions
from ml_backend.rounds.store import ProjectStore
from ml_backend.segmentation.validation import Split, is_worse, split_validation
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
    seed: int,
    progress: Progress | None = None,
) -> Outcome:
    """Train on the dataset's labels, hold a z-block out once there are enough, and compare.

    What the published round's selection wants pseudo-labelled is trained on too (`pseudo_slices`),
    as the published checkpoint segments it now. Whatever strategy is set today: the selection that
    was published decides.

    A checkpoint that is worse than the published one on the same validation slices (`is_worse`) is
    flagged: kept in its round, not served. They are compared only on slices that neither has
    trained on: the first held-out block was training data of the checkpoints before it. The blocks
    are those of the published round; what the published checkpoint has trained on says the round
    that made it, an older one after a flag. Slices without a labelled pixel judge nothing.

    A slice that cannot be read any more, or whose image has another size than its mask, is neither
    trained nor validated on; it is named in the log and in ``left_out``. Raises UnreadableSlices
    when more than a tenth, and two at least, cannot be read.
    """
    before = project.round(published.round).load(METRICS)
    served = _served_metrics(project, published)
    labelled = [label.task for label in dataset.labels]
    split = split_validation(
        labelled,
        positions(dataset),  # type: ignore[arg-type]  # int is a SliceId
        blocks=before.blocks if before else (),
        seed=settings.seed,
    )
    device = device_of(settings.train_device)
    learner = new_learner(tuple(dataset.classes), learner_config(settings, device), device)
    old = _published_learner(settings, project, dataset, published)
    if settings.warm_start and old is not None:
        learner.start_from(old)
    pseudo = _pseudo_labels(old, project, dataset, published, source, split, progress)
    left_out = _LeftOut(dataset)
    report = learner.fit(
        source, split.train, pseudo=pseudo, seed=seed, progress=progress, unusable=left_out
    )
    validation = learner.usable(source, split.validation, left_out)
    pseudo = {i: mask for i, mask in pseudo.items() if i not in left_out.ids}
    record = MetricsRecord(
        training={**report.settings, "seconds": round(report.seconds, 2), "steps": report.steps},
        losses=list(report.losses),
        trained=[int(i) for i in split.train if i not in left_out.ids],
        pseudo=[int(i) for i in pseudo],
        inherited=sorted(served.learned) if served and report.warm_started else [],
        validation=[int(i) for i in validation],
        left_out=[i for i in labelled if i in left_out.ids],
        blocks=list(split.blocks),
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

    def __init__(self, dataset: DatasetRecord) -> None:
        self.ids: set[SliceId] = set()
        self._round = dataset.round
        self._labelled = {label.task for label in dataset.labels}
        self._unreadable = 0

    def __call__(self, slice_id: SliceId, error: Exception) -> None:
        self.ids.add(slice_id)
        if slice_id not in self._labelled:
            logger.warning("not pseudo-labelled: slice %s: %s", slice_id, error)
            return
        logger.warning(
            "round %d: slice %s is left out of training and validation; look at its image, the "
            "next round renders its mask anew: %s", self._round, slice_id, error,
        )  # fmt: skip
        if isinstance(error, InvalidMask):
            return
        self._unreadable += 1
        if self._unreadable > max(1, len(self._labelled) // 10):
            raise UnreadableSlices(
                f"{self._unreadable} of the {len(self._labelled)} labelled slices cannot be read, "
                "expected a tenth at most. Are Label Studio, its storage and the volumes in reach "
                "of this machine? The next attempt reads them again. Delete the tasks of images "
                f"that are gone for good. The last: {error}"
            ) from error


def _compare(record: MetricsRecord, new: Metrics, old: Metrics, published: Published) -> None:
    """Flag ``record`` when the checkpoint is worse than the published one on unseen slices."""
    record.published_miou = old.miou
    if is_worse(new, old):
        record.flagged = (
            f"mIoU {new.miou:.3f} on {new.slices} validation slices, the published checkpoint of "
            f"round {published.weights_round} has {old.miou:.3f}: the published one goes on"
        )


def _served_metrics(project: ProjectStore, published: Published) -> MetricsRecord | None:
    """`metrics.json` of the round that made the weights that are served; None without weights."""
    number = published.weights_round
    return None if number is None else project.round(number).load(METRICS)


def _pseudo_labels(
    old: Learner | None,
    project: ProjectStore,
    dataset: DatasetRecord,
    published: Published,
    source: ProjectSource,
    split: Split,
    progress: Progress | None,
) -> dict[SliceId, Mask]:
    """What the published round wants pseudo-labelled, by its checkpoint ``old``.

    Empty without one: before round 1 and after the classes changed.
    """
    selection = project.round(published.round).load(SELECTION)
    if old is None or selection is None or not selection.pseudo:
        return {}
    ids = pseudo_slices(selection.pseudo, dataset, positions(dataset), split.blocks)
    masks = pseudo_labels(old, source, ids, progress)
    logger.info("round %d: %d of the %d slices that %s chose are pseudo-labelled", dataset.round,
                len(masks), len(selection.pseudo), selection.strategy)  # fmt: skip
    return masks


def _published_learner(
    settings: Settings, project: ProjectStore, dataset: DatasetRecord, published: Published
) -> Learner | None:
    """The published checkpoint, if it is of the same classes."""
    if published.weights is None or published.fingerprint != dataset.fingerprint:
        return None
    return load_learner(settings, project.read_at(published.weights), settings.train_device)


def _finite(metrics: Metrics) -> dict[str, float | None]:
    return {name: None if math.isnan(iou) else iou for name, iou in metrics.iou.items()}
