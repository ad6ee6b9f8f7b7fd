"""Folders whose files are several channels or times, as Micro-Manager names them or OME-XML says.

``img_channel000_position000_time000000000_z000.tif``, and before version 2
``img_000000000_DAPI_000.tif``: time, channel and z.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ml_backend.volumes.enclosure import check_inside
from ml_backend.volumes.formats.tiff_planes import ome_files
from ml_backend.volumes.formats.tiff_table import Planes, table_of
from ml_backend.volumes.volume import ReadOptions, VolumeError

__all__ = ["chosen_files"]

_NAMES = (
    re.compile(r"img_channel(?P<channel>\d+)_position(?P<position>\d+)_time(?P<time>\d+)_z(?P<z>\d+)\."),
    re.compile(r"img_(?P<time>\d{9,})_(?P<channel>.+)_(?P<z>\d{3,})\."),
)  # fmt: skip


def chosen_files(
    folder: Path, files: Sequence[Path], options: ReadOptions
) -> tuple[list[Path], ReadOptions]:
    """Those of the channel and time that ``options`` choose, in the order of z, and what is left to
    choose in each; all of them where their names say neither.

    Raises VolumeError where one must be chosen, or is missing.
    """
    check_inside(files[0], folder, options)
    planes = _planes(folder, files) or Planes("names", ("z",), (len(files),))
    left = replace(options, time=None, channel=None if planes.several_channels else options.channel)
    asked = options if planes.several_channels else replace(options, channel=None)
    numbers = planes.pages or range(len(files))
    return [files[numbers[place]] for place in planes.chosen(folder, (1, 1), asked)], left


def _planes(folder: Path, files: Sequence[Path]) -> Planes | None:
    """None where neither names nor OME-XML say more than an order."""
    for pattern in _NAMES:
        found = [pattern.match(path.name) for path in files]
        places = {
            page: {
                axis: int(text) if text.isdecimal() else text
                for axis, text in match.groupdict().items()
            }
            for page, match in enumerate(found)
            if match is not None
        }
        if len(places) == len(files):
            return table_of(folder, "Micro-Manager", places)
        if len({tuple((place | {"z": 0}).values()) for place in places.values()}) > 1:
            other = files[found.index(None)]
            raise VolumeError(
                f"{folder} has {len(places)} files that Micro-Manager names as several channels or "
                f"times, and {other.name} is called otherwise: expected no other"
            )
    said = ome_files(files[0])
    there = {page: said[path.name] for page, path in enumerate(files) if path.name in said}
    if len(there) == len(files):
        return table_of(folder, "OME", there)
    # files that were given other names: their order is that of z, if there is nothing else
    if len({(place["C"], place["T"]) for place in said.values()}) > 1:
        raise VolumeError(
            f"{folder} has {len(files)} files, {len(there)} of the {len(said)} that the OME-XML of "
            f"{files[0].name} names as several channels or times: expected no other"
        )
    return None
