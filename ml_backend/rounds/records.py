"""What the files of the store say: one record a file, typed at the edge.

A record changes through its own methods, so that a misspelt field or a wrong type is found before
anything is written.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

from al_strategies.positions import ZBlock
from ml_backend.logs import without_secrets
from ml_backend.studio.label_config import Policy

__all__ = [
    "CLOCKS_DIFFER_S",
    "DatasetLabels",
    "DatasetRecord",
    "DatasetWarnings",
    "EffortRecord",
    "FurtherRecord",
    "LabelRecord",
    "MetricsRecord",
    "ProjectRecord",
    "Published",
    "QueueEntry",
    "QueueKind",
    "QueueRecord",
    "Record",
    "RoundRecord",
    "SelectionRecord",
    "SwitchBack",
    "TaskRecord",
    "TaskState",
    "next_round",
    "round_name",
    "round_number",
]

TaskState = Literal["pool", "labelled", "skipped", "drafted"]
"""What people have done with a slice: nothing yet, submitted, skipped, begun."""
QueueKind = Literal["chosen", "reserve", "top-up"]
"""Why a slice is in the queue: among the K, behind them, or appended when it ran low."""
Told = Annotated[str, AfterValidator(without_secrets)]
"""What an error or a warning said, for people to read: addresses in it have neither passwords nor
signatures."""


_SWITCHES_KEPT = 20
CLOCKS_DIFFER_S = 60.0
"""Between machines, without one of them having been put back since a moment was noted."""


class Record(BaseModel):
    """A JSON file of the store, or a part of one. Keys that it does not know are passed over, so
    that stores written by later versions can be read."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=(), validate_assignment=True)


class TaskRecord(Record):
    """One slice of the project as the last sync saw it."""

    id: int
    image: str
    volume: str = ""
    z: float | None = None
    axis: str = "z"
    """Along which `z` counts: a volume may be cut along z, y or x."""
    state: TaskState = "pool"
    annotations: int = 0

    def in_state(self, state: TaskState) -> TaskRecord:
        """The same slice in another state."""
        changed = self.model_copy()
        changed.state = state
        return changed


class EffortRecord(Record):
    """What one submitted slice cost, against what its annotator was shown when they opened it."""

    task: int
    annotation: int
    completed_by: int | None = None
    """User number of who submitted it."""
    model_version: str | None = None
    """Of the prediction that was shown; None: there was none."""
    blank: bool = False
    """Nothing was drawn on the slice when it was opened: without a prediction, before its mask had
    come, or where the network saw background alone, which looks the same."""
    pixels: int
    """Of the slice."""
    corrected: int
    """Pixels whose class changed: `al_strategies.effort.Correction`, as are the next two."""
    by_class: dict[str, int] = Field(default_factory=dict)
    boundary: int = 0
    dragged: int = 0
    """Those of ``corrected`` that a drag painted (`ml_backend.studio.interactive`)."""
    seconds: float | None = None
    """Label Studio's ``lead_time``, all sessions together; None: it was not submitted by hand."""


class LabelRecord(Record):
    """One label as a round saw it: enough to train on it again after it changed."""

    task: int
    annotation: int
    updated_at: str
    completed_by: int | None = None
    hash: str
    mask: str
    """Path of the mask, relative to the project's folder: PNG, grey value = class index, 255 =
    unlabelled."""
    effort: EffortRecord | None = None
    """None: it was not measured, as before effort was."""


class DatasetLabels(Record):
    """`dataset.json` without its tasks: what each look at a project compares with what is there.

    Of a project of 100,000 tasks the whole takes half a second of CPU to read, this a twelfth.
    """

    label_config: str
    synced_at: str
    """Newest ``updated_at`` of any task seen: the next sync asks for what came after."""
    labels: list[LabelRecord] = Field(default_factory=list)
    unusable: list[int] | None = None
    """Annotated tasks with an image that no label came of; None: not noted, as before this was."""
    imageless: list[int] | None = None
    """Annotated tasks without an image; None: not noted, as before this was."""
    early: bool = False
    """Whether this is a short round, before there are K labels: see `ml_backend.rounds.early`."""
    asked: bool = False
    """Whether a person asked for the round: then it is a whole one, however often it is tried."""

    def annotated_tasks(self) -> set[int] | None:
        """All tasks that were annotated; None: not noted."""
        if self.unusable is None or self.imageless is None:
            return None
        return {*(label.task for label in self.labels), *self.unusable, *self.imageless}


class DatasetWarnings(Record):
    """`dataset.json` without its tasks and labels: what a person should know of it."""

    without_image: dict[int, int] = Field(default_factory=dict)
    warnings: list[Told] = Field(default_factory=list)


