"""Files of a web server for fsspec, by requests: its own need aiohttp, which is not installed."""

from __future__ import annotations

from typing import Any

import requests
import zarr
from fsspec.asyn import AsyncFileSystem
from zarr.storage import FsspecStore

__all__ = ["open_group"]


class _WebFiles(AsyncFileSystem):  # type: ignore[misc]  # fsspec has no types
    """As fsspec's ``http``: whole files, read only."""

    cachable = False

    async def _cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
        assert (start, end) == (None, None)
        answer = requests.get(path, timeout=60)
        if answer.status_code == 404:
            raise FileNotFoundError(path)
        answer.raise_for_status()
        return answer.content

    async def _exists(self, path: str, **_: Any) -> bool:
        return requests.head(path, timeout=60).ok


def open_group(url: str) -> zarr.Group:
    """The Zarr group at ``url``."""
    store = FsspecStore(_WebFiles(asynchronous=True), read_only=True, path=url)
    return zarr.open_group(store, mode="r", zarr_format=2)
