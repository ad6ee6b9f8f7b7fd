"""One round: sync → train → score → select → publish, each step a file, the next one's ground.

A step whose file is there is not done again, so a worker that takes over goes on from the last
finished step. `round.json` commits; what follows (publishing) can be repeated. Before every file
is written the claim is checked: a worker that was taken over writes nothing more.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from al_strategies import Query, even_spacing, get_strategy
from al_strategies.evidence import Evidence
from al_strategies.learner import Progress
from ml_backend.errors import NextsliceError
from ml_backend.rounds.publish import now, publish, queue_of, queue_target
from ml_backend.rounds.service import Service, project_id
from ml_backend.rounds.source import ProjectSource, positions
from ml_backend.rounds.store import (
    Claim,
    DatasetRecord,
    MetricsRecord,
    ProjectStore,
    Published,
    RoundFolder,
    RoundRecord,
    SelectionRecord,
)
from ml_backend.rounds.sync import sync
from ml_backend.segmentation.validation import held_back
from ml_backend.studio import task_order
from ml_backend.studio.annotations import regions
from ml_backend.studio.client import annotated
from ml_backend.studio.images import encode_png
from ml_backend.studio.label_config import LabelConfig, parse_label_config

if TYPE_CHECKING:  # torch: only where a round trains, never in a control worker
    from ml_backend.segmentation.learner import HRNetLearner

__all__ = ["UnusableLabels", "run_round"]

logger = logging.getLogger(__name__)

_BACKLOGS = 4
"""How many times the reserve is ranked behind it, for top-ups."""
_LATER_FILES = (
    "round.json", "selection.json", "evidence.npz", "metrics.json", "weights.safetensors",
)  # fmt: skip
"""Files of the steps after sync, last first: a kill in between never leaves a gap."""
_RECORDED = ("k", "strategy", "cold_start", "seed", "spacing", "unlabelled", "architecture",
             "pretrained", "train_steps", "crop", "warm_start", "neighbours",
             "max_tile")  # fmt: skip


class UnusableLabels(NextsliceError, RuntimeError):
    """People have annotated slices, and not one of their annotations can be used."""


def run_round(
    service: Service, key: str, reason: str, progress: Progress | None = None
) -> RoundRecord | None:
    """Run the next round of the project, or the rest of one that a worker left.

    Round 0 selects by position alone and publishes an order without masks. Returns the committed
    record; None for a project without slices, or a round after 0 without an annotation. Raises
    ClaimTaken when another worker is on it, ClaimLost when one took over, UnusableLabels when no
    annotation can be read as a mask.
    """
    folder = service.folder(key)
    published = folder.published
    number = 0 if published is None else published.round + 1
    with folder.round(number).claim(service.settings.claim_ttl_s) as claim:
        if folder.published != published:
            logger.info("project %s: round %d was published in this moment", key, number)
            return None
        return _Round(service, key, folder.round(number), claim, reason, progress).run(published)


def _annotated(dataset: DatasetRecord) -> bool:
    """Whether somebody has annotated a slice, usable or not."""
    return any(task.state == "labelled" for task in dataset.tasks)


class _Round:
    """The steps of one round, under one claim."""

    def __init__(
        self,
        service: Service,
        key: str,
        folder: RoundFolder,
        claim: Claim,
        reason: str,
        progress: Progress | None,
    ) -> None:
        self.service = service
        self.settings = service.settings
        self.key = key
        self.id = project_id(key)
        self.folder = folder
        self.project: ProjectStore = folder.project
        self.claim = claim
        self.reason = reason
        self.progress: Progress = progress or (lambda step, done, total: None)
        self.images = service.images(key)
        self.seconds: dict[str, float] = {}
        self._learner: HRNetLearner | None = None

    def run(self, published: Published | None) -> RoundRecord | None:
        """All steps that are not done yet."""
        started = now()
        dataset = self._timed("sync", lambda: self._sync(published))
        if self.folder.number and not dataset.labels:
            self._refuse_unusable(dataset)
            logger.warning("project %s: nobody has annotated a slice yet", self.key)
            return None
        if not dataset.tasks:
            logger.info("project %s has no slices yet", self.key)
            return None
        config = parse_label_config(dataset.label_config)
        record = self.folder.load("round.json", RoundRecord)
        if record is None:
            record = self._compute(dataset, published, started)
        selection = self.folder.need("selection.json", SelectionRecord)
        self.claim.check()
        self._timed("publish", lambda: self._publish(record, selection, dataset, config, published))
        logger.info("project %s: round %d took %s s", self.key, record.round, self.seconds)
        return record

    def _timed(self, step: str, work: Callable[[], Any]) -> Any:
        self.progress(step, 0, 0)
        begin = time.perf_counter()
        result = work()
        self.seconds[step] = round(time.perf_counter() - begin, 2)
        return result

    # -- sync

    def _sync(self, published: Published | None) -> DatasetRecord:
        done = self.folder.load("dataset.json", DatasetRecord)
        project = self.service.studio.project(self.id)
        config = parse_label_config(project.label_config)
        if done is not None:
            outdated = self._outdated(done, config)
            if outdated is None:
                return done
            logger.warning("project %s: %s: round %d begins again", self.key, outdated,
                           self.folder.number)  # fmt: skip
            self.folder.remove(*_LATER_FILES)
        previous = (
            self.project.round(published.round).load("dataset.json", DatasetRecord)
            if published
            else None
        )
        dataset = sync(
            self.service, self.key, project, config, self.folder, previous, self.images,
            self.progress,
        )  # fmt: skip
        self.claim.check()
        record = self.project.record
        if record is not None and record.start_requested_at is not None:
            self.service.update_record(self.key, lambda _: {"start_requested_at": None})
        if _annotated(dataset) or (dataset.tasks and not self.folder.number):
            self.folder.save("dataset.json", dataset)
        else:
            self.folder.remove("dataset.json")  # of an attempt whose annotations are gone
        return dataset

    def _outdated(self, done: DatasetRecord, config: LabelConfig) -> str | None:
        """Why the dataset of an earlier attempt is not gone on with, or None."""
        if done.fingerprint != config.fingerprint:
            return "the classes changed"
        if done.unlabelled not in (None, config.unlabelled(self.settings.unlabelled)):
            return "what unlabelled pixels mean changed"
        record = self.project.record
        failed = record is not None and record.last_error is not None
        if failed and self.folder.number and not self.folder.has("metrics.json"):
            # Its labels may be why: by now there may be others.
            return "the attempt before failed"
        return None

    def _refuse_unusable(self, dataset: DatasetRecord) -> None:
        """Raise UnusableLabels when there are annotations, though no label came of them."""
        count = self.service.studio.count_tasks(self.id, [annotated()])
        if not count:
            return
        warnings = dataset.warnings or [
            f"{len(dataset.tasks)} of the project's tasks have an image"
        ]
        more = f" (and {len(warnings) - 1} more)" if len(warnings) > 1 else ""
        raise UnusableLabels(
            f"{count} slices are annotated, and none of the annotations can be used: "
            f"{warnings[0]}{more}. A new attempt reads them again."
        )

    # -- train, score, select

    def _compute(
        self, dataset: DatasetRecord, published: Published | None, started: str
    ) -> RoundRecord:
        weights = flagged = None
        metrics = MetricsRecord()
        if self.folder.number:
            assert published is not None
            metrics = self._timed("train", lambda: self._train(dataset, published))
            weights, flagged = self._served(metrics, published)
        if not self.folder.has("selection.json"):
            if weights is not None and not self._scored():
                self._timed("score", lambda: self._score(dataset, weights))
            self._timed("select", lambda: self._select(dataset))
        digest = hashlib.sha256(self.folder.read("selection.json"))
        if weights is not None:
            digest.update(self.project.read(weights))
        record = RoundRecord(
            round=self.folder.number,
            model_version=task_order.round_version(self.folder.number, digest.hexdigest()),
            classes=dataset.classes,
            fingerprint=dataset.fingerprint,
            weights=weights,
            flagged=flagged,
            annotated=len(dataset.labels),
            pseudo=metrics.pseudo,
            strategy=self.folder.need("selection.json", SelectionRecord).strategy,
            reason=self.reason,
            started_at=started,
            committed_at=now(),
            seconds=self.seconds,
            settings={name: getattr(self.settings, name) for name in _RECORDED},
        )
        self.claim.check()
        self.folder.save("round.json", record)
        return record

    @property
    def _seed(self) -> int:
        return self.settings.seed + self.folder.number

    def _serving(self, weights: str) -> HRNetLearner:
        """The learner that this round scores and predicts with; the same for both steps."""
        if self._learner is None:
            from ml_backend.rounds.training import load_learner

            data = self.project.read(weights)
            self._learner = load_learner(self.settings, data, self.settings.train_device)
        return self._learner

    def _train(self, dataset: DatasetRecord, published: Published) -> MetricsRecord:
        """Train, validate, keep: `metrics.json` comes last, and says that the step is done."""
        from ml_backend.rounds.training import train

        done = self.folder.load("metrics.json", MetricsRecord)
        if done is not None:
            return done
        source = ProjectSource(dataset, self.project, self.images)
        outcome = train(self.settings, self.project, dataset, published, source, self._seed,
                        self.progress)  # fmt: skip
        self.claim.check()
        for slice_id, mask in outcome.pseudo.items():
            self.folder.write(f"pseudo/{slice_id}.png", encode_png(mask))
        self.folder.write("weights.safetensors", outcome.weights)
        self.folder.save("metrics.json", outcome.metrics)
        return outcome.metrics

    def _served(self, metrics: MetricsRecord, published: Published) -> tuple[str, str | None]:
        """The weights that the round serves, and why not the new ones."""
        if metrics.flagged is not None and published.weights is not None:
            return published.weights, metrics.flagged
        return f"{self.folder.name}/weights.safetensors", None

    @property
    def _evidence_names(self) -> frozenset[str]:
        strategy = get_strategy(self.settings.strategy)
        return frozenset((*strategy.evidence, *strategy.labelled_evidence))

    def _scored(self) -> bool:
        """Whether the evidence is there, and is what today's strategy needs."""
        if not self.folder.has("evidence.npz"):
            return False
        there = {name.partition(".")[2] for name in self.folder.read_arrays("evidence.npz")}
        return self._evidence_names <= there

    def _score(self, dataset: DatasetRecord, weights: str) -> None:
        source = ProjectSource(dataset, self.project, self.images)
        ids = [task.id for task in dataset.tasks]
        evidence = self._gather(weights, source, ids)
        arrays: dict[str, Any] = {"ids": np.asarray(evidence.ids, dtype=np.int64)}
        arrays |= {f"score.{name}": values for name, values in evidence.scores.items()}
        arrays |= {f"feature.{name}": values for name, values in evidence.features.items()}
        self.claim.check()
        self.folder.write_arrays("evidence.npz", arrays)

    def _gather(self, weights: str, source: ProjectSource, ids: list[int]) -> Evidence:
        """One pass over ``ids``; a slice that cannot be read is left out and named in the log."""

        def leave_out(error: Exception) -> None:
            logger.warning("project %s: left out of the selection: %s", self.key, error)

        return self._serving(weights).evidence(
            source, ids, self._evidence_names, seed=self._seed, progress=self.progress,
            unreadable=leave_out,
        )  # fmt: skip

    def _evidence(self, dataset: DatasetRecord) -> Evidence:
        places = positions(dataset)
        if not self.folder.number:
            ids = tuple(task.id for task in dataset.tasks)
            return Evidence(ids=ids, positions=tuple(places[i] for i in ids))
        arrays = self.folder.read_arrays("evidence.npz")
        ids = tuple(int(i) for i in arrays["ids"])
        return Evidence(
            ids=ids,
            positions=tuple(places[i] for i in ids),
            scores={n[6:]: v for n, v in arrays.items() if n.startswith("score.")},
            features={n[8:]: v for n, v in arrays.items() if n.startswith("feature.")},
        )

    def _select(self, dataset: DatasetRecord) -> None:
        settings = self.settings
        name = settings.strategy if self.folder.number else settings.cold_start
        places = positions(dataset)
        evidence = self._evidence(dataset)
        state = {task.id: task.state for task in dataset.tasks}
        rows = range(len(evidence.ids))
        known = [state[int(t)] for t in evidence.ids]
        pool = evidence.take([i for i in rows if known[i] != "labelled"])
        labelled = evidence.take([i for i in rows if known[i] == "labelled"])
        reserve = queue_target(settings) - settings.k
        metrics = self.folder.load("metrics.json", MetricsRecord)
        held = held_back(
            pool.ids,
            labelled.ids,
            places,  # type: ignore[arg-type]  # int is a SliceId
            metrics.held_out if metrics else (),
        )
        selection = get_strategy(name).select(
            Query(
                pool=pool,
                labelled=labelled,
                k=settings.k,
                reserve=reserve * (1 + _BACKLOGS),
                round=max(self.folder.number, 1),
                seed=self._seed,
                spacing=even_spacing(places.values(), settings.k) if settings.spacing else None,
                deferred=held.union(i for i in pool.ids if state[int(i)] != "pool"),
            )
        )
        following = [int(i) for i in selection.reserve]
        self.claim.check()
        self.folder.save(
            "selection.json",
            SelectionRecord(
                strategy=selection.strategy,
                seed=self._seed,
                chosen=[int(i) for i in selection.chosen],
                reserve=following[:reserve],
                backlog=following[reserve:],
                pseudo=[int(i) for i in selection.pseudo],
                scores={int(i): float(s) for i, s in selection.scores.items()},
            ),
        )

    # -- publish

    def _publish(
        self,
        record: RoundRecord,
        selection: SelectionRecord,
        dataset: DatasetRecord,
        config: LabelConfig,
        before: Published | None,
    ) -> None:
        queue = queue_of(self.service, self.key, selection, record.model_version)
        tasks = [entry.task for entry in queue.entries]
        predicted = self._regions(record, tasks, dataset, config)
        publish(self.service, self.key, self.folder, record, queue, before, predicted)

    def _regions(
        self,
        record: RoundRecord,
        tasks: list[int],
        dataset: DatasetRecord,
        config: LabelConfig,
    ) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """The masks of the queue, one slice at a time; none in round 0, nor of an unreadable slice:
        those are published without one."""
        if record.weights is None:
            return
        source = ProjectSource(dataset, self.project, self.images)
        predictions = self._serving(record.weights).predict(
            source, tasks, unreadable=lambda error: logger.warning("without a mask: %s", error)
        )
        for done, (task, prediction) in enumerate(predictions, 1):
            self.progress("publish", done, len(tasks))
            yield int(task), regions(prediction.mask, config)
