"""What a file says besides the values: voxel size, its unit, class names; and sidecar files for
formats that have no place for it.

A sidecar is JSON: ``{"voxel_size": [z, y, x], "unit": "µm", "classes": ["background", …], "origin":
[z, y, x]}``, each key optional.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ml_backend.volumes.limits import HEADER_BYTES
from ml_backend.volumes.volume import Read, Volume, VolumeError, VolumeSpec

__all__ = [
    "Notes",
    "as_text",
    "length_in",
    "our_classes",
    "our_note",
    "read_sidecar",
    "sidecar_path",
    "sizes_in_one_unit",
    "unit_symbol",
    "write_sidecar",
]

_SYMBOLS: Mapping[str, tuple[str, ...]] = {
    # the second µ is the Greek letter, the third is how ImageJ escapes it
    "µm": ("um", "μm", "\\u00b5m", "micron", "microns", "micrometer", "micrometre", "micrometers"),
    "mm": ("millimeter", "millimetre", "millimeters"),
    "nm": ("nanometer", "nanometre", "nanometers"),
    "cm": ("centimeter", "centimetre", "centimeters"),
    "m": ("meter", "metre", "meters"),
    "Å": ("angstrom", "angstroms", "\u212b"),
}

_MICROMETRES: Mapping[str, float] = {
    "m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "nm": 1e-3, "Å": 1e-4,
}  # fmt: skip

_FAR = 1e100
"""Places from here on are none: headers may claim any number."""


def as_text(said: bytes) -> str:
    """What a header says: UTF-8, and where it is none Latin-1, as programs wrote it before."""
    try:
        return said.decode("utf-8-sig")
    except UnicodeDecodeError:
        return said.decode("latin-1")


def unit_symbol(text: object) -> str:
    """ "µm" for "micrometer", "um", …; what is no known length as it stands."""
    name = as_text(text) if isinstance(text, bytes) else str(text or "")
    name = name.strip()
    for symbol, names in _SYMBOLS.items():
        if name == symbol or name.lower() in names:
            return symbol
    return name


def length_in(unit: str, other: str) -> float | None:
    """How many ``other`` one ``unit`` is; None for what is no known length."""
    if unit not in _MICROMETRES or other not in _MICROMETRES:
        return None
    return _MICROMETRES[unit] / _MICROMETRES[other]


@dataclass(frozen=True)
class Notes:
    """As in `Volume`: edge lengths of a voxel along z, y, x, their unit, class names, and where
    the first voxel lies."""

    voxel_size: tuple[float, float, float] | None = None
    unit: str = ""
    classes: tuple[str, ...] | None = None
    origin: tuple[float, float, float] | None = None

    @classmethod
    def of(cls, spec: VolumeSpec) -> Notes:
        return cls(spec.voxel_size, spec.unit, spec.classes, spec.origin)

    def starting(self, places: Sequence[Any]) -> Notes:
        """With the first voxel at ``places`` along z, y, x, in the unit of the voxel size; as it is
        where that is not known, or where they are 0, what files say that know of no place."""
        try:
            z, y, x = (float(place) for place in places)
        except (OverflowError, TypeError, ValueError):
            return self
        if self.voxel_size is None or not math.hypot(z, y, x) < _FAR or z == y == x == 0:
            return self
        return replace(self, origin=(z, y, x))

    @classmethod
    def sized(
        cls, sizes: Sequence[Any], unit: object, classes: tuple[str, ...] | None = None
    ) -> Notes:
        """With the voxel size where all three ``sizes`` are lengths, else without one."""
        try:
            z, y, x = (float(size) for size in sizes)
        except (OverflowError, TypeError, ValueError):  # JSON has integers of any size
            return cls(classes=classes)
        if not all(math.isfinite(size) and size > 0 for size in (z, y, x)):
            return cls(classes=classes)
        return cls((z, y, x), unit_symbol(unit), classes)

    def volume(
        self,
        path: Path,
        shape: tuple[int, int, int],
        dtype: np.dtype[Any],
        read: Read,
        close: Callable[[], None] | None = None,
    ) -> Volume:
        """The volume that says this."""
        volume = Volume(path, shape, dtype, read, self.voxel_size, self.unit, self.classes)
        volume = replace(volume, origin=self.origin)
        return volume if close is None else replace(volume, close=close)

    def to_json(self) -> dict[str, Any]:
        classes = None if self.classes is None else list(self.classes)
        size = None if self.voxel_size is None else list(self.voxel_size)
        origin = {} if self.origin is None else {"origin": list(self.origin)}
        return {"voxel_size": size, "unit": self.unit, "classes": classes, **origin}

    @classmethod
    def beside(cls, path: Path) -> Notes:
        """What the sidecar of the volume at ``path`` says. Raises VolumeError."""
        return cls.from_json(sidecar_path(path), read_sidecar(path))

    @classmethod
    def from_json(cls, path: Path, content: Mapping[str, Any]) -> Notes:
        """Raises VolumeError naming ``path`` for a voxel size or classes that are none."""
        classes = content.get("classes")
        if classes is not None and not (
            isinstance(classes, list) and all(isinstance(name, str) for name in classes)
        ):
            raise VolumeError(f"{path} has classes {classes!r}, expected a list of names by value")
        names = None if classes is None else tuple(classes)
        size = content.get("voxel_size")
        if size is None:
            return cls(classes=names)
        notes = cls.sized(size if isinstance(size, list) else (), content.get("unit"), names)
        if notes.voxel_size is None:
            raise VolumeError(f"{path} has voxel_size {size!r}, expected [z, y, x], all above 0")
        origin = content.get("origin")
        return notes.starting(origin) if isinstance(origin, list) else notes


def sizes_in_one_unit(
    sizes: Sequence[Any], units: Sequence[object], places: Sequence[Any] = ()
) -> Notes:
    """Of sizes along z, y, x that each have a unit of their own: all in that of x; so are
    ``places``, where the first voxel lies."""
    symbols = [unit_symbol(unit) for unit in units]
    if len(set(symbols)) > 1:
        factors = [length_in(symbol, symbols[-1]) for symbol in symbols]
        if None in factors or None in sizes:
            return Notes()
        sizes = [float(s) * (f or 1.0) for s, f in zip(sizes, factors, strict=True)]
        if places and None not in places:
            places = [float(p) * (f or 1.0) for p, f in zip(places, factors, strict=True)]
    return Notes.sized(sizes, symbols[-1]).starting(places)


def our_note(text: object) -> dict[str, Any]:
    """What a header's field of ours says, JSON of an object; empty for what is anything else."""
    try:
        said = json.loads(str(text).rstrip("\0 "))
    except (RecursionError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def our_classes(said: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The class names in `our_note`'s, None without any."""
    classes = said.get("classes")
    return tuple(map(str, classes)) if isinstance(classes, list) else None


def sidecar_path(path: Path) -> Path:
    """``scan.raw.json`` for ``scan.raw``, ``volume.json`` inside a folder."""
    return path / "volume.json" if path.is_dir() else path.with_name(f"{path.name}.json")


def read_sidecar(path: Path) -> dict[str, Any]:
    """What is beside the volume at ``path``, empty without one. Raises VolumeError."""
    sidecar = sidecar_path(path)
    try:
        with sidecar.open("rb") as file:
            # a buffer is taken for all that is asked for
            text = file.read(min(HEADER_BYTES, os.fstat(file.fileno()).st_size) + 1)
        if len(text) > HEADER_BYTES:
            raise VolumeError(f"{sidecar} has more than the {HEADER_BYTES} bytes that are read")
        content = json.loads(text.decode("utf-8"))
    except FileNotFoundError:
        return {}
    except VolumeError:
        raise
    except (OSError, RecursionError, ValueError) as error:
        raise VolumeError(f"{sidecar} cannot be read ({error}), expected JSON") from error
    if not isinstance(content, dict):
        raise VolumeError(f'{sidecar} is no JSON object, expected {{"voxel_size": …, …}}')
    return content


def write_sidecar(path: Path, spec: VolumeSpec, layout: Mapping[str, Any] | None = None) -> None:
    """Say beside the volume at ``path`` what ``spec`` does; ``layout``: more keys, before those."""
    content = {**(layout or {}), **Notes.of(spec).to_json()}
    text = json.dumps(content, ensure_ascii=False, indent=1)
    sidecar_path(path).write_text(text + "\n", encoding="utf-8")
