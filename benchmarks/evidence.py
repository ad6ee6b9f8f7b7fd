"""What evidence costs beside the forward it comes from, and beside baal, in one run.

    python benchmarks/evidence.py [--architecture hrnet_w18_small] [--side 512] [--device cpu]

1. Entropy, confidence and margin from full-resolution logits: baal's heuristics, log_softmax with
   topk, ours, and ours under torch.compile (``--compiled``: 30 to 40 s to compile on a CPU).
2. Monte Carlo dropout, 20 passes: baal's ``predict_on_batch`` and entropy against the folded
   classifier, same network, same masks' probability, both scored at 1/4 resolution.
3. All evidence of a batch in one pass against the bare forward, with and without Monte Carlo.

Runs are interleaved; figures are medians. baal is not a dependency: where it is not installed its
rows are left out, and the run says so.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from al_strategies.reducers import (
    LOGIT_EVIDENCE,
    folded_dropout_weights,
    gradient_embedding,
    mc_entropy,
    reduce_logits,
)
from ml_backend.segmentation.networks import SegmentationNetwork, build_network

PASSES = 20
Run = Callable[[], Any]


def compare(title: str, runs: dict[str, Run], repeats: int, device: str) -> None:
    """Time ``runs`` in turn; ratios are to the first of them."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            _wait(device)
            start = time.perf_counter()
            run()
            _wait(device)
            if repeat:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    first = next(iter(medians.values()))
    print(f"\n{title}")
    for name, median in medians.items():
        print(
            f"  {name:44} {median * 1e3:9.1f} ms   ×{median / first:6.3f}   ÷{first / median:6.2f}"
        )


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def scores(side: int, repeats: int, device: str, compiled: bool) -> None:
    logits = torch.randn(8, 4, side, side, device=device)
    valid = torch.ones(8, side, side, dtype=torch.bool, device=device)
    names = frozenset({"entropy", "confidence", "margin"})

    def library() -> None:
        log_p = logits.log_softmax(1)
        p = log_p.exp()
        top = p.topk(2, 1).values
        (
            (p * log_p).sum(1).mean((1, 2)),
            top[:, 0].mean((1, 2)),
            (top[:, 0] - top[:, 1]).mean((1, 2)),
        )

    runs: dict[str, Run] = {}
    heuristics = _baal("baal.active.heuristics")
    if heuristics is not None:
        maps = logits.softmax(1).unsqueeze(-1).cpu().numpy()  # the last axis is that of the passes
        kinds = (heuristics.Entropy, heuristics.Certainty, heuristics.Margin)
        runs["baal's three heuristics"] = lambda: [
            k(reduction="mean").get_uncertainties(maps) for k in kinds
        ]
    runs["log_softmax + topk"] = library
    runs["reduce_logits"] = lambda: reduce_logits(logits, valid, names)
    if compiled:
        runs["reduce_logits, compiled"] = lambda: reduce_logits(logits, valid, names, compiled=True)
    compare(f"three scores from logits (8, 4, {side}, {side})", runs, repeats, device)


class AtScoringResolution(nn.Module):
    """The network's logits before they are upsampled: what both sides are scored on."""

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.classify(self.network.features(images))


def monte_carlo(network: SegmentationNetwork, images: Tensor, repeats: int, device: str) -> None:
    def ours() -> Tensor:
        features = network.features(images)
        valid = torch.ones(len(images), *features.shape[2:], dtype=torch.bool, device=device)
        return mc_entropy(features, _folded(network), network.classifier.bias, valid, passes=PASSES)

    runs: dict[str, Run] = {}
    wrapper, heuristics = _baal("baal.modelwrapper"), _baal("baal.active.heuristics")
    if wrapper is not None and heuristics is not None:
        model = AtScoringResolution(network)
        arguments = wrapper.TrainingArgs(use_cuda=device == "cuda")

        def peer() -> object:
            network.dropout.train()  # what baal's patch_module makes of a Dropout2d
            predictions = wrapper.ModelWrapper(model, arguments).predict_on_batch(images, PASSES)
            network.dropout.eval()
            entropy = heuristics.Entropy(reduction="mean")
            return entropy.get_uncertainties(predictions.softmax(1).cpu().numpy())

        runs["baal predict_on_batch + Entropy"] = peer
    runs["bare forward, no dropout"] = lambda: network.classify(network.features(images))
    runs["forward + folded dropout"] = ours
    compare(f"Monte Carlo dropout, {PASSES} passes, 1/4 resolution", runs, repeats, device)


def one_pass(network: SegmentationNetwork, images: Tensor, repeats: int, device: str) -> None:
    valid = torch.ones(
        len(images), images.shape[2] // 4, images.shape[3] // 4, dtype=torch.bool, device=device
    )

    def evidence(*, monte_carlo: bool) -> None:
        encoded = network.encode(images)
        logits = network.classify(encoded.features)
        reduce_logits(logits, valid, LOGIT_EVIDENCE)
        gradient_embedding(encoded.features, logits, valid)
        if monte_carlo:
            bias = network.classifier.bias
            mc_entropy(encoded.features, _folded(network), bias, valid, passes=PASSES)

    runs: dict[str, Run] = {
        "bare forward": lambda: network.classify(network.features(images)),
        "all evidence but Monte Carlo": lambda: evidence(monte_carlo=False),
        "all evidence": lambda: evidence(monte_carlo=True),
    }
    compare(f"one pass over {tuple(images.shape)}", runs, repeats, device)


def _folded(network: SegmentationNetwork) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = network.classifier.weight.detach().flatten(1).cpu()
    folded = folded_dropout_weights(weight, network.dropout.p, PASSES, generator)
    return folded.to(network.classifier.weight.device)


def _baal(module: str) -> Any:
    try:
        return __import__(module, fromlist=["_"])
    except ImportError as error:
        print(f"{module} is left out: {error}")
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", default="hrnet_w18_small")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compiled", action="store_true")
    a = parser.parse_args()
    torch.manual_seed(0)
    network = build_network(a.architecture, classes=4).eval().to(a.device)
    network = network.to(memory_format=torch.channels_last)
    images = torch.randn(a.batch, 1, a.side, a.side, device=a.device)
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        scores(a.side, a.repeats, a.device, a.compiled)
        monte_carlo(network, images, a.repeats, a.device)
        one_pass(network, images, a.repeats, a.device)


if __name__ == "__main__":
    main()
