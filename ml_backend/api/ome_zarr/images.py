"""An image of OME-Zarr (NGFF 0.4 on Zarr v2): the text of its files, and where its chunks lie."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.studio.label_config import label_colour
from ml_backend.volumes.formats.ome_zarr import UNITS, metadata
from ml_backend.volumes.formats.pyramid import Level, levels_of
from ml_backend.volumes.volume import VolumeSpec
from ml_backend.volumes.window import Window

__all__ = ["GROUP", "TILE", "Image", "compressed", "decompressed", "label_image", "scan_image"]

TILE = 512
"""Voxels of a chunk along the two axes of a slice; along the third it is one: a slice is read
whole, and shown a tile at a time."""
GROUP = {"zarr_format": 2}
_LZ4 = {"cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}
"""A millisecond a chunk, where zlib takes twenty; neuroglancer, napari and zarr read it."""

_Three = tuple[int, int, int]


@dataclass(frozen=True)
class _Cell(Level):
    """Of class ids, of which one of a cell is taken: it is shown where the cell lies, so that a
    viewer paints a mask over its own slice at every level."""

    def offset(self, factor: int) -> float:
        return (factor - 1) / 2


@dataclass(frozen=True)
class Image:
    """``name``: what viewers call it; ``spec``: what its files say; ``levels``: its arrays 0, 1 …;
    ``axis``: of the slices that it is read by, 0, 1, 2 for z, y, x; ``window``: how a scan is
    shown."""

    name: str
    spec: VolumeSpec
    levels: tuple[Level, ...]
    axis: int = 0
    window: Window | None = None

    def chunks(self, level: int) -> _Three:
        """(Z, Y, X) of a chunk."""
        z, y, x = (
            1 if i == self.axis else min(TILE, length)
            for i, length in enumerate(self.levels[level].shape)
        )
        return z, y, x

    def has(self, level: int, chunk: _Three) -> bool:
        """Whether there is such a chunk, counted along z, y, x."""
        edges = zip(chunk, self.chunks(level), self.levels[level].shape, strict=True)
        return all(at * edge < length for at, edge, length in edges)

    def tile(self, level: int, chunk: _Three) -> tuple[slice, slice]:
        """Rows and columns of the level's slice that are in the ``chunk``."""
        rows, columns = (
            slice(at * edge, (at + 1) * edge)
            for i, (at, edge) in enumerate(zip(chunk, self.chunks(level), strict=True))
            if i != self.axis
        )
        return rows, columns

    def array(self, level: int) -> dict[str, Any]:
        """The ``.zarray`` of a level."""
        return {
            **GROUP,
            "shape": self.levels[level].shape,
            "chunks": self.chunks(level),
            "dtype": self._stored.str,
            "compressor": {"id": "blosc", **_LZ4},
            "fill_value": 0,
            "order": "C",
            "filters": None,
            "dimension_separator": "/",
        }

    def encode(self, level: int, tile: npt.NDArray[Any]) -> bytes:
        """The bytes of a chunk, of the part of a slice that is in it: zeros beyond the edge."""
        rows, columns = (n for i, n in enumerate(self.chunks(level)) if i != self.axis)
        whole = np.zeros((rows, columns), self._stored)
        whole[: tile.shape[0], : tile.shape[1]] = tile
        return compressed(whole)

    def attributes(self) -> dict[str, Any]:
        """The ``.zattrs`` of the image."""
        found = metadata(self.spec, self.levels, 2)
        found["multiscales"][0]["name"] = self.name
        if self.spec.classes is not None:
            found["image-label"] |= {"colors": _colours(self.spec.classes)}
            found["image-label"]["source"] = {"image": "../../"}
        if self.window is not None:
            found["omero"] = {"channels": [_channel(self.window)], "rdefs": {"model": "greyscale"}}
        return found

    @property
    def _stored(self) -> np.dtype[Any]:
        """Truth values as 0 and 1: neuroglancer knows none."""
        dtype = np.dtype(np.uint8) if self.spec.dtype.kind == "b" else self.spec.dtype
        return dtype.newbyteorder("<")


def compressed(values: npt.NDArray[Any]) -> bytes:
    """``values`` as chunks have them."""
    from numcodecs import Blosc  # a tenth of a second, which others need not wait for

    return bytes(Blosc(**_LZ4).encode(np.ascontiguousarray(values)))


def decompressed(data: bytes) -> bytes:
    """What `compressed` has made ``data`` of."""
    from numcodecs import Blosc

    return bytes(Blosc(**_LZ4).decode(data))


def scan_image(spec: VolumeSpec, window: Window) -> Image:
    """Of the grey values of a volume."""
    return Image("scan", _in_known_units(spec), tuple(levels_of(spec)), 0, window)


def label_image(name: str, scan: VolumeSpec, axis: int, classes: tuple[str, ...]) -> Image:
    """Of class ids that lie on ``scan``, from slices along ``axis``."""
    spec = replace(_in_known_units(scan), dtype=np.dtype(np.uint8), classes=classes)
    levels = (_Cell(one.shape, one.factors, means=False) for one in levels_of(spec))
    return Image(name, spec, tuple(levels), axis)


def _in_known_units(spec: VolumeSpec) -> VolumeSpec:
    """A file's own word for a unit is left out: neuroglancer refuses a volume for it."""
    return spec if spec.unit in UNITS else replace(spec, unit="")


def _colours(classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """The background, which also stands for what nobody labelled, lets the scan through."""
    found: list[dict[str, Any]] = [{"label-value": 0, "rgba": [0, 0, 0, 0]}]
    for value in range(1, len(classes)):
        rgb = bytes.fromhex(label_colour(value - 1)[1:])
        found.append({"label-value": value, "rgba": [*rgb, 255]})
    return found


def _channel(window: Window) -> dict[str, Any]:
    low, high = window.low, window.high
    shown = {"start": low, "end": high, "min": low, "max": high}
    return {"active": True, "color": "FFFFFF", "label": "scan", "window": shown}
