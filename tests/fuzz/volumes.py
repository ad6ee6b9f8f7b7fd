"""Targets that read volumes as slice server and rounds do: in child processes where those do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ml_backend.pictures import encode_png
from ml_backend.volumes.opening import open_volume
from ml_backend.volumes.volume import Bounds, ReadOptions, VolumeError
from ml_backend.volumes.window import fit_window, render
from tests.fuzz.target import Form, Sample, Target

__all__ = ["VOLUMES"]

OPTIONS = ReadOptions(bounds=Bounds(timeout_s=3))
"""Below what an input may take: a file that hangs is refused, and that is documented."""


@contextmanager
def reading(name: str) -> Iterator[Callable[[Sample], None]]:
    """``name``: of the volume. The files of an input lie in its folder, or beside it."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        yield partial(_read, Path(folder), name)


def _read(folder: Path, name: str, sample: Sample) -> None:
    # a folder of its own: what is still open of the last one must not change
    with tempfile.TemporaryDirectory(dir=folder) as own:
        for file, content in sample.items():
            place = Path(own) / (file or name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        if not (Path(own) / name).exists():
            (Path(own) / name).mkdir()
        with open_volume(Path(own) / name, OPTIONS) as volume:
            for index in {0, len(volume) // 2, len(volume) - 1}:
                volume[index]
            window = fit_window(volume)
            for axis in "zyx":
                encode_png(render(volume.along(axis)[0], window))


def _target(name: str, volume: str, form: Form = "bytes", words: tuple[bytes, ...] = ()) -> Target:
    forms: dict[str, Form] = {".json": "json", ".zarray": "json", ".zattrs": "json", ".png": "png"}
    return Target(name, partial(reading, volume), (VolumeError,), form, forms, words, slow=True)


_XML = (b'SizeZ="', b'SizeC="', b"<TiffData ", b'IFD="', b'FirstZ="', b"<Pixels ", b'Type="')
_IMAGEJ = (b"images=", b"slices=", b"spacing=", b"unit=", b"hyperstack=true", b"channels=")

VOLUMES = (
    _target("hdf5", "a.h5", words=(b"default", b"signal", b"axes", b"units", b"TREE", b"SNOD")),
    _target("nifti", "a.nii"),
    _target("nifti-gz", "a.nii.gz", "gzip"),
    _target("tiff", "a.tif", words=(*_XML, *_IMAGEJ)),
    _target("tiff-folder", "a_tif"),
    _target("zarr", "a.zarr"),
    _target("numpy", "a.npy", words=(b"'descr': '<f8'", b"True", b"(1, 2, 3)", b"|O", b"'<c8'")),
    _target("raw", "a.raw"),
    _target("pictures", "a_png", "png"),
)
