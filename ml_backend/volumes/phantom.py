"""Seeded tomograms of bone implants, slices and masks: there is no public copy of the real scans.

A `PhantomSample` is one explant: a screw (M2 × 4 mm) across a tubular bone, corroding and healing
for some weeks, scanned at a synchrotron. Everything is a function of (z, y, x) in millimetres and
the seed, so any slice can be made alone, in any order, at any size, and neighbouring slices are as
alike as those of a real scan. A `Phantom` is several samples as one `SliceSource`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from al_strategies.evidence import Position, SliceId
from al_strategies.learner import Progress
from ml_backend.durable import write_whole
from ml_backend.errors import OptionError
from ml_backend.volumes.acquisition import Scan, to_grey
from ml_backend.volumes.explant import CLASSES, HEIGHT, IMPLANT, MATERIALS, SCREW_RADIUS, Explant
from ml_backend.volumes.folder import FolderError
from ml_backend.volumes.window import Window

__all__ = ["CLASSES", "MATERIALS", "Phantom", "PhantomSample", "phantom"]

Floats = npt.NDArray[np.float32]
Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class PhantomSample:
    """One explant with ``shape`` (Z, H, W) slices of ``field_of_view`` mm width.

    ``material`` is a key of `MATERIALS`, ``weeks`` the healing time. Z slices always span the
    explant's 4.9 mm: more of them are finer steps, and the same seed is the same explant at any
    shape. Raises ValueError for an unknown material, an empty shape or a field of view that the
    noise does not cover.
    """

    seed: int
    shape: tuple[int, int, int] = (96, 192, 192)
    material: str = "Mg-10Gd"
    weeks: int = 8
    name: str = "phantom"
    field_of_view: float = 5.8

    def __post_init__(self) -> None:
        if self.material not in MATERIALS:
            known = ", ".join(MATERIALS)
            raise ValueError(f"material is {self.material!r}, expected one of: {known}")
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"shape is {self.shape}, expected three positive sizes (Z, H, W)")
        longest = self.field_of_view * max(self.shape[1] / self.shape[2], 1)
        if not 0 < longest <= 6.8:
            raise ValueError(f"the slice spans {longest:g} mm, expected more than 0, at most 6.8")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, expected 0 or more")

    def slice(self, z: int) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8]]:
        """Slice ``z``: the image (H, W) uint16 (grey values: `acquisition.to_grey`) and its mask.

        Raises IndexError for a z that the sample has not.
        """
        mm, y, x = self._millimetres(z)
        attenuation, mask = self._tissue(mm, y, x)
        radius = SCREW_RADIUS if (mask == IMPLANT).any() else 0.0
        metal = (*self._explant.axis(mm), radius)
        return to_grey(self._scan.reconstruct(attenuation, mm, y, x, metal)), mask

    def mask(self, z: int) -> npt.NDArray[np.uint8]:
        """The mask of slice ``z`` alone: (H, W) uint8, see `CLASSES`."""
        return self._tissue(*self._millimetres(z))[1]

    @property
    def window(self) -> Window:
        """Shows all tissues of this sample on a screen."""
        # bone must stay visible beside Ti
        high = min(1.15 * self._explant.brightest, 12.0)
        low, top = to_grey(np.array([-1.2, high], np.float32))
        return Window(int(low), int(top))

    def _millimetres(self, z: int) -> tuple[float, Floats, Floats]:
        """z, and y (H,) and x (W,) from the middle."""
        depth, height, width = self.shape
        if not 0 <= z < depth:
            raise IndexError(f"{self.name} has no slice {z}, it has 0 to {depth - 1}")
        pixel = np.float32(self.field_of_view / width)
        y = (np.arange(height, dtype=np.float32) - np.float32((height - 1) / 2)) * pixel
        x = (np.arange(width, dtype=np.float32) - np.float32((width - 1) / 2)) * pixel
        return (z + 0.5) / depth * HEIGHT, y, x

    def _tissue(self, mm: float, y: Floats, x: Floats) -> tuple[Floats, npt.NDArray[np.uint8]]:
        dy, dx = self._scan.shift(mm)
        return self._explant.tissue(mm, y + np.float32(dy), x + np.float32(dx))

    @cached_property
    def _explant(self) -> Explant:
        return Explant(self.seed, self.material, self.weeks)

    @cached_property
    def _scan(self) -> Scan:
        rng = np.random.default_rng([self.seed, 2])
        return Scan(
            seed=self.seed,
            height=HEIGHT,
            photons=rng.uniform(1800, 4000),
            blur=rng.uniform(0.7, 0.95),
            fringe=rng.uniform(0.2, 0.5),
            rings=rng.uniform(0.08, 0.2),
            streaks=MATERIALS[self.material].streaks,
            step=rng.uniform(1.5, 1.9),
            drift=rng.uniform(0.03, 0.06),
        )


class Phantom:
    """Several samples as one source of slices, each sample a volume of its own.

    ``samples`` need different names; ``splits`` says for each name whether it trains, validates or
    tests (default: all train). Every `image` and `mask` is computed anew: `write` it to a folder
    and read that with `FolderSource` to use the slices more than a few times.
    """

    def __init__(
        self, samples: Sequence[PhantomSample], splits: Mapping[str, Split] | None = None
    ) -> None:
        self.samples = tuple(samples)
        if not self.samples or len({s.name for s in self.samples}) < len(self.samples):
            raise ValueError(f"sample names are {[s.name for s in samples]}, expected unique ones")
        self._split = {s.name: (splits or {}).get(s.name, "train") for s in self.samples}
        self._places = {
            f"{s.name}_z{z:04d}": (s, z) for s in self.samples for z in range(s.shape[0])
        }
        self.ids: tuple[SliceId, ...] = tuple(self._places)
        self.classes: tuple[str, ...] = CLASSES

    @property
    def splits(self) -> dict[str, tuple[SliceId, ...]]:
        """The slice ids of "train", "val" and "test"; no sample is in two of them."""
        ids: dict[str, list[SliceId]] = {"train": [], "val": [], "test": []}
        for slice_id, (sample, _) in self._places.items():
            ids[self._split[sample.name]].append(slice_id)
        return {name: tuple(members) for name, members in ids.items()}

    def image(self, slice_id: SliceId) -> npt.NDArray[np.uint16]:
        """(H, W) uint16."""
        sample, z = self._place(slice_id)
        return sample.slice(z)[0]

    def mask(self, slice_id: SliceId) -> npt.NDArray[np.uint8]:
        """(H, W) uint8, see `CLASSES`; nothing is unlabelled."""
        sample, z = self._place(slice_id)
        return sample.mask(z)

    def position(self, slice_id: SliceId) -> Position:
        """The sample's name, and z in slices."""
        sample, z = self._place(slice_id)
        return Position(sample.name, float(z))

    def _place(self, slice_id: SliceId) -> tuple[PhantomSample, int]:
        try:
            return self._places[str(slice_id)]
        except KeyError:
            raise KeyError(f"no slice {slice_id!r}, expected one like {self.ids[0]!r}") from None

    def write(
        self, directory: str | Path, progress: Progress | None = None, *, jobs: int = 1
    ) -> Path:
        """Write ``images/ID.png`` (16-bit), ``masks/ID.png`` (8-bit), ``classes.json`` and
        ``volumes.json`` (samples and their split), one slice in memory at a time.

        Every file appears whole or not at all, and those already there are kept, so an interrupted
        call is simply made again. ``jobs`` processes share the work. Raises FolderError when the
        folder holds something else.
        """
        root = Path(directory)
        self._claim(root)
        missing = list(self._missing(root))
        done = len(self.ids) - len(missing)
        report = progress or (lambda step, done, total: None)
        report("write phantom", done, len(self.ids))
        for count in _write_all(root, missing, jobs):
            done += count
            report("write phantom", done, len(self.ids))
        return root

    def _claim(self, root: Path) -> None:
        """Make the folder ours, or check that it already is this phantom."""
        record = {"generator": _GENERATOR, "volumes": [self._record(s) for s in self.samples]}
        text = json.dumps(record, indent=1) + "\n"
        index = root / "volumes.json"
        if index.exists():
            if index.read_text() != text:
                raise FolderError(
                    f"{index} describes another phantom (other size, seed or version of the "
                    "generator), expected this one or an empty folder: delete the folder, or "
                    "choose another"
                )
        elif (root / "images").exists() or (root / "masks").exists():
            raise FolderError(
                f"{root} has images or masks that are not ours: choose another folder"
            )
        for name in ("images", "masks"):
            (root / name).mkdir(parents=True, exist_ok=True)
        write_whole(
            root / "classes.json", (json.dumps({"names": CLASSES}, indent=1) + "\n").encode()
        )
        write_whole(index, text.encode())

    def _record(self, sample: PhantomSample) -> dict[str, Any]:
        return {
            "name": sample.name,
            "split": self._split[sample.name],
            "slices": sample.shape[0],
            "seed": sample.seed,
            "shape": list(sample.shape),
            "material": sample.material,
            "weeks": sample.weeks,
            "field_of_view_mm": sample.field_of_view,
        }

    def _missing(self, root: Path) -> Iterator[tuple[PhantomSample, int, str]]:
        there = [{path.name for path in (root / d).iterdir()} for d in ("images", "masks")]
        for slice_id, (sample, z) in self._places.items():
            if any(f"{slice_id}.png" not in names for names in there):
                yield sample, z, slice_id


