"""What SkyScan (Bruker) leaves in a folder of slices: the log of its reconstruction, which says the
voxel size, and a preview that is no slice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ml_backend.volumes.enclosure import check_inside
from ml_backend.volumes.formats.notes import Notes, as_text
from ml_backend.volumes.formats.pages import files_in
from ml_backend.volumes.limits import TEXT_BYTES
from ml_backend.volumes.volume import ReadOptions, VolumeError

__all__ = ["folder_notes", "is_preview", "slices_in"]

_SIZE = re.compile(
    r"^[ \t]*(?:Image )?Pixel Size \((um|µm|mm|nm)\)\s*=\s*([\d.,eE+-]+)", re.MULTILINE
)
_PREVIEW = re.compile(r"_spr\.\w+$", re.IGNORECASE)
"""NRecon's shadow projection, of another size: ``bone_rec_spr.bmp`` beside ``bone_rec0001.bmp``."""


def folder_notes(folder: Path, options: ReadOptions) -> Notes:
    """What ``volume.json`` says, else the log of the reconstruction. Raises VolumeError."""
    notes = Notes.beside(folder)
    if notes.voxel_size is not None:
        return notes
    found = {size for log in _logs(folder) if (size := _size(log, folder, options)) is not None}
    if len(found) != 1:  # of several samples, or of none
        return notes
    edge, unit = found.pop()
    return Notes.sized([edge] * 3, unit, notes.classes)


def is_preview(name: str) -> bool:
    """Whether a file of this name is no slice."""
    return _PREVIEW.search(name) is not None


def slices_in(folder: Path, endings: Sequence[str]) -> list[Path]:
    """As `files_in`, without the preview."""
    found = files_in(folder, endings)
    slices = [path for path in found if not is_preview(path.name)]
    if not slices:
        raise VolumeError(f"{folder} holds {found[0].name} alone, expected slices besides")
    return slices


def _logs(folder: Path) -> list[Path]:
    """Those of reconstructions before that of the scan, which may be binned otherwise."""
    logs = files_in(folder, (".log",))
    return [log for log in logs if log.stem.lower().endswith("_rec")] or logs


def _size(log: Path, folder: Path, options: ReadOptions) -> tuple[float, str] | None:
    check_inside(log, folder, options)
    with log.open("rb") as file:
        text = as_text(file.read(TEXT_BYTES))
    # the last one is that of the reconstruction: a scan's own comes before it
    said = _SIZE.findall(text)
    if not said:
        return None
    unit, size = said[-1]
    try:
        return float(size.replace(",", ".")), unit
    except ValueError:
        return None
