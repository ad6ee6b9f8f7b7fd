"""Values that are packed as one stream: unpacked into a temporary file when a slice is first asked
for, for a stream cannot be read at random. The file lies in TMPDIR until the volume is closed."""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy.typing as npt

from ml_backend.durable import Scratch
from ml_backend.volumes.formats.checks import reading
from ml_backend.volumes.formats.flat import Cut, Flat
from ml_backend.volumes.limits import UNPACKED_BYTES
from ml_backend.volumes.volume import Read, VolumeError

__all__ = ["HIGHEST_RATIO", "Source", "Unpacked", "ZlibStream"]

HIGHEST_RATIO = 1032
"""Deflate makes no more of a byte."""


class Source(Protocol):
    """What is read from the stream, unpacked."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(eq=False)
class Unpacked:
    """``packed``: where the values would lie in what ``source`` gives of its file. ``kind``: what
    packed them; ``ratio``: how many bytes that makes of one at most, 0: any. ``advice``: what to do
    where the stream is too large."""

    packed: Flat | Cut
    source: Callable[[], AbstractContextManager[Source]]
    kind: str = "gzip"
    ratio: int = HIGHEST_RATIO
    advice: str = "gunzip it"
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _folder: Any = None
    _flat: Flat | Cut | None = None

    def read(self, axis: int, index: int) -> npt.NDArray[Any]:
        """The slice at ``index`` across ``axis``. Raises VolumeError."""
        with self._lock:
            if self._flat is None:
                self._flat = self._unpack()
            read: Read = self._flat.read
        return read(axis, index)

    def close(self) -> None:
        """Remove what was unpacked."""
        with self._lock:
            self._flat = None
            if self._folder is not None:
                self._folder.cleanup()

    def _unpack(self) -> Flat | Cut:
        folder = Scratch()
        try:
            flat = self._unpack_into(Path(folder.name))
        except BaseException:  # the next slice that is asked for tries again
            folder.cleanup()
            raise
        self._folder = folder
        weakref.finalize(self, folder.cleanup)
        return flat

    def _unpack_into(self, folder: Path) -> Flat | Cut:
        path = self.packed.path
        free, size = shutil.disk_usage(folder).free, self.packed.end
        if size > UNPACKED_BYTES:
            raise VolumeError(
                f"{path} unpacks to {size} bytes, expected at most {UNPACKED_BYTES}: {self.advice}"
            )
        if self.ratio and size > self.ratio * (packed := path.stat().st_size):
            raise VolumeError(
                f"{path} has {packed} bytes, which never unpack to the {size} that its shape "
                f"{self.packed.shape} needs: expected a whole {self.kind} file"
            )
        if free < size:
            raise VolumeError(
                f"{path} needs {size} bytes in {tempfile.gettempdir()} to be unpacked, {free} are "
                f"free: set TMPDIR to another disk, or {self.advice}"
            )
        target = folder / f"volume{Path(path.stem).suffix}"
        whole = f"a whole {self.kind} file"
        with reading(path, whole), self.source() as source, target.open("wb") as to:
            # no further than the values go, whatever is packed behind them
            left = size
            while left and (part := source.read(min(left, 2**20))):
                to.write(part)
                left -= len(part)
            source.read(1)  # where nothing is, the sum of what was packed is checked
        found = target.stat().st_size
        if found < size:
            raise VolumeError(
                f"{path} unpacks to {found} bytes, expected {size}: {self.packed.dtype} of shape "
                f"{self.packed.shape} from byte {self.packed.offset}"
            )
        return replace(self.packed, path=target)


@dataclass
class ZlibStream:
    """What is packed by zlib or gzip in ``file`` from where it stands."""

    file: BinaryIO
    _unpacker: Any = field(default_factory=lambda: zlib.decompressobj(zlib.MAX_WBITS | 32))

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes, none at the end. Raises EOFError where the stream is cut off."""
        while not self._unpacker.eof:
            packed = self._unpacker.unconsumed_tail or self.file.read(2**16)
            if not packed:
                raise EOFError("the packed values end too early")
            if part := self._unpacker.decompress(packed, size):
                return bytes(part)
        return b""
