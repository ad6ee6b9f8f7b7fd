"""A slice on demand beside a ready-made PNG that Flask serves from disk.

    python benchmarks/slices.py [--repeat 15] [--format npy|tiff|hdf5]

One gunicorn answers both, in turn, over one connection; the figures are medians in milliseconds of
a whole request. *cold*: the slice is read from the open volume, windowed, encoded and kept. *warm*:
it comes from the disk cache. *file*: `send_file` of the same slice as Pillow writes it (level 6),
which is what a folder of copies would be. *not modified*: the browser has it. Below, what each step
and other encoders take.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import requests
from flask import Flask, Response, send_file
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ml_backend.api.server import gunicorn_argv
from ml_backend.app import create_app
from ml_backend.embedded.processes import ProcessGroup, free_port
from ml_backend.embedded.stack import settings_from
from ml_backend.pictures import encode_png
from ml_backend.rounds.service import slice_keys
from ml_backend.volumes.address import SliceAddress
from ml_backend.volumes.opening import open_volume, write_volume
from ml_backend.volumes.phantom import PhantomSample
from ml_backend.volumes.volume import VolumeSpec
from ml_backend.volumes.window import Window, render

ENDINGS = {"npy": ".npy", "tiff": ".tif", "hdf5": ".h5"}


def median(times: list[float]) -> float:
    return 1000 * statistics.median(times)


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def pillow(grey: npt.NDArray[np.uint8], level: int) -> bytes:
    png = io.BytesIO()
    Image.fromarray(grey).save(png, "PNG", compress_level=level)
    return png.getvalue()


def application() -> Flask:
    """The backend, and beside it ``/file/<name>`` from the folder BENCHMARK_FILES."""
    app = create_app()
    folder = Path(os.environ["BENCHMARK_FILES"])

    @app.get("/file/<name>")
    def ready_made(name: str) -> Response:
        return send_file(folder / name, mimetype="image/png", max_age=31536000)

    return app


def prepare(side: int, depth: int, kind: str, folder: Path) -> Window:
    """Write the volume and the PNG copies of its slices; the window that they are seen through."""
    sample = PhantomSample(3, (4 * depth, side, side))
    path = folder / f"scan{ENDINGS[kind]}"
    spec = VolumeSpec((depth, side, side), np.dtype(np.uint16))
    # from the middle of the explant: all tissues are there
    write_volume(path, (sample.slice(2 * depth + z)[0] for z in range(depth)), spec)
    with open_volume(path) as volume:
        for z, native in enumerate(volume):
            (folder / f"{z}.png").write_bytes(pillow(render(native, sample.window), 6))
    return sample.window


def size_row(side: int, repeat: int, kind: str, folder: Path) -> None:
    window = prepare(side, repeat + 1, kind, folder)
    port = free_port()
    variables = {
        "NEXTSLICE_VOLUMES": f"scans={folder}",
        "NEXTSLICE_CACHE_DIR": str(folder / "cache"),
        "NEXTSLICE_STORE": str(folder / "store"),
        "LABEL_STUDIO_API_KEY": "benchmark",
        "BENCHMARK_FILES": str(folder),
        "PYTHONPATH": str(Path(__file__).parent),
    }
    base, keys = f"http://127.0.0.1:{port}", slice_keys(settings_from(variables))
    urls = [
        SliceAddress(f"scans/scan{ENDINGS[kind]}", "z", z, window).url(base, keys)
        for z in range(repeat + 1)
    ]
    times: dict[str, list[float]] = {"cold": [], "warm": [], "file": [], "not modified": []}
    with ProcessGroup(folder / "logs") as group, requests.Session() as browser:
        argv = gunicorn_argv(f"127.0.0.1:{port}", "slices:application()")
        group.start("backend", argv, env=os.environ | variables)
        group.wait("backend", lambda: answers(base), timeout_s=60)

        def get(url: str, **headers: str) -> bytes:
            answer = browser.get(url, headers=headers, timeout=30)
            assert answer.status_code in (200, 304), answer.text
            return answer.content

        tag = browser.get(urls[-1], timeout=30).headers["ETag"]  # opens the volume
        for z in range(repeat):
            times["cold"].append(timed(partial(get, urls[z])))
            times["warm"].append(timed(partial(get, urls[z])))
            times["file"].append(timed(partial(get, f"{base}/file/{z}.png")))
            times["not modified"].append(timed(partial(get, urls[-1], **{"If-None-Match": tag})))
        shown, copy = get(urls[0]), get(f"{base}/file/0.png")
    assert np.array_equal(Image.open(io.BytesIO(shown)), Image.open(io.BytesIO(copy)))
    cells = "".join(f"{median(values):>14.1f}" for values in times.values())
    print(f"{side}²{cells}{len(shown) / 1000:>10.0f} / {len(copy) / 1000:.0f} kB")
    steps_row(folder / f"scan{ENDINGS[kind]}", window, repeat)


def answers(base: str) -> bool:
    try:
        return requests.get(f"{base}/health", timeout=2).ok
    except requests.RequestException:
        return False


def steps_row(path: Path, window: Window, repeat: int) -> None:
    with open_volume(path) as volume:
        native = volume[0]
        grey = render(native, window)
        runs: dict[str, Callable[[], Any]] = {
            "read": lambda: volume[0],
            "window": lambda: render(native, window),
            "encode": lambda: encode_png(grey),
            "Pillow 1": lambda: pillow(grey, 1),
            "Pillow 3": lambda: pillow(grey, 3),
            "Pillow 6": lambda: pillow(grey, 6),
        }
        times: dict[str, list[float]] = {step: [] for step in runs}
        for _ in range(repeat):
            for step, run in runs.items():
                times[step].append(timed(run))
    print("      " + ", ".join(f"{step} {median(values):.1f}" for step, values in times.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--format", choices=ENDINGS, default="npy")
    arguments = parser.parse_args()
    print(
        f"{'uint16':5}{'cold':>13}{'warm':>14}{'file':>14}{'not modified':>14}   size ours / file"
    )
    for side in (1024, 2048):
        with tempfile.TemporaryDirectory() as folder:
            size_row(side, arguments.repeat, arguments.format, Path(folder))


if __name__ == "__main__":
    main()
