"""How long a drag takes from Label Studio's request to our answer, over the whole of /predict.

    python -m benchmarks.drags [--sides 512 1024 2048] [--repeats 40] [--cold 3] [--beside 1]

Slices of discs of four classes in noise, each with a stored prediction that is wrong in places;
boxes at random. ``prefetched``: what the network believes is kept already, as it is after the slice
was opened or was next in the queue. ``cold``: nobody has looked at the slice before, so that the
network (hrnet_w18_small+filters, random weights) runs while the person waits; the weights are
loaded. ``--beside``: so many processes that compute at low priority, as a training does. The
bare forward of the same network stands beside it. Seconds by the wall clock, and of CPU (of all
threads of the process), which is what remains comparable where the machine has other work.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from al_strategies.learner import Beliefs
from ml_backend.api.opened import SliceName
from ml_backend.api.serving import Serving
from ml_backend.app import create_app
from ml_backend.embedded.stack import settings_from
from ml_backend.rounds.artefacts import WEIGHTS as ARTEFACT
from ml_backend.rounds.records import Published
from ml_backend.rounds.service import slice_keys
from ml_backend.segmentation import checkpoints
from ml_backend.segmentation.model import Model
from ml_backend.segmentation.networks import build_network
from ml_backend.segmentation.preprocessing import Preprocessing
from ml_backend.studio.annotations import regions
from ml_backend.studio.label_config import bitmask_config, parse_label_config
from ml_backend.volumes.address import SliceAddress

KEY = "7.1763865028"
VERSION = "nextslice-r001-abcdef"
WEIGHTS = "round-0001/weights.safetensors"
XML = bitmask_config(["bone", "implant", "degradation layer"])
CONFIG = parse_label_config(XML)


def scene(side: int, seed: int) -> tuple[Any, Beliefs]:
    """A slice and what is believed of it: smooth, and not sure."""
    rng = np.random.default_rng(seed)
    fields = [
        ndimage.zoom(rng.normal(size=(9, 9)), side / 9, order=1)[:side, :side] for _ in range(4)
    ]
    scores = 6 * np.stack(fields)
    log = scores - np.log(np.exp(scores).sum(0))
    mask = log.argmax(0).astype(np.uint8)
    image = np.array([40, 90, 150, 210])[mask] + rng.normal(0, 15, mask.shape)
    return np.clip(image, 0, 255).astype(np.uint8), Beliefs(mask, log.astype(np.float16))


def compute() -> None:
    """As a training does, at low priority."""
    os.nice(15)
    torch.set_num_threads(1)
    work = torch.nn.Conv2d(32, 32, 3)
    images = torch.randn(4, 32, 128, 128)
    while True:
        work(images).sum().backward()


@contextmanager
def beside(number: int) -> Iterator[None]:
    running = [multiprocessing.Process(target=compute, daemon=True) for _ in range(number)]
    for process in running:
        process.start()
    try:
        yield
    finally:
        for process in running:
            process.kill()


class Bench:
    """Our application over slices of one size."""

    def __init__(self, folder: Path, side: int, slices: int) -> None:
        self.side = side
        scenes = [scene(side, i) for i in range(slices)]
        np.save(folder / "scan.npy", np.stack([image for image, _ in scenes]))
        self.beliefs = [found for _, found in scenes]
        env = {
            "LABEL_STUDIO_API_KEY": "token",
            "NEXTSLICE_STORE": str(folder / "store"),
            "NEXTSLICE_CACHE_DIR": str(folder / "cache"),
            "NEXTSLICE_VOLUMES": f"all={folder}",
            "NEXTSLICE_PUBLISHED_TTL_S": "600",
            "NEXTSLICE_OPENED_MIB": "1024",
            "PREDICT_DEVICE": "auto",
        }
        settings = settings_from(env)
        app = create_app(settings)
        self.serving: Serving = app.extensions["nextslice"]
        self.client = app.test_client()
        keys = slice_keys(settings)
        self.urls = [
            SliceAddress("all/scan.npy", "z", z).url("http://localhost", keys)
            for z in range(slices)
        ]
        network = build_network("hrnet_w18_small+filters", 4)
        self.model = Model(network, Preprocessing(0, 255), CONFIG.classes)
        project = self.serving.project(KEY)
        project.folder.round(1).write(ARTEFACT, checkpoints.to_bytes(self.model))
        project.folder.published = Published(
            round=1,
            model_version=VERSION,
            classes=list(CONFIG.classes),
            fingerprint=CONFIG.fingerprint,
            weights=WEIGHTS,
        )

    def keep(self, z: int) -> None:
        self.serving.opened.keep(SliceName(KEY, WEIGHTS, z, self.urls[z]), self.beliefs[z])

    def body(self, z: int, seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        x, y = rng.uniform(5, 80, 2)
        width, height = rng.uniform(2, 12, 2)
        value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0}
        box = {"id": f"p{seed}", "type": "rectangle", "from_name": "fix", "to_name": "image"}
        drawn = {"id": 1, "model_version": VERSION, "result": regions(self.beliefs[z].mask, CONFIG)}
        task = {"id": z, "data": {"image": self.urls[z]}, "annotations": [], "drafts": [],
                "predictions": [drawn]}  # fmt: skip
        context = {"result": [{**box, "value": value}]}
        return json.dumps(
            {"tasks": [task], "project": KEY, "label_config": XML, "params": {"context": context}}
        ).encode()

    def drag(self, body: bytes) -> tuple[float, float]:
        began, cpu = time.perf_counter(), time.process_time()
        answer = self.client.post("/predict", data=body, content_type="application/json")
        took = time.perf_counter() - began, time.process_time() - cpu
        assert answer.get_json()["results"][0]["result"]
        return took


def row(name: str, side: int, times: list[tuple[float, float]]) -> None:
    columns = [
        f"{value:.3f}"
        for kind in zip(*times, strict=True)
        for value in (statistics.median(kind), float(np.quantile(kind, 0.95)))
    ]
    print(f"| {side}² | {name} | {len(times)} | {' | '.join(columns)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", nargs="+", type=int, default=[512, 1024, 2048])
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--cold", type=int, default=3)
    parser.add_argument("--beside", type=int, default=1)
    options = parser.parse_args()
    print("| slice | what | drags | p50, s | p95, s | p50, CPU s | p95, CPU s |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for side in options.sides:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder), side, options.cold + 2)
            first = bench.body(0, 0)
            bench.drag(first)  # imports torch and loads the weights
            with beside(options.beside):
                bodies = [bench.body(z, z) for z in range(options.cold + 2)]
                forward = []
                image = torch.from_numpy(
                    bench.model.preprocessing(np.load(Path(folder, "scan.npy"))[0])
                )
                network = bench.model.network.eval()
                for _ in range(options.cold):
                    began, cpu = time.perf_counter(), time.process_time()
                    with torch.inference_mode():
                        network(image[None])
                    took = time.perf_counter() - began, time.process_time() - cpu
                    forward.append(took)
                if options.cold:
                    row("cold", side, [bench.drag(bodies[z]) for z in range(1, options.cold + 1)])
                    row("the bare forward", side, forward)
                last = options.cold + 1
                bench.keep(last)
                many = [bench.body(last, 100 + i) for i in range(options.repeats)]
                row("prefetched", side, [bench.drag(body) for body in many])


if __name__ == "__main__":
    main()
