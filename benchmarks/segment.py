"""A whole volume through `segment_volume`: peak memory and slices/s beside the bare forward loop.

    python benchmarks/segment.py [--side 1024] [--limit-slices 64] [--three-axes] [--device cpu]

Each row is a process of its own, whose peak is what the kernel has counted (``ru_maxrss``). The
volume is a raw uint16 file of side³, of noise; with ``--limit-slices`` only so many slices are of
noise and go through the network along each axis, then the labels of the whole volume, empty but for
those, are written: so every part runs at its full size. The bare loops have the same slices in
memory: the optimised network's forward alone, and the loop one writes first (plain network, argmax
at full resolution). On a busy machine compare the seconds of CPU.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ml_backend import segment
from ml_backend.segment import partial_folder, segment_volume
from ml_backend.segmentation.inference import InferenceConfig, optimised, slices_per_batch
from ml_backend.segmentation.learner import NetworkLearner
from ml_backend.segmentation.model import Model
from ml_backend.segmentation.networks import build_network
from ml_backend.segmentation.preprocessing import Preprocessing
from ml_backend.volumes.opening import ReadOptions, open_volume
from ml_backend.volumes.volume import Volume

CLASSES = ("background", "bone", "implant", "degradation layer")


class Enough(Exception):
    """So many slices as were asked for are done."""


def make_model(device: str) -> Model:
    torch.manual_seed(0)
    network = build_network("hrnet_w18_small", len(CLASSES)).eval().to(device)
    torch.nn.init.normal_(network.classifier.weight, std=1.0)
    return Model(network, Preprocessing(0, 1000), CLASSES)


def make_volume(path: Path, side: int, slices: int) -> None:
    """``slices`` of noise, the rest a hole in the file."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for _ in range(slices):
            file.write(rng.integers(0, 1000, (side, side), dtype=np.uint16).tobytes())
        file.truncate(2 * side**3)


def opened(options: argparse.Namespace) -> Volume:
    side = options.side
    return open_volume(options.volume, ReadOptions(shape=(side, side, side), dtype="<u2"))


def whole_volume(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the slices and of the writing, apart."""
    times: dict[str, float] = {}
    stages = ("along y", "along x", "along z") if options.three_axes else ("segment",)

    def progress(step: str, done: int, total: int) -> None:
        now, cpu = time.perf_counter(), time.process_time()
        times.setdefault(f"{step} from", now)
        times.setdefault(f"{step} cpu from", cpu)
        times.update({f"{step} to": now, f"{step} cpu to": cpu, f"{step} slices": done})
        if step in stages and done == options.slices < total:
            raise Enough

    volume, out = opened(options), options.volume.with_name(f"labels{options.ending}")
    extra = options.extra if options.extra != "none" else None
    learner = NetworkLearner(CLASSES, device=options.device)
    learner.model = make_model(options.device)

    def run() -> None:
        segment_volume(
            learner, volume, out, extra=extra, three_axes=options.three_axes, progress=progress
        )

    for following in (*stages[1:], segment._WRITE):
        try:
            run()
            return times
        except Enough:
            place = {"stage": following, "done": 0}
            (partial_folder(out) / "progress.json").write_text(json.dumps(place))
    run()
    return times


def bare_loop(options: argparse.Namespace) -> dict[str, float]:
    plain = options.row == "plain loop"
    model = make_model(options.device)
    if not plain:
        model = optimised(model)
    volume = opened(options)
    images = [torch.from_numpy(model.preprocessing(volume[z]))[None] for z in range(options.slices)]
    batch = slices_per_batch(InferenceConfig.for_device(options.device), volume.slice_shape)
    started, cpu = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            x = torch.cat(images[start : start + batch]).to(options.device)
            if plain:
                model.network(x).argmax(1).byte().cpu()
            else:
                x = x.contiguous(memory_format=torch.channels_last)
                model.network.classify(model.network.features(x)).cpu()
    return {
        "segment from": started, "segment to": time.perf_counter(), "segment cpu from": cpu,
        "segment cpu to": time.process_time(), "segment slices": len(images),
    }  # fmt: skip


def row(name: str, options: argparse.Namespace, arguments: Sequence[str]) -> None:
    done = subprocess.run(
        [sys.executable, __file__, *arguments, "--row", name, "--volume", str(options.volume)],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    for step in [key.removesuffix(" slices") for key in found if key.endswith(" slices")]:
        seconds = found[f"{step} to"] - found[f"{step} from"]
        cpu = found[f"{step} cpu to"] - found[f"{step} cpu from"]
        count = int(found[f"{step} slices"])
        print(
            f"  {name:<18} {step:<14} {count:5d} slices {seconds:8.1f} s, {cpu:8.1f} s of CPU, "
            f"{count / max(seconds, 1e-9):9.2f}/s"
        )
    print(f"  {name:<18} peak {found['peak'] / 1024:.0f} MiB", flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--limit-slices", type=int, default=None)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--ending", default=".tif")
    parser.add_argument("--extra", choices=("none", "uncertainty", "probability"), default="none")
    parser.add_argument("--three-axes", action="store_true")
    parser.add_argument("--no-loops", action="store_true", help="the whole volume alone")
    parser.add_argument("--folder", type=Path, default=None, help="where the volume is made")
    parser.add_argument("--row", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--volume", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.slices = min(options.side, options.limit_slices or options.side)
    return options


def main() -> None:
    options = parse()
    if options.row is not None:
        found = whole_volume(options) if options.row == "segment_volume" else bare_loop(options)
        found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps(found))
        return
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads")
    print(f"{options.side}³ uint16, {options.slices} slices through hrnet_w18_small")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        options.volume = Path(folder) / "scan.raw"
        make_volume(options.volume, options.side, options.slices)
        rows = ["segment_volume"] if options.no_loops else ["segment_volume", "optimised forward",
                                                            "plain loop"]  # fmt: skip
        for name in rows:
            row(name, options, sys.argv[1:])


if __name__ == "__main__":
    main()
