"""The root of all errors of this project that are written for the person who meets them, and those
that are known where nothing else of this package is. Without NumPy."""

from __future__ import annotations

__all__ = ["EvidenceError", "NextsliceError", "UnknownStrategyError"]


class NextsliceError(Exception):
    """Something that a person can act on: the message says what was found, what was expected and
    what to do. Whatever else is raised is a bug. `ml_backend.errors` draws all of them."""


class EvidenceError(NextsliceError, ValueError):
    """Evidence that contradicts itself, is missing, or holds something else than finite numbers."""


class UnknownStrategyError(NextsliceError, ValueError):
    """A strategy or a strategy's parameter that does not exist."""
