"""The folders that volumes may come from, and names for the volumes in them.

A name is ``<root>/<path inside it>``; it stands in slice addresses and task data, so it must mean
the same on every machine and never lead out of its root.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ml_backend.errors import SettingsError
from ml_backend.volumes.enclosure import own_folders
from ml_backend.volumes.volume import Bounds, VolumeError

__all__ = ["NoSuchVolume", "VolumeRoots"]

_SETTING = "NEXTSLICE_VOLUMES"
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]")


class NoSuchVolume(VolumeError):
    """A name that stands for nothing under the roots."""


@dataclass(frozen=True)
class VolumeRoots:
    """Folders by name, each absolute. A root itself may be a volume (a folder of PNGs), or a file.

    Roots need not exist until a volume in them is asked for: a disk may be mounted later.
    ``timeout_s``, ``tiled``, ``tiled_key``: as in `Bounds`, of the volumes in them.
    """

    folders: Mapping[str, Path]
    timeout_s: float = Bounds.timeout_s
    tiled: tuple[str, ...] = ()
    tiled_key: str = field(default="", repr=False)

    @classmethod
    def parse(
        cls,
        text: str,
        timeout_s: float = Bounds.timeout_s,
        tiled: tuple[str, ...] = (),
        tiled_key: str = "",
    ) -> VolumeRoots:
        """Roots from ``"/data/scans"`` or ``"scans=/data/scans,archive=/mnt/x"``; "" is none.

        A root without a name is called as its last folder. Raises SettingsError for an entry
        without a path, a name that cannot be one, and for a name that is there twice.
        """
        folders: dict[str, Path] = {}
        for entry in filter(None, (part.strip() for part in text.split(","))):
            head, equals, rest = entry.partition("=")
            named = equals and "/" not in head  # else it is a path with a "=" in it
            path = rest.strip() if named else entry
            folder = _absolute(Path(path).expanduser())
            name = head.strip() if named else folder.name
            if not path or not _is_part(name):
                raise SettingsError(
                    f"{_SETTING}: found {entry!r}, expected a folder (/data/scans) or name=folder "
                    "(scans=/data/scans), several of them separated by commas"
                )
            if name in folders:
                raise SettingsError(
                    f"{_SETTING}: two roots are called {name!r} ({folders[name]} and {folder}): "
                    f"give them different names, as in {name}=…,other={folder}"
                )
            folders[name] = folder
        return cls(folders, timeout_s, tiled, tiled_key)

    def path(self, name: str) -> Path:
        """The file or folder that ``name`` stands for.

        Symbolic links are followed as long as they stay inside the root. Raises NoSuchVolume where
        nothing is there, VolumeError for a name that leads out of its root or is none.
        """
        parts = name.split("/")
        if not all(map(_is_part, parts)):
            raise VolumeError(
                f"volume name is {name!r}, expected <root>/<path> without empty parts, '.', '..', "
                "backslashes and control characters"
            )
        root = self.folders.get(parts[0])
        if root is None:
            raise NoSuchVolume(f"volume {name!r}: there is no root {parts[0]!r}, {self._listed()}")
        path = root.joinpath(*parts[1:])
        try:
            inside = path.resolve(strict=True).is_relative_to(root.resolve(strict=True))
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            raise NoSuchVolume(f"volume {name!r}: {path} cannot be found ({error})") from None
        if not inside:
            raise VolumeError(f"volume {name!r}: {path} is a link that leads out of {root}")
        return path

    @property
    def bounds(self) -> Bounds:
        """What a volume that is called by a name may be made of: files in any of the roots."""
        return self._within(tuple(self.folders.values()))

    def bounds_of(self, path: Path) -> Bounds:
        """What a volume that a person has given by its path may be made of besides: what lies in
        its own folder."""
        return self._within((*own_folders(path), *self.folders.values()))

    def _within(self, roots: tuple[Path, ...]) -> Bounds:
        return Bounds(roots, self.timeout_s, self.tiled, self.tiled_key)

    def name(self, path: str | Path) -> str:
        """The name of the volume at ``path``, so that `path` gives that file back.

        Raises VolumeError for a path outside every root, or that no name can stand for;
        NoSuchVolume where nothing is there.
        """
        refused: VolumeError | None = None
        for name in self._names(Path(path)):
            try:
                if self.path(name).samefile(path):
                    return name
            except VolumeError as error:
                refused = refused or error
        raise refused or VolumeError(
            f"{path} is in none of the folders that slices are served from: {self._listed()}. "
            f"Set {_SETTING} to a folder above it, for the backend and the workers"
        )

    def _names(self, path: Path) -> Iterator[str]:
        """What ``path`` may be called, as it is spelled and with its links followed."""
        # the deepest root first: it gives the shortest name
        roots = sorted(self.folders.items(), key=lambda item: -len(item[1].parts))
        for candidate in (_absolute(path), path.resolve()):
            for root, folder in roots:
                for start in (folder, folder.resolve()):
                    if candidate.is_relative_to(start):
                        yield "/".join((root, *candidate.relative_to(start).parts))

    def _listed(self) -> str:
        if not self.folders:
            return f"{_SETTING} names no folder"
        roots = ", ".join(f"{name}={folder}" for name, folder in self.folders.items())
        return f"the roots are {roots} ({_SETTING})"


def _absolute(path: Path) -> Path:
    """Without "..", and without following links: names are those that people see."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _is_part(part: str) -> bool:
    """Whether a name may have this between two slashes."""
    try:
        part.encode()  # a file name that is no UTF-8 has no place in an address
    except UnicodeEncodeError:
        return False
    return part not in ("", ".", "..") and "/" not in part and not _UNSAFE.search(part)
