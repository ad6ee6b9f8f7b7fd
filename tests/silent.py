"""An object store whose server takes connections and never answers, as s3fs's, gcsfs's and adlfs's
clients meet it: a put to one waits for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem

__all__ = ["Silent"]


class Silent(AsyncFileSystem):  # type: ignore[misc]  # fsspec has no types
    """``silent://name/path``."""

    protocol = "silent"
    cachable = False

    async def _never(self, *_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    _pipe_file = _cat_file = _info = _ls = _rm_file = _never


fsspec.register_implementation("silent", Silent, clobber=True)
