"""The annotated slices of a project as images/ and masks/, for another framework.

The same folder is what `nextslice simulate --data` reads, with the volume and z of each slice
where the tasks know them. Images keep their native grey values.

python docs/scripts/train_elsewhere.py PROJECT OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tifffile
from PIL import Image

from ml_backend.export import find_project, find_round
from ml_backend.rounds.artefacts import DATASET
from ml_backend.rounds.service import Service
from ml_backend.rounds.source import ProjectSource


def main(project: str, out: Path) -> None:
    found = find_project(Service.from_environment(), project)
    folder = find_round(found.folder)
    dataset = folder.need(DATASET)
    source = ProjectSource(dataset, found.folder, found.images)
    for part in ("images", "masks"):
        (out / part).mkdir(parents=True)
    volumes: dict[tuple[str, str], str] = {}
    tasks = {task.id: task for task in dataset.tasks}
    for label in dataset.labels:
        task = tasks[label.task]
        name = f"task_{task.id:06d}"
        if task.volume and task.z is not None:
            volume = volumes.setdefault((task.volume, task.axis), f"volume{len(volumes) + 1}")
            name = f"{volume}_{name}_z{task.z:05g}"
        tifffile.imwrite(out / "images" / f"{name}.tif", source.image(label.task))
        Image.fromarray(source.mask(label.task)).save(out / "masks" / f"{name}.png")
    (out / "classes.json").write_text(json.dumps({"names": dataset.classes}))
    if volumes:
        named = [{"name": name} for name in volumes.values()]
        (out / "volumes.json").write_text(json.dumps({"volumes": named}))
    print(f"{len(dataset.labels)} slices of {', '.join(dataset.classes)}; 255: nobody labelled it")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
