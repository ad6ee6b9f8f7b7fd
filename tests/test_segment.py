"""A whole volume is what its slices are one by one, however it is cut, stopped and written."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from typer.testing import CliRunner

from ml_backend import cli, segment
from ml_backend.cli import segment as command
from ml_backend.cli import strategies
from ml_backend.rounds.artefacts import DATASET, ROUND, WEIGHTS
from ml_backend.rounds.records import (
    DatasetRecord,
    ProjectRecord,
    Published,
    RoundRecord,
    TaskRecord,
)
from ml_backend.rounds.store import Store
from ml_backend.segment import VolumeSlices, partial_folder, segment_volume
from ml_backend.segmentation import checkpoints
from ml_backend.segmentation.inference import InferenceConfig
from ml_backend.segmentation.learner import LearnerConfig, NetworkLearner
from ml_backend.segmentation.model import Model
from ml_backend.segmentation.networks import build_network
from ml_backend.segmentation.preprocessing import Preprocessing
from ml_backend.settings import load_settings
from ml_backend.volumes.opening import open_volume, write_volume
from ml_backend.volumes.partial import PartialFolder
from ml_backend.volumes.volume import Volume, VolumeError, VolumeSpec
from tests.segmentation_phantom import CLASSES, Phantom

SHAPE = (9, 20, 24)
ALONE = InferenceConfig(batch_pixels=1)
PAIRS = InferenceConfig(batch_pixels=2 * 32 * 32)
FORMATS = (
    "a.tif", "a.h5", "a.zarr", "a.nii", "a.nii.gz", "a.npy", "a.raw", "a_png", "folder",
)  # fmt: skip


def make_learner(neighbours: int = 0) -> NetworkLearner:
    torch.manual_seed(0)
    preprocessing = Preprocessing(0, 1000, neighbours=neighbours)
    network = build_network("hrnet_w18_small", 3, channels=preprocessing.planes).eval()
    # Random weights predict one class everywhere: larger ones give the tests something to see.
    torch.nn.init.normal_(network.classifier.weight, std=1.0)
    learner = NetworkLearner(CLASSES, LearnerConfig(inference=ALONE))
    learner.model = Model(network, preprocessing, CLASSES)
    return learner


def batched(learner: NetworkLearner, inference: InferenceConfig) -> NetworkLearner:
    """The same weights, run as ``inference`` says."""
    return NetworkLearner.from_bytes(learner.to_bytes(), LearnerConfig(inference=inference))


@pytest.fixture(scope="module")
def learner() -> NetworkLearner:
    return make_learner()


@pytest.fixture(scope="module")
def values() -> npt.NDArray[np.uint16]:
    source = Phantom(SHAPE[0])
    return np.stack([source.image(i)[10:30, 20:44] for i in source.ids])


@pytest.fixture
def volume(tmp_path: Path, values: npt.NDArray[np.uint16]) -> Volume:
    return written(tmp_path / "scan.npy", values)


def written(path: Path, values: npt.NDArray[Any]) -> Volume:
    np.save(path, values)
    return replace(open_volume(path), voxel_size=(2.0, 1.5, 1.25), unit="µm")


class Recorded:
    """Which slices of a volume are read, in their order."""

    def __init__(self, volume: Volume, broken: int | None = None) -> None:
        self.indices: list[int] = []
        self._read, self._broken = volume.read, broken
        self.volume = replace(volume, read=self.read)

    def read(self, axis: int, index: int) -> npt.NDArray[Any]:
        self.indices.append(index)
        if index == self._broken:
            raise VolumeError("the file ends here")
        return self._read(axis, index)


def one_by_one(
    learner: NetworkLearner, values: npt.NDArray[Any], axis: int
) -> npt.NDArray[np.uint8]:
    slices = np.moveaxis(values, axis, 0)
    return np.moveaxis(np.stack([learner.predict_image(s).mask for s in slices]), 0, axis)


def softmax(
    learner: NetworkLearner, values: npt.NDArray[Any], axis: int = 0
) -> npt.NDArray[np.float32]:
    """(C, Z, Y, X): what the plain network says of padded slices."""
    found = []
    for slice_ in np.moveaxis(values, axis, 0):
        x = learner.model.preprocessing(slice_)
        missing = [-length % 32 for length in slice_.shape]
        x = np.pad(x, ((0, 0), (0, missing[0]), (0, missing[1])), mode="symmetric")
        with torch.inference_mode():
            p = learner.model.network(torch.from_numpy(x)[None]).softmax(1)[0]
        found.append(p[:, : slice_.shape[0], : slice_.shape[1]].numpy())
    return np.moveaxis(np.stack(found, axis=1), 1, 1 + axis)


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_a_volume_is_what_its_slices_are_one_by_one(
    tmp_path: Path, learner: NetworkLearner, volume: Volume, values: Any, axis: str
) -> None:
    report = segment_volume(learner, volume.along(axis), tmp_path / "labels.npy")

    labels = np.load(tmp_path / "labels.npy")
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, one_by_one(learner, values, "zyx".index(axis)))
    assert len(np.unique(labels)) > 1
    counts = [int((labels == i).sum()) for i in range(3)]
    assert report.voxels == dict(zip(CLASSES, counts, strict=True))
    assert (report.predicted, report.resumed) == (SHAPE["zyx".index(axis)], 0)
    assert not partial_folder(tmp_path / "labels.npy").exists()


def test_batches_change_nothing(tmp_path: Path, learner: NetworkLearner, volume: Volume) -> None:
    together = InferenceConfig(batch_pixels=4 * 32 * 32)
    segment_volume(learner, volume, tmp_path / "one.npy")
    segment_volume(batched(learner, together), volume, tmp_path / "four.npy")

    one, four = (np.load(tmp_path / name) for name in ("one.npy", "four.npy"))
    assert (one == four).mean() > 0.999


def test_neighbours_come_along_the_same_axis(tmp_path: Path, volume: Volume, values: Any) -> None:
    learner = make_learner(neighbours=1)

    segment_volume(learner, volume.along("y"), tmp_path / "labels.npy")

    stacks = np.pad(values, ((0, 0), (1, 1), (0, 0)), mode="edge")
    expected = [
        learner.predict_image(np.moveaxis(stacks[:, y : y + 3], 1, 2)).mask for y in range(SHAPE[1])
    ]
    assert np.array_equal(np.load(tmp_path / "labels.npy"), np.stack(expected, axis=1))


def test_slices_at_the_ends_are_their_own_neighbours(volume: Volume, values: Any) -> None:
    stack = VolumeSlices(volume, 2).around(0, 2)

    assert np.array_equal(stack, np.moveaxis(values[[0, 0, 0, 1, 2]], 0, 2))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_labels_voxel_size_and_class_names(
    tmp_path: Path, learner: NetworkLearner, volume: Volume, values: Any, name: str
) -> None:
    out = tmp_path / name
    segment_volume(learner, volume, out, extra="uncertainty")

    with open_volume(out) as found:
        assert np.array_equal(np.stack(list(found)), one_by_one(learner, values, 0))
        assert found.dtype == np.uint8
        assert found.voxel_size == pytest.approx((2.0, 1.5, 1.25))
        assert (found.unit, found.classes) == ("µm", CLASSES)
    extra = next(p for p in tmp_path.glob("*-uncertainty*") if p.suffix != ".json")
    with open_volume(extra) as found:
        assert (found.shape, found.dtype) == (SHAPE, np.uint8)
        assert found.voxel_size == pytest.approx((2.0, 1.5, 1.25))


def test_labels_lie_where_the_scan_lies(
    tmp_path: Path, learner: NetworkLearner, values: Any
) -> None:
    """A scan whose axes are swapped and reversed, and that begins somewhere."""
    affine = np.array([[0, 0, -2.0, 9], [0.5, 0, 0, -4], [0, -3.0, 0, 5], [0, 0, 0, 1]])
    scan = nib.Nifti1Image(np.ascontiguousarray(values.T), affine)
    nib.save(scan, tmp_path / "scan.nii")
    with open_volume(tmp_path / "scan.nii") as volume:
        segment_volume(learner, volume, tmp_path / "labels.nii.gz", any_scale=True)
        one = one_by_one(learner, np.stack(list(volume)), 0)
    labels = nib.load(tmp_path / "labels.nii.gz")
    assert np.array_equal(np.asarray(labels.dataobj).T, one)
    corner = np.array(scan.shape) - 1
    back = nib.affines.apply_affine(np.linalg.inv(labels.affine) @ affine, [[0, 0, 0], corner])
    assert {tuple(place) for place in np.sort(np.rint(back), axis=0).astype(int).tolist()} == {
        (0, 0, 0),
        tuple(length - 1 for length in labels.shape),
    }


def test_uncertainty_is_the_entropy_as_a_part_of_its_maximum(
    tmp_path: Path, learner: NetworkLearner, volume: Volume, values: Any
) -> None:
    report = segment_volume(learner, volume, tmp_path / "labels.npy", extra="uncertainty")

    assert report.extras == (tmp_path / "labels-uncertainty.npy",)
    p = softmax(learner, values)
    expected = -(p * np.log(p)).sum(0) / np.log(3)
    assert np.abs(np.load(report.extras[0]) / 255 - expected).max() < 0.02
    record = json.loads((tmp_path / "labels-segmentation.json").read_text())
    assert record["files"]["labels-uncertainty.npy"].startswith("entropy")
    assert record["classes"] == list(CLASSES)
    assert record["voxels"] == report.voxels


def test_probabilities_of_the_classes(
    tmp_path: Path, learner: NetworkLearner, volume: Volume, values: Any
) -> None:
    report = segment_volume(
        learner, volume.along("x"), tmp_path / "a.v1.npy", extra="probability", model_version="r7"
    )

    names = [f"a.v1-probability-{name}.npy" for name in CLASSES]
    assert [path.name for path in report.extras] == names
    found = np.stack([np.load(path) for path in report.extras]) / 255
    assert np.abs(found - softmax(learner, values, 2)).max() < 0.02
    labels = np.load(tmp_path / "a.v1.npy")
    assert (found.argmax(0) == labels).mean() > 0.98  # but for those that round to one value
    record = json.loads((tmp_path / "a.v1-segmentation.json").read_text())
    assert (record["model version"], record["axes"][-1]) == ("r7", "x")


def test_three_axes_vote_by_the_sum_of_their_probabilities(
    tmp_path: Path, learner: NetworkLearner, volume: Volume, values: Any
) -> None:
    report = segment_volume(
        learner, volume, tmp_path / "labels.npy", three_axes=True, extra="probability"
    )

    mean = sum(softmax(learner, values, axis) for axis in range(3)) / 3
    found = np.stack([np.load(path) for path in report.extras]) / 255
    assert np.abs(found - mean).max() < 0.02
    top = np.sort(mean, axis=0)
    # A vote is rounded to 1/255; the background is what the others leave of 1.
    clear = top[-1] - top[-2] > 4 / 255
    labels = np.load(tmp_path / "labels.npy")
    assert clear.mean() > 0.9
    assert np.array_equal(labels[clear], mean.argmax(0)[clear])
    assert not np.array_equal(labels, one_by_one(learner, values, 0))
    assert (report.predicted, report.resumed) == (sum(SHAPE), 0)


class Stop(BaseException):
    """Like KeyboardInterrupt, which pytest would take for its own."""


def stop_at(step: str, place: int) -> Any:
    def progress(name: str, done: int, total: int) -> None:
        if (name, done) == (step, place):
            raise Stop

    return progress


@pytest.fixture
def flushed_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "_FLUSH_EVERY_S", 0.0)


def test_a_stopped_run_goes_on_with_the_slice_after_the_last(
    tmp_path: Path, learner: NetworkLearner, volume: Volume
) -> None:
    with pytest.raises(Stop):
        segment_volume(learner, volume, tmp_path / "a.npy", progress=stop_at("segment", 5))
    assert not (tmp_path / "a.npy").exists()

    recorded = Recorded(volume)
    report = segment_volume(learner, recorded.volume, tmp_path / "a.npy")
    segment_volume(learner, volume, tmp_path / "b.npy")

    assert (report.predicted, report.resumed) == (4, 5)
    middle = SHAPE[0] // 2  # read to know the volume by
    assert sorted(recorded.indices) == sorted([middle, *range(5, 9)])
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_a_stopped_run_goes_on_at_the_beginning_of_a_batch(
    tmp_path: Path, learner: NetworkLearner, volume: Volume
) -> None:
    learner = batched(learner, InferenceConfig(batch_pixels=4 * 32 * 32))
    fours: Any = {"extra": "probability"}
    with pytest.raises(Stop):
        segment_volume(learner, volume, tmp_path / "a.npy", progress=stop_at("segment", 6), **fours)

    report = segment_volume(learner, volume, tmp_path / "a.npy", **fours)
    whole = segment_volume(learner, volume, tmp_path / "b.npy", **fours)

    assert (report.predicted, report.resumed) == (5, 4)
    for mine, other in zip((report.out, *report.extras), (whole.out, *whole.extras), strict=True):
        assert mine.read_bytes() == other.read_bytes()


def test_a_run_stopped_while_it_writes_predicts_nothing_again(
    tmp_path: Path, learner: NetworkLearner, volume: Volume
) -> None:
    with pytest.raises(Stop):
        segment_volume(
            learner, volume, tmp_path / "a.npy", extra="uncertainty",
            progress=stop_at("write labels", 3),
        )  # fmt: skip
    assert (tmp_path / "a-uncertainty.npy").exists()
    assert not (tmp_path / "a.npy").exists()

    report = segment_volume(learner, volume, tmp_path / "a.npy", extra="uncertainty")

    assert (report.predicted, report.resumed) == (0, 9)
    assert sum(report.voxels.values()) == np.prod(SHAPE)
    assert {p.stem for p in tmp_path.iterdir() if p.suffix != ".json"} == {
        "a", "a-uncertainty", "scan"
    }  # fmt: skip


@pytest.mark.parametrize("last", ["labels.raw", "progress.json", "job.json"])
def test_a_run_stopped_while_it_tidies_up_leaves_the_labels_as_they_are(
    tmp_path: Path, learner: NetworkLearner, volume: Volume, monkeypatch: pytest.MonkeyPatch,
    last: str,
) -> None:  # fmt: skip
    out = tmp_path / "a.npy"
    unlink = os.unlink

    def stopped_after(path: Any, **options: Any) -> None:
        unlink(path, **options)
        if Path(path).name == last:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", stopped_after)
        with pytest.raises(Stop):
            segment_volume(learner, volume, out)
    labels = out.read_bytes()

    if last != "job.json":  # that is the last word: after it, all is as after the end
        report = segment_volume(learner, volume, out)
        assert (report.predicted, report.resumed) == (0, 9)
        assert sum(report.voxels.values()) == np.prod(SHAPE)
        assert not partial_folder(out).exists()
    else:
        refused("exists already", learner, volume, out)
    assert out.read_bytes() == labels


def test_what_was_done_and_is_gone_is_not_done(
    tmp_path: Path, learner: NetworkLearner, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.npy"
    with monkeypatch.context() as patch:
        patch.setattr(PartialFolder, "remove", lambda _: None)
        segment_volume(learner, volume, out)
        segment_volume(
            batched(learner, PAIRS), volume.along("y"), out, work=tmp_path / "work", overwrite=True
        )
    refused("has been replaced since.*Delete .*a.npy.partial", learner, volume, out)
    out.unlink()
    refused("a.npy is gone.*Delete .*a.npy.partial", learner, volume, out)


@pytest.mark.parametrize(
    ("step", "gone"),
    [
        ("along y", "votes-y.raw"), ("along x", "votes-y.raw"), ("along z", "votes-x.raw"),
        ("along z", "labels.raw"), ("write uncertainty", "labels.raw"),
        ("write labels", "labels.raw"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("flushed_always")
def test_results_that_were_deleted_are_not_taken_for_background(
    tmp_path: Path, learner: NetworkLearner, volume: Volume, step: str, gone: str
) -> None:
    out, same = tmp_path / "a.npy", {"three_axes": True, "extra": "uncertainty"}
    with pytest.raises(Stop):
        segment_volume(learner, volume, out, progress=stop_at(step, 3), **same)
    (partial_folder(out) / gone).unlink()

    refused(f"{gone} is gone.*Delete its folder to begin again", learner, volume, out, **same)
    refused(f"{gone} is gone", learner, volume, out, **same)
    assert not out.exists()


KILLED = """
import sys
from pathlib import Path
from ml_backend import segment
from ml_backend.segmentation.learner import LearnerConfig, NetworkLearner
from ml_backend.segmentation.inference import InferenceConfig
from ml_backend.volumes.opening import open_volume

