"""What every page is made with: templates, and the pages that say one thing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from flask import Response, make_response, render_template

from ml_backend import __version__
from ml_backend.api.status import looks
from ml_backend.rounds.project import ConnectedProject, stored_project
from ml_backend.studio.label_config import label_colour

__all__ = ["legend", "message", "page", "stored", "unknown"]


def stored(number: int) -> ConnectedProject | None:
    """The project ``number`` of the store; None: no such."""
    return stored_project(looks().service, number)


def page(template: str, *, code: int = 200, **values: Any) -> Response:
    """The page of ``template``."""
    shown = render_template(template, version=__version__, now=time.time(), **values)
    return make_response(shown, code)


def message(title: str, says: str, code: int) -> tuple[Response, int]:
    """A page that says one thing."""
    return page("message.html", code=code, title=title, says=says), code


def unknown(number: int) -> tuple[Response, int]:
    """That project ``number`` is not in the store."""
    said = (
        f"No project {number} is known in the store. Connect it first: nextslice connect {number}"
    )
    return message(f"Project {number} is not known", said, 404)


def legend(classes: Sequence[str]) -> list[tuple[str, str]]:
    """Class and its colour, from the second on: the first is the background."""
    return [(name, label_colour(i)) for i, name in enumerate(classes[1:])]
