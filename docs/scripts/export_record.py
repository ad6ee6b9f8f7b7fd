"""Who annotated how many slices of a round, and which slices it chose; the record as JSON.

python docs/scripts/export_record.py PROJECT OUT.json [ROUND]
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from ml_backend.export import export_record, find_project, find_round
from ml_backend.rounds.service import Service


def main(project: str, out: Path, number: int | None = None) -> None:
    found = find_project(Service.from_environment(), project)
    folder = find_round(found.folder, number)
    record = export_record(folder, out)
    people = Counter(label["completed_by"] for label in record["dataset"]["labels"])
    for person, slices in people.most_common():
        print(f"user {person}: {slices} slices")
    selection = record["selection"]
    print(f"{selection['strategy']}, seed {selection['seed']}, chose {selection['chosen']}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:4]))
