"""The volumes that a process holds open, so that a slice costs a read and not an opening."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.address import SliceAddress
from ml_backend.volumes.formats.notes import sidecar_path
from ml_backend.volumes.opening import open_volume
from ml_backend.volumes.roots import NoSuchVolume, VolumeRoots
from ml_backend.volumes.volume import ReadOptions, Volume
from ml_backend.volumes.window import Window, fit_window

__all__ = ["FileState", "OpenVolumes"]

_EIGHT_BIT = Window(0, 255)


@dataclass(frozen=True)
class FileState:
    """What changes when a volume's file or its sidecar is replaced. Of a folder: when a file in it
    comes or goes. ``sidecar``: time and size, None without one."""

    path: Path
    modified_ns: int
    size: int
    sidecar: tuple[int, int] | None = None

    @classmethod
    def of(cls, path: Path) -> FileState:
        """The state of the file or folder at ``path``. Raises NoSuchVolume when it is gone."""
        try:
            found = path.stat()
        except OSError as error:
            raise NoSuchVolume(f"{path} cannot be found ({error})") from None
        sidecar = None
        with suppress(OSError):
            beside = sidecar_path(path).stat()
            sidecar = beside.st_mtime_ns, beside.st_size
        return cls(path, found.st_mtime_ns, found.st_size, sidecar)


@dataclass(eq=False)
class _Held:
    """A volume, who reads in it, and whether it is to be closed by the last of them."""

    state: FileState
    options: ReadOptions
    opening: threading.Lock = field(default_factory=threading.Lock)
    fitting: threading.Lock = field(default_factory=threading.Lock)
    volume: Volume | None = None
    window: Window | None = None
    readers: int = 0
    dropped: bool = False

    def opened(self) -> Volume:
        with self.opening:  # a second reader waits for the first one's opening
            if self.volume is None:
                self.volume = open_volume(self.state.path, self.options)
            return self.volume

    def fitted(self) -> Window:
        volume = self.opened()
        with self.fitting:
            if self.window is None:
                eight_bit = volume.dtype == np.uint8
                self.window = _EIGHT_BIT if eight_bit else fit_window(volume.along("z"))
            return self.window


class OpenVolumes:
    """Volumes under ``roots``, opened when first asked for; at most ``limit`` stay open.

    The least recently used is closed beyond that, once nobody reads in it. Where the file or its
    sidecar was replaced, it is opened again. Safe to use from many threads.
    """

    def __init__(self, roots: VolumeRoots, limit: int = 16) -> None:
        if limit < 1:
            raise ValueError(f"limit is {limit}, expected 1 or more open volumes")
        self.roots = roots
        self._limit = limit
        self._lock = threading.Lock()
        self._shelf: dict[tuple[Path, ReadOptions], _Held] = {}

    @contextmanager
    def volume(self, name: str, options: ReadOptions | None = None) -> Iterator[Volume]:
        """The volume called ``name``, which stays open as long as the context lasts.

        Raises NoSuchVolume, and VolumeError for a name that cannot be one or a broken file.
        """
        with self._borrowed(name, options or ReadOptions()) as held:
            yield held.opened()

    def slice(self, address: SliceAddress) -> npt.NDArray[Any]:
        """The slice's native values (height, width). Raises as `volume`; IndexError for a slice
        that the volume has not."""
        with self.volume(address.volume, address.options) as volume:
            return volume.along(address.axis)[address.index]

    def around(self, address: SliceAddress, neighbours: int) -> list[npt.NDArray[Any]]:
        """The slice between its ``neighbours`` before and after it, native values, in order. At the
        ends of the volume the last slice stands in for those beyond it. Raises as `slice`."""
        with self.volume(address.volume, address.options) as volume:
            stack = volume.along(address.axis)
            middle = address.index
            found = {middle: stack[middle]}
            places = [
                min(max(0, middle + step), len(stack) - 1)
                for step in range(-neighbours, neighbours + 1)
            ]
            return [found[p] if p in found else found.setdefault(p, stack[p]) for p in places]

    def window(self, address: SliceAddress) -> Window:
        """The address's window. Where it has none: 0 to 255 for 8-bit values, else the one that
        fits the volume (which is read for it once, not for every slice). Raises as `volume`."""
        if address.window is not None:
            return address.window
        with self._borrowed(address.volume, address.options) as held:
            return held.fitted()

    def state(self, address: SliceAddress) -> FileState:
        """The state of the address's file, which is not opened. Raises NoSuchVolume, and
        VolumeError for a name that cannot be one."""
        return FileState.of(self.roots.path(address.volume))

    def close(self) -> None:
        """Close all volumes, those in use as soon as they are not."""
        with self._lock:
            idle = self._drop(list(self._shelf))
        _close(idle)

    @contextmanager
    def _borrowed(self, name: str, options: ReadOptions) -> Iterator[_Held]:
        state = FileState.of(self.roots.path(name))
        key = (state.path, options)
        bounded = replace(options, bounds=self.roots.bounds)
        with self._lock:
            held = self._shelf.get(key)
            idle = self._drop([key]) if held is not None and held.state != state else []
            # taken out and put back: the order of the shelf is that of use
            held = self._shelf.pop(key, None) or _Held(state, bounded)
            self._shelf[key] = held
            held.readers += 1
            idle += self._drop(list(self._shelf)[: max(0, len(self._shelf) - self._limit)])
        try:
            _close(idle)
            yield held
        finally:
            with self._lock:
                held.readers -= 1
                last = held.dropped and not held.readers
                if held.volume is None and not held.readers and self._shelf.get(key) is held:
                    del self._shelf[key]  # it could not be opened
            if last:
                _close([held])

    def _drop(self, keys: list[tuple[Path, ReadOptions]]) -> list[_Held]:
        """Take these off the shelf; which of them nobody reads in. Called under the lock."""
        dropped = [self._shelf.pop(key) for key in keys]
        for held in dropped:
            held.dropped = True
        return [held for held in dropped if not held.readers]


def _close(idle: list[_Held]) -> None:
    for held in idle:
        if held.volume is not None:
            held.volume.close()
