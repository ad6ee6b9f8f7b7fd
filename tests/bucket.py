"""An object store in memory that does as s3fs, gcsfs and adlfs: what was listed is kept and
believed, for reads too, and what its client raises comes out as it is."""

from __future__ import annotations

from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

__all__ = ["Bucket", "NoAnswer"]


class NoAnswer(Exception):
    """As botocore's EndpointConnectionError and gcsfs's HttpError: no OSError."""


class Bucket(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """``bucket://name/path``. Each that is made has listings of its own, as a process has.

    ``refuses``: what every call of every one raises.
    """

    protocol = "bucket"
    cachable = False
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    refuses: ClassVar[Exception | None] = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("bucket://")))

    def invalidate_cache(self, path: str | None = None) -> None:
        self.dircache.clear()

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        self._answer()
        listed = self._ls_from_cache(path)  # raises FileNotFoundError where its folder lacks it
        if listed is None:
            found: dict[str, Any] = super().info(path, **kwargs)
            return found
        known = {"name": path, "size": 0, "type": "directory"}
        return next((entry for entry in listed if entry["name"] == path), known)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        path = self._strip_protocol(path)
        self._answer()
        if path not in self.dircache:
            found = super().ls(path, True, **kwargs)
            self.dircache[path] = found
        else:
            found = self.dircache[path]
        return found if detail else sorted(entry["name"] for entry in found)

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
        self.info(path)
        data: bytes = super().cat_file(path, *args, **kwargs)
        return data

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self._answer()
        self.invalidate_cache()
        super().pipe_file(path, value, mode, **kwargs)

    def rm_file(self, path: str) -> None:
        self._answer()
        self.invalidate_cache()
        super().rm_file(path)

    def modified(self, path: str) -> Any:
        self.info(path)
        return super().modified(path)

    def _answer(self) -> None:
        if Bucket.refuses is not None:
            raise Bucket.refuses


fsspec.register_implementation("bucket", Bucket, clobber=True)
