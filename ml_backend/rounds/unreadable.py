"""Slices that cannot be read: lost, or out of reach for a while."""

from __future__ import annotations

from ml_backend.errors import NextsliceError

__all__ = ["UnreadableSlices", "may_come_back"]


class UnreadableSlices(NextsliceError, RuntimeError):
    """Too many slices cannot be read for their images to be lost: something is down."""


def may_come_back(error: BaseException | None) -> bool:
    """Whether a slice that could not be read for ``error`` may be there in a moment: its host is
    down, its volume is not mounted, or its disk slow. Else it is lost, or is no image."""
    # Whoever asks has read it with these; commands that only look at rounds have not.
    from ml_backend.studio.failures import ImageUnavailable
    from ml_backend.volumes.formats.tiled import TiledUnavailable
    from ml_backend.volumes.reader import ReaderTimeout
    from ml_backend.volumes.roots import NoSuchVolume

    gone = ImageUnavailable | NoSuchVolume | ReaderTimeout | TiledUnavailable | OSError
    return isinstance(error, gone)