class DatasetRecord(DatasetLabels):
    """`dataset.json`: what Label Studio held when the round began."""

    round: int
    classes: list[str]
    fingerprint: str
    unlabelled: Policy | None = None
    """What unlabelled pixels of the masks mean; None: not noted."""
    reading: str = ""
    """`LabelConfig.reading` when they were rendered; empty: before there was one."""
    tasks: list[TaskRecord] = Field(default_factory=list)
    without_image: dict[int, int] = Field(default_factory=dict)
    """Tasks that have no image, and how many annotations each has: they are left out."""
    places: dict[int, int] | None = None
    """Task → where it stands among those whose data name no z, as `places_of_tasks` has it; None:
    not noted, as before this was."""
    warnings: list[Told] = Field(default_factory=list)

    def places_of_tasks(self) -> dict[int, int]:
        """Task → its place where its data name no z. Noted, it stays when other tasks come and go:
        what is held out are places. Not noted, it is that in today's task order."""
        if self.places is not None:
            return self.places
        ordered = enumerate(sorted(self.tasks, key=lambda task: task.id))
        return {task.id: place for place, task in ordered if task.z is None}

    def noted(self) -> DatasetRecord:
        """The same with ``unusable`` and ``imageless`` as its tasks have them."""
        labels = {label.task for label in self.labels}
        changed = self.model_copy()
        changed.unusable = [
            task.id for task in self.tasks if task.state == "labelled" and task.id not in labels
        ]
        changed.imageless = [task for task, count in self.without_image.items() if count]
        return changed


class SelectionRecord(Record):
    """`selection.json`: the K slices in order, the reserve, the backlog behind it, and CEAL's."""

    strategy: str
    seed: int
    chosen: list[int]
    reserve: list[int]
    backlog: list[int] = Field(default_factory=list)
    pseudo: list[int] = Field(default_factory=list)
    blocks: list[ZBlock] = Field(default_factory=list)
    """The z-blocks held out when it was made; every fifth slice or so is one of theirs."""
    scores: dict[int, float] = Field(default_factory=dict)
    reasons: dict[int, str] = Field(default_factory=dict)
    """Why each slice was selected, for people: `reasons`."""


class MetricsRecord(Record):
    """`metrics.json`: mIoU and IoU per class on the validation slices, if there were enough."""

    miou: float | None = None
    iou: dict[str, float | None] = Field(default_factory=dict)
    trained: list[int] = Field(default_factory=list)
    """Slices trained on that a person labelled."""
    pseudo: list[int] = Field(default_factory=list)
    """Slices trained on that the published checkpoint labelled; the masks are ``pseudo/<id>.png``
    in the round's folder."""
    pseudo_unread: list[int] = Field(default_factory=list)
    """Those that were to be, and could not be read."""
    inherited: list[int] = Field(default_factory=list)
    """What the weights that a warm start went on from had learned."""
    validation: list[int] = Field(default_factory=list)
    left_out: list[int] = Field(default_factory=list)
    """Labelled slices that were neither: not to be read, or not of the size of their masks."""
    blocks: list[ZBlock] = Field(default_factory=list)
    """The z-blocks held out, kept from round to round."""
    published_weights: str | None = None
    """The published checkpoint, relative to the project's folder; None: there was none of these
    classes, it could not be loaded, or it was not noted."""
    not_loaded: Told | None = None
    """Why the published checkpoint could not be loaded: the training began afresh, and was compared
    with nothing."""
    published_miou: float | None = None
    """That checkpoint on those validation slices that it has not learned either."""
    compared: int = 0
    """How many these are."""
    p: float | None = None
    """How probable it is that they fall like this by chance; None: too few to say."""
    flagged: str | None = None
    """Why the new checkpoint is kept but not served."""
    effort: list[EffortRecord] = Field(default_factory=list)
    """Of the labels that no round before this one had."""
    training: dict[str, JsonValue] = Field(default_factory=dict)
    losses: list[tuple[int, float]] = Field(default_factory=list)

    @property
    def learned(self) -> set[int]:
        """Every slice that the weights have learned from, here or before."""
        return {*self.trained, *self.pseudo, *self.inherited}


