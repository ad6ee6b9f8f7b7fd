"""What an HDF5 dataset is made of: chunks, other files, other datasets, through any number of
files. Looked at before its first value is read: what is not there HDF5 reads as zeros.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ml_backend.volumes.enclosure import check_inside
from ml_backend.volumes.formats.hdf5_files import DeadLinkError, Hdf5Files, beside
from ml_backend.volumes.formats.hdf5_holes import Chunks, Holes, Mapping, Mosaic, Unwritten
from ml_backend.volumes.formats.hdf5_mapping import pairs
from ml_backend.volumes.volume import VolumeError

__all__ = ["Parts", "parts_of"]

_DEEPEST = 16
"""Virtual datasets of virtual datasets."""
_BLOCK = re.compile("%[b%]")
"""In the name of a source: the number of a block, or a percent sign."""


@dataclass
class Parts:
    """``holes``: where voxels are missing, None where all are there. ``files``: how many others
    HDF5 opens for them. ``storage``: the bytes that each file of plain values must have."""

    holes: Holes | None = None
    files: int = 0
    storage: dict[Path, int] = field(default_factory=dict)

    def check_storage(self) -> None:
        """Raise VolumeError for a file of plain values that is gone or cut off."""
        for path, size in self.storage.items():
            if not path.exists():
                raise VolumeError(f"{path} is not there, expected the values of an HDF5 dataset")
            if (found := path.stat().st_size) < size:
                raise VolumeError(f"{path} has {found} bytes, expected {size}: it is cut off")


def parts_of(files: Hdf5Files, dataset: Any, deep: int = 0) -> Parts:
    """What ``dataset`` is made of. Raises VolumeError unless everything that it names is there and
    lies inside."""
    if deep > _DEEPEST:
        raise VolumeError(
            f"{_name(dataset)} is a virtual dataset of virtual ones, more than {_DEEPEST} deep: are"
            " they made of each other?"
        )
    if dataset.is_virtual:
        return _Virtual(files, dataset, deep).parts()
    if dataset.external:
        return _external(files, dataset, deep)
    from h5py import h5d

    if dataset.id.get_create_plist().fill_value_defined() == h5d.FILL_VALUE_USER_DEFINED:
        return Parts()  # said on purpose what is read where nothing was written
    if dataset.chunks:
        return Parts(Chunks.of(_name(dataset), dataset))
    whole = dataset.id.get_storage_size() or not dataset.size
    return Parts(None if whole else Unwritten(_name(dataset)))


def _name(dataset: Any) -> str:
    return f"{dataset.file.filename}:{dataset.name}"


def _external(files: Hdf5Files, dataset: Any, deep: int) -> Parts:
    parts, left = Parts(), dataset.size * dataset.id.get_type().get_size()
    for name, start, size in dataset.external:
        path = Path(dataset.file.filename).parent / name
        check_inside(path, files.volume, files.options)
        if not path.exists():
            raise VolumeError(f"{_name(dataset)} has its values in {path}, which is not there")
        used = min(left, size)
        left -= used
        if used:
            parts.storage[path] = max(parts.storage.get(path, 0), start + used)
    if left:
        raise VolumeError(f"{_name(dataset)} has no file for its last {left} bytes, expected one")
    if deep and os.environ.get("HDF5_EXTFILE_PREFIX") != "${ORIGIN}":
        raise VolumeError(  # HDF5 would look for it in the folder that the process was started in
            f"{_name(dataset)} has its values in {path} and is itself a part of {files.volume}: "
            "expected HDF5_EXTFILE_PREFIX='${ORIGIN}', as in the processes that read volumes"
        )
    parts.check_storage()
    return parts


@dataclass
class _Virtual:
    """A virtual dataset, and what is found of its sources."""

    files: Hdf5Files
    dataset: Any
    deep: int

    def __post_init__(self) -> None:
        from h5py import h5s

        self._found = Parts()
        self._counted: dict[str, list[tuple[str, int]]] = {}
        self._mappings: list[Mapping] = []
        self._unclear: list[tuple[tuple[tuple[int, ...], tuple[int, ...]], str]] = []
        self._unmapped = h5s.create_simple(self.dataset.shape)
        if self.dataset.size:
            first, once = (0,) * self.dataset.ndim, (1,) * self.dataset.ndim
            self._unmapped.select_hyperslab(first, once, block=self.dataset.shape)
        else:
            self._unmapped.select_none()

    def parts(self) -> Parts:
        by_file: dict[str, list[tuple[str, Any, Any]]] = {}
        for source in self.dataset.virtual_sources():
            for file, name, own in self._blocks(source):
                by_file.setdefault(file, []).append((name, own, source.src_space))
        for file, sources in by_file.items():
            self._look_into(file, sources)
        count = self._unmapped.get_select_npoints()
        boxes = self._unmapped.get_select_hyper_blocklist() if count else []
        unmapped = np.asarray(boxes, np.int64).reshape(-1, 2, self.dataset.ndim)
        if count or self._mappings or self._unclear:
            name = _name(self.dataset)
            self._found.holes = Mosaic(name, unmapped, self._mappings, self._unclear)
        return self._found

    def _look_into(self, file: str, sources: list[tuple[str, Any, Any]]) -> None:
        if file == ".":
            self._look_at(file, self.files, self.dataset.file["/"], sources)
            return
        path = beside(self.dataset.file, file)
        check_inside(path, self.files.volume, self.files.options)
        if not path.exists():
            raise VolumeError(
                f"{_name(self.dataset)} is made of other files, and {file} is not there: expected "
                f"it beside {Path(self.dataset.file.filename).name}"
            )
        self._found.files += 1
        # opened as HDF5 will; closed again at once: there may be very many of them
        swmr = bool(self.dataset.file.swmr_mode)
        try:
            other = Hdf5Files(path, self.files.options, self.files.volume, swmr=swmr)
        except OSError as error:
            raise VolumeError(
                f"{_name(self.dataset)} is made of other files, and {path} cannot be opened "
                f"({error}): expected an HDF5 file that nobody writes"
            ) from error
        with closing(other):
            self._look_at(file, other, other.root, sources)

    def _look_at(
        self, file: str, files: Hdf5Files, group: Any, sources: list[tuple[str, Any, Any]]
    ) -> None:
        looked: dict[str, tuple[Any, Parts]] = {}
        for name, own, selected in sources:
            if name not in looked:
                looked[name] = self._source(files, group, name)
            dataset, parts = looked[name]
            self._map(own, selected, dataset, parts.holes)
        for name, count in self._counted.get(file, ()):
            folder = files.member(group, f"/{name}".rpartition("/")[0] or "/")
            self._check_last(name, folder or (), count)
        for _, parts in looked.values():
            self._found.files += parts.files
            self._found.storage |= parts.storage

    def _source(self, files: Hdf5Files, group: Any, name: str) -> tuple[Any, Parts]:
        import h5py

        try:
            found = files.member(group, f"/{name}")
        except DeadLinkError as error:
            raise VolumeError(
                f"{_name(self.dataset)} is made of other datasets, and {files.path} has no {name}: "
                f"{error}"
            ) from error
        # also lest HDF5 looks further for it, in the folder that the process was started in
        if not isinstance(found, h5py.Dataset):
            raise VolumeError(
                f"{_name(self.dataset)} is made of other datasets, and {files.path} has no {name}, "
                "expected a dataset"
            )
        return found, parts_of(files, found, self.deep + 1)

    def _blocks(self, source: Any) -> Iterator[tuple[str, str, Any]]:
        """Names of file and dataset, and what of this one it is. There are many where the names
        count blocks, as in ``frames-%b.h5``."""
        from h5py import h5s

        file, name, own = source.file_name, source.dset_name, source.vspace
        if not (_counts(file) or _counts(name)):
            yield _numbered(file, ""), _numbered(name, ""), own
            return
        start, stride, count, block = own.get_regular_hyperslab()
        axis = count.index(h5s.UNLIMITED)
        one_block = (*count[:axis], 1, *count[axis + 1 :])
        places = range(start[axis], self.dataset.shape[axis], stride[axis])
        for number, place in enumerate(places):
            one = h5s.create_simple(self.dataset.shape)
            first = (*start[:axis], place, *start[axis + 1 :])
            one.select_hyperslab(first, one_block, stride, block)
            yield _numbered(file, f"{number}"), _numbered(name, f"{number}"), one
        if _counts(file):
            first_of_all = beside(self.dataset.file, _numbered(file, "0"))
            there = (path.name for path in first_of_all.parent.iterdir())
            self._check_last(file, there, len(places))
        else:
            self._counted.setdefault(_numbered(file, ""), []).append((name, len(places)))

    def _check_last(self, pattern: str, there: Iterable[str], count: int) -> None:
        """HDF5 takes the first block that is missing for the end: not so where more follow."""
        parts = [re.escape(_numbered(part, "")) for part in _split(pattern.rpartition("/")[2])]
        matches = filter(None, map(re.compile("([0-9]+)".join(parts)).fullmatch, there))
        last = max((int(match[1]) for match in matches if match.lastindex), default=-1)
        if last >= count:
            raise VolumeError(
                f"{_name(self.dataset)} is made of parts that are numbered from 0 to {last}, and "
                f"{_numbered(pattern, f'{count}')} is not there: expected it beside them"
            )

    def _map(self, own: Any, selected: Any, source: Any, holes: Holes | None) -> None:
        """Note that the part ``own`` is what ``selected`` is in ``source``."""
        from h5py import h5s

        try:
            found = pairs(own, selected, self.dataset.shape, source.shape)
        except VolumeError as error:
            raise VolumeError(
                f"{_name(self.dataset)} is made of other datasets, and {_name(source)} {error}"
            ) from None
        if found is None:
            self._map_roughly(own, selected, source, holes)
            return
        for mine, theirs in found:
            self._unmapped.select_hyperslab(mine.start, mine.count, mine.step, op=h5s.SELECT_NOTB)
            if holes is not None:
                self._mappings.append(Mapping(mine, theirs, holes))

    def _map_roughly(self, own: Any, selected: Any, source: Any, holes: Holes | None) -> None:
        """Likewise, of what is not regular: all of it is missing where a part may be."""
        from h5py import h5s

        from_all = selected.get_select_type() == h5s.SEL_ALL  # and knows no shape
        everything = (0,) * source.ndim, tuple(length - 1 for length in source.shape)
        low, high = everything if from_all else selected.get_select_bounds()
        reason = None
        if from_all and own.get_select_npoints() != source.size:
            reason = f"{_name(source)} has another shape than it was mapped with"
        elif any(last >= length for last, length in zip(high, source.shape, strict=True)):
            reason = f"{_name(source)} is smaller than what is taken from it"
        elif holes and (hole := holes.within(low, tuple(last + 1 for last in high))):
            reason = hole.reason
        if reason is not None:
            self._unclear.append((own.get_select_bounds(), reason))
        self._unmapped = self._unmapped.combine_select(own, h5s.SELECT_NOTB)


def _split(name: str) -> list[str]:
    """What of ``name`` is before, between and after the numbers of blocks."""
    parts = [""]
    for piece in re.split("(%[b%])", name):
        if piece == "%b":
            parts.append("")
        else:
            parts[-1] += piece
    return parts


def _counts(name: str) -> bool:
    return "%b" in name.replace("%%", "")


def _numbered(name: str, number: str) -> str:
    return _BLOCK.sub(lambda found: "%" if found[0] == "%%" else number, name)
