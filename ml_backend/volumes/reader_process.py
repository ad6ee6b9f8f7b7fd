"""The process in which a volume is parsed by C code that foreign bytes may hang or end.

    python -m ml_backend.volumes.reader_process SOCKET MEMORY LIMIT

It answers one request at a time, a line of JSON each way over the socket; a slice lies in the
shared memory. Both are file descriptors. `readers` starts it, says what it may take, and ends it.
"""

from __future__ import annotations

import json
import mmap
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ml_backend.volumes.enclosure import elsewhere, looked_at
from ml_backend.volumes.recognition import format_of
from ml_backend.volumes.volume import Bounds, ReadOptions, Volume, VolumeError

__all__ = ["main"]

_KEPT_OPEN = 8
"""Volumes; each may keep a slab of 128 MiB."""
_OPENS_WITHIN = 400 << 20
"""Bytes, beyond those that the process has, in which a volume must open: only its description is
read then, 13 MB for 3,000 files of DICOM. Damaged HDF5 takes gigabytes if it gets them."""
_GRACE_S = 2
"""It ends by itself this long after it should have been ended: whoever started it is gone."""

Request = dict[str, Any]
Answer = dict[str, Any]


def main(channel: socket.socket, memory: int, limit: int) -> None:
    """Answer what comes over ``channel`` until it is closed."""
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # of virtual datasets, all are open
    # Ctrl+C goes to every process of a terminal; this one ends with who has started it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    volumes = _Volumes(memory)
    doing: dict[str, Callable[[Request], Answer]] = {
        "open": volumes.open,
        "read": volumes.read,
        "runs": volumes.runs,
        "close": volumes.close,
    }
    with channel, channel.makefile("rw", encoding="ascii") as lines:
        _say(lines, {})
        for line in lines:
            request = json.loads(line)
            # by the kernel: in C code that hangs no thread of Python would run
            signal.setitimer(signal.ITIMER_REAL, request["timeout_s"] + _GRACE_S)
            _say(lines, _answer(doing[request["do"]], request))
            signal.setitimer(signal.ITIMER_REAL, 0)


def _say(lines: Any, answer: Answer) -> None:
    lines.write(json.dumps(answer) + "\n")
    lines.flush()


def _answer(do: Callable[[Request], Answer], request: Request) -> Answer:
    try:
        return do(request)
    except VolumeError as error:
        return {"refused": str(error)}
    except MemoryError:
        return {"refused": f"{request['path']} needs more memory than reading a volume may take"}
    except Exception:  # a bug, of a plugin perhaps: shown where the volume was asked for
        return {"bug": traceback.format_exc()}


class _Volumes:
    """The volumes that are open, by what they are called outside; the last few are kept."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._view: mmap.mmap | None = None
        self._open: dict[str, Volume] = {}

    def open(self, request: Request) -> Answer:
        """What the volume says of itself."""
        volume = self._volume(request)
        size = volume.voxel_size
        return {
            "shape": [int(length) for length in volume.shape],
            "dtype": volume.dtype.str,
            "voxel_size": None if size is None else [float(edge) for edge in size],
            "unit": volume.unit,
            "classes": None if volume.classes is None else list(volume.classes),
            "affine": volume.affine,
            "stored": volume.stored,
            "frame": volume.frame,
            "files": [str(file) for file in volume.files],
            "origin": None if volume.origin is None else [float(at) for at in volume.origin],
        }

    def read(self, request: Request) -> Answer:
        """A slice, into the shared memory."""
        volume = self._volume(request)
        if [*volume.shape] != request["shape"] or volume.dtype.str != request["dtype"]:
            raise VolumeError(f"{volume.path} has been replaced since it was opened: open it again")
        values = volume.along(request["axis"])[request["index"]]
        shared = np.frombuffer(self._mapped(values.nbytes), values.dtype, values.size)
        np.copyto(shared.reshape(values.shape), values)
        return {"bytes": values.nbytes}

    def runs(self, request: Request) -> Answer:
        """Where the slices lie in a file as they are, if they do."""
        found = self._volume(request).runs()
        return {"runs": None if found is None else found.to_json()}

    def close(self, request: Request) -> Answer:
        for key in request["keys"]:
            if (volume := self._open.pop(key, None)) is not None:
                volume.close()
        return {}

    def _volume(self, request: Request) -> Volume:
        key = request["key"]
        volume = self._open.pop(key, None)
        if volume is None:
            while len(self._open) >= _KEPT_OPEN:
                self._open.pop(next(iter(self._open))).close()
            path, options = Path(request["path"]), _options(**request["options"])
            with looked_at() as places, _no_more_memory_than(_OPENS_WITHIN):
                volume = format_of(path, options).read(path, options)
            volume = replace(volume, files=elsewhere(places, path))
        self._open[key] = volume
        return volume

    def _mapped(self, size: int) -> mmap.mmap:
        if self._view is None or len(self._view) < size:
            self._view = mmap.mmap(self._memory, 0)
        return self._view


@contextmanager
def _no_more_memory_than(size: int) -> Iterator[None]:
    """What would take more than ``size`` bytes, beyond those that this process has, fails."""
    before, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = psutil.Process().memory_info().data + size
    resource.setrlimit(resource.RLIMIT_DATA, (min(limit, most), most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, most))


def _options(shape: list[int] | None, roots: list[str], **others: Any) -> ReadOptions:
    three = None if shape is None else (shape[0], shape[1], shape[2])
    return ReadOptions(shape=three, bounds=Bounds(tuple(map(Path, roots))), **others)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]))
