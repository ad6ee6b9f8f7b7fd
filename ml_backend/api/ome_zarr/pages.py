"""``GET /zarr/<token>/scan.zarr/…``: a volume of a project as OME-Zarr (NGFF 0.4 on Zarr v2).

The token is the authorisation, as the signature of a slice is: viewers run on other hosts and send
no login. ``scan.zarr`` is the image; ``scan.zarr/labels/labels`` and ``…/prediction`` are its label
images.
"""

from __future__ import annotations

import json
import logging
import re
from typing import Any

from flask import Blueprint, Flask, Response, current_app, g, request
from werkzeug.exceptions import HTTPException

from ml_backend.api.dashboard.views import KINDS, Kind
from ml_backend.api.dashboard.volume_pages import project_volumes
from ml_backend.api.ome_zarr.images import GROUP
from ml_backend.api.ome_zarr.served import Served, ServedVolumes
from ml_backend.api.slices import for_browsers, refusal, status_of
from ml_backend.errors import NextsliceError
from ml_backend.logs import without_passwords
from ml_backend.rounds.cut_from import SourceError
from ml_backend.rounds.service import Service
from ml_backend.volumes.roots import NoSuchVolume
from ml_backend.volumes.volume_address import VolumeAddress

__all__ = ["serve_ome_zarr"]

logger = logging.getLogger(__name__)

_EXTENSION = "nextslice OME-Zarr"
_HOUR = 3600
_NUMBER = "(0|[1-9][0-9]{0,6})"
_FILE = re.compile(
    r"scan\.zarr/(?:labels/(?P<kind>labels|prediction)/)?"
    rf"(?P<file>\.zgroup|\.zattrs|{_NUMBER}/\.zarray|{_NUMBER}/{_NUMBER}/{_NUMBER}/{_NUMBER})"
)

ome_zarr = Blueprint("ome_zarr", __name__)
ome_zarr.after_request(for_browsers)


def serve_ome_zarr(app: Flask, service: Service) -> None:
    """Add the route to ``app``, which has slice server and dashboard already."""
    app.extensions[_EXTENSION] = ServedVolumes(service, project_volumes(app))
    app.register_blueprint(ome_zarr)


@ome_zarr.get("/zarr/<token>/<path:file>")
def zarr_file(token: str, file: str) -> Response:
    """A file of the OME-Zarr that a signed address opens, or 304 for who has it already."""
    served: ServedVolumes = current_app.extensions[_EXTENSION]
    address = g.volume_address = served.address(token)
    with served.place():
        answer = _answer(served, address, file)
    answer.add_etag()
    answer.make_conditional(request)
    return answer


def _answer(served: ServedVolumes, address: VolumeAddress, file: str) -> Response:
    if file == "scan.zarr/labels/.zgroup":
        return _text(GROUP)
    if file == "scan.zarr/labels/.zattrs":
        return _text({"labels": served.kinds(address)})
    found = _FILE.fullmatch(file)
    if found is None:
        raise NoSuchVolume(f"{file!r} is no file of an OME-Zarr")
    kind: Kind = next((one for one in KINDS if one == found["kind"]), "scan")
    image = served.open(address, kind)
    numbers = [int(number) for number in re.findall(r"\d+", found["file"])]
    if not numbers:
        return _text(GROUP if found["file"] == ".zgroup" else image.image.attributes())
    level, *chunk = numbers
    if level >= len(image.image.levels):
        raise NoSuchVolume(f"there are the levels 0 to {len(image.image.levels) - 1}")
    if not chunk:
        return _text(image.image.array(level))
    z, y, x = chunk
    answer = Response(_chunk(image, level, (z, y, x)), mimetype="application/octet-stream")
    keep = f"max-age={_HOUR}" if kind == "scan" else "no-cache"
    answer.headers["Cache-Control"] = f"private, {keep}"
    return answer


def _chunk(served: Served, level: int, chunk: tuple[int, int, int]) -> bytes:
    image = served.image
    if not image.has(level, chunk):
        raise NoSuchVolume(f"level {level} has no chunk {chunk}")
    tile = served.tile(level, chunk[image.axis], *image.tile(level, chunk))
    if tile is None:
        raise NoSuchVolume("nobody has labelled anything there")
    return image.encode(level, tile)


def _text(said: dict[str, Any]) -> Response:
    answer = Response(json.dumps(said, indent=1) + "\n", mimetype="application/json")
    answer.headers["Cache-Control"] = "private, no-cache"
    return answer


@ome_zarr.errorhandler(Exception)
def _refuse(error: Exception) -> Any:
    """One line of text, never a traceback."""
    if isinstance(error, HTTPException):
        return error
    status = 422 if isinstance(error, SourceError) else status_of(error)
    if status == 500 and isinstance(error, NextsliceError):
        status = 503  # Label Studio or the store does not answer
    if status == 500:
        logger.exception("%s cannot be shown", _asked())
        text = f"the volume cannot be read ({type(error).__name__}): see the backend's log"
    else:
        text = without_passwords(str(error))
        if status != 404:  # as most chunks of labels are
            logger.warning("%s: %d: %s", _asked(), status, text)
    return refusal(error, status, text)


def _asked() -> str:
    """What is asked for, without the address that opens it to everybody."""
    file = (request.view_args or {}).get("file", "a volume")
    address: VolumeAddress | None = g.get("volume_address")
    where = "" if address is None else f" of {address.volume} in project {address.project}"
    return f"{file}{where}"