class RoundRecord(Record):
    """`round.json`: the commit of a round."""

    round: int
    model_version: str
    classes: list[str]
    fingerprint: str
    weights: str | None = None
    """Path of the weights that this round serves, relative to the project's folder."""
    flagged: str | None = None
    annotated: int = 0
    """Slices that people have labelled, pseudo-labelled ones not counted."""
    pseudo: list[int] = Field(default_factory=list)
    """Slices pseudo-labelled for this round's training."""
    pseudo_unread: list[int] = Field(default_factory=list)
    """Those that were to be, and could not be read."""
    unseen: list[int] = Field(default_factory=list)
    """Slices that could not be read when the pool was scored: none of them can be selected."""
    strategy: str = ""
    reason: str = ""
    started_at: str = ""
    committed_at: str = ""
    seconds: dict[str, float] = Field(default_factory=dict)
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    """`Settings.of_a_round`: what held when it was committed."""


class TriesRecord(Record):
    """Jobs beside the rounds, of one kind, that came to nothing."""

    failures: int = 0
    """How many have failed or not ended since the last that came to something; one that runs
    counts."""
    failed_at: float = 0.0
    """When the last of them did, or began; seconds since 1970."""
    last_error: Told | None = None
    """What the last one raised."""


class FurtherRecord(TriesRecord):
    """`further.json`: the training that went on after the round was published."""

    seconds: float = 0.0
    """What all tries took."""
    tries: int = 0
    """How many have begun; one that gave way to others does not count."""
    ended: str | None = None
    """Why there will be no more of them."""
    metrics: MetricsRecord | None = None
    """Of the weights that came out better; ``published_miou``: what was served, on the same
    slices."""
    model_version: str | None = None
    """What they are served as, or will be."""


class QueueEntry(Record):
    """One place in the queue: the task, its score (ascending = first) and why it is there."""

    task: int
    score: float
    kind: QueueKind


class QueueRecord(Record):
    """`queue.json`: what was published in which order, top-ups appended."""

    model_version: str
    entries: list[QueueEntry] = Field(default_factory=list)
    unmasked: list[int] = Field(default_factory=list)
    """Slices that are stored without a mask, since they could not be read or predicted."""
    pending: list[int] = Field(default_factory=list)
    """Slices whose mask is still to come, first place first: of an early round, or stored while the
    backend did not answer."""
    withdrawn: dict[str, float] = Field(default_factory=dict)
    """Versions that this queue was to be served as, and until when at most they were, in seconds
    since the epoch: the switch to them did not end."""

    def withdrawn_but(self, version: str) -> dict[str, float]:
        """``withdrawn`` without ``version``, which it is to be served as now."""
        return {name: until for name, until in self.withdrawn.items() if name != version}

    @property
    def bare(self) -> set[int]:
        """Slices that are stored for their place alone: without a mask, for now or for good."""
        return {*self.unmasked, *self.pending}

    def in_order(self) -> list[QueueEntry]:
        """Its entries, first place first."""
        return sorted(self.entries, key=lambda entry: entry.score)


class Published(Record):
    """`published.json`: what is served."""

    round: int
    model_version: str
    classes: list[str]
    fingerprint: str
    weights: str | None = None
    flagged: str | None = None
    retired: str | None = None
    """Why the weights are no longer used: the labelling config changed."""
    published_at: str = ""

    @property
    def weights_round(self) -> int | None:
        """The round that made ``weights``: after a flag an older one than ``round``."""
        if self.weights is None:
            return None
        return round_number(self.weights.partition("/")[0])


def next_round(published: Published | None) -> int:
    """The number of the round after the ``published`` one: 0, the first, without it."""
    return 0 if published is None else published.round + 1


class SwitchBack(Record):
    """That the project was found on another version than the published one, and was put back."""

    moment: float
    found: str | None
    others: list[str] = Field(default_factory=list)
    """URLs of ML backends in the project that are not ours and carry a version of nextslice."""


class TriedNetwork(Record):
    """``of``: a digest of an architecture and of what builds it; empty: none was tried. ``fault``:
    why it is not obeyed, empty where nothing is known against it. ``again_at``: when it is tried
    again, since it was not built, in seconds since 1970."""

    of: str = ""
    fault: str = ""
    again_at: float | None = None


