"""Zarr stores: a folder that gives no chunk which is a link to somewhere outside, and a zip file.

Not among the formats, all of which are imported whenever the product starts: zarr is heavy.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from zipfile import ZipFile

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, ZipStore

from ml_backend.volumes.enclosure import check_inside
from ml_backend.volumes.volume import ReadOptions, VolumeError

__all__ = ["EnclosedStore", "ZippedStore", "store_at"]

_MARKS = ("zarr.json", ".zgroup", ".zarray")


def store_at(path: Path, options: ReadOptions) -> tuple[Store, str]:
    """The folder or the zip file at ``path``, and where in it its data lie. Raises VolumeError."""
    return (EnclosedStore(path, options), "") if path.is_dir() else _zipped(path)


def _zipped(path: Path) -> tuple[Store, str]:
    """The members below the highest one that describes a group or an array."""
    with ZipFile(path) as file:
        names = [name for name in file.namelist() if name.rpartition("/")[2] in _MARKS]
    if not names:
        raise VolumeError(f"{path} is a zip file without {_MARKS[0]}, expected an OME-Zarr in it")
    top = min((name.rpartition("/")[0] for name in names), key=lambda name: (name.count("/"), name))
    return ZippedStore(path), top


class EnclosedStore(LocalStore):
    """The files of ``folder``, read only. Raises VolumeError for one that lies outside the roots
    of ``options``; once ``whole`` is set, also for one that is not there."""

    whole = False

    def __init__(self, folder: Path, options: ReadOptions) -> None:
        super().__init__(folder, read_only=True)
        self._options = options

    def with_read_only(self, read_only: bool = False) -> EnclosedStore:
        return EnclosedStore(self.root, self._options)

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        check_inside(self.root / key, self.root, self._options)
        found = super().get_sync(key, prototype=prototype, byte_range=byte_range)
        return self._checked(key, found)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        check_inside(self.root / key, self.root, self._options)
        return self._checked(key, await super().get(key, prototype, byte_range))

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, part) for key, part in key_ranges]

    def _checked(self, key: str, found: Buffer | None) -> Buffer | None:
        return _there(self.root / key, found) if self.whole else found


class ZippedStore(ZipStore):
    """The members of a zip file, read only. Once ``whole`` is set, raises VolumeError for one that
    is not there."""

    whole = False

    def __init__(self, path: Path) -> None:
        super().__init__(path, mode="r")

    async def get(
        self,
        key: str,
        prototype: BufferPrototype,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        found = await super().get(key, prototype, byte_range)
        return _there(self.path / key, found) if self.whole else found

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, part) for key, part in key_ranges]


def _there(place: Path, found: Buffer | None) -> Buffer:
    if found is None:
        raise VolumeError(
            f"{place} is not there, and its array says no value for chunks that are not: expected "
            "all of them, or a fill_value"
        )
    return found
