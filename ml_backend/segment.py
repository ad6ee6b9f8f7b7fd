"""A model over a whole volume: slice by slice, in bounded memory, and on again after a kill.

`segment_volume` sends every slice through the network and keeps what it finds in a working folder
beside the output (``OUT.partial``); `write_volume` streams it into the final format from there.
With ``three_axes`` the volume is predicted along y, x and z, and class probabilities are summed.
To be cut along y or x a volume is copied first: most formats would be read whole for each slice.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from al_strategies.evidence import Position, SliceId
from al_strategies.learner import Learner, Maps, Progress, UnreadableSlice
from ml_backend.durable import Scratch, move_whole, write_whole
from ml_backend.grey import PERCENTILES, finite_sample, middles, scales_apart
from ml_backend.volumes.formats.registry import split_ending
from ml_backend.volumes.opening import check_target, write_volume
from ml_backend.volumes.partial import PartialFolder, Place
from ml_backend.volumes.slice_file import SliceFile
from ml_backend.volumes.staging import clear
from ml_backend.volumes.volume import AXES, Volume, VolumeError, VolumeSpec

__all__ = [
    "Extra",
    "KeptModel",
    "SegmentationReport",
    "VolumeSlices",
    "kept_model",
    "partial_folder",
    "segment_volume",
]

Extra = Literal["probability", "uncertainty"]
"""A volume besides the labels: of each class's probability, or of the entropy of all of them as a
part of its maximum ln C. Both are [0, 1] as uint8 0 … 255."""

_FLUSH_EVERY_S = 2.0
"""What a kill costs at most, besides one batch. A flush waits for the disk."""
_LOOKED_AT = 5
"""Slices that say what grey values a volume has: the middles of as many equal parts."""
_KEPT, _KEPT_WEIGHTS = "model.json", "model.safetensors"
_WRITE = "write"
_DONE = Place("done", 0)
"""All outputs are whole; the working folder may be half removed."""
_SCALED = {
    "uncertainty": "entropy of the class probabilities as a part of its maximum; 0 … 255 is 0 … 1",
    "probability": "probability of the class; 0 … 255 is 0 … 1",
}


@dataclass(frozen=True)
class SegmentationReport:
    """What `segment_volume` did.

    ``voxels``: how many each class has got. ``predicted``: slices that went through the network,
    those of all axes together; ``resumed``: slices that an earlier call had left.
    """

    out: Path
    extras: tuple[Path, ...]
    voxels: dict[str, int]
    predicted: int
    resumed: int
    seconds: float


class VolumeSlices:
    """The slices of a volume along its axis as a `SliceSource`; ids are their indices.

    All that inference reads of a volume it reads here. ``neighbours``: how many `around` will be
    asked for; so many more are kept in memory, or each would be read 2 n + 1 times.
    """

    def __init__(self, volume: Volume, neighbours: int = 0) -> None:
        self.ids = range(len(volume))
        self._volume = volume
        kept = 2 * neighbours + 4 if neighbours else 0
        self._read: Callable[[int], npt.NDArray[Any]] = lru_cache(kept)(volume.__getitem__)

    def image(self, slice_id: SliceId) -> npt.NDArray[Any]:
        """(H, W) in native values."""
        return self._read(self._index(slice_id))

    def around(self, slice_id: SliceId, neighbours: int) -> npt.NDArray[Any]:
        """(H, W, 2 n + 1), as `Surrounded` has it."""
        index = self._index(slice_id)
        places = np.arange(index - neighbours, index + neighbours + 1)
        return np.stack([self._read(int(i)) for i in places.clip(0, len(self.ids) - 1)], axis=2)

    def mask(self, slice_id: SliceId) -> npt.NDArray[np.uint8]:
        """Raises KeyError: nothing is known of a volume's labels."""
        raise KeyError(slice_id)

    def position(self, slice_id: SliceId) -> Position:
        """The volume's path and the index."""
        return Position(str(self._volume.path), float(self._index(slice_id)))

    def _index(self, slice_id: SliceId) -> int:
        index = int(slice_id)
        if index not in self.ids:
            raise KeyError(
                f"{self._volume.path} has no slice {slice_id!r}: expected 0 to {len(self.ids) - 1}"
            )
        return index


def partial_folder(out: Path) -> Path:
    """Where `segment_volume` keeps what is not finished, unless it is told another place. Raises
    VolumeError as that does."""
    _check_name(out)
    return out.with_name(f"{out.name}.partial")


