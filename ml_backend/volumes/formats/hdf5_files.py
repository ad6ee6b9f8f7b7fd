"""What an HDF5 file leads to: its own objects and other files, each looked at before it is opened.

HDF5 itself follows external links, virtual datasets and external storage into every file that the
process may read. So links are followed here, one at a time, and what a dataset is made of is
checked, through any number of files, before its first value is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from ml_backend.volumes.enclosure import check_inside
from ml_backend.volumes.volume import ReadOptions, VolumeError

__all__ = ["Hdf5Files"]

_MOST_LINKS = 32
"""Links that one path may lead through: HDF5's own limit is 16 at a time."""


class Hdf5Files:
    """The file at ``path`` and those that its links lead to, open for reading.

    ``volume``: the file on whose behalf they are opened, default itself. Raises VolumeError for
    what lies outside the roots of ``options``; beside it whatever h5py raises.
    """

    def __init__(self, path: Path, options: ReadOptions, volume: Path | None = None) -> None:
        self.path = path
        self._volume, self._options = volume or path, options
        self._files: dict[str, Any] = {}
        self.refused: list[VolumeError] = []
        """Of links that `members` left out because they lead outside."""
        self.root = self._file(path)["/"]

    def close(self) -> None:
        """Close them all."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def member(self, group: Any, path: str) -> Any | None:
        """The object at ``path`` from ``group`` on; None where it leads nowhere."""
        return self._follow(group, path, _MOST_LINKS)

    def members(self, group: Any) -> Iterator[Any]:
        """What is in ``group``, without links that lead nowhere or outside."""
        for name in group:
            try:
                found = self._follow(group, name, _MOST_LINKS)
            except VolumeError as error:
                self.refused.append(error)
                continue
            except (KeyError, OSError):
                continue
            if found is not None:
                yield found

    def check(self, dataset: Any) -> None:
        """Raise VolumeError unless everything that ``dataset`` is made of is there and lies
        inside."""
        self._check_sources(dataset, set(), outermost=True)

    def _file(self, path: Path) -> Any:
        import h5py

        check_inside(path, self._volume, self._options)
        key = os.path.realpath(path)
        if key not in self._files:
            self._files[key] = h5py.File(path, "r")
        return self._files[key]

    def _follow(self, group: Any, path: str, left: int) -> Any | None:
        import h5py

        here = group.file["/"] if path.startswith("/") else group
        for part in path.split("/"):
            if part in ("", "."):
                continue
            if not isinstance(here, h5py.Group) or left < 1:
                return None
            here = self._step(here, part, left)
        return here

    def _step(self, group: Any, name: str, left: int) -> Any | None:
        """What the link called ``name`` leads to."""
        from h5py import h5l

        links, key = group.id.links, os.fsencode(name)
        if not links.exists(key):
            return None
        kind = links.get_info(key).type
        if kind == h5l.TYPE_HARD:
            return _opened(group, name)
        if kind == h5l.TYPE_SOFT:
            return self._follow(group, os.fsdecode(links.get_val(key)), left - 1)
        if kind != h5l.TYPE_EXTERNAL:
            return None
        file, inside = map(os.fsdecode, links.get_val(key))
        path = _beside(group.file, file)
        check_inside(path, self._volume, self._options)
        return self._follow(self._file(path)["/"], inside, left - 1) if path.exists() else None

    def _check_sources(self, dataset: Any, seen: set[Any], *, outermost: bool = False) -> None:
        place = f"{dataset.file.filename}:{dataset.name}"
        if (dataset.file.filename, dataset.name) in seen:
            return
        seen.add((dataset.file.filename, dataset.name))
        for name, *_ in dataset.external or ():
            self._check_storage(place, Path(dataset.file.filename).parent / name, outermost)
        if not dataset.is_virtual:
            return
        sources: dict[str, set[str]] = {}
        for source in dataset.virtual_sources():
            sources.setdefault(source.file_name, set()).add(source.dset_name)
        for file, names in sources.items():
            if file == ".":
                self._check_source(place, self, dataset.file, names, seen)
                continue
            path = _beside(dataset.file, file)
            check_inside(path, self._volume, self._options)
            if not path.exists():
                raise VolumeError(
                    f"{place} is made of other files, and {file} is not there: expected it beside "
                    f"{Path(dataset.file.filename).name}"
                )
            # closed again at once: there may be more of them than a process may have open
            with closing(Hdf5Files(path, self._options, self._volume)) as other:
                self._check_source(place, other, other.root, names, seen)

    def _check_source(
        self, place: str, files: Hdf5Files, group: Any, names: set[str], seen: set[Any]
    ) -> None:
        import h5py

        for name in names:
            found = files.member(group, f"/{name}")
            # also lest HDF5 looks further for it, in the folder that the process was started in
            if not isinstance(found, h5py.Dataset):
                raise VolumeError(
                    f"{place} is made of other datasets, and {files.path} has no {name}, expected "
                    "a dataset"
                )
            files._check_sources(found, seen)

    def _check_storage(self, place: str, path: Path, outermost: bool) -> None:
        check_inside(path, self._volume, self._options)
        if not path.exists():
            raise VolumeError(f"{place} has its values in {path}, which is not there")
        if not outermost:  # HDF5 would look for it in the folder that the process was started in
            raise VolumeError(
                f"{place} has its values in {path} and is itself a part of {self._volume}: expected"
                " the parts of a virtual dataset in HDF5 files"
            )


def _beside(file: Any, name: str) -> Path:
    """Where HDF5 looks for ``name`` first; for an absolute name that is not there, beside it."""
    folder = Path(file.filename).parent
    path = folder / name
    return path if path.exists() or not Path(name).is_absolute() else folder / path.name


def _opened(group: Any, name: str) -> Any:
    """A member of ``group`` itself. External storage is looked for where `_check_sources` does,
    beside the file: by itself HDF5 looks in the folder that the process was started in."""
    import h5py

    found = group[name]
    if not isinstance(found, h5py.Dataset) or not found.external:
        return found
    del found  # while it is open it cannot be opened in another way
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_efile_prefix(b"${ORIGIN}")
    return h5py.Dataset(h5py.h5d.open(group.id, os.fsencode(name), access))
