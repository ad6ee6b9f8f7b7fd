"""The address of a whole volume of a project, signed: for viewers that cannot send a login.

``/zarr/<token>/…``: viewers append names of files to an address, so the signature stands in the
path. It covers project, volume, axis and the day on which it ends, but not the host.
"""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass

from ml_backend.volumes.address import AddressRefused, SliceKeys
from ml_backend.volumes.volume import AXES

__all__ = ["VolumeAddress", "last_day"]

_LONGEST = 1 << 12
"""Characters of a token: it comes from anybody."""
_DAY = 86_400
_DAYS = 30


def last_day(now: float | None = None) -> int:
    """When an address made ``now`` (seconds since 1970, default the clock's) ends: a midnight 30
    days on, so that all those of a day are the same and browsers keep what they have loaded."""
    return (int(time.time() if now is None else now) // _DAY + _DAYS + 1) * _DAY


@dataclass(frozen=True)
class VolumeAddress:
    """``volume`` of the project with the key ``project``, as it was cut along ``axis``; good until
    ``expires``, seconds since 1970."""

    project: str
    volume: str
    axis: str
    expires: int

    def url(self, base: str, keys: SliceKeys) -> str:
        """The signed address under ``base``, as ``https://nextslice.example``: to it, names of
        files are appended."""
        said = json.dumps([self.project, self.volume, self.axis, self.expires]).encode()
        body = base64.urlsafe_b64encode(said).decode().rstrip("=")
        key, signature = keys.sign(_message(body))
        return f"{base.rstrip('/')}/zarr/{body}.{key}.{signature}"

    @classmethod
    def parse(cls, token: str, keys: SliceKeys, now: float | None = None) -> VolumeAddress:
        """The address of a ``token``, the part of a path after ``/zarr/``, that one of ``keys``
        signed. Raises AddressRefused for one that is not ours, was changed or has expired at
        ``now`` (seconds since 1970, default the clock's)."""
        body, _, signed = token.partition(".")
        key, _, signature = signed.partition(".")
        if len(token) > _LONGEST or not (token.isascii() and body and key and signature):
            raise AddressRefused("volume address: it is not signed, or is too long")
        if not keys.verify(_message(body), key, signature, "volume address"):
            raise AddressRefused("volume address: its signature does not fit, it was changed")
        found = cls._read(body)
        if found.expires <= (time.time() if now is None else now):
            raise AddressRefused(
                "volume address: it has expired, the page of the volume on the dashboard has a "
                "new one"
            )
        return found

    @classmethod
    def _read(cls, body: str) -> VolumeAddress:
        try:
            said = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
            project, volume, axis, expires = said
            if axis in AXES and isinstance(expires, int):
                return cls(str(project), str(volume), axis, expires)
        except (ValueError, TypeError, RecursionError):
            pass
        raise AddressRefused("volume address: it cannot be read")


def _message(body: str) -> str:
    """What is signed: never the message of a slice's address."""
    return f"nextslice volume\n{body}"