_GENERATOR = 2
"""Raised whenever the same seed would give other slices."""


def _write_all(
    root: Path, slices: list[tuple[PhantomSample, int, str]], jobs: int
) -> Iterator[int]:
    """Write them, yielding how many more are on disk."""
    if jobs <= 1:
        for one in slices:
            yield _write_chunk(root, [one])
        return
    chunks = [slices[i : i + 8] for i in range(0, len(slices), 8)]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        try:
            futures = [pool.submit(partial(_write_chunk, root), chunk) for chunk in chunks]
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _write_chunk(root: Path, slices: list[tuple[PhantomSample, int, str]]) -> int:
    for sample, z, slice_id in slices:
        image, mask = sample.slice(z)
        _write_png(root / "images" / f"{slice_id}.png", image)
        _write_png(root / "masks" / f"{slice_id}.png", mask)
    return len(slices)


def _write_png(path: Path, pixels: npt.NDArray[Any]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    write_whole(path, buffer.getvalue(), flush=False)  # it can be had again


@dataclass(frozen=True)
class _Size:
    """Slices of each split, shared among its samples, and (H, W) of a slice."""

    plane: tuple[int, int]
    slices: Mapping[Split, int]
    samples: Mapping[Split, tuple[tuple[str, int], ...]]


_SIZES: Mapping[str, _Size] = {
    # of one sample eight slices teach a small network all there is to learn in a minute
    "demo": _Size(
        (160, 160), {"train": 120}, {"train": (("Mg-10Gd", 8), ("Mg-5Gd", 12), ("PEEK", 8))}
    ),
    "small": _Size(
        (128, 128),
        {"train": 384, "val": 96, "test": 192},
        {
            "train": (
                *(("Mg-5Gd", 8), ("Mg-10Gd", 4), ("Mg-5Gd", 12)),
                *(("Ti", 12), ("PEEK", 4), ("Mg-10Gd", 8)),
            ),
            "val": (("Mg-5Gd", 8), ("Mg-10Gd", 12)),
            "test": (("Mg-5Gd", 4), ("Mg-10Gd", 8), ("Ti", 4), ("PEEK", 12)),
        },
    ),
    "seed": _Size(
        (512, 512),
        {"train": 6878, "val": 5591, "test": 6000},
        {
            "train": (
                *(("Mg-5Gd", 4), ("Mg-5Gd", 8), ("Mg-5Gd", 12)),
                *(("Mg-10Gd", 4), ("Mg-10Gd", 8), ("Mg-10Gd", 12)),
                *(("Ti", 8), ("PEEK", 12)),
            ),
            "val": (
                *(("Mg-5Gd", 4), ("Mg-5Gd", 12), ("Mg-10Gd", 8)),
                *(("Mg-10Gd", 12), ("Ti", 4), ("PEEK", 4)),
            ),
            "test": (
                *(("Mg-5Gd", 8), ("Mg-10Gd", 4), ("Ti", 8)),
                *(("Mg-10Gd", 12), ("Mg-5Gd", 4), ("PEEK", 8)),
            ),
        },
    ),
}


def phantom(size: str = "demo", *, seed: int = 0, plane: tuple[int, int] | None = None) -> Phantom:
    """A ready-made phantom.

    - ``"demo"``: 3 samples (Mg-10Gd, Mg-5Gd, PEEK) of 40 slices of 160² each, no split.
    - ``"small"``: 6 / 2 / 4 samples (train / val / test) of 384 / 96 / 192 slices of 128².
    - ``"seed"``: 8 / 6 / 6 samples of 6,878 / 5,591 / 6,000 slices of 512², as in the talk that the
      project starts from.

    ``plane`` (H, W) overrides the size of a slice. Raises OptionError for an unknown ``size``.
    """
    if size not in _SIZES:
        raise OptionError(f"phantom size is {size!r}, expected one of: {', '.join(_SIZES)}")
    height, width = plane or _SIZES[size].plane
    samples: list[PhantomSample] = []
    splits: dict[str, Split] = {}
    for split, kinds in _SIZES[size].samples.items():
        share, more = divmod(_SIZES[size].slices[split], len(kinds))
        for i, (material, weeks) in enumerate(kinds):
            number = len(samples) + 1
            name = f"s{number:02d}-{material.lower().replace('-', '')}-{weeks:02d}w"
            shape = (share + (i < more), height, width)
            samples.append(PhantomSample(seed * 100 + number, shape, material, weeks, name))
            splits[name] = split
    return Phantom(samples, splits)