segment._FLUSH_EVERY_S = 0.0
folder = Path(sys.argv[1])
segment.segment_volume(
    NetworkLearner.from_bytes(
        (folder / "weights").read_bytes(),
        LearnerConfig(inference=InferenceConfig(batch_pixels=2 * 32 * 32)),
    ),
    open_volume(folder / "scan.npy"),
    folder / "killed.npy",
    extra="uncertainty",
    three_axes=True,
    progress=lambda *event: print(*event, flush=True),
)
"""


@pytest.mark.usefixtures("flushed_always")
def test_a_killed_run_ends_with_the_same_bytes(
    tmp_path: Path, learner: NetworkLearner, volume: Volume
) -> None:
    (tmp_path / "weights").write_bytes(learner.to_bytes())
    moment = random.randint(1, sum(SHAPE) + 2 * SHAPE[0])
    lines = killed_after(moment, [str(tmp_path)])
    fresh = batched(learner, PAIRS)
    plain = replace(volume, voxel_size=None, unit="")  # as the file has it
    same: Any = {"extra": "uncertainty", "three_axes": True}

    report = segment_volume(fresh, plain, tmp_path / "killed.npy", **same)
    segment_volume(fresh, plain, tmp_path / "whole.npy", **same)

    # A slice is printed before its batch is flushed: the last pair may not have been.
    printed = sum(line.startswith("along") and " 0 " not in line for line in lines)
    assert report.predicted + report.resumed == sum(SHAPE)
    assert printed - 2 <= report.resumed, f"killed after line {moment} of {lines}"
    for name in ("{}.npy", "{}-uncertainty.npy"):
        killed, whole = (tmp_path / name.format(run) for run in ("killed", "whole"))
        assert killed.read_bytes() == whole.read_bytes(), f"killed after line {moment}"


def killed_after(moment: int, arguments: list[str]) -> list[str]:
    """What the run said before it was killed with SIGKILL, after ``moment`` lines or at its end."""
    lines: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if len(lines) == moment:
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    return lines


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
import numpy as np
from ml_backend.volumes.opening import write_volume
from ml_backend.volumes.volume import VolumeSpec

def slices():
    out = Path(sys.argv[1])
    for folder in out.parent.glob(f".{out.name}.*/"):
        (folder / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
    yield

write_volume(sys.argv[1], slices(), VolumeSpec((9, 20, 24), np.dtype("u1")))
"""


