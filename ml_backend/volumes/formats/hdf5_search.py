"""Which dataset of an HDF5 file is the volume: the one that is named, that NeXus points to, or the
only one. A link that leads nowhere may have led to it, so it is named, never passed over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ml_backend.volumes.formats.axes import letter_of
from ml_backend.volumes.formats.hdf5_axes import axis_names, text
from ml_backend.volumes.formats.hdf5_files import DeadLinkError, Hdf5Files
from ml_backend.volumes.volume import AXES, VolumeError

__all__ = ["Found", "found", "named"]

_LISTED = 20


class Found(NamedTuple):
    """A dataset, and the group in which it was found as ``name``: links may lead elsewhere, and
    NXdata says of its signal what the dataset's own group does not."""

    dataset: Any
    group: Any
    name: str

    @classmethod
    def by_itself(cls, dataset: Any) -> Found:
        """Where it lies."""
        return cls(dataset, dataset.parent, dataset.name.rsplit("/", 1)[-1])


@dataclass
class _Contents:
    """Every dataset of a file, linked ones once, and by how many names it was met; links that
    lead ``nowhere`` and ``outside``."""

    datasets: Counter[Any] = field(default_factory=Counter)
    nowhere: list[DeadLinkError] = field(default_factory=list)
    outside: list[VolumeError] = field(default_factory=list)

    def __str__(self) -> str:
        """As the end of a sentence."""
        return (_listed(self.datasets) or " nothing") + self.dead

    @property
    def dead(self) -> str:
        if not self.nowhere:
            return ""
        return "\nand links that lead nowhere:" + _lines(f"{error}" for error in self.nowhere)


def named(files: Hdf5Files, name: str) -> Found:
    """The dataset at ``name``, or the signal of the group there. Raises VolumeError."""
    import h5py

    there, last = files.member(files.root, name), name.rstrip("/").rsplit("/", 1)
    group = files.member(files.root, last[0]) if len(last) > 1 else files.root
    if isinstance(there, h5py.Group):
        group, last = there, [text(there.attrs.get("signal", "data"))]
        there = files.member(there, last[-1])
    if not isinstance(there, h5py.Dataset):
        raise VolumeError(f"{files.path} has no dataset {name}, expected one of:{_contents(files)}")
    return Found(there, group, last[-1])


def found(files: Hdf5Files) -> Found:
    """By the NeXus defaults, else the only dataset with three axes of numbers. Raises
    VolumeError."""
    if (pointed := _by_default(files)) is not None:
        return pointed
    contents = _contents(files)
    if contents.outside:  # it may be the one, and another must not be taken for it
        raise contents.outside[0]
    candidates = [one for one in contents.datasets if _is_volume(one)]
    signals = [one for one in candidates if str(text(one.attrs.get("signal", ""))) == "1"]
    # links of the file itself lead to it as well
    pointed_to = [one for one in candidates if contents.datasets[one] > 1]
    for few in (signals, pointed_to if contents.nowhere else candidates):
        if len(few) == 1:
            return Found.by_itself(few[0])
    if candidates and contents.nowhere:
        raise VolumeError(
            f"{files.path} has links that lead nowhere, one of which may have been the volume, "
            f"name one as dataset:{_listed(candidates)}{contents.dead}"
        )
    if candidates:
        raise VolumeError(
            f"{files.path} has {len(candidates)} datasets that could be the volume, name one as "
            f"dataset:{_listed(candidates)}"
        )
    raise VolumeError(
        f"{files.path} has no dataset with three axes of numbers, expected a volume; it has:"
        f"{contents}"
    )


def _by_default(files: Hdf5Files) -> Found | None:
    """The signal that ``default`` attributes lead to, None where there are none."""
    import h5py

    group, passed = files.root, []
    while "signal" not in group.attrs:
        passed.append(group)
        name = text(group.attrs.get("default", ""))
        if not name:
            return None
        step = files.member(group, name)
        if step is None:  # some write paths from the root without the first slash
            step = files.member(files.root, name)
        if step is None:
            raise _gone(files, group, "default", name)
        if isinstance(step, h5py.Dataset):
            return Found(step, group, name)
        if not isinstance(step, h5py.Group) or step in passed:
            return None
        group = step
    name = text(group.attrs["signal"])
    signal = files.member(group, name)
    if not isinstance(signal, h5py.Dataset):
        raise _gone(files, group, "signal", name)
    return Found(signal, group, name)


def _gone(files: Hdf5Files, group: Any, what: str, name: str) -> VolumeError:
    return VolumeError(
        f"{group.file.filename}:{group.name} says that its {what} is {name}, which is not "
        f"there: expected the volume, or name one as dataset:{_contents(files)}"
    )


def _contents(files: Hdf5Files) -> _Contents:
    import h5py

    contents, groups, passed = _Contents(), [files.root], {files.root}
    while groups:
        for member in files.members(groups.pop()):
            if isinstance(member, DeadLinkError):
                contents.nowhere.append(member)
            elif isinstance(member, VolumeError):
                contents.outside.append(member)
            elif isinstance(member, h5py.Dataset):
                contents.datasets[member] += 1
            elif isinstance(member, h5py.Group) and member not in passed:
                passed.add(member)
                groups.append(member)
    return contents


def _is_volume(dataset: Any) -> bool:
    shape = dataset.shape
    if shape is None or dataset.dtype.kind not in "biuf":
        return False
    if sum(length > 1 for length in shape) <= 3 <= len(shape):
        return True
    try:
        return {
            letter_of(one) for one in axis_names(Path(dataset.name), *Found.by_itself(dataset))
        } >= set(AXES)
    except VolumeError:  # of names that contradict each other: said where it is the one
        return False


def _listed(datasets: Iterable[Any]) -> str:
    return _lines(f"{one.name} {one.dtype} {one.shape}" for one in datasets)


def _lines(items: Iterable[str]) -> str:
    lines = [f"\n  {item}" for item in items]
    more = f"\n  … and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
    return "".join(lines[:_LISTED]) + more
