"""Slices into a private Label Studio as uploaded PNG files: what the demo and the tests label.

`nextslice import` is the way for real volumes; this is for small ones on a server of our own.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ml_backend.pictures import encode_png
from ml_backend.studio import projects
from ml_backend.studio.client import Studio
from ml_backend.studio.interactive import DRAG_HELP
from ml_backend.studio.label_config import parse_label_config

__all__ = ["UploadedSlice", "create_project"]

_FILES_PER_REQUEST = 16


class UploadedSlice(NamedTuple):
    """``name`` of the file without its ending, ``image`` (H, W) uint8, ``data`` of the task
    besides its image."""

    name: str
    image: npt.NDArray[np.uint8]
    data: dict[str, Any]


def create_project(
    studio: Studio, title: str, label_config: str, slices: Iterable[UploadedSlice]
) -> int:
    """Create a project with one task a slice, in the order given; returns its number.

    ``slices`` is consumed in batches. Raises StudioError with Label Studio's answer when it
    refuses.
    """
    instructions = DRAG_HELP if parse_label_config(label_config).prompts else ""
    number = projects.create_project(studio, title, label_config, instructions).id
    rest = iter(slices)
    while batch := list(islice(rest, _FILES_PER_REQUEST)):
        files = [(f"{one.name}.png", encode_png(one.image)) for one in batch]
        urls = projects.upload_images(studio, number, files)
        rows = [{"data": {"image": url, **one.data}} for url, one in zip(urls, batch, strict=True)]
        projects.import_tasks(studio, number, rows)
    return number
