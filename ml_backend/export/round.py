"""A whole round into one folder: masks, Label Studio's JSON, the record, the learning curve."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from al_strategies.learner import Progress
from ml_backend.export.curve import export_learning_curve
from ml_backend.export.files import ExportError, to_json, whole
from ml_backend.export.masks import MASK_FORMATS, export_masks
from ml_backend.export.record import export_record
from ml_backend.export.studio_json import export_studio_json
from ml_backend.rounds.artefacts import ROUND
from ml_backend.rounds.cut_from import source_finder
from ml_backend.rounds.project import ConnectedProject, known_project
from ml_backend.rounds.service import Service
from ml_backend.rounds.store import ProjectStore, RoundFolder, StoreError

__all__ = ["PARTS", "ExportReport", "Written", "export_round", "find_project", "find_round"]

PARTS = ("masks", "json", "record", "curve")
"""What `export_round` can write."""


@dataclass(frozen=True)
class Written:
    """One part of an export: its file or folder, and in words what is in it."""

    part: str
    path: Path
    content: str


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote into ``out``; ``warnings``: what a person should know of it."""

    out: Path
    round: int
    model_version: str
    written: tuple[Written, ...]
    warnings: tuple[str, ...] = ()


def find_project(service: Service, project: int | str) -> ConnectedProject:
    """`known_project`, as an ExportError where there is none."""
    try:
        return known_project(service, project)
    except StoreError as error:
        raise ExportError(str(error)) from None


def find_round(project: ProjectStore, number: int | None = None) -> RoundFolder:
    """The folder of a committed round; None: the latest. ExportError names those there are."""
    numbers = [n for n in project.rounds() if project.round(n).has(ROUND)]
    if not numbers:
        raise ExportError(f"{project.path} has no round that committed yet: nothing to export")
    if number is None:
        return project.round(numbers[-1])
    if number not in numbers:
        raise ExportError(
            f"{project.path} has no committed round {number}: it has {numbers[0]} to {numbers[-1]}"
        )
    return project.round(number)


def export_round(
    project: ConnectedProject,
    out: Path,
    *,
    round: int | None = None,
    parts: Collection[str] = PARTS,
    format: str = "tiff",
    names: Mapping[int, str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write a round into the new folder ``out``: all of it, or after an error nothing.

    ``round``: its number; None: the latest committed one, and then ``json`` is what Label Studio
    holds at this moment (else what that round saw, see `export_studio_json`). ``parts``: of
    `PARTS`. ``format``: of the masks, one of `MASK_FORMATS`. ``names``: see `annotators`.

    Layout: ``masks/``, ``annotations.json``, ``record.json``, ``learning_curve.csv`` and ``.png``
    (rounds up to this one), and ``export.json``, which lists them.

    Raises ExportError, StoreError, and StudioError when Label Studio is asked and cannot answer.
    """
    unknown = sorted(set(parts) - set(PARTS))
    if unknown or not parts:
        raise ExportError(f"parts are {sorted(parts)}, expected some of {', '.join(PARTS)}")
    if format not in MASK_FORMATS:
        raise ExportError(f"format is {format!r}, expected one of {', '.join(MASK_FORMATS)}")
    folder = find_round(project.folder, round)
    record = folder.need(ROUND)
    out = out.resolve()
    written: list[Written] = []
    warnings: tuple[str, ...] = ()

    with whole(out, overwrite=overwrite) as partial:
        partial.mkdir()

        def note(part: str, name: str, content: str) -> None:
            written.append(Written(part, out / name, content))

        if "record" in parts:
            export_record(folder, partial / "record.json", names=names)
            note("record", "record.json", f"round {record.round}, {record.model_version}")
        if "curve" in parts:
            points = export_learning_curve(
                project.folder, partial / "learning_curve.csv", partial / "learning_curve.png",
                until=record.round,
            )  # fmt: skip
            measured = sum(point.miou is not None for point in points)
            rounds = f"{len(points)} rounds, {measured} with a validation mIoU"
            note("curve", "learning_curve.csv", rounds)
            note("curve", "learning_curve.png", rounds)
        if "masks" in parts:
            finder = source_finder(project.service)
            report = export_masks(
                folder, partial / "masks", format, find_source=finder, progress=progress
            )
            warnings = report.warnings
            files = sum(volume.file is not None for volume in report.volumes)
            volumes = "1 volume" if files == 1 else f"{files} volumes"
            note("masks", "masks", f"labelled slices: {report.labels}, of {volumes}, {format}")
        if "json" in parts:
            count = export_studio_json(
                project, partial / "annotations.json", round=round, progress=progress
            )
            when = "in Label Studio now" if round is None else f"as round {round} saw them"
            note("json", "annotations.json", f"{count} annotated tasks {when}")
        result = ExportReport(out, record.round, record.model_version, tuple(written), warnings)
        (partial / "export.json").write_text(_index(project.folder, result), encoding="utf-8")
    return result


def _index(project: ProjectStore, report: ExportReport) -> str:
    content = {
        "format": "nextslice export",
        "version": 1,
        "project": project.path,
        "round": report.round,
        "model_version": report.model_version,
        "files": [
            {"part": w.part, "file": w.path.name, "content": w.content} for w in report.written
        ],
        "warnings": list(report.warnings),
    }
    return to_json(content)