def _check_name(out: Path) -> None:
    if out.name in ("", ".."):  # "." and "/" have none
        raise VolumeError(
            f"{out} is a folder without a name of its own, give a name for the output"
        )


@dataclass(frozen=True)
class KeptModel:
    """The model that an unfinished job began with: its checkpoint, its name for people, whose it is
    (as `segment_volume` was told both), and the last axis of the job."""

    data: bytes
    version: str
    source: str
    axis: str


def kept_model(folder: Path) -> KeptModel | None:
    """The model that the job of the working folder ``folder`` began with, if one is kept there."""
    try:
        said = json.loads((folder / _KEPT).read_bytes())
        data = (folder / _KEPT_WEIGHTS).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return KeptModel(data, said["version"], said["source"], said["axis"])


def segment_volume(
    learner: Learner,
    volume: Volume,
    out: Path,
    *,
    extra: Extra | None = None,
    three_axes: bool = False,
    overwrite: bool = False,
    any_scale: bool = False,
    progress: Progress | None = None,
    work: Path | None = None,
    model_version: str = "",
    model_source: str = "",
) -> SegmentationReport:
    """Segment ``volume`` slice by slice along its axis into ``out``: uint8 class indices.

    ``out``: its ending says the format, see `write_volume`; it gets the volume's voxel size and the
    learner's class names. ``extra``: beside it ``<stem>-uncertainty.<ending>``, or
    ``<stem>-probability-<class>.<ending>`` for each class. ``<stem>-segmentation.json`` says which
    model (``model_version``: its name for people) made what of which volume. ``three_axes``: along
    z, y and x, the class with the highest sum of probabilities wins; the volume's own axis does not
    matter then. ``any_scale``: do not compare the volume's grey values with those that the learner
    has seen. ``work``: the working folder, `partial_folder` by default; it is removed at the end.
    It keeps the model with ``model_version`` and ``model_source`` (whose it is), for `kept_model`.
    ``progress(step, done, total)``: steps ``"segment"`` or ``"along y"``, ``"along x"``,
    ``"along z"`` (before y and x ``"copy for y"``, ``"copy for x"``), then ``"write labels"`` and
    the like.

    Interrupted or killed, it goes on from the last flushed slice when it is called again with the
    same arguments (the learner's device, ``overwrite`` and ``any_scale`` may change), and ends with
    the same bytes on the same device: precision "auto" and the size of the batches follow it.

    Raises VolumeError: an output that exists (unless ``overwrite``), that the volume is read from
    or that another process is writing, an output or a working folder inside the folder that the
    volume is, a working folder of another job, too little room on the disk, a slice that cannot be
    read, grey values on another scale than the learner's (unless ``any_scale``).
    """
    started = time.monotonic()
    if len(learner.classes) > 256:
        raise VolumeError(f"the model has {len(learner.classes)} classes, a label is one byte")
    _check_name(Path(out))
    job = _Job(learner, volume, Path(out), extra, three_axes, model_version, model_source)
    folder = PartialFolder(work or partial_folder(job.out), job.description)
    run = _Segmentation(job, folder, overwrite, any_scale, progress or (lambda *_: None))
    try:
        voxels = run()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise VolumeError(
            f"no room is left for {job.out} or in {folder.path}: free some, and the same call goes "
            "on from the last whole slice"
        ) from error
    return SegmentationReport(
        out=job.out,
        extras=tuple(output.path for output in job.outputs[:-1]),
        voxels=voxels,
        predicted=run.predicted,
        resumed=run.resumed,
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True)
class _Output:
    """A volume to be written: ``name`` of its raw file, where it goes, its class names if any."""

    name: str
    path: Path
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class _Stage:
    """A pass along ``axis``: for ``votes``, or for what is written in the end."""

    name: str
    axis: int
    votes: bool = False


