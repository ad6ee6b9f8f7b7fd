"""Put every volume of a folder into one Label Studio project.

    python docs/scripts/import_volumes.py /data/scans "bone,implant,degradation layer"

LABEL_STUDIO_URL, LABEL_STUDIO_API_KEY and NEXTSLICE_VOLUMES say where, as for `nextslice up`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ml_backend.import_volume import ImportRequest, import_volume
from ml_backend.rounds.service import Service


def main(folder: str, labels: str) -> None:
    service = Service.from_environment()
    paths = sorted(path for path in Path(folder).iterdir() if not path.name.startswith("."))
    for path in paths:
        last = path == paths[-1]  # connected once, when all slices are there
        request = ImportRequest(
            path, labels=tuple(labels.split(",")), title=Path(folder).name, connect=last
        )
        report = import_volume(service, request)
        print(f"{report.volume}: {report.added} added, {report.kept} were there")


if __name__ == "__main__":
    main(*sys.argv[1:])
