"""Training: time of a step beside a plain loop, and what a training of default length reaches.

    python benchmarks/training.py [--device cuda] [--data DIR --train NAME … ] [--seeds 2]

The peer of a step: float32, contiguous tensors, torch's AdamW as it comes, on a batch that is
there already; ours makes its own crops. With ``--data`` (a folder with ``images/`` and ``masks/``)
a learner is trained on the slices named by ``--train``, the only ones that it sees, and evaluated
on the others.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from al_strategies.evidence import Position
from al_strategies.learner import IGNORE
from benchmarks.peers.protocol import Pool
from ml_backend.segmentation.dataset import LabelledSlices
from ml_backend.segmentation.learner import LearnerConfig, NetworkLearner
from ml_backend.segmentation.networks import build_network, default_architecture
from ml_backend.segmentation.preprocessing import Preprocessing
from ml_backend.segmentation.training import TrainingConfig, train


class Noise:
    """Eight labelled slices of random grey values and classes."""

    def __init__(self, size: int, classes: int) -> None:
        rng = np.random.default_rng(0)
        self.ids = list(range(8))
        self._image = rng.integers(0, 255, (size, size), dtype=np.uint8)
        self._mask = rng.integers(0, classes, (size, size), dtype=np.uint8)

    def image(self, slice_id: int) -> Any:
        return self._image

    def mask(self, slice_id: int) -> Any:
        return self._mask

    def position(self, slice_id: int) -> Position:
        return Position("noise", float(slice_id))


class Folder:
    """``images/NAME.png`` and ``masks/NAME.png``, the grey value of a mask being the class."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.ids = sorted(path.stem for path in (root / "images").glob("*.png"))

    def image(self, slice_id: str) -> Any:
        return np.asarray(Image.open(self._root / "images" / f"{slice_id}.png"))

    def mask(self, slice_id: str) -> Any:
        return np.asarray(Image.open(self._root / "masks" / f"{slice_id}.png"))

    def position(self, slice_id: str) -> Position:
        return Position(self._root.name, float(self.ids.index(slice_id)))


def plain_steps(architecture: str, config: TrainingConfig, device: str) -> Callable[[], float]:
    """Seconds a step of the loop that one writes first."""
    network = build_network(architecture, 4).to(device).train()
    images = torch.randn(config.batch, 1, config.crop, config.crop, device=device)
    masks = torch.randint(0, 4, (config.batch, config.crop, config.crop), device=device)
    optimizer = torch.optim.AdamW(network.parameters())

    def work() -> float:
        started = time.perf_counter()
        for _ in range(config.steps):
            optimizer.zero_grad()
            F.cross_entropy(network(images), masks).backward()
            optimizer.step()
        if device != "cpu":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / config.steps

    return work


def our_steps(architecture: str, config: TrainingConfig, device: str) -> Callable[[], float]:
    """Seconds a step of `train`: crops, augmentation, both losses, clipping and schedule."""
    network = build_network(architecture, 4).to(device)
    source = Noise(config.crop * 3, 4)
    slices = LabelledSlices(source, source.ids, Preprocessing(0, 255), 4)

    def work() -> float:
        run = train(network, slices, config)
        if device != "cpu":
            torch.cuda.synchronize()
        return run.seconds / config.steps

    return work


def compare_steps(architecture: str, device: str, size: int, repeats: int) -> None:
    config = replace(TrainingConfig.for_device(device, (size, size), 8), steps=5)
    rows = {
        "plain loop (no crops, no Dice)": plain_steps(architecture, config, device),
        "train()": our_steps(architecture, config, device),
    }
    times: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(repeats + 1):
        for name, work in rows.items():
            seconds = work()
            if turn:
                times[name].append(seconds)
    peer = statistics.median(times["plain loop (no crops, no Dice)"])
    print(f"\n{architecture}: a step of {config.batch} × {config.crop}²")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"  {name:<40} {median * 1e3:9.1f} ms   {peer / median:5.2f} × as fast")


def train_on(options: argparse.Namespace) -> None:
    source = Folder(options.data)
    labelled = options.train or source.ids[:: max(1, len(source.ids) // 4)][:4]
    held_out = [i for i in source.ids if i not in labelled]
    masks = map(source.mask, source.ids)
    classes = 1 + max(int(mask[mask != IGNORE].max(initial=0)) for mask in masks)
    pool = Pool(source, labelled, labelled)  # what is evaluated is not learned from
    for seed in range(options.seeds):
        learner = NetworkLearner(
            tuple(f"class {i}" for i in range(classes)),
            LearnerConfig(architecture=options.architecture),
            options.device,
        )
        report = learner.fit(pool, labelled, seed=seed)
        metrics = learner.evaluate(source, held_out)
        ious = ", ".join(f"{v:.2f}" for v in metrics.iou.values())
        print(
            f"{options.data.name}, seed {seed}: {report.slices} labelled slices, {report.steps} "
            f"steps, {report.seconds:.0f} s; mIoU {metrics.miou:.3f} ({ious}) on {len(held_out)}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--architecture", default=None)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--train", nargs="*", default=None)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    options.architecture = options.architecture or default_architecture(options.device)
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads")
    if options.data is not None:
        train_on(options)
    else:
        compare_steps(options.architecture, options.device, options.size, options.repeats)


if __name__ == "__main__":
    main()
