"""A slice as the slice server makes it, read in a child process and in this one.

    python benchmarks/apart.py [--shape 128 1024 1024] [--folder /tmp/nextslice-volumes]
        [--repeat 40]

The files are those of benchmarks/volumes.py, and left for it in the folder. Both ways read, window
and encode the same slice, in another order each time; the figures are medians in milliseconds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.volumes import prepare
from ml_backend.pictures import encode_png
from ml_backend.volumes.opening import ReadOptions, open_volume
from ml_backend.volumes.recognition import format_of
from ml_backend.volumes.window import Window, render

WINDOW = Window(18_000, 22_000)


def row(path: Path, repeat: int) -> str:
    options, rng = ReadOptions(), random.Random(1)
    ways = {"child": open_volume(path), "here": format_of(path, options).read(path, options)}
    reads: dict[str, list[float]] = {way: [] for way in ways}
    slices: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeat):
        z = rng.randrange(len(ways["here"]))
        for way in rng.sample(list(ways), len(ways)):
            start = time.perf_counter()
            values = ways[way][z]
            reads[way].append(time.perf_counter() - start)
            encode_png(render(values, WINDOW))
            slices[way].append(time.perf_counter() - start)
    ms = [1000 * statistics.median(times[way]) for times in (reads, slices) for way in ways]
    return f"{path.name:10}" + "".join(f"{figure:12.2f}" for figure in ms) + f"{ms[2] / ms[3]:8.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=(128, 1024, 1024))
    parser.add_argument("--folder", type=Path, default=Path("/tmp/nextslice-volumes"))
    parser.add_argument("--repeat", type=int, default=40)
    arguments = parser.parse_args()
    shape = (arguments.shape[0], arguments.shape[1], arguments.shape[2])
    prepare(arguments.folder, shape)
    print(f"{'':10}{'read: child':>12}{'here':>12}{'slice: child':>12}{'here':>12}{'×':>8}")
    for name in ("flat.h5", "a.h5", "a.tif", "zlib.tif"):
        print(row(arguments.folder / name, arguments.repeat))


if __name__ == "__main__":
    main()
