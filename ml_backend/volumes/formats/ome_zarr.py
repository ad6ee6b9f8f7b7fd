"""OME-Zarr (NGFF 0.4 on Zarr v2, 0.5 on Zarr v3) and plain Zarr arrays, in a local folder.

Of an image the full resolution is read; `pyramid` writes the others. Class names are in
``image-label`` and, in whole, in the attribute ``nextslice``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.formats.axes import AxisChoice, choose_axes, letter_of
from ml_backend.volumes.formats.checks import chunk_size, number_type, reading
from ml_backend.volumes.formats.format import DTYPES, EVERYTHING, Format
from ml_backend.volumes.formats.notes import Notes, sizes_in_one_unit
from ml_backend.volumes.formats.pyramid import Level, levels_of, reduce_into
from ml_backend.volumes.formats.slabs import Slabs, chunk_shape, in_slabs
from ml_backend.volumes.volume import ReadOptions, Volume, VolumeError, VolumeSpec

__all__ = ["FORMAT", "UNITS", "metadata", "read", "write"]

_EXPECTED = "a Zarr array or OME-Zarr image"
UNITS: Mapping[str, str] = {
    "µm": "micrometer", "mm": "millimeter", "nm": "nanometer", "cm": "centimeter", "m": "meter",
    "Å": "angstrom",
}  # fmt: skip

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
        image = _image(path, node, options)
        return _open(path, image)


def write(
    path: Path,
    slices: Iterable[npt.NDArray[Any]],
    spec: VolumeSpec,
    *,
    zarr_format: Literal[2, 3] = 3,
) -> None:
    """Chunked and compressed, with smaller ones of it: NGFF 0.5, or 0.4 with ``zarr_format=2``."""
    import zarr

    group = zarr.create_group(path, zarr_format=zarr_format)
    encoding: Any = {"name": "v2" if zarr_format == 2 else "default", "separator": "/"}

    def level(number: int, one: VolumeSpec) -> Any:
        return group.create_array(
            f"{number}", shape=one.shape, dtype=one.dtype, chunks=chunk_shape(one),
            chunk_key_encoding=encoding,
            dimension_names=("z", "y", "x") if zarr_format == 3 else None,
        )  # fmt: skip

    array = level(0, spec)
    start = 0
    for slab in in_slabs(slices, spec, array.chunks[0]):
        array[start : start + len(slab)] = slab
        start += len(slab)
    levels = levels_of(spec)
    for number, one in enumerate(levels[1:], 1):
        smaller = level(number, replace(spec, shape=one.shape))
        reduce_into(smaller, array, levels[number - 1], one)
        array = smaller
    group.attrs.update(metadata(spec, levels, zarr_format))


def _strange(folder: Path) -> list[str]:
    levels = _written_levels(folder)
    if not levels:  # any program writes such names: our attribute has to be there
        return sorted(one.name for one in folder.iterdir())
    level = "|".join(map(re.escape, levels))
    ours = re.compile(rf"zarr\.json|(?:{level})(?:/zarr\.json|/c(?:/\d+)*)?")
    there = (one.relative_to(folder).as_posix() for one in folder.rglob("*"))
    return sorted(name for name in there if not ours.fullmatch(name))


def _written_levels(folder: Path) -> list[str]:
    """The arrays of an image that `write` has written; none of anything else."""
    try:
        group = json.loads((folder / "zarr.json").read_bytes())
        attributes = group["attributes"]
        if group["node_type"] != "group" or attributes["nextslice"].keys() != {"sized", "classes"}:
            return []
        return [str(one["path"]) for one in attributes["ome"]["multiscales"][0]["datasets"]]
    except (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError):
        return []


FORMAT = Format(
    name="ome-zarr",
    title="OME-Zarr",
    summary="0.4 (Zarr v2) and 0.5 (Zarr v3), full resolution; plain Zarr arrays",
    endings=(".zarr",),
    read=read,
    chooses=True,
    datasets=True,
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


def metadata(spec: VolumeSpec, levels: Sequence[Level], zarr_format: int) -> dict[str, Any]:
    """What NGFF wants said of an image, the attributes of its group: ``levels`` are its arrays 0, 1
    … and ``zarr_format`` is 2 (NGFF 0.4) or 3 (0.5)."""
    version = "0.4" if zarr_format == 2 else "0.5"
    unit = {"unit": UNITS.get(spec.unit, spec.unit)} if spec.unit else {}
    size, origin = spec.voxel_size or (1.0, 1.0, 1.0), _origin(spec)
    image: dict[str, Any] = {
        "name": "volume",
        "type": levels[0].method,
        "axes": [{"name": name, "type": "space", **unit} for name in "zyx"],
        "datasets": [
            {"path": f"{number}", "coordinateTransformations": level.transformations(size, origin)}
            for number, level in enumerate(levels)
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


def _origin(spec: VolumeSpec) -> tuple[float, float, float]:
    """Where the first voxel lies: NGFF has no word for directions, so of a scan with an affine only
    where its axes run as they are counted, towards right, anterior, superior."""
    if spec.affine is None:
        return spec.origin or (0.0, 0.0, 0.0)
    steps = np.array(spec.affine)
    upright = np.abs(steps[::-1, :3] - np.diag(spec.voxel_size or (1.0, 1.0, 1.0)))
    x, y, z = (float(at) for at in steps[:, 3])
    return (z, y, x) if upright.max() <= 1e-4 * np.abs(steps[:, :3]).max() else (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class _Image:
    """An array, which of its axes are z, y, x and which of several is read, what is said of it."""

    array: Any
    axes: AxisChoice
    notes: Notes = _NOTHING


def _member(path: Path, node: Any, name: str) -> Any:
    try:
        return node[name]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise VolumeError(f"{path} has no {name}, expected one of:{_listed(node)}") from error


def _image(path: Path, node: Any, options: ReadOptions) -> _Image:
    import zarr

    if isinstance(node, zarr.Array):
        return _array(path, node, options)
    attributes = dict(node.attrs)
    content = attributes.get("ome", attributes)
    if "bioformats2raw.layout" in content and "1" not in node:
        return _image(path, node["0"], options)
    if content.get("multiscales"):
        ours = attributes.get("nextslice", {})
        return _full_resolution(path, node, content, ours, options)
    arrays = [one for _, one in node.members(max_depth=None) if isinstance(one, zarr.Array)]
    volumes = [one for one in arrays if one.ndim >= 3]
    if len(volumes) != 1:
        raise VolumeError(
            f"{path} is a Zarr group with {len(volumes)} arrays that could be the volume and no "
            f"OME-Zarr image, name one as dataset:{_listed(node)}"
        )
    return _array(path, volumes[0], options)


def _array(path: Path, array: Any, options: ReadOptions) -> _Image:
    """One that is no image: Zarr v3 names its dimensions, xarray does so in Zarr v2."""
    names = getattr(array.metadata, "dimension_names", None)
    names = names or array.attrs.get("_ARRAY_DIMENSIONS") or ()
    place = Path(f"{path}/{array.path}")
    texts = ["" if name is None else str(name) for name in names]
    return _Image(array, choose_axes(place, texts, array.shape, options))


def _full_resolution(
    path: Path,
    group: Any,
    content: Mapping[str, Any],
    ours: Mapping[str, Any],
    options: ReadOptions,
) -> _Image:
    scales = content["multiscales"][0]
    level = scales["datasets"][0]
    array = _member(path, group, level["path"])
    axes = [a if isinstance(a, dict) else {"name": a} for a in scales.get("axes", "tczyx")]
    choice = choose_axes(path, [_name(axis) for axis in axes], array.shape, options)
    places = choice.axes
    sizes, start = np.ones(array.ndim), np.zeros(array.ndim)
    for step in (level, scales):
        for transformation in step.get("coordinateTransformations", ()):
            if transformation.get("type") == "scale" and "scale" in transformation:
                factor = np.asarray(transformation["scale"], np.float64)
                sizes, start = sizes * factor, start * factor
            if transformation.get("type") == "translation" and "translation" in transformation:
                start = start + np.asarray(transformation["translation"], np.float64)
    units = [axes[place].get("unit", "") for place in places]
    notes = sizes_in_one_unit(
        [sizes[place] for place in places], units, [start[place] for place in places]
    )
    if not ours.get("sized", bool(notes.unit) or not np.all(sizes == 1)):
        notes = Notes()
    return _Image(array, choice, replace(notes, classes=_classes(content, ours)))


def _name(axis: Mapping[str, Any]) -> str:
    """What is not in space is called by its type: NGFF lets its name be anything."""
    kind, name = str(axis.get("type", "")), str(axis["name"])
    return kind if kind in ("channel", "time") and not letter_of(name) else name


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
    choice = image.axes
    z, y, x = (array.shape[axis] for axis in choice.axes)
    chunk_size(place, array.chunks, native)
    if array.metadata.fill_value is None:
        array.store.whole = True  # from here on only chunks are asked for

    def block(axis: int, start: int, stop: int) -> npt.NDArray[Any]:
        with reading(place, "whole chunks"):
            part = np.asarray(array[choice.index(axis, start, stop)])
        return part.transpose(choice.order).astype(native, copy=False)

    depth, height, width = (array.chunks[axis] for axis in choice.axes)
    chunks = (depth, height, width)
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