@dataclass(frozen=True)
class _Job:
    """What is asked for."""

    learner: Learner
    volume: Volume
    out: Path
    extra: Extra | None
    three_axes: bool
    model_version: str
    model_source: str

    @property
    def stages(self) -> tuple[_Stage, ...]:
        """The passes in their order; the one that makes the outputs comes last."""
        if not self.three_axes:
            return (_Stage("segment", self.volume.axis),)
        votes = [_Stage(f"along {AXES[axis]}", axis, votes=True) for axis in (1, 2)]
        return (*votes, _Stage("along z", 0))

    @property
    def outputs(self) -> tuple[_Output, ...]:
        """What is written, in this order: when the labels are there, all is."""
        extras: list[_Output] = []
        if self.extra == "uncertainty":
            extras = [_Output("uncertainty", _sibling(self.out, "uncertainty"))]
        elif self.extra == "probability":
            extras = [
                _Output(f"probability-{i}", _sibling(self.out, f"probability-{name}"))
                for i, name in enumerate(_file_names(self.learner.classes))
            ]
        return (*extras, _Output("labels", self.out, self.learner.classes))

    @property
    def written(self) -> tuple[Path, ...]:
        """The outputs and the record."""
        return (*(output.path for output in self.outputs), self.record)

    def spec(self, output: _Output) -> VolumeSpec:
        """What is written besides the values."""
        volume, byte = self.volume, np.dtype(np.uint8)
        return VolumeSpec(
            volume.shape, byte, volume.voxel_size, volume.unit, output.classes, volume.affine,
            volume.frame, volume.origin,
        )  # fmt: skip

    @property
    def record(self) -> Path:
        """Where it is said what was made of what."""
        return self.out.with_name(f"{split_ending(self.out.name)[0]}-segmentation.json")

    @cached_property
    def middle(self) -> npt.NDArray[Any]:
        """The slice in the middle, to know the volume by."""
        return np.ascontiguousarray(self.volume.along("z")[self.volume.shape[0] // 2])

    @cached_property
    def description(self) -> dict[str, Any]:
        """What makes a job this one. Raises VolumeError when its volume cannot be read."""
        size, modified = _size_and_time(self.volume.path)
        return {
            "volume": str(self.volume.path.resolve()),
            "size": size,
            "modified": modified,
            "shape": list(self.volume.shape),
            "dtype": str(self.volume.dtype),
            # Two data sets of one file may differ in nothing else.
            "middle slice": hashlib.sha256(self.middle.tobytes()).hexdigest(),
            "model": hashlib.sha256(self.learner.to_bytes()).hexdigest(),
            "output": str(self.out.resolve()),
            "axes": [stage.name for stage in self.stages] + [AXES[self.stages[-1].axis]],
            "extra": self.extra,
            **self.learner.inference_settings,
        }


class _Segmentation:
    """One call of `segment_volume`."""

    def __init__(
        self,
        job: _Job,
        folder: PartialFolder,
        overwrite: bool,
        any_scale: bool,
        progress: Progress,
    ) -> None:
        self._job, self._folder, self._progress = job, folder, progress
        self._overwrite, self._any_scale = overwrite, any_scale
        self.predicted = 0
        self.resumed = 0

    def __call__(self) -> dict[str, int]:
        """Do what is not done yet; how many voxels each class has got."""
        self._check_apart()
        place = self._folder.place()
        if place == _DONE:
            with self._folder.held():
                return self._tidied_up()
        self._check_outputs(place)
        if place is None and not self._any_scale:  # else it was looked at before
            self._check_grey_values()
        self._check_format()
        for output in self._job.outputs:
            clear(output.path.absolute())  # a killed call may have left it, as large as the output
        self._check_room()
        with self._folder.held():
            place = self._folder.place()  # another process may have been on it just now
            self._keep_model()
            self._predict_all(place)
            voxels = self._write(place.done if place and place.stage == _WRITE else 0)
            self._folder.commit(_DONE)
            self._folder.remove()
        return voxels

    def _tidied_up(self) -> dict[str, int]:
        """What an earlier call has said at its end; it was stopped while it removed its folder."""
        job, again = self._job, f"Delete {self._folder.path} to begin again"
        for path in job.written:
            if not path.exists():
                raise VolumeError(f"{path} is gone: an earlier call had made it. {again}")
        record = json.loads(job.record.read_bytes())
        if not self._folder.is_of(record):
            raise VolumeError(f"{job.out} has been replaced since an earlier call made it. {again}")
        self._folder.remove()
        self.resumed = sum(job.volume.shape[stage.axis] for stage in job.stages)
        voxels: dict[str, int] = record["voxels"]
        return voxels

    # -- before

    def _check_apart(self) -> None:
        """A folder that is written into is another volume afterwards, or none at all; and the
        working folder is removed in the end, so neither it nor an output is in the other."""
        source = self._job.volume.path.resolve()
        places = dict.fromkeys(self._job.written, "output") | {self._folder.path: "working folder"}
        for path, what in places.items():
            if source in path.resolve().parents:
                raise VolumeError(
                    f"{path} is inside {source}, the volume that is read: give another {what}, "
                    "outside of it"
                )
        work = self._folder.path.resolve()
        for path in self._job.written:
            out = path.resolve()
            if work.is_relative_to(out) or out.is_relative_to(work):
                raise VolumeError(
                    f"the working folder {self._folder.path} and the output {path} are one, or one "
                    "is inside the other: give another working folder, apart from all outputs"
                )

    def _check_outputs(self, place: Place | None) -> None:
        job = self._job
        # While outputs are written, one that is there is our own.
        writing = place is not None and place.stage == _WRITE
        source = job.volume.path.resolve()
        for path in job.written:
            if path.resolve() == source:
                raise VolumeError(f"{path} is the volume itself: give another output")
            # --overwrite replaces it with all that is in it
            for file in (source, *job.volume.files):
                if file.is_relative_to(path.resolve()):
                    raise VolumeError(
                        f"{path} holds what the volume {job.volume.path} is read from: give "
                        "another output"
                    )
            if path.exists() and not self._overwrite and not writing:
                raise VolumeError(
                    f"{path} exists already: give another output, or ask to overwrite it"
                )
        for output in job.outputs:
            check_target(output.path, overwrite=self._overwrite or writing)

    def _check_grey_values(self) -> None:
        """Raise VolumeError when what the model takes for black and white says nothing of the
        volume: 8-bit pictures and native values are scales apart, every slice would look flat."""
        job = self._job
        black, white = job.learner.grey_window
        # Along z: cut along y or x, most formats are read whole for each slice.
        along_z = job.volume.along("z")
        seen = middles(len(along_z), _LOOKED_AT)
        finite = np.concatenate([finite_sample(along_z[index]) for index in seen])
        low, high = np.percentile(finite, PERCENTILES) if finite.size else (0.0, 0.0)
        if high > low and scales_apart((low, high), (black, white)):
            raise VolumeError(
                f"{job.volume.path} has grey values from about {low:g} to {high:g}, the model "
                f"learned slices with {black:g} to {white:g}: that is "
                "another scale, as of 8-bit pictures (uploaded ones, import --upload) and native "
                "values. Convert the volume to what those slices are, or train on the volume "
                "itself. If the scale is the same and only this sample lacks what is brightest "
                "elsewhere, give --any-scale"
            )

    def _check_format(self) -> None:
        """One voxel is written as the whole volume will be: now, not after hours, it may fail."""
        job = self._job
        with Scratch() as folder:
            for output in (job.outputs[0], job.outputs[-1]):
                spec = replace(job.spec(output), shape=(1, 1, 1))
                path = Path(folder) / output.path.name
                write_volume(path, [np.zeros((1, 1), np.uint8)], spec, overwrite=True)

    def _check_room(self) -> None:
        """Votes and a copy of the volume, then votes and raw results, then these and one output at
        a time in its final format."""
        job = self._job
        voxels = int(np.prod(job.volume.shape))
        raw = voxels * len(job.outputs)
        votes, peak = 0, 0
        for stage in job.stages:
            votes += voxels * (len(job.learner.classes) - 1) if stage.votes else 0
            copy = voxels * job.volume.dtype.itemsize if stage.axis else 0
            peak = max(peak, votes + copy + (0 if stage.votes else raw))
        work, final = _existing(self._folder.path), _existing(job.out.parent)
        there = _allocated(self._folder.path)
        if work.stat().st_dev == final.stat().st_dev:
            _check_free(work, max(peak, raw + voxels) - there)
        else:
            _check_free(work, peak - there)
            _check_free(final, raw)

    def _keep_model(self) -> None:
        """Whoever made the model may have replaced it when this job is to go on."""
        job, path = self._job, self._folder.path
        if (path / _KEPT).exists():
            return
        write_whole(path / _KEPT_WEIGHTS, job.learner.to_bytes(), alone=True)
        said = {
            "version": job.model_version,
            "source": job.model_source,
            "axis": job.description["axes"][-1],
        }
        write_whole(path / _KEPT, json.dumps(said).encode(), alone=True)

    # -- the network

    def _predict_all(self, place: Place | None) -> None:
        stages = self._job.stages
        names = [*(stage.name for stage in stages), _WRITE]
        current = names.index(place.stage) if place is not None else 0
        for number, stage in enumerate(stages):
            total = self._job.volume.shape[stage.axis]
            done = total if number < current else 0
            if stage.votes and number < current < len(stages):
                self._votes_file(stage, there=True).close()  # or this is found out hours later
            if number == current and place is not None:
                done = place.done
            self.resumed += done
            if done < total:
                self._predict(stage, done, total)
            if number >= current:
                self._folder.commit(Place(names[number + 1], 0))
            self._copy_path(stage).unlink(missing_ok=True)
        for stage in stages:
            self._votes_path(stage).unlink(missing_ok=True)

    def _predict(self, stage: _Stage, done: int, total: int) -> None:
        job = self._job
        # Batches of the same slices after a kill as without one: rounding depends on them.
        batch = job.learner.slices_per_batch(job.volume.along(stage.axis).slice_shape)
        with ExitStack() as stack:
            volume = job.volume if stage.axis == 0 else self._copied(stage, stack)
            source = VolumeSlices(volume.along(stage.axis), job.learner.neighbours)
            files = [stack.enter_context(file) for file in self._files(stage, there=done > 0)]
            maps_of = job.learner.maps(
                source,
                range(done, total),
                probability=stage.votes or job.extra == "probability",
                uncertainty=not stage.votes and job.extra == "uncertainty",
                votes=None if stage.votes else self._votes(stack),
            )
            found = stack.enter_context(closing(maps_of))
            flushed, looked = done, time.monotonic()
            self._progress(stage.name, done, total)
            try:
                for index, maps in found:
                    self._keep(files, stage, int(index), maps)
                    done += 1
                    self.predicted += 1
                    self._progress(stage.name, done, total)
                    if done % batch == 0 and time.monotonic() - looked >= _FLUSH_EVERY_S:
                        self._flush(files, Place(stage.name, done))
                        flushed, looked = done, time.monotonic()
            except UnreadableSlice as error:
                raise VolumeError(
                    f"{job.volume.path}, slice {error.slice_id} along {AXES[stage.axis]}, cannot "
                    f"be read: {error.__cause__}"
                ) from error
            finally:
                whole = done if done == total else done // batch * batch
                if whole > flushed:
                    self._flush(files, Place(stage.name, whole))

    def _flush(self, files: Sequence[SliceFile], place: Place) -> None:
        for file in files:
            file.flush()
        self._folder.commit(place)

    def _keep(self, files: Sequence[SliceFile], stage: _Stage, index: int, maps: Maps) -> None:
        if stage.votes:
            assert maps.probabilities is not None
            files[0].write(index, maps.probabilities[1:])
            return
        extras: list[npt.NDArray[np.uint8]] = []
        if maps.uncertainty is not None:
            extras = [maps.uncertainty]
        elif maps.probabilities is not None:
            extras = list(maps.probabilities)
        for file, values in zip(files, [*extras, maps.mask], strict=True):
            file.write(index, values[np.newaxis])

    # -- files

    def _copied(self, stage: _Stage, stack: ExitStack) -> Volume:
        """The volume from a copy whose slices along the stage's axis can be read by themselves."""
        volume, path = self._job.volume, self._copy_path(stage)
        total = volume.shape[0]
        whole = path.exists()
        part = path if whole else path.with_suffix(".part")
        file = stack.enter_context(
            SliceFile(
                part, volume.shape, written=0, read=stage.axis, dtype=volume.dtype, there=whole
            )
        )
        if not whole:
            source = VolumeSlices(volume.along("z"))
            for z in range(total):
                file.write(z, source.image(z)[np.newaxis])
                self._progress(f"copy for {AXES[stage.axis]}", z + 1, total)
            file.flush()
            move_whole(part, path)
        return replace(volume, read=lambda _, index: file[index][0])

    def _copy_path(self, stage: _Stage) -> Path:
        return self._folder.path / f"copy-{AXES[stage.axis]}.raw"

    def _votes_path(self, stage: _Stage) -> Path:
        return self._folder.path / f"votes-{AXES[stage.axis]}.raw"

    def _votes_file(self, stage: _Stage, *, there: bool) -> SliceFile:
        # Without the background: it is what the others leave of 1.
        channels = len(self._job.learner.classes) - 1
        path, shape = self._votes_path(stage), self._job.volume.shape
        return SliceFile(path, shape, written=stage.axis, read=0, channels=channels, there=there)

    def _raw_file(self, output: _Output, *, there: bool) -> SliceFile:
        path, axis = self._folder.path / f"{output.name}.raw", self._job.stages[-1].axis
        return SliceFile(path, self._job.volume.shape, written=axis, read=0, there=there)

    def _files(self, stage: _Stage, *, there: bool) -> Iterator[SliceFile]:
        """One by one, as each may be missing."""
        if stage.votes:
            yield self._votes_file(stage, there=there)
            return
        for output in self._job.outputs:
            yield self._raw_file(output, there=there)

    def _votes(self, stack: ExitStack) -> _OtherAxes | None:
        stages = [stage for stage in self._job.stages if stage.votes]
        if not stages:
            return None
        files = (self._votes_file(stage, there=True) for stage in stages)
        return _OtherAxes([stack.enter_context(file) for file in files])

    # -- the final format

    def _write(self, done: int) -> dict[str, int]:
        job = self._job
        voxels = np.zeros(len(job.learner.classes), dtype=np.int64)
        for number, output in enumerate(job.outputs[done:], start=done):
            counts = voxels if output.classes is not None else None
            with self._raw_file(output, there=True) as file:
                # What exists was looked at before the first slice; now it can only be our own.
                slices = self._slices(file, counts)
                write_volume(output.path, slices, job.spec(output), overwrite=True)
            if output.classes is None:
                self._folder.commit(Place(_WRITE, number + 1))
                file.path.unlink()
        found = dict(zip(job.learner.classes, voxels.tolist(), strict=True))
        self._write_record(found)
        return found

    def _write_record(self, voxels: dict[str, int]) -> None:
        job = self._job
        record = {
            **job.description,
            "model version": job.model_version,
            "voxel_size": job.volume.voxel_size,
            "unit": job.volume.unit,
            "classes": job.learner.classes,
            "voxels": voxels,
            "files": {
                output.path.name: "class indices" if output.classes else _SCALED[str(job.extra)]
                for output in job.outputs
            },
        }
        write_whole(
            job.record, json.dumps(record, indent=1, ensure_ascii=False).encode(), alone=True
        )

    def _slices(
        self, file: SliceFile, counts: npt.NDArray[np.int64] | None
    ) -> Iterator[npt.NDArray[np.uint8]]:
        total = file.shape[0]
        for z in range(total):
            values = np.ascontiguousarray(file[z][0])
            if counts is not None:
                counts += np.bincount(values.ravel(), minlength=len(counts))
            yield values
            self._progress(f"{_WRITE} {file.path.stem}", z + 1, total)


class _OtherAxes:
    """`Votes` of the passes along y and x for the slices along z, asked for in rising order."""

    def __init__(self, files: Sequence[SliceFile]) -> None:
        self._files = files

    @property
    def voters(self) -> int:
        return len(self._files)

    def __call__(self, slice_id: SliceId, rows: slice) -> npt.NDArray[np.float32]:
        parts = [file[int(slice_id)][:, rows] for file in self._files]
        channels, height, width = parts[0].shape
        total = np.empty((channels + 1, height, width), dtype=np.float32)
        total[1:] = sum(part.astype(np.float32) for part in parts)
        total[1:] /= 255
        np.subtract(len(parts), total[1:].sum(0), out=total[0])
        return total.clip(0, out=total)


def _sibling(out: Path, what: str) -> Path:
    """``a/labels.nii.gz`` → ``a/labels-<what>.nii.gz``."""
    stem, ending = split_ending(out.name)
    return out.with_name(f"{stem}-{what}{ending}")


def _file_names(classes: Sequence[str]) -> list[str]:
    """Class names as parts of file names, numbered where two would be alike."""
    names = [re.sub(r"[^\w+-]+", "_", name) for name in classes]
    if len({name.lower() for name in names}) == len(names):
        return names
    return [f"{i}-{name}" for i, name in enumerate(names)]


def _size_and_time(path: Path) -> tuple[int, int]:
    """Bytes and newest time of change (ns) of a file, or of the entries of a folder."""
    found = [path.stat()]
    if path.is_dir():
        with os.scandir(path) as entries:
            for entry in entries:
                with suppress(OSError):  # removed meanwhile, or a link that leads nowhere
                    found.append(entry.stat())
    return sum(f.st_size for f in found), max(f.st_mtime_ns for f in found)


def _existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists())


def _allocated(folder: Path) -> int:
    """Bytes that the raw files of an interrupted call take on the disk already."""
    files = [*folder.glob("*.raw"), *folder.glob("*.part")]
    return sum(path.stat().st_blocks * 512 for path in files)


def _check_free(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise VolumeError(
            f"segmenting needs {needed / 2**30:.2f} GiB on the disk of {folder}, {free / 2**30:.2f}"
            " GiB are free: free some, or give an output or a working folder elsewhere"
        )
