"""DICOM: a folder with the files of a series, or one file with many images.

Slices are sorted by where they lie along the normal of their planes, without positions by Instance
Number. Values are rescaled by Rescale Slope and Intercept, as to the Hounsfield units of a CT, and
whole numbers stay whole. Where one folder holds several series, ``dataset`` names one by its UID.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.volumes.enclosure import check_inside
from ml_backend.volumes.formats.dicom_files import DicomFile, Frame, is_dicom
from ml_backend.volumes.formats.format import Format
from ml_backend.volumes.formats.notes import Notes
from ml_backend.volumes.formats.pages import by_page, files_in
from ml_backend.volumes.geometry import LEFT_POSTERIOR, placed
from ml_backend.volumes.volume import ReadOptions, Volume, VolumeError

__all__ = ["FORMAT", "read"]

_ENDINGS = (".dcm", ".dicom", ".ima")
_SAME_PLACE = 1e-3
"""Of the step between two slices."""
_GAP = 1.5
"""Steps between two slices: one is missing."""
_LOOKED_AT = 64
_WHOLE = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64")

Slice = tuple[DicomFile, Frame]


def read(path: Path, options: ReadOptions) -> Volume:
    """``options.dataset``: UID of the series, where there are several."""
    slices = _sorted(path, _one_series(path, _files(path, options), options.dataset))
    first = slices[0][0]
    rescaled = _rescaled_type(slices)

    def page(z: int) -> npt.NDArray[Any]:
        file, frame = slices[z]
        check_inside(file.path, path, options)
        return _rescaled(file.pixels(frame.index), frame, rescaled)

    shape = (len(slices), *first.shape)
    notes = _notes(path, slices)
    volume = notes.volume(path, shape, rescaled, by_page(len(slices), page))
    return placed(volume, None if notes.voxel_size is None else _lies(slices, notes.voxel_size[0]))


def _rescaled(values: npt.NDArray[Any], frame: Frame, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if (frame.slope, frame.intercept) == (1.0, 0.0):
        return values.astype(dtype, copy=False)
    if dtype.kind == "f":
        return (values * frame.slope + frame.intercept).astype(dtype)
    if frame.slope == 1:  # what wraps around on the way is right in the end
        return np.asarray(values.astype(dtype) + dtype.type(frame.intercept))
    return (values.astype(np.int64) * int(frame.slope) + int(frame.intercept)).astype(dtype)


def _takes(path: Path, options: ReadOptions) -> bool:
    """Files that are called as their numbers, with or without an ending."""
    if not path.is_dir():
        return is_dicom(path)
    return any(is_dicom(one) for one in sorted(path.iterdir())[:_LOOKED_AT])


FORMAT = Format(
    name="dicom",
    title="DICOM",
    summary=(
        "a folder with the files of one series, sorted by position and rescaled, or one file with "
        "many images; of several series one by its UID, `--dataset 1.2.840…`"
    ),
    readable="DICOM (.dcm)",
    endings=_ENDINGS,
    read=read,
    datasets=True,
    images={"DICOM": _ENDINGS},
    takes=_takes,
    place=70,
)


def _files(path: Path, options: ReadOptions) -> list[DicomFile]:
    """Those that hold images."""
    if not path.is_dir():
        paths = [path]
    else:
        hidden = [one for one in path.iterdir() if one.name.startswith(".")]
        there = [one for one in path.iterdir() if one not in hidden and not one.is_dir()]
        for one in there:
            check_inside(one, path, options)
        paths = sorted({*files_in(path, _ENDINGS), *filter(is_dicom, there)})
    found = [file for one in paths if (file := DicomFile.read(one)) is not None]
    if not found:
        raise VolumeError(f"{path} has no DICOM image, expected one series of them")
    return found


def _one_series(path: Path, files: Sequence[DicomFile], uid: str | None) -> list[DicomFile]:
    series: dict[str, list[DicomFile]] = {}
    for file in files:
        series.setdefault(file.series, []).append(file)
    if uid is None and len(series) > 1:
        raise VolumeError(f"{path} has {len(series)} series, name one as dataset:{_listed(series)}")
    if uid is not None and uid not in series:
        raise VolumeError(f"{path} has no series {uid}, expected one of:{_listed(series)}")
    chosen = series[next(iter(series)) if uid is None else uid]
    first = chosen[0]
    for file in chosen:
        if (file.shape, file.dtype) != (first.shape, first.dtype):
            raise VolumeError(
                f"{file.path} is {file.dtype} of shape {file.shape}, expected {first.dtype} of "
                f"shape {first.shape} as {first.path.name}: a series is one volume"
            )
    return chosen


def _listed(series: dict[str, list[DicomFile]]) -> str:
    return "".join(
        f"\n  {uid} {files[0].title} {files[0].dtype} "
        f"{(sum(len(file.frames) for file in files), *files[0].shape)}"
        for uid, files in series.items()
    )


def _sorted(path: Path, files: Sequence[DicomFile]) -> list[Slice]:
    slices = [(file, frame) for file in files for frame in file.frames]
    if len(slices) == 1:
        return slices
    if any(frame.origin is None or frame.across is None for _, frame in slices):
        numbers = [frame.number for _, frame in slices]
        if len(set(numbers)) < len(numbers):
            raise VolumeError(
                f"{path} has slices without a position and of the same number, expected Image "
                "Position (Patient) or an Instance Number of its own in each"
            )
        return sorted(slices, key=lambda one: one[1].number)
    first = slices[0][1]
    slices.sort(key=lambda one: _place(one[1], first))
    _check_places(slices)
    return slices


def _place(frame: Frame, first: Frame) -> float:
    """How far along the normal of the first."""
    assert frame.origin is not None
    assert first.across is not None
    return float(np.dot(frame.origin, first.across))


def _check_places(slices: Sequence[Slice]) -> None:
    """Raises VolumeError for planes that are not parallel, and for two in one place."""
    first_file, first = slices[0]
    for file, frame in slices:
        if not np.allclose(frame.across or (), first.across or (), atol=1e-3):
            raise VolumeError(
                f"{file.path} does not lie in parallel with {first_file.path.name}, expected the "
                "slices of one volume: take the overviews out of the folder"
            )
    places = np.array([_place(frame, first) for _, frame in slices])
    steps = np.diff(places)
    usual = float(np.median(steps))
    for (before, _), (after, _), step in zip(slices, slices[1:], steps, strict=False):
        if step <= _SAME_PLACE * usual or step == 0:
            raise VolumeError(
                f"{before.path} and {after.path.name} lie in the same place, expected one slice a "
                "place: times, echoes or phases belong in a folder each"
            )
        if step > _GAP * usual:
            raise VolumeError(
                f"{after.path} lies {step:g} mm behind {before.path.name}, expected {usual:g} mm "
                "as between the others: a slice is missing"
            )


def _notes(path: Path, slices: Sequence[Slice]) -> Notes:
    """In millimetres; nothing where slices are not evenly spaced."""
    frames = [frame for _, frame in slices]
    first = frames[0]
    step = first.step
    if len(frames) > 1 and first.across is not None and all(frame.origin for frame in frames):
        steps = [_place(b, first) - _place(a, first) for a, b in pairwise(frames)]
        step = float(np.mean(steps))
        if not np.allclose(steps, step, rtol=1e-2):
            return Notes()
        step = round(step, 6)
    if first.spacing is None or step is None:
        return Notes()
    return Notes.sized((step, *first.spacing), "mm")


def _lies(slices: Sequence[Slice], step: float) -> npt.NDArray[Any] | None:
    """Where the voxels lie, as `placed` takes it: DICOM counts towards left, posterior, superior.
    ``step``: between slices, where there is one alone."""
    first, last = slices[0][1], slices[-1][1]
    if any(None in (frame.origin, frame.along, frame.spacing) for _, frame in slices):
        return None
    start = np.array(first.origin)
    below, right = first.spacing or ()
    if len(slices) > 1:
        across = (np.array(last.origin) - start) / (len(slices) - 1)
    else:
        across = np.array(first.across) * step
    along = np.array(first.along)
    ours = [along[:3] * right, along[3:] * below, across, start]
    return np.asarray(LEFT_POSTERIOR @ np.column_stack(ours))


def _rescaled_type(slices: Sequence[Slice]) -> np.dtype[Any]:
    """The stored type where nothing is rescaled, the smallest one that holds whole numbers, else
    float32."""
    file = slices[0][0]
    stored = file.dtype.newbyteorder("=")
    scales = {(frame.slope, frame.intercept) for _, frame in slices}
    if scales == {(1.0, 0.0)} or stored.kind == "f":
        return stored
    bits = max(file.bits for file, _ in slices)
    lowest, highest = (-(1 << bits - 1), (1 << bits - 1) - 1) if stored.kind == "i" else (
        0, (1 << bits) - 1,
    )  # fmt: skip
    if not all(slope.is_integer() and inter.is_integer() for slope, inter in scales):
        return np.dtype(np.float32)
    ends = [int(s) * end + int(i) for s, i in scales for end in (lowest, highest)]
    for name in (stored.name, *_WHOLE):
        info = np.iinfo(name)
        if info.min <= min(ends) and max(ends) <= info.max:
            return np.dtype(name)
    return np.dtype(np.float32)
