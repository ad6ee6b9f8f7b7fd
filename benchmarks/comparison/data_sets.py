"""The data sets of the comparison, and which of their slices are labelled."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from al_strategies.evidence import SliceId
from benchmarks.comparison.recipes import RECIPES
from benchmarks.peers.protocol import Unavailable
from ml_backend.experiment.data import Data, DataSpec, load_data, phantom_folder

__all__ = ["DATA_SETS", "SHIFTS", "DataSet", "labelled_slices", "load"]


@dataclass(frozen=True)
class DataSet:
    """``labels``: who made them. ``centre``: see `DataSpec`. ``absolute``: see `Task`."""

    title: str
    labels: str
    centre: float = 0.5
    absolute: bool = True


DATA_SETS: dict[str, DataSet] = {
    "phantom_small": DataSet(
        "bone implants as in micro-CT, **generated** (`nextslice simulate --phantom small`)",
        "exact, since they are what the slices were generated from; test samples of their own",
    ),
    "sandstone_xrm": DataSet(
        "one sandstone in X-ray microscopy, 10 slices 50 apart",
        "by its authors; how is not stated",
    ),
    "sandstone_xrm_0100": DataSet(
        "the same sandstone, tested on its slices 0100 and 0150 instead of 0180, which is an "
        "outlier, and 0200",
        "as above",
        centre=0.35,
    ),
    "totalseg_ct": DataSet(
        "one abdomen in CT, 112 slices at 3 mm", "by a program, TotalSegmentator"
    ),
    "vertebrae_ct": DataSet(
        "lumbar vertebrae in CT, 47 axial slices at 1.5 mm, from the package tptbox",
        "by a program, corrected by hand (VerSe)",
    ),
    "spine_mr": DataSet(
        "a spine in T2-weighted MR, 52 axial slices at 1.5 mm, from the package tptbox",
        "by a program of the package's authors",
        absolute=False,
    ),
    "colin27_mr": DataSet(
        "a head in T1-weighted MR, 181 sagittal slices at 1 mm, from Debian's package "
        "mricron-data; tested on the left side of the head",
        "by hand, generously around the cortex (AAL), 116 regions merged into 4",
        centre=0.3,
        absolute=False,
    ),
}

SHIFTS = (1 / 2, 1 / 6, 5 / 6)
"""Where in its bin each label set has its slices; the first is the centre."""


def labelled_slices(pool: Sequence[SliceId], number: int, label_set: int) -> tuple[SliceId, ...]:
    """``number`` slices of ``pool``, evenly spread: the pool is cut into so many bins along its
    order, and one slice taken from each, at ``SHIFTS[label_set]`` of its width. With every slice
    of the pool labelled the sets are the same, and only the seeds differ. Raises ValueError."""
    if number > len(pool):
        raise ValueError(f"{number} labels of a pool of {len(pool)} slices: expected no more")
    shift = SHIFTS[label_set]
    return tuple(pool[int((j + shift) * len(pool) / number)] for j in range(number))


def load(name: str, home: Path, folders: Mapping[str, Path]) -> Data:
    """The slices of a data set: in the folder given for it, or under ``home``, where they are made
    or downloaded unless they are there. Raises Unavailable, and ValueError for other names."""
    if name not in DATA_SETS and name not in folders:
        raise ValueError(f"there is no data set {name}: expected one of {', '.join(DATA_SETS)}")
    data_set = DATA_SETS.get(name, DataSet(name, "unknown"))
    return load_data(DataSpec(str(folders.get(name) or _made(name, home)), centre=data_set.centre))


def _made(name: str, home: Path) -> Path:
    if name == "phantom_small":
        return phantom_folder("small", home, None, jobs=1)
    if name not in RECIPES:
        raise Unavailable(f"give its folder with --data {name}=FOLDER: no package has it")
    folder = home / name
    if not folder.exists():
        part = home / f"{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        RECIPES[name](part)
        part.rename(folder)
    return folder