@pytest.mark.parametrize("output", ["a-uncertainty.npy", "a.npy"])
def test_what_a_kill_while_writing_has_left_takes_no_room(
    tmp_path: Path, learner: NetworkLearner, volume: Volume, output: str
) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_WRITER, tmp_path / output], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.rglob("half"))) == 1

    def progress(*_: Any) -> None:
        assert list(tmp_path.rglob("half")) == []

    segment_volume(learner, volume, tmp_path / "a.npy", extra="uncertainty", progress=progress)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".json") == [
        "a-uncertainty.npy", "a.npy", "scan.npy"
    ]  # fmt: skip


def test_a_slice_that_cannot_be_read_is_named_and_the_rest_is_kept(
    tmp_path: Path, learner: NetworkLearner, volume: Volume
) -> None:
    broken = Recorded(volume, broken=7).volume
    with pytest.raises(VolumeError, match=r"slice 7 along z, cannot be read: the file ends here"):
        segment_volume(learner, broken, tmp_path / "a.npy")

    report = segment_volume(learner, volume, tmp_path / "a.npy")

    assert report.resumed >= 3  # the two threads that read are that far ahead
    assert report.predicted + report.resumed == SHAPE[0]


def refused(match: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(VolumeError, match=match):
        segment_volume(*arguments, **options)


@pytest.mark.parametrize("scale", [255 / 65535, 300.0])
def test_grey_values_of_another_scale_are_refused(
    tmp_path: Path, learner: NetworkLearner, values: npt.NDArray[np.uint16], scale: float
) -> None:
    """As native values are where the model learned 8-bit pictures of them, or the other way."""
    other = written(tmp_path / "other.npy", (values * scale).astype(np.float32))
    refused(r"has grey values from about .*the model learned", learner, other, tmp_path / "a.npy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.npy"]

    segment_volume(learner, other, tmp_path / "a.npy", any_scale=True)
    assert np.load(tmp_path / "a.npy").shape == SHAPE


def test_grey_values_are_compared_without_all_slices_that_say_them_in_memory(
    tmp_path: Path, learner: NetworkLearner
) -> None:
    slices = np.ones((5, 1024, 1024), np.float32) * np.linspace(0, 1, 1024, dtype=np.float32)
    volume = written(tmp_path / "wide.npy", slices)
    size = slices.nbytes // len(slices)
    del slices
    tracemalloc.start()
    refused("has grey values from about 0.00", learner, volume, tmp_path / "a.npy")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * size  # of five, joined and without what is not finite, sixteen


def test_one_slice_does_not_stand_for_the_grey_values_of_a_volume(
    tmp_path: Path, learner: NetworkLearner, values: npt.NDArray[np.uint16]
) -> None:
    """As where the slice in the middle holds no metal and the model has seen some."""
    metal = values.copy()
    metal[len(metal) // 2] = metal[len(metal) // 2].min()
    metal[len(metal) // 2, 0] += 1
    volume = written(tmp_path / "metal.npy", metal)
    assert segment_volume(learner, volume, tmp_path / "a.npy").predicted == len(metal)


def test_what_exists_is_not_overwritten_unless_asked(
    tmp_path: Path, learner: NetworkLearner, volume: Volume
) -> None:
    out = tmp_path / "a.npy"
    for taken in ("a-uncertainty.npy", "a-segmentation.json", "a.npy"):
        (tmp_path / taken).write_bytes(b"mine")
        refused(f"{taken} exists already", learner, volume, out, extra="uncertainty")
        assert (tmp_path / taken).read_bytes() == b"mine"
        (tmp_path / taken).unlink()
    out.write_bytes(b"mine")

    segment_volume(learner, volume, out, overwrite=True)

    assert np.load(out).shape == SHAPE
    refused("is the volume itself", learner, volume, tmp_path / "scan.npy", overwrite=True)


@pytest.mark.parametrize("taken", ["a.raw.json", "a-uncertainty.raw.json", "a.npy.json"])
def test_nor_is_the_json_beside_an_output(
    tmp_path: Path, learner: NetworkLearner, volume: Volume, taken: str
) -> None:
    out, beside = tmp_path / f"a.{taken.split('.')[1]}", tmp_path / taken
    beside.write_bytes(b'{"precious": 1}')

    refused(f"{taken} exists already", learner, volume, out, extra="uncertainty")

    assert beside.read_bytes() == b'{"precious": 1}'
    assert not out.exists()
    assert not partial_folder(out).exists()
    segment_volume(learner, volume, out, extra="uncertainty", overwrite=True)
    assert b"precious" not in beside.read_bytes()


@pytest.mark.parametrize(
    ("source", "out"),
    [
        ("scan.mhd", "scan.raw"), ("parts.mhd", "scan.raw"), ("scan.nhdr", "scan.raw"),
        ("scan.vgi", "scan.vol"), ("scan.edf", "scan.raw"), ("scan.h5", "scan.raw"),
        ("linked.h5", "scan.raw"), ("ours.zarr/0", "ours.zarr"),
    ],
)  # fmt: skip
def test_what_a_volume_has_its_values_in_is_never_overwritten(
    tmp_path: Path, learner: NetworkLearner, values: Any, source: str, out: str
) -> None:
    write_values_elsewhere(tmp_path, values)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    with open_volume(tmp_path / source) as opened:
        assert np.array_equal(np.stack(list(opened)), values)
        says = f"{out} holds what the volume .*{source} is read from"
        refused(says, learner, opened, tmp_path / out, overwrite=True)

    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def write_values_elsewhere(folder: Path, values: Any) -> None:
    """Headers of many formats beside ``scan.raw`` and ``scan.vol``, which hold the values."""
    for name in ("scan.raw", "scan.vol"):
        (folder / name).write_bytes(values.astype("<u2").tobytes())
    z, y, x = values.shape
    meta = f"ObjectType = Image\nNDims = 3\nDimSize = {x} {y} {z}\nElementType = MET_USHORT\n"
    (folder / "scan.mhd").write_text(f"{meta}ElementDataFile = scan.raw\n")
    (folder / "parts.mhd").write_text(f"{meta}ElementDataFile = LIST\nscan.raw\n")
    (folder / "scan.nhdr").write_text(
        f"NRRD0004\ntype: uint16\ndimension: 3\nsizes: {x} {y} {z}\nendian: little\n"
        "encoding: raw\ndata file: scan.raw\n"
    )
    (folder / "scan.vgi").write_text(
        f"{{volume1}}\n[file1]\nSize = {x} {y} {z}\nDatatype = unsigned integer\n"
        "BitsPerElement = 16\nName = scan.vol\n"
    )
    said = {
        "EDF_DataBlockID": "0.Image.Psd", "EDF_BinaryFileName": "scan.raw",
        "EDF_BinaryFilePosition": "0", "EDF_BinaryFileSize": values.nbytes,
        "DataType": "UnsignedShort", "ByteOrder": "LowByteFirst", "Dim_1": x, "Dim_2": y,
        "Dim_3": z,
    }  # fmt: skip
    lines = "".join(f"{name} = {value} ;\n" for name, value in said.items())
    (folder / "scan.edf").write_text(f"{{\n{lines}".ljust(1022) + "}\n")
    with h5py.File(folder / "scan.h5", "w") as file:
        where = [("scan.raw", 0, values.nbytes)]
        file.create_dataset("data", values.shape, "<u2", external=where)
    with h5py.File(folder / "linked.h5", "w") as file:
        file["data"] = h5py.ExternalLink("scan.h5", "/data")
    write_volume(folder / "ours.zarr", values, VolumeSpec(values.shape, values.dtype))


@pytest.mark.parametrize("name", ["labels_png", "labels.zarr", "labels.npy"])
def test_a_folder_of_other_things_is_refused_before_the_first_slice(
    tmp_path: Path, learner: NetworkLearner, volume: Volume, name: str
) -> None:
    out = tmp_path / name
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    steps: list[str] = []

    refused(
        "holds something else|is a folder", learner, volume, out, overwrite=True,
        progress=lambda step, *_: steps.append(step),
    )  # fmt: skip

    assert steps == []
    assert (out / "thesis.tex").read_text() == "mine"
    assert not partial_folder(out).exists()


@pytest.mark.parametrize("out", [".", "/", "..", "{}", "{}/here"])
def test_the_folder_that_the_command_runs_in_is_kept(
    tmp_path: Path, learner: NetworkLearner, volume: Volume, monkeypatch: pytest.MonkeyPatch,
    out: str,
) -> None:  # fmt: skip
    here = tmp_path / "out" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    place = Path(out.format(here.parent))

    refused("give a name", learner, volume, place, overwrite=True)

    assert Path.cwd() == here
    assert not list(Path().iterdir())
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["here", "out", "scan.npy"]


@pytest.mark.parametrize("source", ["slices_png", "scan.zarr"])
@pytest.mark.parametrize(
    ("out", "work", "says"),
    [
        ("{}/labels.tif", None, "give another output"),
        ("{}/new/labels_png", None, "give another output"),
        ("elsewhere/../{}/labels.tif", None, "give another output"),
        ("link/labels.tif", "work", "give another output"),
        ("a.tif", "{}/work", "give another working folder"),
    ],
)
def test_nothing_is_written_into_a_volume_that_is_a_folder(
    tmp_path: Path, learner: NetworkLearner, values: Any, source: str, out: str, work: str | None,
    says: str,
) -> None:  # fmt: skip
    folder = tmp_path / source
    write_volume(folder, values, VolumeSpec(SHAPE, values.dtype))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(folder)
    before = sorted(tmp_path.rglob("*"))

    with open_volume(folder) as opened:
        refused(
            f"is inside .*{source}, .*{says}", learner, opened, tmp_path / out.format(source),
            work=None if work is None else tmp_path / work.format(source), overwrite=True,
        )  # fmt: skip

    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("out", "work"),
    [
        ("a.zarr", "a.zarr"), ("a.zarr", "a.zarr/work"), ("a.zarr", "new/../a.zarr/work"),
        ("a.zarr", "a-uncertainty.zarr/work"), ("a.npy", "a-segmentation.json"),
        ("work/a.npy", "work"), ("work/new/a_png", "work"),
    ],
)  # fmt: skip
def test_working_folder_and_outputs_lie_apart(
    tmp_path: Path, learner: NetworkLearner, volume: Volume, out: str, work: str
) -> None:
    steps: list[str] = []
    before = sorted(tmp_path.rglob("*"))

    refused(
        "give another working folder", learner, volume, tmp_path / out, work=tmp_path / work,
        extra="uncertainty", progress=lambda step, *_: steps.append(step),
    )  # fmt: skip

    assert steps == []
    assert sorted(tmp_path.rglob("*")) == before


def test_the_partial_result_of_another_job_is_refused(
    tmp_path: Path, learner: NetworkLearner, volume: Volume, values: Any
) -> None:
    out = tmp_path / "a.npy"
    with pytest.raises(Stop):
        segment_volume(learner, volume, out, progress=stop_at("segment", 5))

    refused("axes was .*'z'.*Delete that folder", learner, volume.along("y"), out)
    refused("extra was None", learner, volume, out, extra="uncertainty")
    refused("model was", make_learner(neighbours=1), volume, out)
    other = written(tmp_path / "scan.npy", values[:, ::-1])
    refused("middle slice was", learner, other, out)
    assert partial_folder(out).exists()


def test_what_a_folder_has_beside_its_slices_and_leads_nowhere_stops_nothing(
    tmp_path: Path, learner: NetworkLearner, values: Any
) -> None:
    """As what an editor leaves while it has a file open, or DataLad until it fetches one."""
    folder = tmp_path / "scan_png"
    write_volume(folder, values, VolumeSpec(SHAPE, values.dtype))
    (folder / ".#notes.txt").symlink_to("somebody@host.4711:1")
    (folder / "notes.txt").symlink_to(folder / "notes.txt")
    with open_volume(folder) as opened:
        report = segment_volume(learner, opened, tmp_path / "labels.npy")
    assert report.predicted == SHAPE[0]


@pytest.mark.parametrize(
    ("name", "says"), [("a.docx", "names no format"), ("a.jpg", "names no format")]
)
def test_an_unknown_format_is_refused_before_the_first_slice(
    tmp_path: Path, learner: NetworkLearner, volume: Volume, name: str, says: str
) -> None:
    refused(says, learner, volume, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["scan.npy"]


def test_too_little_room_is_said_before_the_first_slice(
    tmp_path: Path, learner: NetworkLearner, volume: Volume
) -> None:
    endless = replace(volume, shape=(10**10, *SHAPE[1:]), read=lambda *_: volume[0])

    refused(r"needs \d+\.\d+ GiB on the disk of .* are free", learner, endless, tmp_path / "a.npy")
    assert not partial_folder(tmp_path / "a.npy").exists()


def test_a_second_process_is_kept_off(
    tmp_path: Path, learner: NetworkLearner, volume: Volume
) -> None:
    with PartialFolder(tmp_path / "work", {}).held():
        (tmp_path / "work" / "job.json").unlink()
        refused("another process", learner, volume, tmp_path / "a.npy", work=tmp_path / "work")


@pytest.fixture
def store(
    tmp_path: Path, learner: NetworkLearner, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    """A store with project 7, whose round 1 is published; Label Studio cannot be reached."""
    monkeypatch.setenv("NEXTSLICE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("COLUMNS", "200")
    load_settings.cache_clear()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    store = Store(str(tmp_path / "store"))
    project = store.project("127.0.0.1_9", "7.1763865028")
    project.record = ProjectRecord(project=7, key="7.1763865028")
    project.round(1).write(WEIGHTS, learner.to_bytes())
    project.published = published("round-0001/weights.safetensors")
    yield store
    load_settings.cache_clear()
    signal.signal(signal.SIGTERM, on_sigterm)


def published(weights: str | None, retired: str | None = None) -> Published:
    return Published(
        round=1, model_version="nextslice-r001-abc", classes=list(CLASSES), fingerprint="f",
        weights=weights, retired=retired,
    )  # fmt: skip


def committed(weights: str | None) -> RoundRecord:
    return RoundRecord(
        round=1, model_version="nextslice-r001-abc", classes=list(CLASSES), fingerprint="f",
        weights=weights,
    )  # fmt: skip


def invoke(*arguments: object) -> Any:
    assert [command, strategies]  # registered: with one command alone its name is left out
    return CliRunner().invoke(cli.app, ["segment", *map(str, arguments)])


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("out", [".", "/", ".."])
@pytest.mark.parametrize("model", ["--project", "--weights"])
def test_the_command_says_that_an_output_has_no_name(
    tmp_path: Path, learner: NetworkLearner, volume: Volume, out: str, model: str
) -> None:
    (tmp_path / "a.safetensors").write_bytes(learner.to_bytes())
    chosen = 7 if model == "--project" else tmp_path / "a.safetensors"
    done = invoke(volume.path, "-o", out, model, chosen)
    assert isinstance(done.exception, VolumeError)
    assert "without a name of its own, give a name" in str(done.exception)


@pytest.mark.usefixtures("store")
def test_the_command_segments_with_the_published_model(
    tmp_path: Path, learner: NetworkLearner, volume: Volume, values: Any
) -> None:
    done = invoke(volume.path, "-o", tmp_path / "labels.tif", "--project", 7, "--uncertainty")

    assert done.exit_code == 0, done.output
    assert "segmented by nextslice-r001-abc" in done.output
    with open_volume(tmp_path / "labels.tif") as found:
        assert (np.stack(list(found)) == one_by_one(learner, values, 0)).mean() > 0.999
    for name in CLASSES:
        assert name in done.output
    assert (tmp_path / "labels-uncertainty.tif").exists()


def cut_along(store: Store, *axes: str) -> None:
    """Project 7's slices were cut along these."""
    tasks = [
        TaskRecord(id=number, image=f"/{number}.png", z=number, axis=axis)
        for number, axis in enumerate(axes)
    ]
    dataset = DatasetRecord(
        round=1, synced_at="2026-12-01T00:00:00Z", label_config="", fingerprint="f",
        classes=list(CLASSES), tasks=tasks, labels=[],
    )  # fmt: skip
    store.project("127.0.0.1_9", "7.1763865028").round(1).save(DATASET, dataset)


def test_the_command_cuts_along_the_axis_that_the_project_was_cut_along(
    tmp_path: Path, store: Store, volume: Volume
) -> None:
    def axis_of(name: str, *options: object) -> tuple[str, str]:
        done = invoke(volume.path, "-o", tmp_path / f"{name}.npy", "--project", 7, *options)
        assert done.exit_code == 0, done.output
        record = json.loads((tmp_path / f"{name}-segmentation.json").read_text())
        return record["axes"][-1], done.output

    cut_along(store, "y", "y")
    axis, said = axis_of("same")
    assert axis == "y"
    assert "cut along y, as the project's slices are" in said
    axis, said = axis_of("asked", "--axis", "z")
    assert axis == "z"
    assert "learned slices along y, these are cut along z" in said
    assert "learned slices" not in axis_of("asked-too", "--axis", "y")[1]
    assert "cut along" not in axis_of("vote", "--three-axes")[1]
    cut_along(store, "y", "x")
    axis, said = axis_of("neither")
    assert axis == "z"
    assert "learned slices along x, y, these are cut along z" in said
    cut_along(store, "y", "z")
    axis, said = axis_of("both")
    assert (axis, "cut along" in said) == ("z", False)


def test_the_command_reads_raw_values_and_a_checkpoint_of_a_file(
    tmp_path: Path, learner: NetworkLearner, values: Any
) -> None:
    (tmp_path / "scan.dat").write_bytes(values.tobytes())
    (tmp_path / "m.safetensors").write_bytes(checkpoints.to_bytes(learner.model))
    done = invoke(
        tmp_path / "scan.dat", "-o", tmp_path / "out.npy", "--weights", tmp_path / "m.safetensors",
        "--shape", ",".join(map(str, SHAPE)), "--dtype", "<u2", "--device", "cpu",
    )  # fmt: skip

    assert done.exit_code == 0, done.output
    assert np.load(tmp_path / "out.npy").shape == SHAPE


def test_the_command_refuses_options_that_change_nothing(
    tmp_path: Path, store: Store, volume: Volume
) -> None:
    done = invoke(volume.path, "-o", tmp_path / "a.npy", "--project", 7, "--dataset", "nope")
    assert "does not look at --dataset" in str(done.exception)
    assert not (tmp_path / "a.npy").exists()


def test_the_command_says_what_is_wrong(tmp_path: Path, store: Store, volume: Volume) -> None:
    project = store.project("127.0.0.1_9", "7.1763865028")

    def says(message: str, *options: object) -> None:
        done = invoke(volume.path, "-o", tmp_path / "a.tif", *options)
        assert isinstance(done.exception, ValueError), done.output
        assert message in str(done.exception)

    says("no project 8", "--project", 8)
    says("give one", "--three-axes", "--axis", "y")
    says("not both", "--uncertainty", "--probability")
    says("axis is 'w'", "--axis", "w")
    says("expected Z,Y,X", "--shape", "9")
    project.published = published(None)
    says("has no trained model yet", "--project", 7)
    # As `publish.retire` leaves it: a version of its own, and no weights.
    project.round(1).save(ROUND, committed("round-0001/weights.safetensors"))
    project.published = published(None, "the classes changed").model_copy(
        update={"model_version": "nextslice-r001-def"}
    )
    kept = tmp_path / "store" / project.path / "round-0001" / "weights.safetensors"
    says("the model nextslice-r001-abc of project 7 is retired (the classes changed): wait for")
    says(f"--weights {kept}")
    assert kept.exists()
    project.round(1).save(ROUND, committed(None))
    says("has no trained model yet", "--project", 7)
    other = store.project("127.0.0.1_9", "8.1")
    other.record = ProjectRecord(project=8, key="8.1")
    says("give --project, one of 7, 8")
    assert not (tmp_path / "a.tif").exists()


@pytest.mark.usefixtures("flushed_always", "store", "ctrl_c_is_heard")
def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "scans[old] :b:"  # brackets are no markup, and :b: is no picture
    folder.mkdir()
    tall = written(folder / "tall.npy", np.zeros((1500, *SHAPE[1:]), np.uint16))
    out = folder / "a.tif"
    progress = partial_folder(out) / "progress.json"

    def press() -> None:
        while not progress.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    finger = threading.Thread(target=press)
    finger.start()
    stopped = invoke(tall.path, "-o", out, "--project", "7")
    finger.join()

    assert stopped.exit_code == 130, stopped.output
    assert "Stopped at segment" in stopped.output
    assert f"{tall.path}: 1500 × " in stopped.output
    assert f"is kept in {partial_folder(out)}: " in stopped.output
    assert "the same command goes on from there" in stopped.output
    assert 0 < json.loads(progress.read_text())["done"] < 1500
    assert not out.exists()
    gone_on = invoke(tall.path, "-o", out, "--project", "7")
    assert f"{out}: " in gone_on.output
    assert "were there before" in gone_on.output
    with open_volume(out) as found:
        assert len(found) == 1500


def test_a_stopped_command_goes_on_with_the_model_that_it_began_with(
    tmp_path: Path, learner: NetworkLearner, store: Store, volume: Volume,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    project, out = store.project("127.0.0.1_9", "7.1763865028"), tmp_path / "a.npy"
    cut_along(store, "y")

    def away(*_: object) -> None:
        raise VolumeError("the disk is away")

    with monkeypatch.context() as patch:
        patch.setattr(segment._Segmentation, "_write", away)
        assert "the disk is away" in str(invoke(volume.path, "-o", out, "--project", 7).exception)
    other = make_learner(neighbours=1)
    project.round(1).write(WEIGHTS, other.to_bytes())  # as a training that went on does
    project.published = published("round-0001/weights.safetensors").model_copy(
        update={"model_version": "nextslice-r001-def"}
    )
    cut_along(store, "y", "z")

    (tmp_path / "other.safetensors").write_bytes(other.to_bytes())
    given = invoke(volume.path, "-o", out, "--weights", tmp_path / "other.safetensors")
    assert "model was" in str(given.exception)
    done = invoke(volume.path, "-o", out)

    assert done.exit_code == 0, done.output
    assert "goes on with nextslice-r001-abc, with which it began; project 7 serves" in done.output
    assert "nextslice-r001-def now: delete" in done.output
    record = json.loads((tmp_path / "a-segmentation.json").read_text())
    assert (record["model version"], record["axes"][-1]) == ("nextslice-r001-abc", "y")
    assert "0 slices predicted in" in done.output
    assert f"{SHAPE[1]} were there before" in done.output
    assert not partial_folder(out).exists()


def test_a_command_for_another_project_does_not_go_on_with_the_kept_model(
    tmp_path: Path, store: Store, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = store.project("127.0.0.1_9", "8.1")
    other.record = ProjectRecord(project=8, key="8.1")
    other.round(1).write(WEIGHTS, make_learner(neighbours=1).to_bytes())
    other.published = published("round-0001/weights.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(PartialFolder, "remove", lambda _: None)
        assert invoke(volume.path, "-o", tmp_path / "a.npy", "--project", 7).exit_code == 0

    refused_ = invoke(volume.path, "-o", tmp_path / "a.npy", "--project", 8)
    assert "model was" in str(refused_.exception)
