"""A connected project: what every step of the loop is handed, and everything else is reached by."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

from ml_backend.errors import NextsliceError
from ml_backend.rounds.artefacts import PROJECT, File
from ml_backend.rounds.records import ProjectRecord, Published
from ml_backend.rounds.service import Service, slice_keys
from ml_backend.rounds.store import ProjectStore, RoundFolder, StoreError
from ml_backend.settings import Settings, SettingsError
from ml_backend.studio.failures import StudioError

if TYPE_CHECKING:  # what of these is used is imported then, as the parts of `Service` are
    from ml_backend.rounds.schedule import ProjectSchedule
    from ml_backend.rounds.slices import ProjectSlices
    from ml_backend.studio.client import Project, Studio
    from ml_backend.studio.task_order import BackendLink

__all__ = [
    "ConnectedProject",
    "InvalidKey",
    "PublishedRound",
    "TakenOff",
    "find_project",
    "known_project",
    "known_projects",
    "now",
    "stored_project",
    "stored_projects",
]

_KEY = re.compile(r"[0-9]{1,18}(\.[0-9]{1,18})?")


class InvalidKey(NextsliceError, ValueError):
    """A project key that is not ``<id>.<created timestamp>``."""


class TakenOff(StoreError):
    """The project's folder is not in the store any more: nothing of it is written there again."""

    @classmethod
    def of(cls, what: str, root: str) -> TakenOff:
        """That ``what`` is not in the store ``root``."""
        return cls(
            f"{what} is not in {root}: was the project taken off? `nextslice connect` takes it on "
            "again."
        )


class PublishedRound(RoundFolder):
    """A published round's folder, which is written without a claim: nothing is once it is gone,
    TakenOff is raised instead. Claims alone make it."""

    def write(self, file: File, data: bytes) -> None:
        """Write the file, whole or not at all. Raises TakenOff."""
        self.check()
        super().write(file, data)

    def check(self) -> None:
        """Raise TakenOff where the folder is gone."""
        if not self.store.names(self.path):
            raise TakenOff.of(self.path, self.store.root)