class ProjectRecord(Record):
    """`project.json`: what adopt did, and what people asked for since."""

    project: int
    key: str
    backend_url: str | None = None
    adopted_at: str | None = None
    start_requested_at: str | None = None
    failures: int = 0
    """Attempts at the next round that raised an error, since the last success or request."""
    unended: int = 0
    """Those that began and did not end: one that is running, or whose process was killed."""
    began_at: float = 0.0
    attempted: int | None = None
    """The round that these are attempts at; None: there was none since the last success, or it was
    not noted."""
    failed_at: float = 0.0
    last_error: Told | None = None
    outage: bool = False
    """Whether that was for want of something that comes back: it is tried again without end."""
    switched_back: list[SwitchBack] = Field(default_factory=list)
    """The last few times, oldest first."""
    imageless: Told = ""
    """What is to be said of tasks without an image, empty where there is none."""
    wanted_annotations: int | None = None
    """How many a slice is to get at most, as Label Studio said last."""
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    """The project's own, by field: over those of the service."""

    extra_judged: str = ""
    """Digest of the extra params of its ML backend in Label Studio, and of what they were judged
    by, when they were judged last."""
    extra_settings: dict[str, JsonValue] = Field(default_factory=dict)
    """What can be used of them, by field: under ``settings``, over those of the service."""
    extra_faults: list[str] = Field(default_factory=list)
    """A sentence on each that cannot."""
    extra_network: TriedNetwork = TriedNetwork()
    """What came of building their architecture."""
    explained: str = ""
    """Which queue the slices have been told the reasons of: version, and how many it has."""

    untidied: int = 0
    """The first round whose predictions may all be stored yet: see `tidying`."""

    def tidied_before(self, number: int) -> None:
        """Predictions of the rounds before ``number`` were removed, but for what was spared."""
        self.untidied = number

    def was_explained(self, queue: str) -> None:
        """The slices of ``queue`` have been told why they are in it."""
        self.explained = queue

    def given_settings(self, given: Mapping[str, JsonValue], taken_back: Collection[str]) -> None:
        """Some settings are the project's own now, and some are no more."""
        kept = {name: value for name, value in self.settings.items() if name not in taken_back}
        self.settings = {**kept, **given}

    def extra_read(
        self,
        judged: str,
        settings: Mapping[str, JsonValue],
        faults: Sequence[str],
        network: TriedNetwork,
    ) -> None:
        """Label Studio has other extra params than before, or they were judged anew."""
        self.extra_judged, self.extra_network = judged, network
        self.extra_settings, self.extra_faults = dict(settings), list(faults)

    def lacks_images(self, sentence: str) -> None:
        """Tasks without an image were found, or are no more: see ``imageless``."""
        self.imageless = sentence

    def wants(self, annotations: int | None) -> None:
        """So many annotations are what a slice is to get at most."""
        self.wanted_annotations = annotations

    def found_on(self, back: SwitchBack) -> None:
        """The project was on another version than ours."""
        self.switched_back = [*self.switched_back[1 - _SWITCHES_KEPT :], back]

    def linked(self, url: str | None) -> None:
        """Label Studio reaches us at ``url``; None: nobody knows better than before."""
        self.backend_url = url or self.backend_url

    def adopted(self, moment: str) -> None:
        """The project is ours, since ``moment`` if it was not before."""
        self.adopted_at = self.adopted_at or moment

    def asked_to_train(self, moment: str) -> None:
        """A person asked for a training: attempts that failed count no more, though the error
        stays until a round succeeds."""
        self.start_requested_at = moment
        self.failures = self.unended = 0

    def request_met(self, moment: str) -> None:
        """What was asked for at ``moment`` is under way, or cannot be; a later request stays."""
        if self.start_requested_at == moment:
            self.start_requested_at = None

    def attempt_began(self, moment: float, number: int) -> None:
        """An attempt at round ``number`` is counted before it begins: a process that is killed
        notes nothing more."""
        self.was_published(number - 1)
        self.unended += 1
        self.began_at, self.attempted = moment, number

    def attempt_ended(self) -> None:
        """The attempt is over, and says nothing of the round: another worker has it."""
        self.unended = max(self.unended - 1, 0)

    def attempt_failed(self, moment: float, why: str, *, outage: bool = False) -> None:
        """The attempt is over by an error; ``outage``: of something that comes back."""
        self.attempt_ended()
        self.outage = outage
        self.failures += 1
        self.failed_at = moment
        self.last_error = why

    def round_succeeded(self) -> None:
        """Nothing of earlier attempts counts any more."""
        self.failures = self.unended = 0
        self.last_error = self.attempted = None

    def was_published(self, number: int) -> bool:
        """The attempts at round ``number`` have succeeded, though none of them may have come to
        note it; whether that was news."""
        news = self.attempted is not None and self.attempted <= number
        if news:
            self.round_succeeded()
        return news


def round_name(number: int) -> str:
    """The folder of round ``number``."""
    return f"round-{number:04d}"


def round_number(folder: str) -> int | None:
    """The round whose folder is called so (`round_name`); None: it is no round's."""
    prefix, _, number = folder.partition("-")
    return int(number) if prefix == "round" and number.isdigit() else None
