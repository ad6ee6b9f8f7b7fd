"""Volumes opened and read in child processes: foreign bytes hang or end one of them, and not us.

HDF5 and the codecs of TIFF and Zarr are C code that a damaged file may send round in circles, with
the interpreter locked, or into memory that is not there.
"""

from __future__ import annotations

import atexit
import os
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.enclosure import check_inside
from ml_backend.volumes.formats.notes import Notes
from ml_backend.volumes.reader import ReaderEnded, ReaderTimeout
from ml_backend.volumes.readers import FileStamp, Readers
from ml_backend.volumes.runs import Runs
from ml_backend.volumes.turn import as_affine
from ml_backend.volumes.volume import AXES, ReadOptions, Volume, VolumeError, slice_shape

__all__ = ["open_apart"]

_CROSS = 10
"""How many times longer a slice along y or x may take: most formats read all slices for it."""
_OPENING = "to be opened"
_WORTH_IT = 3
"""Slices along z after which it is asked where they lie: every page of a TIFF is parsed for it."""

Slice = npt.NDArray[Any]


def open_apart(path: Path, options: ReadOptions, readers: Readers | None = None) -> Volume:
    """The volume at ``path``, read by ``readers``, by default those of this process.

    It, and a slice of it, raises VolumeError where the file takes longer than the bounds of
    ``options`` say, needs more memory than a reader may take, or ends the process that reads it.
    """
    one = _Apart(path, options, readers or _ours.get())
    answer = one.ask({"do": "open"}, _OPENING, options.bounds.timeout_s)
    z, y, x = answer["shape"]
    size, classes, origin = answer["voxel_size"], answer["classes"], answer["origin"]
    notes = Notes(
        None if size is None else (size[0], size[1], size[2]),
        answer["unit"],
        None if classes is None else tuple(classes),
        None if origin is None else (origin[0], origin[1], origin[2]),
    )
    one.shape, one.dtype = (z, y, x), np.dtype(answer["dtype"])
    volume = notes.volume(path, one.shape, one.dtype, one.read, one.close)
    volume = replace(volume, files=tuple(map(Path, answer["files"])))
    if answer["affine"] is None:
        return volume
    affine = as_affine(np.array(answer["affine"]))
    return replace(volume, affine=affine, stored=answer["stored"], frame=answer["frame"])


@dataclass(eq=False)
class _Apart:
    """A volume and who reads it."""

    path: Path
    options: ReadOptions
    readers: Readers
    shape: tuple[int, int, int] = (0, 0, 0)
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.uint8))

    def __post_init__(self) -> None:
        self._process, self._key = os.getpid(), self.readers.key(self)
        self._places = threading.BoundedSemaphore(self.readers.most_for_one)
        # absolute: the processes are not in the folder that we are in
        self._place = str(self.path.absolute())
        self._reads = 0
        self._runs: Runs | None = None

    def read(self, axis: int, index: int) -> Slice:
        """The slice at ``index`` across ``axis``: by us, where its bytes are the values."""
        if axis == 0:
            self._reads += 1
            if self._reads == _WORTH_IT:
                self._runs = self._found_runs()
            if (runs := self._runs) is not None:
                values = self._direct(runs, index)
                if values is not None:
                    return values
                self._runs = None  # the file is another
        return self._read(axis, index)

    def _direct(self, runs: Runs, index: int) -> Slice | None:
        try:
            return runs.read(index, slice_shape(self.shape, 0))
        except OSError:
            return None

    def _found_runs(self) -> Runs | None:
        said = self.ask({"do": "runs"}, "to be looked into", self.options.bounds.timeout_s)["runs"]
        if said is None:
            return None
        runs = Runs.from_json(said, self.shape)
        # who told us may have been misled by the file
        check_inside(runs.path, self.path, self.options)
        return runs if runs.dtype.newbyteorder("=") == self.dtype else None

    def _read(self, axis: int, index: int) -> Slice:
        wanted = {
            "do": "read", "axis": axis, "index": index,
            "shape": [*self.shape], "dtype": self.dtype.str,
        }  # fmt: skip
        values = np.empty(slice_shape(self.shape, axis), self.dtype)
        times = 1 if axis == 0 else _CROSS
        what = f"for slice {index} along {AXES[axis]}"
        self.ask(wanted, what, times * self.options.bounds.timeout_s, values)
        return values

    def close(self) -> None:
        """Nobody reads in it any more."""
        self.readers.forget(self._key)

    def ask(
        self, request: dict[str, Any], what: str, timeout_s: float, values: Slice | None = None
    ) -> dict[str, Any]:
        """The answer to ``request``; VolumeError says ``what`` could not be had, and why:
        ReaderTimeout where it may be had later."""
        where = {"path": self._place, "options": self._options()}
        with self._places:
            try:
                answer = self._answer(request | where, timeout_s, values)
            except ReaderTimeout as error:
                raise ReaderTimeout(
                    f"{self.path} takes too long {what} ({error}): the file may be damaged, or its "
                    "disk slow (NEXTSLICE_VOLUME_TIMEOUT_S is the limit)"
                ) from None
            except ReaderEnded as error:
                raise VolumeError(
                    f"{self.path} ends the process that reads it {what} ({error}): the file is "
                    "damaged, expected a whole one"
                ) from None
        if "refused" in answer:
            raise VolumeError(answer["refused"])
        if "bug" in answer:
            raise RuntimeError(f"{self.path} cannot be read {what}:\n{answer['bug']}")
        return answer

    def _answer(
        self, about: dict[str, Any], timeout_s: float, values: Slice | None
    ) -> dict[str, Any]:
        if os.getpid() != self._process:  # forked: those processes are not ours
            self._process, self.readers = os.getpid(), _ours.get()
            self._key = self.readers.key(self)
            self._places = threading.BoundedSemaphore(self.readers.most_for_one)
        about["key"] = self._key
        try:
            return self.readers.ask(self._key, self._stamp(), about, timeout_s, values)
        except ReaderEnded:
            # another volume may have left that process damaged
            return self.readers.ask(self._key, self._stamp(), about, timeout_s, values)

    def _options(self) -> dict[str, Any]:
        given = self.options
        return {
            "dataset": given.dataset,
            "shape": None if given.shape is None else [*given.shape],
            "dtype": given.dtype,
            "offset": given.offset,
            "channel": given.channel,
            "time": given.time,
            "labels": given.labels,
            "roots": [str(root) for root in given.bounds.roots],
        }

    def _stamp(self) -> FileStamp | None:
        try:
            found = Path(self._place).stat()
        except OSError:
            return None
        times = found.st_mtime_ns, found.st_ctime_ns
        return self._place, self.options, found.st_ino, *times, found.st_size


class _Ours:
    """The readers of this process, from the first volume on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers: Readers | None = None

    def get(self) -> Readers:
        with self._lock:
            if self._readers is None:
                self._readers = Readers()
                atexit.register(self._readers.close)
            return self._readers

    def forked(self) -> None:
        """Others hold the lock in the process that was forked, never in this one."""
        self._lock, before, self._readers = threading.Lock(), self._readers, None
        if before is not None:
            atexit.unregister(before.close)
            before.leave()


_ours = _Ours()
os.register_at_fork(after_in_child=_ours.forked)
