"""An experiment that runs in seconds: a few small slices, a real network, two steps a training."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from PIL import Image

from ml_backend.experiment.data import DataSpec, load_data
from ml_backend.experiment.plan import Request, keep, plan
from tests.segmentation_phantom import CLASSES, Phantom


def write_slices(folder: Path) -> Path:
    """24 small slices with their masks."""
    source = Phantom(24)
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for slice_id in source.ids:
        Image.fromarray(source.image(slice_id)).save(folder / "images" / f"{slice_id}.png")
        Image.fromarray(source.mask(slice_id)).save(folder / "masks" / f"{slice_id}.png")
    (folder / "classes.json").write_text(json.dumps({"names": CLASSES}))
    return folder


def experiment(out: Path, slices: Path, **changes: Any) -> Path:
    """`experiment.json` in ``out``; one thread, so that runs side by side stay quick."""
    options: dict[str, Any] = {
        "k": 2, "rounds": 3, "steps": 2, "full_steps": 2, "warm_start": True, "device": "cpu",
        "training": {"batch": 2, "crop": 32}, "processes": os.cpu_count(), **changes,
    }  # fmt: skip
    spec = DataSpec(str(slices), gap=1.0)
    data = load_data(spec)
    keep(out, plan(Request(title="tiny", **options), spec, data, data.read().digest))
    return out
