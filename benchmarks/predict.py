"""Forward, evidence pass, MC dropout and /predict beside the bare forward of the same network.

    python benchmarks/predict.py [--device cuda] [--size 1024] [--architectures hrnet_w18_small …]

All rows of a table are interleaved in one process; medians. A peer's column is the same work done
the plain way: float32, contiguous, batch normalisation unfolded, dropout passes one by one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from al_strategies.evidence import Position
from ml_backend.segmentation.inference import (
    InferenceConfig,
    gather_evidence,
    optimised,
    segment_image,
)
from ml_backend.segmentation.model import Model
from ml_backend.segmentation.networks import build_network
from ml_backend.segmentation.preprocessing import Preprocessing

EVIDENCE = frozenset(
    {"entropy", "confidence", "margin", "foreground", "class_fractions", "class_scores"}
)


class Pool:
    """Random 8-bit slices in memory."""

    def __init__(self, slices: int, size: int) -> None:
        rng = np.random.default_rng(0)
        self.ids = list(range(slices))
        self._images = [rng.integers(0, 255, (size, size), dtype=np.uint8) for _ in self.ids]

    def image(self, slice_id: int) -> Any:
        return self._images[slice_id]

    def mask(self, slice_id: int) -> Any:
        raise KeyError(slice_id)

    def position(self, slice_id: int) -> Position:
        return Position("pool", float(slice_id))


def medians(rows: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """Median seconds of each row, the rows taking turns; the first turn is not counted."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(repeats + 1):
        for name, work in rows.items():
            started = time.perf_counter()
            work()
            if device != "cpu":
                torch.cuda.synchronize()
            if turn:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def report(title: str, seconds: dict[str, float], peer: str) -> None:
    print(f"\n{title}")
    for name, value in seconds.items():
        print(f"  {name:<52} {value * 1e3:9.1f} ms   {value / seconds[peer]:6.2f} × {peer}")


def make_model(architecture: str, device: str, classes: int) -> Model:
    torch.manual_seed(0)
    network = build_network(architecture, classes).eval().to(device)
    names = tuple(f"class {i}" for i in range(classes))
    return Model(network, Preprocessing(0, 255), names)


def forward(model: Model, images: torch.Tensor) -> Callable[[], torch.Tensor]:
    def work() -> torch.Tensor:
        with torch.inference_mode():
            return model.network(images)

    return work


def explicit_mc(model: Model, images: torch.Tensor, passes: int) -> Callable[[], torch.Tensor]:
    """What a loop over stochastic forwards costs, scored at full resolution as its authors do."""

    def work() -> torch.Tensor:
        model.network.dropout.train()
        with torch.inference_mode():
            mean = sum(model.network(images).softmax(1) for _ in range(passes)) / passes
            entropy = torch.special.entr(mean).sum(1).mean()
        model.network.dropout.eval()
        return entropy

    return work


def passes_over(
    model: Model, pool: Pool, names: frozenset[str], config: InferenceConfig
) -> Callable[[], object]:
    return lambda: gather_evidence(model, pool, pool.ids, names, config)


def compare(architecture: str, options: argparse.Namespace) -> None:
    device = options.device
    plain = make_model(architecture, device, options.classes)
    fast = optimised(plain)
    config = InferenceConfig.for_device(device)
    batch = max(1, min(options.slices, config.batch_pixels // options.size**2))
    images = torch.randn(batch, 1, options.size, options.size, device=device)
    last = images.contiguous(memory_format=torch.channels_last)
    pool = Pool(batch, options.size)

    rows: dict[str, Callable[[], object]] = {
        "bare forward": forward(plain, images),
        "bare forward, optimised": forward(fast, last),
        "embedding alone": passes_over(fast, pool, frozenset({"embedding"}), config),
        "all logit evidence + embedding": passes_over(fast, pool, EVIDENCE | {"embedding"}, config),
        "the same + MC dropout, 20 passes, folded": passes_over(
            fast, pool, EVIDENCE | {"embedding", "mc_entropy"}, config
        ),
    }
    if options.explicit:
        rows["MC dropout, 20 explicit forwards"] = explicit_mc(plain, images, 20)
    title = f"{architecture}: {batch} slice(s) of {options.size}², {options.classes} classes"
    report(title, medians(rows, options.repeats, device), "bare forward, optimised")

    image = pool.image(0)
    one, one_last = images[:1], last[:1]
    rows = {
        "bare forward": forward(plain, one),
        "bare forward, optimised": forward(fast, one_last),
        "segment_image (preprocess, forward, mask)": lambda: segment_image(fast, image, config),
    }
    report(
        f"{architecture}: one slice, as /predict does",
        medians(rows, options.repeats, device),
        "bare forward",
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--architectures", nargs="+", default=["hrnet_w18_small"])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--slices", type=int, default=8)
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--explicit", action="store_true", help="also 20 explicit forwards (slow)")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads")
    for architecture in options.architectures:
        compare(architecture, options)


if __name__ == "__main__":
    main()
