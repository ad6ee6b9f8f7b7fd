"""A round's record as one JSON file: who annotated what when, what was selected, how it scored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ml_backend.export.files import to_json, whole
from ml_backend.rounds.artefacts import DATASET, METRICS, QUEUE, ROUND, SELECTION
from ml_backend.rounds.effort import totals_of
from ml_backend.rounds.records import DatasetRecord
from ml_backend.rounds.service import Service
from ml_backend.rounds.store import ProjectStore, RoundFolder
from ml_backend.volumes.address import is_slice_address

__all__ = ["RECORD_VERSION", "annotators", "export_record", "round_record"]

RECORD_VERSION = 1
"""Goes up when a key changes its meaning or goes away; new keys may come without."""
_SIGNATURE = re.compile(r"[?&]sig=[\w%*]*")
"""In an address or in a sentence, which goes on behind it."""


def annotators(service: Service) -> dict[int, str]:
    """User id → e-mail address of everybody in Label Studio, which is asked for it.

    Raises StudioError when it cannot be.
    """
    users = service.studio.call("list the users", service.studio.sdk.users.list)
    return {user.id: user.email for user in users}


def round_record(folder: RoundFolder, names: Mapping[int, str] | None = None) -> dict[str, Any]:
    """All that the store knows of one committed round, as plain JSON values.

    Keys (`docs/export.md` explains them): format, version, exported_at, project, round, seeds,
    dataset, selection, metrics, queue, published, rounds; ``annotators`` where ``names`` (user id
    → name) are given. What a round does not have is null: round 0 has no metrics. Raises StoreError
    for a round that never committed. Slice addresses are without their signatures.
    """
    project = folder.project
    record = folder.need(ROUND)
    dataset = folder.need(DATASET)
    selection = folder.load(SELECTION)
    adopted = project.record
    content: dict[str, Any] = {
        "format": "nextslice round",
        "version": RECORD_VERSION,
        "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "project": {
            "path": project.path,
            "number": adopted.project if adopted else None,
            "adopted_at": adopted.adopted_at if adopted else None,
        },
        "round": record.model_dump(mode="json"),
        "seeds": {
            "project": record.settings.get("seed"),
            "round": selection.seed if selection else None,
        },
        "dataset": _unsigned(dataset).model_dump(mode="json"),
        "selection": _plain(selection),
        "metrics": _plain(folder.load(METRICS)),
        "queue": _plain(folder.load(QUEUE)),
        "published": _plain(project.published),
        "rounds": _rounds(project),
    }
    if names is not None:
        people = {i for label in dataset.labels if (i := label.completed_by) is not None}
        content["annotators"] = {str(i): names.get(i) for i in sorted(people)}
    return content


def export_record(
    folder: RoundFolder,
    out: Path,
    *,
    names: Mapping[int, str] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write `round_record` to the JSON file ``out``, and return it.

    Raises StoreError for a round that never committed, ExportError when ``out`` is there already.
    """
    content = round_record(folder, names)
    with whole(out, overwrite=overwrite) as partial:
        partial.write_text(to_json(content), encoding="utf-8")
    return content


def _unsigned(dataset: DatasetRecord) -> DatasetRecord:
    """Without the signatures of our slice addresses: a record is made to be handed on, and whoever
    has a signature can fetch the slice."""
    tasks = [
        task.model_copy(update={"image": _SIGNATURE.sub("", task.image)})
        if is_slice_address(task.image)
        else task
        for task in dataset.tasks
    ]
    warnings = [_SIGNATURE.sub("", warning) for warning in dataset.warnings]  # they name addresses
    return dataset.model_copy(update={"tasks": tasks, "warnings": warnings})


def _plain(record: BaseModel | None) -> dict[str, Any] | None:
    return None if record is None else record.model_dump(mode="json")


def _rounds(project: ProjectStore) -> list[dict[str, Any]]:
    """Every committed round in a line, so that one knows what this one stands between."""
    published = project.published
    rows = []
    for number in project.rounds():
        record = project.round(number).load(ROUND)
        if record is not None:
            metrics = project.round(number).load(METRICS)
            cost = totals_of(metrics.effort) if metrics else None
            rows.append(
                {
                    "round": number,
                    "model_version": record.model_version,
                    "strategy": record.strategy,
                    "annotated": record.annotated,
                    "committed_at": record.committed_at,
                    "flagged": record.flagged,
                    "published": published is not None and published.round == number,
                    "effort": None if cost is None else asdict(cost),
                }
            )
    return rows
