"""A chunk of a volume served as OME-Zarr beside the same chunk as a file that Flask sends.

    python benchmarks/ome_zarr.py [--format npy|nii.gz|tif|ome.zarr] [--slices 64]

A volume of 1,024² slices of 16 bit, noise; medians in milliseconds of a whole request, answered in
this process. *cold*: the slice is read for the chunk; *warm*: it is there. *file*: `send_file` of
a chunk that was written beforehand, which is what a pyramid on disk would be. *mask*: a chunk of
labels, fetched from a Label Studio in memory; *none*: of a slice that nobody labelled.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from flask import Response, send_file
from flask.testing import FlaskClient

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ml_backend.app import create_app
from ml_backend.embedded.processes import ProcessGroup
from ml_backend.embedded.redis_server import start_redis
from ml_backend.rounds.service import slice_keys
from ml_backend.studio.annotations import regions
from ml_backend.studio.label_config import parse_label_config
from ml_backend.volumes.volume_address import VolumeAddress, last_day
from tests.http_studio import CONFIG, phantom_server
from tests.served import settings_in
from tests.volume_project import volume_project

SIDE = 1024


def median(client: FlaskClient, urls: list[str]) -> str:
    times = []
    for url in urls:
        start = time.perf_counter()
        assert client.get(url).data
        times.append(1000 * (time.perf_counter() - start))
    return f"{statistics.median(times):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--format", default="npy", choices=["npy", "nii.gz", "tif", "ome.zarr"])
    parser.add_argument("--slices", type=int, default=64)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    values = rng.normal(30_000, 4_000, (given.slices, SIDE, SIDE)).astype(np.uint16)
    name = f"scans/volume.{given.format}"
    with (
        tempfile.TemporaryDirectory() as kept,
        ProcessGroup(Path(kept, "logs")) as group,
        phantom_server() as server,
    ):
        folder = Path(kept)
        project = volume_project(
            server, settings_in(folder), folder, values=values, name=name, labels=(), apart=2,
            REDIS_URL=start_redis(group, folder), NEXTSLICE_LOG_LEVEL="ERROR",
        )  # fmt: skip
        blocks = rng.integers(0, 3, (64, 64)).astype(np.uint8).repeat(16, 0).repeat(16, 1)
        labelled = range(1, 10)
        for task in labelled:
            server.memory.submit(task, regions(blocks, parse_label_config(CONFIG)))
        address = VolumeAddress(project.key, name, "z", last_day())
        base = f"{address.url('', slice_keys(project.service.settings))}/scan.zarr"
        app = create_app(project.service.settings)
        file = folder / "chunk"

        @app.get("/file")
        def send() -> Response:
            return send_file(file, mimetype="application/octet-stream")

        client = app.test_client()
        for z in range(4):  # from the third slice on it is known where they lie
            data = client.get(f"{base}/0/{z}/0/0").data
        file.write_bytes(data)
        levels = {0: (4, given.slices), 1: (0, given.slices), 2: (0, given.slices // 2)}
        print(f"{given.format}, {len(data):,} bytes a chunk of level 0\n")
        for level, (first, end) in levels.items():
            places = range(first, end)
            cold = median(client, [f"{base}/{level}/{z}/0/0" for z in places])
            warm = median(client, [f"{base}/{level}/{z}/0/0" for z in places])
            print(f"level {level}: cold {cold}, warm {warm}")
        at = [2 * task for task in labelled]
        cold, warm = (
            median(client, [f"{base}/labels/labels/0/{z}/0/{x}" for z in at]) for x in (0, 1)
        )
        none = median(client, [f"{base}/labels/labels/0/{z + 1}/0/0" for z in at])
        print(f"mask: cold {cold}, warm {warm}, none {none}")
        print(f"file: {median(client, ['/file'] * 50)}")


if __name__ == "__main__":
    main()