def now() -> str:
    """This moment, ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class ConnectedProject:
    """A Label Studio project that the service looks after. Made once, and handed on.

    ``key``: ``<id>.<created timestamp>``, as in 7.1763865028: a fresh server has a project 7 again.
    ``number``: the id alone, by which Label Studio knows it. ``folder``: its rounds. ``schedule``:
    its jobs and locks. Nothing is asked of Label Studio, Redis or the store before it is needed.
    Safe to use from many threads. Raises InvalidKey.
    """

    def __init__(self, service: Service, key: str) -> None:
        self.service = service
        self.key = key
        self.number = _number(key)

    def __repr__(self) -> str:
        return f"ConnectedProject({self.key!r})"

    @cached_property
    def settings(self) -> Settings:
        """What holds for this project: its own settings over the extra params of its ML backend in
        Label Studio over those of the service, as they were when this was first asked for, so that
        a round ends as it began. Raises SettingsError."""
        record = self.record
        try:
            return self.service.settings.with_own({**record.extra_settings, **record.settings})
        except SettingsError as error:
            raise SettingsError(self._unusable(record, error)) from None

    def _unusable(self, record: ProjectRecord, error: SettingsError) -> str:
        """What a person can do about ``error``, of own settings or of extra params."""
        try:
            service = self.service.settings.with_own(record.settings)
        except SettingsError as own:
            names = " ".join(f"{name}=" for name in record.settings)
            return (
                f"The settings of project {self.number} cannot be used: {own}. Take them back: "
                f"nextslice project set {self.number} {names}"
            )
        return (
            f"The extra params of project {self.number} in Label Studio cannot be used: {error}. "
            "Edit them under Settings → Model, where its ML backend is: "
            f"{service.label_studio_url}/projects/{self.number}/settings/ml"
        )

    def page_of(self, task: int) -> str:
        """The address of the slice in Label Studio."""
        return f"{self.settings.label_studio_url}/projects/{self.number}/data?task={task}"

    def read_settings_again(self) -> None:
        """Have `settings` be what holds now: for who has changed it before anything began."""
        self.__dict__.pop("settings", None)

    @property
    def studio(self) -> Studio:
        """Its Label Studio. Raises NoToken when no API key is set."""
        return self.service.studio

    @cached_property
    def folder(self) -> ProjectStore:
        """Its folder in the store."""
        return self.service.store.project(self.service.settings.label_studio_host, self.key)

    def published_round(self, number: int) -> PublishedRound:
        """The folder of round ``number``, for what is written beside the rounds."""
        return PublishedRound(self.folder, number)

    @cached_property
    def schedule(self) -> ProjectSchedule:
        """Its jobs and locks."""
        return self.service.schedule.of(self.key)

    @cached_property
    def images(self) -> ProjectSlices:
        """Its slices: of volumes that this machine sees, or downloaded into the cache."""
        from ml_backend.rounds.slices import ProjectSlices
        from ml_backend.studio.images import ImageCache

        settings = self.service.settings
        cache = ImageCache(self.studio, settings.cache_dir, self.key, settings.cache_gib)
        keys = slice_keys(settings)
        return ProjectSlices(cache, self.service.volumes, keys, settings.slices_url)

    @property
    def published(self) -> Published | None:
        """What is served, or None before anything was published."""
        return self.folder.published

    @property
    def record(self) -> ProjectRecord:
        """`project.json`, or a fresh one where there is none yet."""
        return self.folder.record or ProjectRecord(project=self.number, key=self.key)

    @property
    def adopted(self) -> bool:
        """Whether it is ours: Label Studio has confirmed it once. Others are not acted on."""
        return self.folder.has(PROJECT) or self.published is not None

    def update(
        self, change: Callable[[ProjectRecord], object], *, adopting: bool = False
    ) -> ProjectRecord:
        """Let ``change`` act on the record as it is now, and keep it; the record afterwards.

        Alone: workers, control jobs and commands all write the one file. ``adopting``: make it
        where there is none. Raises TakenOff else: who takes a project off moves its folder away
        while jobs of it run, and would find it connected again.
        """
        with self.schedule.alone("record", wait=True):
            if not (adopting or self.adopted):
                raise TakenOff.of(f"project {self.key}", self.service.settings.store)
            record = self.record
            change(record)
            self.folder.record = record
        return record

    def request_start(self) -> str:
        """Remember that a person asked for a training, until a round has the labels for it. Returns
        the moment, by which `ProjectRecord.request_met` knows it from any other."""
        moment = datetime.now(UTC).isoformat()
        self.update(lambda record: record.asked_to_train(moment))
        return moment

    def still_has(self, tasks: Iterable[int]) -> set[int]:
        """Those of ``tasks`` that Label Studio has at this moment."""
        return {row.id for row in self.studio.tasks_by_id(self.number, tasks)}

    @property
    def link(self) -> BackendLink:
        """How its Label Studio reaches this backend."""
        from ml_backend.studio.task_order import BackendLink

        settings = self.service.settings
        url = self.record.backend_url or settings.backend_url
        return BackendLink(url.rstrip("/"), settings.basic_auth)

    def in_studio(self) -> Project:
        """The project as Label Studio has it at this moment. StudioError when it has none, or
        another project has the number today: what is asked or stored by number is meant for ours.
        """
        found = self.studio.project(self.number)
        if found.key != self.key:
            raise StudioError(
                f"Project {self.key} is gone: Label Studio's project {self.number} is {found.key} "
                "now. Was the server set up afresh?"
            )
        return found


def _number(key: str) -> int:
    if not _KEY.fullmatch(key):
        raise InvalidKey(
            f"project key {key[:60]!r}: expected <id>.<created timestamp>, as in 7.1763865028"
        )
    return int(key.partition(".")[0])


def find_project(service: Service, number: int) -> ConnectedProject:
    """Label Studio's project ``number``, adopted or not. StudioError when there is none."""
    return ConnectedProject(service, service.studio.project(number).key)


def stored_projects(service: Service) -> list[ConnectedProject]:
    """The projects that were adopted, of this Label Studio."""
    return [ConnectedProject(service, key) for key in service.project_keys()]


def stored_project(service: Service, number: int) -> ConnectedProject | None:
    """The project ``number`` of the store, without asking Label Studio; None: no such.

    A server that was set up afresh has had the number before: the youngest has it now.
    """
    return max(
        (project for project in stored_projects(service) if project.number == number),
        key=lambda project: int(project.key.partition(".")[2] or 0),
        default=None,
    )


def known_project(service: Service, project: int | str) -> ConnectedProject:
    """A project of the store: by Label Studio's number, or by its key.

    As `stored_project`, but raises StoreError, which names the projects that there are.
    """
    keys = service.project_keys()
    wanted = str(project)
    if wanted in keys:
        return ConnectedProject(service, wanted)
    found = stored_project(service, int(wanted)) if wanted.isdecimal() else None
    if found is None:
        known = f"it has {', '.join(keys)}" if keys else "no project is known there"
        raise StoreError(f"project {wanted} is not in {_looked_in(service, known)}")
    return found


def known_projects(service: Service) -> list[ConnectedProject]:
    """As `stored_projects`, but raises StoreError where there are none."""
    found = stored_projects(service)
    if not found:
        raise StoreError(f"no project is known in {_looked_in(service)}")
    return found


def _looked_in(service: Service, known: str = "") -> str:
    """Where projects were looked for, what is ``known`` there, and what to do."""
    store = service.store.root if service.store.local else service.settings.store
    said = f"{store} for {service.settings.label_studio_url}{known and ': '}{known}"
    return (
        f"{said}. Are NEXTSLICE_STORE and LABEL_STUDIO_URL those of the running service? "
        "If so, `nextslice connect` makes it known."
    )
