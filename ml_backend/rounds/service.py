"""One deployment, and the secrets that follow from its settings."""

from __future__ import annotations

import hashlib
import hmac
from functools import cached_property
from typing import TYPE_CHECKING

from ml_backend.settings import Settings, SettingsError, absolute_address, load_settings

if TYPE_CHECKING:
    from ml_backend.rounds.schedule import Schedule
    from ml_backend.rounds.store import Store
    from ml_backend.studio.client import Studio
    from ml_backend.studio.download import ImageHosts
    from ml_backend.volumes.address import SliceKeys
    from ml_backend.volumes.roots import VolumeRoots
    from ml_backend.volumes.shelf import OpenVolumes

__all__ = ["WEBHOOK_HEADER", "Service", "slice_keys", "volume_roots", "webhook_secret"]

WEBHOOK_HEADER = "X-Nextslice-Secret"


def webhook_secret(settings: Settings) -> str:
    """The value of the webhook's secret header: set, or derived from the API key.

    Raises SettingsError when there is neither.
    """
    given = settings.webhook_secret.get_secret_value()
    if given:
        return given
    derived = _derived(settings, b"nextslice webhook")
    if derived is None:
        raise SettingsError(
            "The webhook has no secret: set NEXTSLICE_WEBHOOK_SECRET (or LABEL_STUDIO_API_KEY)."
        )
    return derived


def slice_keys(settings: Settings) -> SliceKeys:
    """The keys of slice addresses: set, or derived from the API key.

    Raises SettingsError for a secret that is too short, and when there is neither.
    """
    from ml_backend.volumes.address import SliceKeys

    said = settings.slice_secret.get_secret_value() or _derived(settings, b"nextslice slices")
    if said is None:
        raise SettingsError(
            "Slices cannot be addressed: set NEXTSLICE_SLICE_SECRET (or LABEL_STUDIO_API_KEY)."
        )
    try:
        return SliceKeys.parse(said)
    except ValueError as error:
        raise SettingsError(f"NEXTSLICE_SLICE_SECRET: {error}") from None


def _derived(settings: Settings, purpose: bytes) -> str | None:
    """A secret that follows from the API key; None without one: everybody would know what follows
    from nothing."""
    key = settings.label_studio_api_key.get_secret_value().encode()
    return hmac.new(key, purpose, hashlib.sha256).hexdigest() if key else None


def volume_roots(settings: Settings) -> VolumeRoots:
    """The folders that volumes may come from, and what reading them may not go beyond. Raises
    SettingsError for some that cannot be."""
    from ml_backend.volumes.roots import VolumeRoots

    servers = [one.strip() for one in settings.tiled_servers.split(",") if one.strip()]
    try:
        tiled = tuple(map(absolute_address, servers))
    except ValueError as error:
        raise SettingsError(
            f"NEXTSLICE_TILED_SERVERS is {settings.tiled_servers!r}: {error}"
        ) from None
    key = settings.tiled_api_key.get_secret_value()
    try:
        return VolumeRoots.parse(settings.volumes, settings.volume_timeout_s, tiled, key)
    except ValueError as error:
        raise SettingsError(str(error)) from None


class Service:
    """One deployment: a Label Studio, a store, a Redis and the volumes it sees.

    Each part is made from ``settings`` when it is first used, unless it is given: that is the seam
    for tests, and for a program that has a client or a store of its own. It is imported then too: a
    command that reads the store starts without Redis, HTTP and the formats of volumes.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        studio: Studio | None = None,
        store: Store | None = None,
        schedule: Schedule | None = None,
        volumes: OpenVolumes | None = None,
    ) -> None:
        self.settings = settings
        self._studio = studio
        self._store = store
        self._schedule = schedule
        self._volumes = volumes

    @classmethod
    def from_environment(cls) -> Service:
        """The service that the environment describes."""
        return cls(load_settings())

    @cached_property
    def studio(self) -> Studio:
        """Label Studio. Raises NoToken when no API key is set."""
        from ml_backend.studio.client import Studio

        settings = self.settings
        return self._studio or Studio(
            settings.label_studio_url,
            settings.label_studio_api_key.get_secret_value(),
            image_hosts=self._image_hosts,
            download_s=settings.download_s,
        )

    @property
    def _image_hosts(self) -> ImageHosts:
        from ml_backend.studio.download import ImageHosts

        try:
            return ImageHosts(self.settings.image_hosts)
        except ValueError as error:
            raise SettingsError(f"NEXTSLICE_IMAGE_HOSTS: {error}") from None

    @cached_property
    def store(self) -> Store:
        """The rounds' store."""
        from ml_backend.rounds.store import Store

        return self._store or Store(self.settings.store)

    @cached_property
    def schedule(self) -> Schedule:
        """The RQ queues."""
        from ml_backend.rounds.schedule import Schedule

        return self._schedule or Schedule(self.settings)

    @cached_property
    def volumes(self) -> OpenVolumes:
        """The volumes that slices are read from. Raises SettingsError for roots that cannot be."""
        from ml_backend.volumes.shelf import OpenVolumes

        if self._volumes is not None:
            return self._volumes
        return OpenVolumes(volume_roots(self.settings))

    def project_keys(self) -> list[str]:
        """Keys of the projects that were adopted."""
        return self.store.projects(self.settings.label_studio_host)
