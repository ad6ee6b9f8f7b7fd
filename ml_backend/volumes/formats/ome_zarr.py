"""OME-Zarr (NGFF 0.4 on Zarr v2, 0.5 on Zarr v3) and plain Zarr arrays, in a local folder.

Of an image the full resolution is read. Class names are in ``image-label`` and, in whole, in the
attribute ``nextslice``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.formats.checks import chunk_size, number_type, reading, three_axes
from ml_backend.volumes.formats.format import DTYPES, EVERYTHING, Format
from ml_backend.volumes.formats.notes import Notes, sizes_in_one_unit
from ml_backend.volumes.formats.slabs import Slabs, chunk_shape, in_slabs
from ml_backend.volumes.volume import ReadOptions, Volume, VolumeError, VolumeSpec

__all__ = ["FORMAT", "read", "write"]

_EXPECTED = "a Zarr array or OME-Zarr image"
_NAMES: Mapping[str, str] = {
    "µm": "micrometer", "mm": "millimeter", "nm": "nanometer", "cm": "centimeter", "m": "meter",
    "Å": "angstrom",
}  # fmt: skip

Axes = tuple[int, int, int]

_NOTHING = Notes()


def read(path: Path, options: ReadOptions) -> Volume:
    """``options.dataset``: path of an array or image inside, as ``labels/bone``."""
    import zarr

    from ml_backend.volumes.zarr_store import store_at

    with reading(path, _EXPECTED):
        store, top = store_at(path, options)
        node: Any = zarr.open(store, mode="r", path=top or None)
        if options.dataset is not None:
            node = _member(path, node, options.dataset)
        image = _image(path, node)
        return _open(path, image)


def write(
    path: Path,
    slices: Iterable[npt.NDArray[Any]],
    spec: VolumeSpec,
    *,
    zarr_format: Literal[2, 3] = 3,
) -> None:
    """One resolution, chunked and compressed: NGFF 0.5, or 0.4 with ``zarr_format=2``."""
    import zarr

    group = zarr.create_group(path, zarr_format=zarr_format)
    chunks = chunk_shape(spec)
    encoding: Any = {"name": "v2" if zarr_format == 2 else "default", "separator": "/"}
    array = group.create_array(
        "0", shape=spec.shape, dtype=spec.dtype, chunks=chunks, chunk_key_encoding=encoding,
        dimension_names=("z", "y", "x") if zarr_format == 3 else None,
    )  # fmt: skip
    start = 0
    for slab in in_slabs(slices, spec, chunks[0]):
        array[start : start + len(slab)] = slab
        start += len(slab)
    group.attrs.update(_metadata(spec, zarr_format))


def _strange(folder: Path) -> list[str]:
    names = sorted(one.name for one in folder.iterdir())
    if "zarr.json" not in names:
        return names
    return [name for name in names if name not in ("zarr.json", "0")]


FORMAT = Format(
    name="ome-zarr",
    title="OME-Zarr",
    summary="0.4 (Zarr v2) and 0.5 (Zarr v3), full resolution; plain Zarr arrays",
    endings=(".zarr",),
    read=read,
    write=write,
    dtypes=DTYPES,
    keeps=EVERYTHING,
    repeatable=True,
    masks=".zarr",
    folder=True,
    marks=("zarr.json", ".zgroup", ".zarray"),
    strange=_strange,
    long_endings=(".ome.zarr",),
    place=30,
)


def _metadata(spec: VolumeSpec, zarr_format: int) -> dict[str, Any]:
    version = "0.4" if zarr_format == 2 else "0.5"
    unit = {"unit": _NAMES.get(spec.unit, spec.unit)} if spec.unit else {}
    scale = list(spec.voxel_size or (1.0, 1.0, 1.0))
    image: dict[str, Any] = {
        "name": "volume",
        "axes": [{"name": name, "type": "space", **unit} for name in "zyx"],
        "datasets": [
            {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        ],
    }
    if zarr_format == 2:
        image["version"] = version
    content: dict[str, Any] = {"multiscales": [image]}
    if spec.classes is not None:
        properties = [{"label-value": i, "name": name} for i, name in enumerate(spec.classes)]
        content["image-label"] = {"version": version, "properties": properties}
    if zarr_format == 3:
        content = {"ome": {"version": version, **content}}
    # a scale of 1 without a unit is what NGFF asks for where nothing is known
    classes = None if spec.classes is None else list(spec.classes)
    return content | {"nextslice": {"sized": spec.voxel_size is not None, "classes": classes}}


@dataclass(frozen=True)
class _Image:
    """An array, which of its axes are z, y, x (None: to be found), what is said of it."""

    array: Any
    axes: Axes | None = None
    notes: Notes = _NOTHING


def _member(path: Path, node: Any, name: str) -> Any:
    try:
        return node[name]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise VolumeError(f"{path} has no {name}, expected one of:{_listed(node)}") from error


def _image(path: Path, node: Any) -> _Image:
    import zarr

    if isinstance(node, zarr.Array):
        return _Image(node)
    attributes = dict(node.attrs)
    content = attributes.get("ome", attributes)
    if "bioformats2raw.layout" in content and "1" not in node:
        return _image(path, node["0"])
    if content.get("multiscales"):
        return _full_resolution(path, node, content, attributes.get("nextslice", {}))
    arrays = [one for _, one in node.members(max_depth=None) if isinstance(one, zarr.Array)]
    volumes = [one for one in arrays if one.ndim >= 3]
    if len(volumes) != 1:
        raise VolumeError(
            f"{path} is a Zarr group with {len(volumes)} arrays that could be the volume and no "
            f"OME-Zarr image, name one as dataset:{_listed(node)}"
        )
    return _Image(volumes[0])


def _full_resolution(
    path: Path, group: Any, content: Mapping[str, Any], ours: Mapping[str, Any]
) -> _Image:
    scales = content["multiscales"][0]
    level = scales["datasets"][0]
    array = _member(path, group, level["path"])
    axes = [a if isinstance(a, dict) else {"name": a} for a in scales.get("axes", "tczyx")]
    if len(axes) != array.ndim:
        raise VolumeError(
            f"{path} names {len(axes)} axes for an array of shape {array.shape}, expected as many"
        )
    places = _places(path, [str(axis["name"]) for axis in axes], array.shape)
    sizes = np.ones(array.ndim)
    for step in (level, scales):
        for transformation in step.get("coordinateTransformations", ()):
            if transformation.get("type") == "scale" and "scale" in transformation:
                sizes = sizes * np.asarray(transformation["scale"], np.float64)
    units = [axes[place].get("unit", "") for place in places]
    notes = sizes_in_one_unit([sizes[place] for place in places], units)
    if not ours.get("sized", bool(notes.unit) or not np.all(sizes == 1)):
        notes = Notes()
    return _Image(array, places, Notes(notes.voxel_size, notes.unit, _classes(content, ours)))


def _places(path: Path, names: Sequence[str], shape: Sequence[int]) -> Axes:
    for name, length in zip(names, shape, strict=True):
        if name not in ("z", "y", "x") and length != 1:
            raise VolumeError(
                f"{path} has the axes {', '.join(names)} of lengths {tuple(shape)}, expected "
                f"z, y, x and only one {name}"
            )
    if not {"z", "y", "x"} <= set(names):
        raise VolumeError(f"{path} has the axes {', '.join(names)}, expected z, y, x among them")
    return names.index("z"), names.index("y"), names.index("x")


def _classes(content: Mapping[str, Any], ours: Mapping[str, Any]) -> tuple[str, ...] | None:
    if ours.get("classes") is not None:
        return tuple(str(name) for name in ours["classes"])
    properties = content.get("image-label", {}).get("properties", ())
    names = {one.get("label-value"): one.get("name") for one in properties}
    if not names or not all(isinstance(i, int) and n for i, n in names.items()) or min(names) < 0:
        return None
    if max(names) > 255:
        return None
    # 0 is the background that image-label seldom names
    names = {0: "background"} | names
    return tuple(str(names.get(i, f"class {i}")) for i in range(max(names) + 1))


def _open(path: Path, image: _Image) -> Volume:
    array, place = image.array, Path(f"{path}/{image.array.path}")
    native = number_type(place, np.dtype(array.dtype))
    axes = image.axes or three_axes(place, array.shape)
    z, y, x = (array.shape[axis] for axis in axes)
    if 0 in array.shape:
        raise VolumeError(f"{place} has the shape {array.shape}: it is empty, expected voxels")
    chunk_size(place, array.chunks, native)
    # source axes that are left after indexing, in the order of z, y, x
    order = [sorted(axes).index(axis) for axis in axes]

    def block(axis: int, start: int, stop: int) -> npt.NDArray[Any]:
        index: list[Any] = [0] * array.ndim
        for i, source in enumerate(axes):
            index[source] = slice(start, stop) if i == axis else slice(None)
        with reading(place, "whole chunks"):
            part = np.asarray(array[tuple(index)])
        return part.transpose(order).astype(native, copy=False)

    chunks = (array.chunks[axes[0]], array.chunks[axes[1]], array.chunks[axes[2]])
    slabs = Slabs((z, y, x), chunks, native.itemsize, block)
    notes = image.notes
    return notes.volume(path, (z, y, x), native, slabs.read, slabs.close)


def _listed(node: Any) -> str:
    import zarr

    if isinstance(node, zarr.Array):
        return " nothing, it is an array itself"
    arrays = [
        f"\n  {name} {one.dtype} {one.shape}"
        for name, one in node.members(max_depth=None)
        if isinstance(one, zarr.Array)
    ]
    return "".join(arrays[:20]) or " nothing"
