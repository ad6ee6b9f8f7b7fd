"""Which axes of an array are z, y and x, by their names, and which of several channels is read.

Every format that names its axes asks here: ``axistags``, NeXus, OME, ImageJ, NIfTI, Zarr's
dimension names. Names are obeyed, or refused saying what was found; only axes without a name are
taken by their place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_backend.volumes.formats.checks import three_axes
from ml_backend.volumes.volume import AXES, ReadOptions, VolumeError

__all__ = ["AxisChoice", "choose_axes", "letter_of", "refuse_choice"]

_WORDS: Mapping[str, tuple[str, ...]] = {
    "z": ("z", "depth", "slice", "slices", "plane", "planes"),
    "y": ("y", "row", "rows", "height"),
    "x": ("x", "column", "columns", "col", "width"),
    "c": ("c", "ch", "channel", "channels", "energy", "wavelength", "lambda"),
    "t": ("t", "time", "frame", "frames", "timepoint", "timepoints"),
}
_OPTIONS = {"c": "channel", "t": "time"}


@dataclass(frozen=True)
class AxisChoice:
    """Places of z, y and x among the axes of an array, and the index at each other place."""

    axes: tuple[int, int, int]
    picked: Mapping[int, int]

    def index(self, axis: int, start: int, stop: int) -> tuple[int | slice, ...]:
        """What cuts the part between two indices of z (0), y (1) or x (2) out of the array."""
        cut: dict[int, int | slice] = dict(self.picked)
        for i, place in enumerate(self.axes):
            cut[place] = slice(start, stop) if i == axis else slice(None)
        return tuple(cut[place] for place in sorted(cut))

    @property
    def order(self) -> tuple[int, int, int]:
        """What turns such a part to (z, y, x) by `transpose`."""
        z, y, x = (sorted(self.axes).index(place) for place in self.axes)
        return z, y, x


def letter_of(name: str) -> str:
    """ "z", "y", "x", "c" (channel) or "t" (time) for an axis called so; "" for another name.

    Also as a part of it: ``detector_y``, ``voxel_x.units``, ``z (µm)``.
    """
    parts = re.findall(r"[a-z]+", name.lower())
    # "c" and "t" alone are letters; as parts of a name they may stand for anything
    whole = len(parts) == 1
    found = {
        letter
        for letter, words in _WORDS.items()
        for part in parts
        if part in words and (whole or len(part) > 1 or part in AXES)
    }
    return found.pop() if len(found) == 1 else ""


def choose_axes(
    path: Path,
    names: Sequence[str],
    shape: Sequence[int],
    options: ReadOptions,
    *,
    expected: str = "z, y, x",
    stacked: bool = False,
) -> AxisChoice:
    """By ``names``, one for each axis of ``shape`` and "" for one without; none: by places alone.

    Axes whose names say nothing are the ones that are missing, where that is the order z, y, x.
    Channels and times are chosen by ``options``, and of other axes there must be one. ``stacked``:
    of images that are counted along a single axis, which is then z whatever it is called, as
    programs call a plain stack frames or channels. ``expected``: what it says in errors.

    Raises VolumeError for names that are contradictory or leave z, y or x out, for several of what
    is not chosen, and for a choice of what is not there.
    """
    if names and len(names) != len(shape):
        raise VolumeError(
            f"{path} names {len(names)} axes ({', '.join(names)}) for an array of shape "
            f"{tuple(shape)}, expected as many"
        )
    letters = [letter_of(name) for name in names]
    if not any(letters):
        refuse_choice(path, options)
        places = three_axes(path, shape)
        return AxisChoice(places, {p: 0 for p in range(len(shape)) if p not in places})
    return _Names(path, names, letters, tuple(shape), options, expected, stacked).choice()


def refuse_choice(path: Path, options: ReadOptions) -> None:
    """Raises VolumeError where ``options`` choose one of several, and there is nothing named so."""
    for letter in _OPTIONS:
        _check_index(path, letter, options, 1)


def _check_index(path: Path, letter: str, options: ReadOptions, length: int) -> int:
    index: int | None = getattr(options, _OPTIONS[letter])
    if index is None or 0 <= index < length:
        return index or 0
    what = {"c": "channel", "t": "time"}[letter]
    there = f"{length} {what}s" if length > 1 else f"no axis of several {what}s"
    raise VolumeError(
        f"{path} has {there}, asked for is {options.asked_by(_OPTIONS[letter])} {index}: expected "
        + (f"0 to {length - 1}" if length > 1 else "0, or none")
    )


@dataclass(frozen=True)
class _Names:
    """The question of `choose_axes`."""

    path: Path
    names: Sequence[str]
    letters: Sequence[str]
    shape: tuple[int, ...]
    options: ReadOptions
    expected: str
    stacked: bool

    def choice(self) -> AxisChoice:
        if min(self.shape) < 1:
            raise VolumeError(
                f"{self.path} has the shape {self.shape}: it is empty, expected voxels"
            )
        axes = self._axes()
        picked = {p: 0 for p in range(len(self.shape)) if p not in axes}
        for letter, option in _OPTIONS.items():
            long = self._long([p for p in picked if self.letters[p] == letter])
            index = getattr(self.options, option)
            if len(long) == 1 and index is not None:
                picked[long[0]] = _check_index(self.path, letter, self.options, self.shape[long[0]])
            elif not long:
                _check_index(self.path, letter, self.options, 1)
        for place in self._long(picked):
            if self._chosen(place) is None:
                self._refuse_several(place)
        return AxisChoice(axes, picked)

    def _chosen(self, place: int) -> int | None:
        option = _OPTIONS.get(self.letters[place])
        return None if option is None else getattr(self.options, option)

    def _long(self, places: Sequence[int] | Mapping[int, int]) -> list[int]:
        return [place for place in places if self.shape[place] != 1]

    def _axes(self) -> tuple[int, int, int]:
        places = {one: self._places(one) for one in AXES}
        for one, found in places.items():
            if len(found) > 1:
                raise VolumeError(f"{self.path} has {self._found()}, expected only one {one}")
        named = {one: found[0] for one, found in places.items() if found}
        if self.stacked and (place := self._stack(named.get("z"))) is not None:
            named["z"] = place
        if missing := [one for one in AXES if one not in named]:
            named |= dict(zip(missing, self._unnamed(len(missing)), strict=True))
            # y, x and one more is an image of several values; x, y and one more says nothing of z
            if not named["z"] < named["y"] < named["x"]:
                self._refuse_missing()
        return named["z"], named["y"], named["x"]

    def _places(self, letter: str) -> list[int]:
        return [place for place, one in enumerate(self.letters) if one == letter]

    def _unnamed(self, count: int) -> list[int]:
        """Places of as many axes whose names say nothing."""
        unnamed = self._places("")
        for places in (unnamed, self._long(unnamed)):
            if len(places) == count:
                return places
        return self._refuse_missing()

    def _stack(self, z: int | None) -> int | None:
        """The only axis of several images, where z is not one."""
        if z is not None and self.shape[z] != 1:
            return None
        others = (p for p, letter in enumerate(self.letters) if letter not in AXES)
        long = [p for p in self._long(list(others)) if self._chosen(p) is None]
        return long[0] if len(long) == 1 else None

    def _refuse_missing(self) -> list[int]:
        raise VolumeError(f"{self.path} has {self._found()}, expected z, y, x among them")

    def _refuse_several(self, place: int) -> None:
        option, last = _OPTIONS.get(self.letters[place]), self.shape[place] - 1
        how = (
            f"choose it with {self.options.asked_by(option)}, 0 to {last}"
            if option and len(self._long(self._places(self.letters[place]))) == 1
            else "write the one that is wanted into a file of its own"
        )
        expected = "one axis of slices" if self.stacked else self.expected
        raise VolumeError(
            f"{self.path} has {self._found()}, expected {expected} and only one "
            f"{self.names[place] or 'of what has no name'}: {how}"
        )

    def _found(self) -> str:
        named = ", ".join(name or "?" for name in self.names)
        found = f"the axes {named} of lengths {self.shape}"
        if not self.stacked:
            return found
        leading = [
            n for n, letter in zip(self.shape, self.letters, strict=True) if letter not in "yx"
        ]
        return f"{found}, stacks of {' × '.join(map(str, leading))} images"
