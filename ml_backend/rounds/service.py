"""What every job of the loop works with: settings, Label Studio, the store, the queues."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ml_backend.rounds.schedule import Schedule
from ml_backend.rounds.slices import ProjectSlices
from ml_backend.rounds.store import ProjectRecord, ProjectStore, Store, StoreError
from ml_backend.settings import Settings, SettingsError, load_settings
from ml_backend.studio.client import Studio, StudioError
from ml_backend.studio.images import ImageCache
from ml_backend.studio.task_order import BackendLink
from ml_backend.volumes.address import SliceKeys
from ml_backend.volumes.roots import VolumeRoots
from ml_backend.volumes.shelf import OpenVolumes

__all__ = ["WEBHOOK_HEADER", "Service", "project_id", "slice_keys", "webhook_secret"]

WEBHOOK_HEADER = "X-Nextslice-Secret"


def project_id(key: str) -> int:
    """The Label Studio id in a project key ``<id>.<created timestamp>``.

    Raises ValueError when the key has another form.
    """
    head, dot, stamp = key.partition(".")
    if not (head.isdigit() and (not dot or stamp.isdigit())):
        raise ValueError(
            f"project key {key!r}: expected <id>.<created timestamp>, as in 7.1763865028"
        )
    return int(head)


def webhook_secret(settings: Settings) -> str:
    """The value of the webhook's secret header: set, or derived from the API key."""
    given = settings.webhook_secret.get_secret_value()
    if given:
        return given
    key = settings.label_studio_api_key.get_secret_value().encode()
    return hmac.new(key, b"nextslice webhook", hashlib.sha256).hexdigest()


def slice_keys(settings: Settings) -> SliceKeys:
    """The keys of slice addresses: set, or derived from the API key.

    Raises SettingsError for a secret that is too short, and when there is neither.
    """
    given = settings.slice_secret.get_secret_value()
    key = settings.label_studio_api_key.get_secret_value()
    if not given and not key:
        # derived from nothing, it would be known to everybody
        raise SettingsError(
            "Slices cannot be addressed: set NEXTSLICE_SLICE_SECRET (or LABEL_STUDIO_API_KEY)."
        )
    try:
        derived = hmac.new(key.encode(), b"nextslice slices", hashlib.sha256).hexdigest()
        return SliceKeys.parse(given or derived)
    except ValueError as error:
        raise SettingsError(f"NEXTSLICE_SLICE_SECRET: {error}") from None


@dataclass(frozen=True)
class Service:
    """One deployment: a Label Studio, a store and a Redis."""

    settings: Settings

    @classmethod
    def from_environment(cls) -> Service:
        """The service that the environment describes."""
        return cls(load_settings())

    @cached_property
    def studio(self) -> Studio:
        """Label Studio. Raises StudioError when no API key is set."""
        return Studio(
            self.settings.label_studio_url, self.settings.label_studio_api_key.get_secret_value()
        )

    @cached_property
    def store(self) -> Store:
        """The rounds' store."""
        return Store(self.settings.store)

    @cached_property
    def schedule(self) -> Schedule:
        """The RQ queues."""
        return Schedule(self.settings)

    @cached_property
    def volumes(self) -> OpenVolumes:
        """The volumes that slices are read from. Raises SettingsError for roots that cannot be."""
        try:
            return OpenVolumes(VolumeRoots.parse(self.settings.volumes))
        except ValueError as error:
            raise SettingsError(str(error)) from None

    def folder(self, key: str) -> ProjectStore:
        """The store's folder of the project."""
        return self.store.project(self.settings.label_studio_host, key)

    def record(self, key: str) -> ProjectRecord:
        """`project.json`, or a fresh one for a project that has none yet."""
        return self.folder(key).record or ProjectRecord(project=project_id(key), key=key)

    def update_record(
        self, key: str, change: Callable[[ProjectRecord], dict[str, Any]]
    ) -> ProjectRecord:
        """Set the fields that ``change`` gives for the record as it is now; the record afterwards.

        Alone: workers, control jobs and commands all write the one file.
        """
        with self.schedule.alone("record", key, 30.0, wait=True):
            record = self.record(key)
            record = record.model_copy(update=change(record))
            self.folder(key).record = record
        return record

    def project_keys(self) -> list[str]:
        """Keys of the projects that were adopted."""
        return self.store.projects(self.settings.label_studio_host)

    def stored_key(self, number: int) -> str | None:
        """The key in the store of project ``number``, without asking Label Studio; None: no such.

        A server that was set up afresh has had the number before: the youngest has it now.
        """
        keys = [key for key in self.project_keys() if project_id(key) == number]
        return max(keys, key=lambda key: int(key.partition(".")[2] or 0), default=None)

    def known_key(self, project: int | str) -> str:
        """The key of a project in the store: by Label Studio's number, or the key itself.

        As `stored_key`, but raises StoreError, which names the projects that there are.
        """
        keys = self.project_keys()
        wanted = str(project)
        if wanted in keys:
            return wanted
        found = self.stored_key(int(wanted)) if wanted.isdecimal() else None
        if found is None:
            known = f"it has {', '.join(keys)}" if keys else "no project is known there"
            raise StoreError(
                f"project {wanted} is not in {self.settings.store} for "
                f"{self.settings.label_studio_url}: {known}. Are NEXTSLICE_STORE and "
                "LABEL_STUDIO_URL those of the running service?"
            )
        return found

    def find_key(self, number: int) -> str:
        """The key of Label Studio project ``number``. StudioError when there is none."""
        return self.studio.project(number).key

    def images(self, key: str) -> ProjectSlices:
        """The project's slices: of volumes that this machine sees, or downloaded into its cache."""
        settings = self.settings
        cache = ImageCache(self.studio, settings.cache_dir, key, settings.cache_gib)
        return ProjectSlices(cache, self.volumes, slice_keys(settings), settings.slices_url)

    def link(self, key: str) -> BackendLink:
        """How the project's Label Studio reaches this backend."""
        record = self.folder(key).record
        url = (record and record.backend_url) or self.settings.backend_url
        return BackendLink(url.rstrip("/"), self.settings.basic_auth)

    def check_identity(self, key: str) -> None:
        """Raise StudioError when project ``key`` is not the one that has its id today."""
        found = self.studio.project(project_id(key)).key
        if found != key:
            raise StudioError(
                f"Project {key} is gone: Label Studio's project {project_id(key)} is {found} now. "
                "Was the server set up afresh?"
            )
