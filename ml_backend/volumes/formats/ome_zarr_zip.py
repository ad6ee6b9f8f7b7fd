"""Zipped OME-Zarr (``.ozx`` of RFC-9, ``.zarr.zip``): what `ome_zarr` reads, in one file.

Chunks are read where they are asked for. The folder itself may be zipped too, or what is in it.
"""

from __future__ import annotations

from ml_backend.volumes.formats.format import Format
from ml_backend.volumes.formats.ome_zarr import read

__all__ = ["FORMAT"]

FORMAT = Format(
    name="ome-zarr-zip",
    title="OME-Zarr, zipped",
    summary="`.ozx`, `.zarr.zip`: as OME-Zarr, in one file",
    readable="zipped OME-Zarr (.ozx)",
    endings=(".ozx", ".zarr.zip"),
    read=read,
    chooses=True,
    datasets=True,
    place=84,
)
