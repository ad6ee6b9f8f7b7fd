"""The root of all errors of this project that are written for the person who meets them."""

from __future__ import annotations

__all__ = ["NextsliceError"]


class NextsliceError(Exception):
    """Something that a person can act on: the message says what was found, what was expected and
    what to do. Whatever else is raised is a bug. `ml_backend.errors` draws all of them."""
