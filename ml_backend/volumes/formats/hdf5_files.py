"""What an HDF5 file leads to: its own objects and other files, each looked at before it is opened.

HDF5 itself follows external links, virtual datasets and external storage into every file that the
process may read. So links are followed here, one at a time; `hdf5_parts` looks at what a dataset is
made of before its first value is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_backend.volumes.enclosure import check_inside
from ml_backend.volumes.volume import ReadOptions, VolumeError

__all__ = ["DeadLinkError", "Hdf5Files", "beside"]

_MOST_LINKS = 32
"""Links that one path may lead through: HDF5's own limit is 16 at a time."""
_FileState = tuple[int, int]


class DeadLinkError(VolumeError):
    """A link in an HDF5 file whose target is not there, or cannot be opened; the message names
    both."""


class Hdf5Files:
    """The file at ``path`` and those that its links lead to, open for reading.

    ``volume``: the file on whose behalf they are opened, default itself. None is locked: whoever
    writes them goes on. ``swmr``: to be read while somebody writes it; None: where it must be.
    Raises VolumeError for what lies outside the roots of ``options``; beside it whatever h5py
    raises.
    """

    def __init__(
        self,
        path: Path,
        options: ReadOptions,
        volume: Path | None = None,
        swmr: bool | None = None,
    ) -> None:
        self.path, self.options = path, options
        self.volume, self._swmr = volume or path, swmr
        self._files: dict[str, tuple[Any, _FileState]] = {}
        self.root = self._file(path)["/"]

    def close(self) -> None:
        """Close them all."""
        for file, _ in self._files.values():
            file.close()
        self._files.clear()

    def changed(self) -> bool:
        """Whether one of them was written to since it was opened."""
        return any(_state(file) != state for file, state in self._files.values())

    def member(self, group: Any, path: str) -> Any | None:
        """The object at ``path`` from ``group`` on; None where nothing is called so.

        Raises DeadLinkError where a link on the way leads nowhere.
        """
        return self._follow(group, path, _MOST_LINKS)

    def members(self, group: Any) -> Iterator[Any | VolumeError]:
        """What is in ``group``; for a link that leads nowhere or outside, why it does not count."""
        for name in group:
            try:
                found = self._follow(group, name, _MOST_LINKS)
            except VolumeError as error:
                yield error
                continue
            if found is not None:
                yield found

    def _file(self, path: Path) -> Any:
        check_inside(path, self.volume, self.options)
        key = os.path.realpath(path)
        if key not in self._files:
            file = _opened_file(path, self._swmr)
            self._files[key] = file, _state(file)
        return self._files[key][0]

    def _follow(self, group: Any, path: str, left: int) -> Any | None:
        import h5py

        here = group.file["/"] if path.startswith("/") else group
        for part in path.split("/"):
            if part in ("", "."):
                continue
            if not isinstance(here, h5py.Group):
                return None
            here = self._step(here, part, left)
        return here

    def _step(self, group: Any, name: str, left: int) -> Any | None:
        """What the link called ``name`` leads to."""
        from h5py import h5l

        links, key = group.id.links, os.fsencode(name)
        if not links.exists(key):
            return None
        link = f"{group.file.filename}:{group.name.rstrip('/')}/{name}"
        kind = links.get_info(key).type
        if kind == h5l.TYPE_HARD:
            return _member_itself(link, group, name)
        if left < 1:
            raise DeadLinkError(f"{link} leads through more than {_MOST_LINKS} links, in a circle?")
        if kind == h5l.TYPE_SOFT:
            target = os.fsdecode(links.get_val(key))
            return self._target(link, target, group, target, left)
        if kind != h5l.TYPE_EXTERNAL:
            raise DeadLinkError(f"{link} is a link of a kind that HDF5 does not know itself")
        file, inside = map(os.fsdecode, links.get_val(key))
        path = beside(group.file, file)
        check_inside(path, self.volume, self.options)
        if not path.exists():
            raise DeadLinkError(f"{link} leads to {inside} in {file}, and {path} is not there")
        try:
            other = self._file(path)["/"]
        except OSError as error:
            raise DeadLinkError(f"{link} leads to {path}, which cannot be opened ({error})") from (
                error
            )
        return self._target(link, f"{inside} in {path}", other, inside, left)

    def _target(self, link: str, called: str, group: Any, path: str, left: int) -> Any:
        found = self._follow(group, path, left - 1)
        if found is None:
            raise DeadLinkError(f"{link} leads to {called}, which is not there")
        return found


def beside(file: Any, name: str) -> Path:
    """Where HDF5 finds ``name``, which is named in ``file``: beside it, also beside what it is a
    symbolic link to; for an absolute name that is not there, its last part likewise."""
    own = Path(file.filename)
    folders = dict.fromkeys((own.parent, Path(os.path.realpath(own)).parent))
    names = [name, Path(name).name] if Path(name).is_absolute() else [name]
    places = [folder / one for one in names for folder in folders]
    return next((place for place in places if place.exists()), places[0])


def _opened_file(path: Path, swmr: bool | None) -> Any:
    import h5py

    if swmr:
        return h5py.File(path, "r", locking=False, swmr=True)
    try:
        return h5py.File(path, "r", locking=False)
    except OSError:
        if swmr is not None:
            raise
        try:  # somebody writes it, for others to read
            return h5py.File(path, "r", locking=False, swmr=True)
        except (OSError, ValueError):
            pass
        raise


def _state(file: Any) -> _FileState:
    found = os.fstat(file.id.get_vfd_handle())
    return found.st_mtime_ns, found.st_size


def _member_itself(link: str, group: Any, name: str) -> Any:
    """A member of ``group``. External storage is looked for where `hdf5_parts` does, beside the
    file: by itself HDF5 looks in the folder that the process was started in."""
    import h5py

    try:
        found = group[name]
    except (KeyError, OSError) as error:
        raise DeadLinkError(f"{link} cannot be opened ({error})") from error
    if not isinstance(found, h5py.Dataset) or not found.external:
        return found
    del found  # while it is open it cannot be opened in another way
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_efile_prefix(b"${ORIGIN}")
    return h5py.Dataset(h5py.h5d.open(group.id, os.fsencode(name), access))
