"""Everything that is opened on behalf of a volume lies in its roots, or is refused by name.

A file names others: links of the file system, external links and storage of HDF5, virtual datasets.
Whoever may put a file into a root must not see the rest of the machine through it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Set
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from ml_backend.volumes.volume import ReadOptions, VolumeError

__all__ = ["check_inside", "elsewhere", "looked_at", "own_folders"]

_looked_at: ContextVar[set[Path] | None] = ContextVar("looked_at", default=None)


@contextmanager
def looked_at() -> Iterator[set[Path]]:
    """The places that `check_inside` lets through meanwhile, links followed: every reader asks it
    before it opens one, so while a volume is opened they are all that it is made of."""
    places: set[Path] = set()
    token = _looked_at.set(places)
    try:
        yield places
    finally:
        _looked_at.reset(token)


def check_inside(place: Path, volume: Path, options: ReadOptions) -> None:
    """Raise VolumeError unless ``place``, with links followed, lies in a root of ``volume``.

    What is neither a file nor a folder (a pipe, a device) is refused too: opening it may never
    return. What is not there is not looked at further.
    """
    roots = [_real(root) for root in options.bounds.roots] or [*own_folders(volume)]
    real = _real(place)
    what = f"{place} is opened for {volume}, but" if place != volume else f"{volume}"
    if not any(real.is_relative_to(root) for root in roots):
        listed = ", ".join(dict.fromkeys(map(str, roots)))
        raise VolumeError(
            f"{what} leads out of {listed}: expected everything that a volume is made of in there, "
            "or in another folder of NEXTSLICE_VOLUMES"
        )
    if (places := _looked_at.get()) is not None:
        places.add(real)
    try:
        mode = real.stat().st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise VolumeError(f"{what} is no file and no folder, expected one (found {oct(mode)})")


def elsewhere(places: Set[Path], volume: Path) -> tuple[Path, ...]:
    """Those of `looked_at` that are neither ``volume`` nor inside of it."""
    own = _real(volume)
    return tuple(sorted(place for place in places if not place.is_relative_to(own)))


def own_folders(volume: Path) -> tuple[Path, ...]:
    """The folder of a volume's file, as it is called and where it lies; a folder itself."""
    real = _real(volume)
    return (real,) if real.is_dir() else (_real(volume.parent), real.parent)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
