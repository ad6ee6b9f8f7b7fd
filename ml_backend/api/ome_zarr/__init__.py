"""Volumes of projects as OME-Zarr over HTTP, chunk by chunk, for viewers of volumes of any size."""

from ml_backend.api.ome_zarr.pages import serve_ome_zarr

__all__ = ["serve_ome_zarr"]
