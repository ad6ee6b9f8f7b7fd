"""The state that a project is in, in sentences for people: what `nextslice rounds list` says.

It is read from the store and from Redis; Label Studio is not asked. The store is written to, a
small file for a moment: that is the only way to know whether it can be.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Literal

from pydantic import Field
from redis.exceptions import RedisError
from rq.job import JobStatus

from ml_backend.rounds.artefacts import METRICS, ROUND
from ml_backend.rounds.claim import Holder, last_holder
from ml_backend.rounds.contention import FIGHT_S, fight, next_switch_at
from ml_backend.rounds.deployment import our_workers
from ml_backend.rounds.early import wanted_labels
from ml_backend.rounds.further import FAILURES, known_further
from ml_backend.rounds.pauses import gives_up, known_drawing, next_attempt_at, next_job_at
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import ProjectRecord, Published, Record, TriesRecord, next_round
from ml_backend.rounds.schedule import GPU, RoundProgress
from ml_backend.rounds.store import StoreFault
from ml_backend.studio.task_order import VERSION_PREFIX

__all__ = ["NO_GPU_WORKER", "Condition", "ProjectStatus", "State", "project_status"]

State = Literal[
    "unpublished",
    "retired",
    "waiting",
    "paused",
    "queued",
    "running",
    "killed",
    "failed",
    "contended",
    "imageless",
    "store",
    "redis",
]
"""Nothing is published yet · the served weights are no longer used · labels are waited for · no
round is begun · a round waits for a gpu worker · a worker is at it · its worker is gone · the last
attempt raised an error · somebody else switches the project's version · tasks have no image · the
store cannot be written · Redis does not answer."""

_PAUSED = (
    "the project is paused. Go on with: nextslice project set {number} pause=false (or take "
    "NEXTSLICE_PAUSE back)."
)
HeldUp = Literal["paused", "queued"]
"""Why neither labels nor time are what the next round begins at: nothing begins it, or it is asked
for already."""
NO_GPU_WORKER = "no gpu worker runs"
"""In the sentence of a round that is queued: nobody listens."""
_BEGINNING_S = 10.0
"""An attempt is noted before the round is claimed: so long it may have no holder yet."""


class Condition(Record):
    """One thing that is so, and the sentence that says it."""

    state: State
    says: str


class ProjectStatus(Record):
    """Where a project stands. ``round``: the one that is next, or that somebody is at."""

    project: int
    key: str
    round: int
    model_version: str | None = None
    """What is served."""
    holder: Holder | None = None
    """Who holds the round."""
    progress: RoundProgress | None = None
    """How far its job is, where there is one."""
    conditions: list[Condition] = Field(default_factory=list)
    """At least one; what needs a person first."""

    def has(self, state: State) -> bool:
        """Whether one of the conditions is ``state``."""
        return any(condition.state == state for condition in self.conditions)


def project_status(
    project: ConnectedProject, *, write: bool = True, redis: bool = True
) -> ProjectStatus:
    """Where ``project`` stands at this moment. Raises StoreError where a file of the store is
    damaged, StoreFault where it cannot be read.

    ``write``: find out whether its folder can be written. ``redis``: ask Redis. Who looks at many
    projects, again and again, has found out once for all of them.
    """
    published = project.published
    number = next_round(published)
    claimed = last_holder(project.folder.round(number))
    alive = claimed is not None and claimed.alive(project.settings.claim_ttl_s)
    holder = claimed if alive else None
    record = project.record
    record.was_published(number - 1)
    # Round 0 trains nothing: a pause does not hold it up.
    paused = published is not None and project.settings.pause
    awaited = not alive and not paused
    progress, jobs = _jobs(project, number, awaited=awaited) if redis else (None, [])
    queued = any(condition.state == "queued" for condition in jobs)
    held_up: HeldUp | None = "paused" if paused else "queued" if queued else None
    running = _running(record, number, holder, progress)
    at_work = running or _killed(record, number, claimed, held_up)
    store = _store(project) if write else []
    lacking = _condition("imageless", record.imageless) if record.imageless else []
    contended = _contended(project, record)
    failed = _failed(project, record, number, tells_when=not running and held_up is None)
    idle = redis and progress is None and not jobs
    asked = _asked(record, idle=idle) if held_up is None and not at_work else ""
    served = _served(project, record, published, held_up, asked, waits=not at_work)
    return ProjectStatus(
        project=project.number,
        key=project.key,
        round=number,
        model_version=None if published is None else published.model_version,
        holder=holder,
        progress=progress,
        conditions=[*store, *jobs, *contended, *lacking, *failed, *at_work, *served],
    )


def _condition(state: State, says: str) -> list[Condition]:
    return [Condition(state=state, says=says)]


def _moment(seconds: float) -> str:
    """A moment in local time, to the second."""
    return datetime.fromtimestamp(seconds).isoformat(" ", "seconds")


# -- what it stands on


def _store(project: ConnectedProject) -> list[Condition]:
    store, path = project.folder.store, project.folder.path
    try:
        if store.exists(path):  # else the probe would make a folder that was moved out
            store.check_writable(path)
    except StoreFault as error:
        return _condition("store", f"{error} Until then no round begins or goes on.")
    return []


def _jobs(
    project: ConnectedProject, number: int, *, awaited: bool
) -> tuple[RoundProgress | None, list[Condition]]:
    """The round's job, and what is to be said of one that nobody has begun. ``awaited``: whether a
    worker that is free would begin it."""
    try:
        progress = project.schedule.round_progress()
        service = project.service
        listening = len(our_workers(service.schedule, service.settings, GPU))
    except RedisError as error:
        said = f"Redis does not answer ({error}): until it does, no round and no look is started."
        return None, _condition("redis", said)
    if not awaited or progress is None or progress.status != JobStatus.QUEUED:
        return progress, []
    if listening:
        why = f"none of the gpu workers that listen ({listening}) is free yet."
    else:
        why = f"{NO_GPU_WORKER}. Start one: nextslice worker gpu."
    return progress, _condition("queued", f"Round {number} is asked for and waits: {why}")


def _contended(project: ConnectedProject, record: ProjectRecord) -> list[Condition]:
    """Two backends, or a backend and another program, that switch one project to and fro."""
    moment = time.time()
    count = fight(record, moment)
    if not count:
        return []
    lately = record.switched_back[-count:]
    last, minutes = lately[-1], (moment - lately[0].moment) / 60
    who = "Somebody, or another program,"
    if (last.found or "").startswith(VERSION_PREFIX):
        who = "Another nextslice, with a store of its own,"
    others = sorted({url for back in lately for url in back.others})
    where = f" Also connected: {', '.join(others)}." if others else ""
    at = next_switch_at(record)
    pause = f" It is not switched back before {_moment(at)}." if at > moment else ""
    said = (
        f"{who} switches project {project.number} away from what is published here: "
        f"{count} times in the last {max(minutes, FIGHT_S / 60):.0f} minutes, last to "
        f"{last.found or 'no version'} at {_moment(last.moment)}.{pause}{where} Let one "
        "look after the project: delete the other ML backend under Settings → Model, or stop it."
    )
    return _condition("contended", said)


# -- rounds


def _failed(
    project: ConnectedProject, record: ProjectRecord, number: int, *, tells_when: bool
) -> list[Condition]:
    """How the last attempt at round ``number`` failed, and when the next one is made."""
    if not record.last_error:
        return []
    times = f" ({record.failures}×)" if record.failures else ""
    following = _next_attempt(project, record, number) if tells_when else ""
    error = record.last_error.rstrip(".")
    return _condition("failed", f"The last attempt failed{times}: {error}.{following}")


def _next_attempt(project: ConnectedProject, record: ProjectRecord, number: int) -> str:
    if not number:  # no pause: it trains nothing, and somebody has just connected the project
        return " It is tried again at each look, twice a minute."
    if gives_up(record):
        # What fails after the training does not fail for its labels: others change nothing.
        at = f"at {project.settings.k} labels that no attempt has seen, or "
        trained = project.folder.round(number).has(METRICS)
        return f" It is tried again {'only ' if trained else at}after Start Training."
    if record.failures and time.time() < next_attempt_at(record):
        return f" It is tried again from {_moment(next_attempt_at(record))} on."
    return ""


def _running(
    record: ProjectRecord, number: int, holder: Holder | None, progress: RoundProgress | None
) -> list[Condition]:
    """Who is at round ``number``."""
    if holder is not None:
        step = ""
        if progress is not None and progress.step:
            step = f" Step: {progress.step}"
            step += f", {progress.done} of {progress.total}." if progress.total else "."
        said = (
            f"Round {number} is held by {holder} since {_moment(holder.since)}; its last sign of "
            f"life was {max(holder.age_s, 0):.0f} s ago.{step}"
        )
        return _condition("running", said)
    if record.unended == 1 and abs(time.time() - record.began_at) < _BEGINNING_S:
        return _condition("running", f"Round {number} began at {_moment(record.began_at)}.")
    return []


def _killed(
    record: ProjectRecord, number: int, claimed: Holder | None, held_up: HeldUp | None
) -> list[Condition]:
    """What became of who was at round ``number`` and did not end."""
    if not record.unended:
        return []
    who = "its worker was killed, or its machine stopped"
    if claimed is not None and not claimed.released:
        who = f"{claimed} showed its last sign of life at {_moment(claimed.beat)}"
    times = f"{record.unended} attempts at it have begun and not ended, the last at"
    if record.unended == 1:
        times = "The attempt at it did not end that began at"
    at = next_attempt_at(record)
    when = f" may begin {f'at {_moment(at)}' if at > time.time() else 'now'} and"
    if held_up == "paused" or gives_up(record):  # `_served`, `_failed` say what it waits for
        when = ""
    said = (
        f"Round {number} is not running: {who}. {times} {_moment(record.began_at)}; the next{when} "
        "goes on from the last finished step. Was a worker killed, as for want of memory?"
    )
    return _condition("killed", said)


def _served(
    project: ConnectedProject,
    record: ProjectRecord,
    published: Published | None,
    held_up: HeldUp | None,
    asked: str,
    *,
    waits: bool,
) -> list[Condition]:
    """What is served, and what the next round waits for where nobody is at it. ``asked``: what is
    said of a request to train."""
    if published is None:
        said = "Nothing is published yet"
        said += "." if record.last_error else ": round 0 begins when the project has slices."
        return _condition("unpublished", said) if waits else []
    version, pause = published.model_version, _PAUSED.format(number=project.number)
    if record.start_requested_at is not None:
        pause += " The training that was asked for begins then."
    if published.retired:
        said = f"{version} serves an order without masks: {published.retired}. The next round "
        if held_up != "paused":
            return _condition("retired", f"{said}trains anew.{asked}")
        paused = _condition("paused", f"No round begins: {pause}")
        return [*_condition("retired", f"{said}trains anew."), *paused]
    masks = _beside(project, published, held_up) if waits else ""
    if held_up == "paused":
        said = f"{version} is served, and no round begins: {pause}{masks}"
        return _condition("paused", said)
    if not waits:
        return []
    following = ""
    if held_up is None and not record.last_error:  # otherwise it is said when the round begins
        following = asked or f" {_begins(project, published)}"
    return _condition("waiting", f"{version} is served.{following}{masks}")


def _asked(record: ProjectRecord, *, idle: bool) -> str:
    """What becomes of a request to train that no round has met. ``idle``: Redis was asked, and has
    no job of a round; where it has one, or nobody knows, labels may be there."""
    if record.start_requested_at is None or record.failures:
        return ""
    said = " A training is asked for"
    return f"{said}: it begins as soon as a look finds an annotated slice." if idle else f"{said}."


def _begins(project: ConnectedProject, published: Published) -> str:
    """What the next round begins at."""
    committed = project.folder.round(published.round).load(ROUND)
    labelled = committed.annotated if committed is not None else 0
    wanted = wanted_labels(published, labelled, project.settings)
    new = "a new annotation" if wanted == 1 else f"{wanted} new annotations"
    return f"The next round begins at {new}, or by Start Training."


def _beside(project: ConnectedProject, published: Published, held_up: HeldUp | None) -> str:
    """What came to nothing beside the rounds: masks of the queue, which a pause does not hold up,
    and the training that goes on, which it does. A round that is asked for comes before both."""
    folder = project.folder.round(published.round)
    drawing, further = known_drawing(folder), known_further(folder)
    held = "" if held_up == "queued" else None
    said = _came_to_nothing("Masks of the queue could not be drawn", drawing, held)
    if not project.settings.further_minutes:
        return said
    what = "Better weights of this round could not be served"
    if further.model_version is None:
        what = "The training that goes on after it failed"
    if further.failures >= FAILURES:
        held = "It is not tried again before the next round."
    elif held_up == "paused":
        held = "It is tried again when the project goes on."
    return said + _came_to_nothing(what, further, held)


def _came_to_nothing(what: str, tries: TriesRecord, following: str | None = None) -> str:
    """``following``: what comes of it; None: another try after the pause."""
    if not tries.failures or not tries.last_error:
        return ""
    if following is None:
        following = f"It is tried again from {_moment(next_job_at(tries))} on."
    said = f" {what} ({tries.failures}×): {tries.last_error.rstrip('.')}. {following}"
    return said.rstrip()
