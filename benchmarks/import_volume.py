"""Peak memory and time of a whole ``nextslice import`` into a real Label Studio.

    python benchmarks/import_volume.py [--side 1024] [--upload-every 8]

A raw uint16 volume of side³, of noise, becomes tasks, first served by the backend, then every
eighth slice uploaded as a PNG file. Each import is the command in a process of its own, whose peak
is what the kernel has counted (``ru_maxrss``). Label Studio and Redis start on this machine and are
no part of the figures, but work beside them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ml_backend.embedded.processes import ProcessGroup
from ml_backend.embedded.stack import default_home, start_stack
from ml_backend.volumes.opening import write_volume
from ml_backend.volumes.volume import VolumeSpec

LABELS = "bone,implant,degradation layer"


def measure(name: str, slices: int, env: dict[str, str], *arguments: str) -> None:
    started = time.perf_counter()
    command = [sys.executable, "-m", "ml_backend.cli", "import", *arguments]
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(command, env={**os.environ, **env}, stdout=said, stderr=said)
        _, status, used = os.wait4(child.pid, 0)
        if status:
            said.seek(0)
            raise SystemExit(said.read())
    print(
        f"  {name:<22} {slices:5d} tasks {time.perf_counter() - started:7.1f} s, "
        f"{used.ru_utime + used.ru_stime:7.1f} s of CPU, peak {used.ru_maxrss / 1024:.0f} MiB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--upload-every", type=int, default=8)
    options = parser.parse_args()
    side, every = options.side, options.upload_every
    with tempfile.TemporaryDirectory() as folder, ProcessGroup(Path(folder) / "logs") as group:
        scans = Path(folder) / "scans"
        scans.mkdir()
        scan = scans / "scan.raw"
        rng = np.random.default_rng(0)
        noise = (rng.integers(0, 40_000, (side, side), np.uint16) for _ in range(side))
        write_volume(scan, noise, VolumeSpec((side, side, side), np.dtype(np.uint16)))
        volumes = {"NEXTSLICE_VOLUMES": f"scans={scans}"}
        stack = start_stack(group, Path(folder) / "stack", default_home(), env=volumes)
        print(f"{side}³ uint16, raw")
        measure("served by the backend", side, stack.env, str(scan), "--labels", LABELS)
        again = (str(scan), "--title", "scan.raw")
        measure("the same again", side, stack.env, *again)
        uploaded = (str(scan), "--labels", LABELS, "--title", "uploaded", "--every", str(every))
        measure("uploaded", -(-side // every), stack.env, *uploaded, "--upload", "--no-connect")


if __name__ == "__main__":
    main()
