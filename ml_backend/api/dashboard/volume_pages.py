"""The pages that show a project's volumes in 3-D, and what they load."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from typing import Any

from flask import Blueprint, Flask, Response, current_app, jsonify, request, url_for
from werkzeug.routing import PathConverter

from ml_backend.api.dashboard.answers import legend, message, page, stored, unknown
from ml_backend.api.dashboard.views import KINDS, Kind, VolumeView
from ml_backend.api.dashboard.volumes import ProjectVolumes, TooManyVolumes
from ml_backend.api.slices import may_read
from ml_backend.api.status import CANNOT_LOOK
from ml_backend.errors import TryAgainLater
from ml_backend.logs import without_passwords
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.service import Service, slice_keys
from ml_backend.volumes.volume import VolumeError
from ml_backend.volumes.volume_address import VolumeAddress, last_day

__all__ = ["project_volumes", "serve_volumes", "volumes"]

logger = logging.getLogger(__name__)

_EXTENSION = "nextslice volumes"
_NEUROGLANCER = "https://neuroglancer-demo.appspot.com"
"""Where everybody can use it. Whoever serves it at another address knows that."""
_LISTED = 500
"""Slices in the table of a page: beyond that those that are labelled or predicted."""

volumes = Blueprint("volumes", __name__)

Answer = Response | tuple[Response, int]


class _VolumeName(PathConverter):
    """A volume's name, which may begin with a slash: tasks say what they like."""

    regex = ".+?"
    part_isolating = False


def serve_volumes(app: Flask, service: Service) -> None:
    """What the pages of `volumes` need in ``app``; they are registered by who has the login."""
    app.extensions[_EXTENSION] = ProjectVolumes(service)
    app.url_map.converters["volume"] = _VolumeName


def project_volumes(app: Flask) -> ProjectVolumes:
    """What `serve_volumes` has put into ``app``."""
    found: ProjectVolumes = app.extensions[_EXTENSION]
    return found


def _shown() -> ProjectVolumes:
    return project_volumes(current_app)


@volumes.get("/projects/<int:number>/volumes")
def listed(number: int) -> Answer:
    """The project's volumes."""
    found = stored(number)
    if found is None:
        return unknown(number)
    stacks = _shown().stacks(found)
    return page("volumes.html", number=number, stacks=stacks.groups, json=_list_json(number))


@volumes.get("/api/projects/<int:number>/volumes")
def list_json(number: int) -> Answer:
    """The project's volumes, for programs."""
    found = stored(number)
    if found is None:
        return _nothing(f"project {number} is not known here")
    groups = _shown().stacks(found).groups
    return jsonify(
        volumes=[
            {"volume": volume, "axis": axis, "slices": len(tasks)}
            | {"page": _address("show", number, volume, axis)}
            for (volume, axis), tasks in groups.items()
        ]
    )


@volumes.get("/projects/<int:number>/volumes/<volume:volume>/")
def show(number: int, volume: str) -> Answer:
    """One volume."""
    found = stored(number)
    if found is None:
        return unknown(number)
    with _shown().place():
        view = _shown().view(found, volume, request.args.get("axis"))
    if view is None:
        said = f"No slice of project {number} is of a volume {volume!r} in what was listed last."
        return message(f"Project {number} has no such volume", said, 404)
    rows = view.slices
    if len(rows) > _LISTED:
        rows = tuple(one for one in rows if one.labelled or one.predicted)[:_LISTED]
    return page(
        "volume.html",
        number=number,
        view=view,
        rows=rows,
        legend=legend(view.classes),
        about=_address("view_json", number, volume, view.axis),
        task_picture=url_for("dashboard.picture", number=number, task=0, v=view.version),
        full=_full_resolution(found, view),
    )


@volumes.get("/api/projects/<int:number>/volumes/<volume:volume>")
def view_json(number: int, volume: str) -> Answer:
    """One volume, for programs and for the page's script."""
    found = stored(number)
    if found is None:
        return _nothing(f"project {number} is not known here")
    with _shown().place():
        view = _shown().view(found, volume, request.args.get("axis"))
    if view is None:
        return _nothing(f"project {number} has no volume {volume!r}")
    full = _full_resolution(found, view)
    return jsonify(_json(number, view) | {"ome_zarr": None if full is None else full.url})


