"""Slices into a private Label Studio as uploaded PNG files: what the demo and the tests label.

`nextslice import` is the way for real volumes; this is for small ones on a server of our own.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ml_backend.embedded.label_studio import Session
from ml_backend.embedded.processes import StartError

__all__ = ["UploadedSlice", "create_project"]

_FILES_PER_REQUEST = 16


class UploadedSlice(NamedTuple):
    """``name`` of the file without its ending, ``image`` (H, W) uint8, ``data`` of the task
    besides its image."""

    name: str
    image: npt.NDArray[np.uint8]
    data: dict[str, Any]


def create_project(
    session: Session, title: str, label_config: str, slices: Iterable[UploadedSlice]
) -> int:
    """Create a project with one task a slice, in the order given; returns its number.

    ``slices`` is consumed in batches. Raises StartError with Label Studio's answer when it refuses.
    """
    answer = session.call(
        "POST", "/api/projects/", json={"title": title, "label_config": label_config}
    )
    number = int(_ok(answer, "the project")["id"])
    rest = iter(slices)
    while batch := list(islice(rest, _FILES_PER_REQUEST)):
        rows = [
            {"data": {"image": url, **one.data}}
            for url, one in zip(_upload(session, number, batch), batch, strict=True)
        ]
        _ok(session.call("POST", f"/api/projects/{number}/import", json=rows), "the tasks")
    return number


def _upload(session: Session, project: int, batch: list[UploadedSlice]) -> Iterator[str]:
    """The ``data.image`` value of each file, in order."""
    files = [(f"{s.name}.png", (f"{s.name}.png", _png(s.image), "image/png")) for s in batch]
    answer = session.call(
        "POST",
        f"/api/projects/{project}/import",
        params={"commit_to_project": "false"},
        files=files,
    )
    ids = _ok(answer, f"{len(batch)} files from {batch[0].name}.png on")["file_upload_ids"]
    listed = session.call("GET", f"/api/projects/{project}/file-uploads", params={"ids": str(ids)})
    paths = {row["id"]: row["file"] for row in _ok(listed, "the list of files")}
    return (f"/data/{paths[i]}" for i in ids)


def _png(image: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def _ok(answer: Any, what: str) -> Any:
    if answer.status_code not in (200, 201):
        raise StartError(f"Label Studio refused {what}: {answer.status_code} {answer.text[:300]}")
    return answer.json()
