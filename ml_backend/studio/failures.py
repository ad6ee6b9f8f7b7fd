"""What can go wrong with Label Studio and the images of its tasks."""

from __future__ import annotations

from ml_backend.errors import NextsliceError

__all__ = ["ImageUnavailable", "NoToken", "StudioError"]


class StudioError(NextsliceError, RuntimeError):
    """Label Studio refused, or answered something unexpected; the message says what to do.

    ``status``: of its answer, None where there was none.
    """

    status: int | None = None


class NoToken(StudioError):
    """No API key is set, so Label Studio is not asked."""


class ImageUnavailable(StudioError):
    """An image cannot be had at this moment: its host is down, slow, busy or refuses us. Asked
    again later it may well be there."""
