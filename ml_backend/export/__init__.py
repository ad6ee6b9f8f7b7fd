"""A round, or the latest, as files for other programs. The API that scripts use:

    from pathlib import Path
    from ml_backend.export import export_round, find_project
    from ml_backend.rounds.service import Service

    project = find_project(Service.from_environment(), 7)
    export_round(project, Path("round"))

`export_round` writes all into one folder; `export_masks`, `export_studio_json`, `export_record` and
`export_learning_curve` write one part, `round_record`, `learning_curve`, `studio_tasks` and
`round_tasks` give its content without a file. Everything is read from the store alone, but for
`studio_tasks` and `annotators`, which ask Label Studio. Nothing is ever half written.
`docs/export.md` describes the files.
"""

from ml_backend.export.curve import CurvePoint, export_learning_curve, learning_curve
from ml_backend.export.files import ExportError
from ml_backend.export.masks import (
    MASK_FORMATS,
    LabelVolume,
    MasksReport,
    export_masks,
    read_mask,
)
from ml_backend.export.record import annotators, export_record, round_record
from ml_backend.export.round import (
    PARTS,
    ExportReport,
    Written,
    export_round,
    find_project,
    find_round,
)
from ml_backend.export.studio_json import export_studio_json, round_tasks, studio_tasks
from ml_backend.rounds.cut_from import FindSource, Source, SourceError, source_finder

__all__ = [
    "MASK_FORMATS",
    "PARTS",
    "CurvePoint",
    "ExportError",
    "ExportReport",
    "FindSource",
    "LabelVolume",
    "MasksReport",
    "Source",
    "SourceError",
    "Written",
    "annotators",
    "export_learning_curve",
    "export_masks",
    "export_record",
    "export_round",
    "export_studio_json",
    "find_project",
    "find_round",
    "learning_curve",
    "read_mask",
    "round_record",
    "round_tasks",
    "source_finder",
    "studio_tasks",
]
