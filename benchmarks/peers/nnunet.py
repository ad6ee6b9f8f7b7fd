"""2-D nnU-Net with its own plans and augmentation, in an environment of its own.

What differs from ``nnUNetv2_train 1 2d all``: the training ends when its CPU seconds are spent, and
the learning rate follows the same polynomial over those instead of over 1,000 epochs. Planning and
preprocessing come on top. Fold "all": nothing of so few slices is kept for validation. Predictions
are averaged over mirrored slices, as nnU-Net does by default.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from al_strategies.evidence import SliceId
from al_strategies.learner import IGNORE, SliceSource
from benchmarks.peers.protocol import Mask, Task, Unavailable

__all__ = ["NnUNet"]

_WORKER = Path(__file__).with_name("nnunet_worker.py")
_DEFAULT_SECONDS = 120.0


class NnUNet:
    """Installs nnunetv2 under ``home`` the first time. Raises Unavailable when it cannot.

    Grey values are normalised as nnU-Net does for CT where they are absolute (one window and scale
    for all slices, from the labelled foreground), else slice by slice.
    """

    def __init__(self, home: Path, device: str = "cpu") -> None:
        self.idle_s = 0.0
        self.steps: int | None = None
        self._device = device
        self._python = _environment(home / "nnunet")
        self._temporary = tempfile.TemporaryDirectory(prefix="nnunet-")
        self._folder = Path(self._temporary.name)

    def fit(self, task: Task) -> None:
        _write_dataset(self._folder / "raw" / "Dataset001_slices", task)
        seconds = task.seconds or _DEFAULT_SECONDS
        self._work("fit", str(seconds), str(task.seed))
        self.steps = int((self._folder / "steps").read_text())

    def predict(self, source: SliceSource, ids: Sequence[SliceId]) -> Iterator[Mask]:
        images, masks = self._folder / "images", self._folder / "masks"
        for folder in (images, masks):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        for place, slice_id in enumerate(ids):
            np.save(images / f"{place:05d}.npy", source.image(slice_id))
        self._work("predict")
        for place in range(len(ids)):
            yield np.load(masks / f"{place:05d}.npy")

    def _work(self, *arguments: str) -> None:
        """Run the worker; what it took to start is idle."""
        variables = {
            **os.environ,
            "nnUNet_raw": str(self._folder / "raw"),
            "nnUNet_preprocessed": str(self._folder / "preprocessed"),
            "nnUNet_results": str(self._folder / "results"),
            "nnUNet_n_proc_DA": "1",
            "nnUNet_compile": "f",
        }
        variables.pop("PYTHONPATH", None)
        command = [str(self._python), str(_WORKER), str(self._folder), self._device, *arguments]
        done = subprocess.run(command, env=variables, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"nnU-Net ended with {done.returncode}:\n{done.stderr[-2000:]}")
        self.idle_s += float((self._folder / "idle_s").read_text())


def _environment(folder: Path) -> Path:
    """The interpreter of an environment that holds nnunetv2."""
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        print(f"installing nnunetv2 into {folder} (once, some minutes and gigabytes)", flush=True)
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        _run([str(python), "-m", "pip", "install", "--quiet", "nnunetv2>=2.5"])
        (folder / "installed").touch()
    return python


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Unavailable(f"nnunetv2 could not be installed: {last}")


def _write_dataset(folder: Path, task: Task) -> None:
    """``task`` as nnU-Net wants it; the unlabelled value is one more class there, called ignore."""
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    ignore = len(task.classes)
    for place, (image, mask) in enumerate(zip(task.images, task.masks, strict=True)):
        label = np.where(mask == IGNORE, ignore, mask).astype(np.uint8)
        _save(image, folder / "imagesTr" / f"slice{place:03d}_0000.png")
        _save(label, folder / "labelsTr" / f"slice{place:03d}.png")
    labels = {"background": 0, **{f"{n}": i for i, n in enumerate(task.classes) if i}}
    if any((mask == IGNORE).any() for mask in task.masks):
        labels["ignore"] = ignore
    content = {
        "channel_names": {"0": "CT" if task.absolute else "MR"},
        "labels": labels,
        "numTraining": len(task.labelled),
        "file_ending": ".png",
        "overwrite_image_reader_writer": "NaturalImage2DIO",
    }
    (folder / "dataset.json").write_text(json.dumps(content))


def _save(values: npt.NDArray[Any], path: Path) -> None:
    if values.dtype not in (np.uint8, np.uint16) or values.ndim != 2:
        raise ValueError(
            f"a slice is {values.dtype} of shape {values.shape}, expected (H, W) of uint8 or uint16"
        )
    Image.fromarray(values).save(path)
