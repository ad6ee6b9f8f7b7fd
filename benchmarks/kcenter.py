"""k-center greedy beside scikit-activeml's CoreSet: same picks, time and memory, in one run.

    python benchmarks/kcenter.py [--sizes seed large huge] [--repeats 5]

``seed`` is the pool of the published experiment. Runs are interleaved; figures are medians. Memory
is what the peak of a run adds to the process that already holds the data (Linux only).
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from al_strategies import k_center_greedy

SIZES = {  # slices, embedding, labelled, K
    "seed": (6_878, 270, 80, 8),
    "large": (100_000, 512, 1_000, 100),
    "huge": (1_000_000, 256, 1_000, 10),
}
Select = Callable[[], np.ndarray]


def embeddings(n: int, width: int) -> np.ndarray:
    """Clusters of unequal spread that share an offset, as averages after a ReLU do."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((50, width), dtype=np.float32) * 2 + 5
    x = rng.standard_normal((n, width), dtype=np.float32)
    for start in range(0, n, 65_536):
        which = rng.integers(len(centres), size=len(x[start : start + 65_536]))
        x[start : start + 65_536] *= (0.5 + which[:, None] / 50).astype(np.float32)
        x[start : start + 65_536] += centres[which]
    return x


def peer(everything: np.ndarray, labelled: int, k: int) -> Select:
    """CoreSet takes labelled and unlabelled rows together, and answers with rows among them."""
    from skactiveml.pool import CoreSet

    y = np.zeros(len(everything))
    y[labelled:] = np.nan
    return lambda: CoreSet(random_state=0).query(everything, y, batch_size=k) - labelled


def runs_of(size: str) -> dict[str, Select]:
    n, width, count, k = SIZES[size]
    everything = embeddings(n + count, width)
    x, labelled = everything[count:], everything[:count]
    return {
        "nextslice": lambda: k_center_greedy(x, labelled, k),
        "scikit-activeml": peer(everything, count, k),
    }


def added_memory(size: str, name: str) -> float:
    """MiB that the peak of one run adds, in a process of its own that holds the data."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_added_memory, size, name).result()


def _added_memory(size: str, name: str) -> float:
    run = runs_of(size)[name]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def compare(size: str, repeats: int) -> None:
    n, width, count, k = SIZES[size]
    runs = runs_of(size)
    memory = {name: added_memory(size, name) for name in runs}
    times: dict[str, list[float]] = {name: [] for name in runs}
    picks: dict[str, list[int]] = {}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            picks[name] = run().tolist()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"\n{n:,} × {width}, {count:,} labelled, K = {k}")
    for name in runs:
        ratio = medians[name] / medians["nextslice"]
        print(
            f"  {name:16} {medians[name] * 1e3:10.1f} ms  ×{ratio:5.1f}  +{memory[name]:8.1f} MiB"
        )
    print(f"  same picks: {picks['nextslice'] == picks['scikit-activeml']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["seed", "large"])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    for size in arguments.sizes:
        compare(size, arguments.repeats)


if __name__ == "__main__":
    main()
