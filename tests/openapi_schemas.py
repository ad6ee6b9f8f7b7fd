"""``python -m tests.openapi_schemas``: write the records' schemas into openapi.json anew."""

from __future__ import annotations

import json

from pydantic.json_schema import models_json_schema

from ml_backend.api.status import ServiceStatus
from ml_backend.rounds.overview import ProjectOverview
from tests.fuzz.endpoints import DESCRIPTION

__all__ = ["record_schemas", "write"]


def record_schemas() -> dict[str, object]:
    """Of what /api/status and /api/projects answer, and of all in it, by name."""
    _, made = models_json_schema(
        [(ServiceStatus, "serialization"), (ProjectOverview, "serialization")],
        ref_template="#/components/schemas/{model}",
    )
    return dict(made["$defs"])


def write() -> None:
    """Into the description, in which all else stays."""
    written = json.loads(DESCRIPTION.read_text())
    written["components"]["schemas"] |= record_schemas()
    DESCRIPTION.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write()
