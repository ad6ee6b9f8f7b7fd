"""A project whose tasks are the slices of a volume, as `nextslice import` makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.service import Service, slice_keys
from ml_backend.settings import Settings
from ml_backend.studio.annotations import regions
from ml_backend.studio.label_config import parse_label_config
from ml_backend.volumes.address import SliceAddress
from ml_backend.volumes.opening import write_volume
from ml_backend.volumes.turn import Affine
from ml_backend.volumes.volume import ReadOptions, VolumeSpec
from ml_backend.volumes.window import Window
from tests.http_studio import CONFIG, PHANTOM, SLICES, HttpStudio, phantom_project

__all__ = ["NAME", "WINDOW", "predict", "scan", "shown_mask", "volume_project"]

NAME = "scans/bone.nii.gz"
WINDOW = Window(0.0, 1000.0)


def scan() -> npt.NDArray[np.uint16]:
    """(Z, Y, X)."""
    return np.stack([PHANTOM.image(i) for i in PHANTOM.ids])


def volume_project(
    server: HttpStudio,
    make_settings: Callable[..., Settings],
    folder: Path,
    *,
    affine: Affine | None = None,
    flip: str = "",
    labels: Sequence[int] = (2, 5, 9),
    name: str = NAME,
    values: npt.NDArray[Any] | None = None,
    axis: str = "z",
    apart: int = 1,
    **variables: Any,
) -> ConnectedProject:
    """Tasks 0, 1, 2 … of slices along ``axis``, each ``apart`` from the next; ``labels`` are
    submitted, round 0 is published. ``flip``: axes that were turned over for people. ``values``:
    (Z, Y, X), those of `scan` by default."""
    scans = folder / "scans"
    scans.mkdir(exist_ok=True)
    if values is None:
        values = scan()
    spec = VolumeSpec(values.shape, values.dtype, (4.0, 2.0, 2.0), "µm", affine=affine)
    file = "bone.nii.gz" if "link" in name else name.rpartition("/")[2]
    write_volume(scans / file, values, spec, overwrite=True)
    given = {"NEXTSLICE_VOLUMES": scans, "NEXTSLICE_SLICE_SECRET": "a secret of the laboratory"}
    settings = make_settings(LABEL_STUDIO_URL=server.url, **given, **variables)
    keys = slice_keys(settings)
    for row in server.memory._rows.values():
        z = apart * row["id"]
        address = SliceAddress(name, axis, z, WINDOW, ReadOptions(flip=flip))
        image = address.url("http://127.0.0.1:9090", keys)
        row["data"] = {"image": image, "volume": name, "axis": axis, "z": z}
    project = phantom_project(server, make_settings, (), **given, **variables)
    config = parse_label_config(CONFIG)
    for task in labels:
        server.memory.submit(task, regions(shown_mask(task, flip), config))
    assert len(server.memory._rows) == SLICES
    return ConnectedProject(Service(project.service.settings), project.key)


def shown_mask(task: int, flip: str = "") -> npt.NDArray[np.uint8]:
    """What is right of the slice of ``task``, as people see it where ``flip`` turns it over."""
    z = SLICES - 1 - task if "z" in flip else task
    mask = PHANTOM.mask(PHANTOM.ids[z])
    steps = tuple(slice(None, None, -1 if axis in flip else 1) for axis in "yx")
    return np.ascontiguousarray(mask[steps])


def predict(
    server: HttpStudio, project: ConnectedProject, tasks: Sequence[int], flip: str = ""
) -> str:
    """As if a network were published that has drawn ``tasks``; its version."""
    published = project.published
    assert published is not None
    version = "nextslice-r001-abcdef"
    drawn_by = {"weights": "round-0001/weights.safetensors", "model_version": version}
    project.folder.published = published.model_copy(update=drawn_by)
    config = parse_label_config(CONFIG)
    for task in tasks:
        drawn = regions(shown_mask(task, flip), config)
        row = {"task": task, "model_version": version, "result": drawn, "score": 0}
        server.memory.imported.append(row)
    return version