@volumes.get("/projects/<int:number>/volumes/<volume:volume>/<kind>.nii.gz")
def nifti(number: int, volume: str, kind: str) -> Answer:
    """Scan, labels or prediction of a volume, or 304 for who has it already."""
    found = stored(number)
    known = next((one for one in KINDS if one == kind), None)
    if found is None or known is None:
        return _said(f"there is no {kind} of a volume in project {number}", 404)
    axis = request.args.get("axis")
    with _shown().place():
        view = _shown().view(found, volume, axis)
        if view is None:
            return _said(f"project {number} has no volume {volume!r}", 404)
        tag = view.tags.get(known)
        if tag is None:
            return _without(view)
        if request.if_none_match.contains_weak(tag):
            answer = Response(status=304)
        else:
            built = _shown().built(found, volume, axis, known, tag)
            if built is None:
                raise TooManyVolumes("the volume has changed meanwhile: load the page again")
            answer = Response(built.data, mimetype="application/gzip")
            answer.headers["X-Nextslice-Left-Out"] = str(built.left_out)
    answer.headers["Cache-Control"] = "private, no-cache"
    answer.set_etag(tag)
    return answer


def _without(view: VolumeView) -> Answer:
    """Why there is no such file."""
    if view.lacking:
        return _said(view.lacking, 422)
    if view.unanswered:
        return _said(view.unanswered, 503)
    return _said("nothing is predicted yet: that begins with the first training", 404)


def _json(number: int, view: VolumeView) -> dict[str, Any]:
    grid = view.grid
    return {
        "project": number,
        "volume": view.volume,
        "axis": view.axis,
        "shape": None if grid is None else grid.whole,
        "shown": None if grid is None else grid.shape,
        "steps": None if grid is None else grid.steps,
        "placed": view.placed,
        "lacking": view.lacking,
        "unanswered": view.unanswered,
        "model_version": view.version,
        "classes": view.classes,
        "colours": view.colours,
        "labelled": view.labelled,
        "predicted": view.predicted,
        "files": {
            kind: _address("nifti", number, view.volume, view.axis, kind=kind)
            for kind in KINDS
            if kind in view.tags
        },
        "slices": [asdict(one) for one in view.slices],
    }


@dataclass(frozen=True)
class _FullResolution:
    """``url``: of the OME-Zarr; ``until``: the day when it ends; ``labels``: which label images
    there are; ``elsewhere``: where neuroglancer is that may not read it, empty where it may."""

    url: str
    until: str
    labels: list[Kind]
    elsewhere: str


def _full_resolution(project: ConnectedProject, view: VolumeView) -> _FullResolution | None:
    """Where viewers find every voxel; None where there is no scan."""
    if "scan" not in view.tags:
        return None
    settings = project.service.settings
    address = VolumeAddress(project.key, view.volume, view.axis, last_day())
    return _FullResolution(
        f"{address.url(settings.slices_url, slice_keys(settings))}/scan.zarr",
        time.strftime("%-d %B %Y", time.gmtime(address.expires)),
        [kind for kind in view.tags if kind != "scan"],
        "" if may_read(_NEUROGLANCER) else _NEUROGLANCER,
    )


def _address(name: str, number: int, volume: str, axis: str, **more: str) -> str:
    values: dict[str, Any] = {"number": number, "volume": volume, "axis": axis, **more}
    return url_for(f"dashboard.volumes.{name}", **values)


def _list_json(number: int) -> str:
    return url_for("dashboard.volumes.list_json", number=number)


def _refuse(error: Exception) -> Answer:
    """In the form that was asked for."""
    status = 422 if isinstance(error, VolumeError) else 503
    said = without_passwords(str(error))
    logger.warning("%s: %d: %s", request.path, status, said)
    if request.path.startswith("/api/"):
        answer, _ = _nothing(said, status)
    elif request.path.endswith(".nii.gz"):
        answer, _ = _said(said, status)
    else:
        answer, _ = message("This volume cannot be shown", said, status)
    if isinstance(error, TryAgainLater):
        answer.headers["Retry-After"] = "2"
    return answer, status


for _fault in CANNOT_LOOK:
    volumes.register_error_handler(_fault, _refuse)


def _nothing(said: str, status: int = 404) -> tuple[Response, int]:
    answer = jsonify(error=said)
    answer.status_code = status
    return answer, status


def _said(said: str, status: int) -> tuple[Response, int]:
    return Response(f"{said}\n", status, mimetype="text/plain"), status
