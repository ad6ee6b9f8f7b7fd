"""The labels of a project as label volumes, and how much of each class they hold.

python docs/scripts/export_masks.py PROJECT OUT [FORMAT]    (tiff, ome-zarr, nifti, numpy, hdf5)
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from ml_backend.export import export_masks, find_project, find_round, source_finder
from ml_backend.rounds.service import Service
from ml_backend.volumes.opening import open_volume


def main(project: str, out: Path, format: str = "tiff") -> None:
    service = Service.from_environment()
    latest = find_round(find_project(service, project).folder)
    report = export_masks(latest, out, format, find_source=source_finder(service))
    for written in report.volumes:
        if written.file is None:  # nobody has labelled a slice of it
            continue
        with open_volume(out / written.file) as labels:
            counts = sum(np.bincount(plane.ravel(), minlength=256) for plane in labels)
        shares = np.array(counts[:255]) / max(1, sum(counts[:255]))
        for index in np.flatnonzero(shares):
            print(f"{written.file}: class {index}, {shares[index]:.1%} of what is labelled")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
