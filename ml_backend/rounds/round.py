"""One round: sync → train → score → select → publish, each step a file, the next one's ground.

A step whose file is there is not done again, so a worker that takes over goes on from the last
finished step. `round.json` commits; what follows (publishing) can be repeated. The folder is a
`ClaimedRound`: a worker that was taken over writes nothing more.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from al_strategies import Query, even_spacing, get_strategy
from al_strategies.evidence import Evidence
from al_strategies.holdout import ZBlock, inside
from al_strategies.learner import Learner, Progress, Unreadable
from ml_backend.errors import NextsliceError
from ml_backend.logs import about
from ml_backend.rounds import hold_out
from ml_backend.rounds.artefacts import (
    DATASET,
    EVIDENCE,
    METRICS,
    PSEUDO,
    ROUND,
    SELECTION,
    WEIGHTS,
    EvidenceArrays,
    Step,
    written_after,
)
from ml_backend.rounds.claim import ClaimedRound, claimed
from ml_backend.rounds.coverage import Coverage
from ml_backend.rounds.early import is_early, same_order
from ml_backend.rounds.live_masks import Regions
from ml_backend.rounds.looking_up import LookingUp
from ml_backend.rounds.project import ConnectedProject, now
from ml_backend.rounds.publish import publish
from ml_backend.rounds.queue import queue_of, queue_target
from ml_backend.rounds.reasons import BY_CLASS, UNCERTAINTIES, reasons
from ml_backend.rounds.records import (
    DatasetRecord,
    MetricsRecord,
    Published,
    RoundRecord,
    SelectionRecord,
    next_round,
)
from ml_backend.rounds.scoring import whole_pool
from ml_backend.rounds.source import ProjectSource, positions
from ml_backend.rounds.sync import new_labels, sync
from ml_backend.rounds.uncertainty_pictures import KeptPictures
from ml_backend.studio import task_order
from ml_backend.studio.annotations import regions
from ml_backend.studio.client import annotated
from ml_backend.studio.failures import StudioError
from ml_backend.studio.label_config import LabelConfig, parse_label_config

__all__ = ["UnusableLabels", "run_round"]

logger = logging.getLogger(__name__)

_BACKLOGS = 4
"""How many times the reserve is ranked behind it, for top-ups."""
_LOOK_S = 4.0
"""Between two counts of labels while a short round trains; one takes Label Studio 0.1 s."""
T = TypeVar("T")


class UnusableLabels(NextsliceError, RuntimeError):
    """People have annotated slices, and not one of their annotations can be used."""


def run_round(
    project: ConnectedProject,
    reason: str,
    progress: Progress | None = None,
    number: int | None = None,
) -> RoundRecord | None:
    """Run the next round of the project, or the rest of one that a worker left.

    ``number``: of the round that is asked for, which may be published by now; None: the next one,
    whichever it is. Round 0 selects by position alone and publishes an order without masks. Returns
    the committed record; None for a project without slices, a round after 0 without an annotation,
    or one that is published already. Raises
    ClaimTaken when another worker is on it, ClaimLost when one took over, UnusableLabels when no
    annotation can be read as a mask, UnreadableSlices when too many slices cannot be read.
    """
    published = project.published
    if number not in (None, next_round(published)):
        logger.info("project %s: round %d is published already", project.key, number)
        return None
    number = next_round(published)
    ttl_s = project.settings.claim_ttl_s
    with (
        about(project=project.key, round=number),
        claimed(project.folder.round(number), ttl_s) as folder,
    ):
        if project.published != published:
            logger.info("project %s: round %d was published in this moment", project.key, number)
            return None
        return _Round(project, folder, reason, progress).run(published)


def _annotated(dataset: DatasetRecord) -> bool:
    """Whether somebody has annotated a slice, usable or not."""
    return any(task.state == "labelled" for task in dataset.tasks)


class _Overtaken(BaseException):  # no error, and nothing on the way may take it for one
    """There are K labels by now: the whole round need not wait for the short one."""


class _Round:
    """The steps of one round, in a folder that this process holds."""

    def __init__(
        self,
        project: ConnectedProject,
        folder: ClaimedRound,
        reason: str,
        progress: Progress | None,
    ) -> None:
        self.project = project
        self.settings = project.settings
        self.folder = folder
        self.reason = reason
        self.progress: Progress = progress or (lambda step, done, total: None)
        self.seconds: dict[str, float] = {}
        self._learner: Learner | None = None

    def run(self, published: Published | None) -> RoundRecord | None:
        """All steps that are not done yet."""
        started = now()
        dataset = self._timed(Step.SYNC, lambda: self._sync(published))
        if self.folder.number and not dataset.labels:
            self._refuse_unusable(dataset)
            logger.warning("project %s: nobody has annotated a slice yet", self.project.key)
            return None
        if not dataset.tasks:
            logger.info("project %s has no slices yet", self.project.key)
            return None
        record = self.folder.load(ROUND)
        if record is None:
            try:
                record = self._compute(dataset, published, started)
            except _Overtaken:
                logger.info("project %s: %d labels are there, round %d begins again with them",
                            self.project.key, self.settings.k, self.folder.number)  # fmt: skip
                self.folder.remove(DATASET, *written_after(Step.SYNC))
                return self.run(published)
        self.folder.claim.check()
        self.project.in_studio()  # the training took hours: is it ours still?
        self._timed(Step.PUBLISH, lambda: self._publish(record, dataset, published))
        logger.info("project %s: round %d took %s s", self.project.key, record.round, self.seconds)
        return record

    def _timed(self, step: Step, work: Callable[[], T]) -> T:
        name = step.name.lower()
        self.progress(name, 0, 0)
        begin = time.perf_counter()
        result = work()
        self.seconds[name] = round(time.perf_counter() - begin, 2)
        return result

    # -- sync

    def _sync(self, published: Published | None) -> DatasetRecord:
        done = self.folder.load(DATASET)
        seen = self.project.in_studio()
        config = parse_label_config(seen.label_config)
        if done is not None:
            outdated = self._outdated(done, config, published)
            if outdated is None:
                self._meet_with(done)
                return done
            logger.warning("project %s: %s: round %d begins again", self.project.key, outdated,
                           self.folder.number)  # fmt: skip
            self.folder.remove(*written_after(Step.SYNC))
        previous = self.folder.project.round(published.round).load(DATASET) if published else None
        dataset = sync(self.project, seen, self.folder, previous, self.progress)
        self.folder.claim.check()
        requested = self._requested()
        if self.folder.number:
            settings = self.settings
            dataset.asked = requested is not None or (done is not None and done.asked)
            early = is_early(len(dataset.labels), settings.k, settings.early_labels)
            dataset.early = early and not dataset.asked
        if _annotated(dataset) or (dataset.tasks and not self.folder.number):
            self.folder.save(DATASET, dataset)
            self._meet(requested)
        else:
            if done is not None and done.asked:  # a request that the attempt before has met
                self.project.request_start()
            self.folder.remove(DATASET)  # of an attempt whose annotations are gone
        return dataset

    def _requested(self) -> str | None:
        """When a person asked for a training that is not under way; None in round 0, which is
        none."""
        return self.project.record.start_requested_at if self.folder.number else None

    def _meet(self, requested: str | None) -> None:
        """Forget the request: only once the dataset is kept, so that no failure loses it."""
        if requested is not None:
            self.project.update(lambda record: record.request_met(requested))

    def _meet_with(self, done: DatasetRecord) -> None:
        """Forget the request if the whole round that goes on has all labels: it asked for that."""
        requested = self._requested()
        if requested is not None and not done.early and not new_labels(self.project, done):
            self._meet(requested)

    def _outdated(
        self, done: DatasetRecord, config: LabelConfig, published: Published | None
    ) -> str | None:
        """Why the dataset of an earlier attempt is not gone on with, or None."""
        if done.fingerprint != config.fingerprint:
            return "the classes changed"
        if done.unlabelled not in (None, config.unlabelled(self.settings.unlabelled)):
            return "what unlabelled pixels mean changed"
        metrics = self.folder.load(METRICS)
        failed = self.project.record.last_error is not None
        if failed and self.folder.number and metrics is None:
            # Its labels may be why: by now there may be others.
            return "the attempt before failed"
        compared = metrics.published_weights if metrics is not None else None
        served = published.weights if published is not None else None
        if None not in (compared, served) and compared != served:
            # They may be better than those of the round, which have not been compared with them.
            return "other weights are published than it was compared with"
        if metrics is not None and published is not None and not self._loads(metrics, published):
            return "its weights cannot be loaded"
        return None

    def _refuse_unusable(self, dataset: DatasetRecord) -> None:
        """Raise UnusableLabels when there are annotations, though no label came of them."""
        count = self.project.studio.count_tasks(self.project.number, [annotated()])
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
            metrics = self._timed(Step.TRAIN, lambda: self._train(dataset, published))
            weights, flagged = self._served(metrics, published)
        if not self.folder.has(SELECTION):
            if weights is not None and not dataset.early:
                self._timed(Step.SCORE, lambda: self._score(dataset, weights))
            self._timed(Step.SELECT, lambda: self._select(dataset, published))
        digest = hashlib.sha256(self.folder.read(SELECTION))
        if weights is not None:
            digest.update(self.folder.project.read_at(weights))
        record = RoundRecord(
            round=self.folder.number,
            model_version=task_order.round_version(self.folder.number, digest.hexdigest()),
            classes=dataset.classes,
            fingerprint=dataset.fingerprint,
            weights=weights,
            flagged=flagged,
            annotated=len(dataset.labels),
            pseudo=metrics.pseudo,
            pseudo_unread=metrics.pseudo_unread,
            strategy=self.folder.need(SELECTION).strategy,
            reason=self.reason,
            started_at=started,
            committed_at=now(),
            unseen=self._unseen(dataset),
            seconds=self.seconds,
            settings=self.settings.of_a_round(),
        )
        self.folder.save(ROUND, record)
        return record

    @property
    def _seed(self) -> int:
        return self.settings.seed + self.folder.number

    def _serving(self, weights: str) -> Learner:
        """The learner that this round scores and predicts with; the same for both steps."""
        if self._learner is None:
            # Imports torch: only where a round trains, never in a control worker.
            from ml_backend.rounds.learners import stored_learner

            self._learner = stored_learner(self.settings, self.folder.project, weights)
        return self._learner

    def _loads(self, metrics: MetricsRecord, published: Published) -> bool:
        """Whether what is to be served after a training that is done can be loaded: after an
        upgrade it may not fit any more."""
        from ml_backend.segmentation.checkpoints import CheckpointError

        weights, _ = self._served(metrics, published)
        try:
            self._serving(weights)
        except CheckpointError as error:
            logger.warning("project %s: %s: %s", self.project.key, weights, error)
            return False
        return True

    def _train(self, dataset: DatasetRecord, published: Published) -> MetricsRecord:
        """Train, validate, keep: `metrics.json` comes last, and says that the step is done."""
        from ml_backend.rounds.training import train

        done = self.folder.load(METRICS)
        if done is not None:
            return done
        source = self._source(dataset)
        blocks = self._blocks(dataset, published)
        progress = self.progress
        if dataset.early and published.weights is not None:  # else somebody waits for a first mask
            progress = LookingUp(progress, lambda: self._look_for_k(dataset), _LOOK_S)
        outcome = train(self.settings, self.folder.project, dataset, published, source, blocks,
                        self._seed, progress)  # fmt: skip
        for slice_id, mask in outcome.pseudo.items():
            self.folder.save(PSEUDO[slice_id], mask)
        self.folder.save(WEIGHTS, outcome.weights)
        self.folder.save(METRICS, outcome.metrics)
        return outcome.metrics

    def _look_for_k(self, early: DatasetRecord) -> None:
        """Raise _Overtaken when a whole round can begin, on more labels than the ``early`` one."""
        try:
            there = len(early.labels) + new_labels(self.project, early)
        except StudioError as error:  # that of the round's next step says it to people
            logger.warning("project %s: labels were not counted: %s", self.project.key, error)
            return
        if there >= self.settings.k:
            raise _Overtaken

    def _blocks(self, dataset: DatasetRecord, published: Published | None) -> tuple[ZBlock, ...]:
        """What is held out; of a training that is done, what it has held out."""
        metrics = self.folder.load(METRICS)
        if metrics is not None:
            return tuple(metrics.blocks)
        return hold_out.blocks_of(self.folder.project, dataset, published, self.settings.seed)

    def _served(self, metrics: MetricsRecord, published: Published) -> tuple[str, str | None]:
        """The weights that the round serves, and why not the new ones."""
        if metrics.flagged is not None and published.weights is not None:
            return published.weights, metrics.flagged
        return self.folder.relative(WEIGHTS), None

    @property
    def _evidence_names(self) -> frozenset[str]:
        strategy = get_strategy(self.settings.strategy)
        needed = frozenset((*strategy.evidence, *strategy.labelled_evidence))
        # So that people can be told which class a slice was selected for.
        return needed | BY_CLASS if needed & UNCERTAINTIES.keys() else needed

    def _source(self, dataset: DatasetRecord) -> ProjectSource:
        return ProjectSource(dataset, self.folder.project, self.project.images)

    def _score(self, dataset: DatasetRecord, weights: str) -> None:
        """Evidence of the whole pool; of what an attempt before has, nothing is asked again."""
        ids = [task.id for task in dataset.tasks]
        source = self._source(dataset)

        def gather(ids: Sequence[int], unreadable: Unreadable) -> Evidence:
            return self._serving(weights).evidence(
                source, ids, self._evidence_names, seed=self._seed, progress=self.progress,
                unreadable=unreadable,
            )  # fmt: skip

        def keep(evidence: Evidence) -> None:
            self.folder.save(EVIDENCE, EvidenceArrays.of(evidence))

        found = self._gathered(dataset)
        keep(whole_pool(gather, ids, found, keep, self.project.still_has))

    def _gathered(self, dataset: DatasetRecord) -> Evidence:
        """What an attempt before has of the pool, if it is what today's strategy needs."""
        evidence = self.folder.load(EVIDENCE)
        if evidence is None or evidence.names != self._evidence_names:
            return Evidence.empty()
        return evidence.at(positions(dataset))

    def _unseen(self, dataset: DatasetRecord) -> list[int]:
        """Slices of the project that no evidence is there of, in task order, where it was asked
        for."""
        if not self._scored(dataset):
            return []
        seen = set(self.folder.need(EVIDENCE).ids)
        unseen = [task.id for task in dataset.tasks if task.id not in seen]
        there = self.project.still_has(unseen)
        return [task for task in unseen if task in there]

    def _scored(self, dataset: DatasetRecord) -> bool:
        """Whether slices are selected by what the network says of them."""
        return self.folder.number > 0 and not dataset.early

    def _evidence(self, dataset: DatasetRecord) -> Evidence:
        places = positions(dataset)
        if self._scored(dataset):
            return self.folder.need(EVIDENCE).at(places)
        ids = tuple(task.id for task in dataset.tasks)
        return Evidence(ids=ids, positions=tuple(places[i] for i in ids))

    def _select(self, dataset: DatasetRecord, published: Published | None) -> None:
        settings = self.settings
        blocks = self._blocks(dataset, published)
        if dataset.early and published is not None:
            before = self.folder.project.round(published.round).load(SELECTION)
            if before is not None:
                same = same_order(before, dataset, settings.k)
                self.folder.save(SELECTION, same.model_copy(update={"blocks": list(blocks)}))
                return
        name = settings.strategy if self._scored(dataset) else settings.cold_start
        places = positions(dataset)
        evidence = self._evidence(dataset)
        state = {task.id: task.state for task in dataset.tasks}
        rows = range(len(evidence.ids))
        known = [state[int(t)] for t in evidence.ids]
        pool = evidence.take([i for i in rows if known[i] != "labelled"])
        labelled = evidence.take([i for i in rows if known[i] == "labelled"])
        reserve = queue_target(settings) - settings.k
        query = Query(
            pool=pool,
            labelled=labelled,
            k=settings.k,
            reserve=reserve * (1 + _BACKLOGS),
            round=max(self.folder.number, 1),
            seed=self._seed,
            spacing=even_spacing(places.values(), settings.k) if settings.spacing else None,
            deferred=frozenset(i for i in pool.ids if state[int(i)] != "pool"),
        )
        selection = hold_out.select(name, query, blocks)
        judging = inside(pool.ids, places, blocks)  # type: ignore[arg-type]  # int is a SliceId
        why = reasons(selection, query, dataset.classes, judging)
        following = [int(i) for i in selection.reserve]
        self.folder.save(
            SELECTION,
            SelectionRecord(
                strategy=selection.strategy,
                seed=self._seed,
                chosen=[int(i) for i in selection.chosen],
                reserve=following[:reserve],
                backlog=following[reserve:],
                pseudo=[int(i) for i in selection.pseudo],
                blocks=list(blocks),
                scores={int(i): float(s) for i, s in selection.scores.items()},
                reasons={int(i): s for i, s in why.items()},
            ),
        )

    # -- publish

    def _publish(
        self, record: RoundRecord, dataset: DatasetRecord, before: Published | None
    ) -> None:
        queue = queue_of(self.project, self.folder.need(SELECTION), record.model_version)
        coverage = Coverage(
            len(queue.entries),
            "the queue's {} slices",
            "people would get them without masks",
            "the masks that are published",
        )

        def predict(tasks: list[int]) -> Iterator[tuple[int, Regions]]:
            return self._regions(record, tasks, dataset, coverage)

        at_once = self.settings.k if dataset.early else None
        publish(self.project, self.folder, record, queue, before, predict, at_once=at_once)

    def _regions(
        self, record: RoundRecord, tasks: list[int], dataset: DatasetRecord, coverage: Coverage
    ) -> Iterator[tuple[int, Regions]]:
        """The masks of ``tasks``, one slice at a time; none in round 0, nor of single slices that
        cannot be read. Raises UnreadableSlices where they are more."""
        if record.weights is None:
            return
        config = parse_label_config(dataset.label_config)
        source, done = self._source(dataset), 0
        pictures = KeptPictures(self.folder, record.model_version)
        for asked in coverage.passes(tasks):
            learner = self._serving(record.weights)
            for task, prediction in learner.predict(
                source, asked, unreadable=coverage.note, uncertainty=True
            ):
                done += 1
                self.progress("publish", done, len(tasks))
                pictures.keep(int(task), prediction)
                yield int(task), regions(prediction.mask, config)
