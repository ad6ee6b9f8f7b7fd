"""A slice of 8,192² all the way: served, learned from, segmented, scored.

    python benchmarks/large.py [--side 8192] [--steps 6] [--folder /tmp/nextslice-large]

After each step its seconds and the most memory that this process has taken so far, and that the
processes which read volumes for it have. Two labelled slices are learned, a third is predicted as
/predict does, and scored.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ml_backend.pictures import encode_png
from ml_backend.segmentation.learner import LearnerConfig, NetworkLearner
from ml_backend.volumes.opening import open_volume
from ml_backend.volumes.pair import VolumePair
from ml_backend.volumes.window import fit_window, render

SLICES = 4


def prepare(folder: Path, side: int) -> tuple[Path, Path]:
    """Image and labels, made once."""
    image, labels = folder / f"scan{side}.h5", folder / f"labels{side}.npy"
    folder.mkdir(parents=True, exist_ok=True)
    if image.exists():
        return image, labels
    rng = np.random.default_rng(0)
    down, across = np.arange(side)[:, None] / 200, np.arange(side) / 300
    shape = (SLICES, side, side)
    with h5py.File(image, "w") as file:
        grey = file.create_dataset("data", shape, np.uint16)
        masks = np.lib.format.open_memmap(labels, "w+", np.uint8, shape)
        for z in range(SLICES):
            bone = np.cos(down) * np.sin(across + z) > 0.3
            noise = rng.standard_normal((side, side), np.float32) * 800
            grey[z] = (18_000 + 6000 * bone + noise).astype(np.uint16)
            masks[z] = bone
        masks.flush()
    return image, labels


def readers_peak() -> int:
    """KiB that the child processes of this one have taken at most, each at its own moment."""
    found = 0
    for child in psutil.Process().children(recursive=True):
        with suppress(OSError):  # it has ended
            status = Path(f"/proc/{child.pid}/status").read_text()
            found += sum(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line)
    return found


class Steps:
    """Says what each step cost."""

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._readers = 0.0

    def done(self, what: str) -> None:
        took = time.perf_counter() - self._since
        here = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        self._readers = max(self._readers, readers_peak() / 2**20)
        memory = f"{here:9.2f} GiB here{self._readers:9.2f} GiB in readers"
        print(f"{what:20}{took:9.1f} s{memory}", flush=True)
        self._since = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/nextslice-large"))
    arguments = parser.parse_args()
    image, labels = prepare(arguments.folder, arguments.side)
    steps = Steps()
    with open_volume(image) as volume:
        window = fit_window(volume)
        steps.done("window")
        encode_png(render(volume[0], window))
        steps.done("slice as PNG")
    pair = VolumePair(image, labels)
    learner = NetworkLearner(pair.classes, LearnerConfig(training={"steps": arguments.steps}))
    learner.fit(pair, pair.ids[:2])
    steps.done(f"{arguments.steps} training steps")
    learner.predict_image(pair.image(pair.ids[2]))
    steps.done("mask")
    learner.evidence(pair, pair.ids[2:3], frozenset({"entropy", "embedding"}))
    steps.done("evidence")


if __name__ == "__main__":
    main()
